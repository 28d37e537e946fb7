"""Which file each case becomes in an exported collection, and the documents that describe the collection.

1. ``nnunet``: raw data of nnU-Net 2: ``imagesTr/ID_0000.nii.gz``, ``labelsTr/ID.nii.gz``, ``dataset.json``, and
   ``splits_final.json`` with one fold for each split. Test cases lie in ``imagesTs`` and ``labelsTs``.
2. ``monai``: the same folders without ``_0000``, and ``datalist.json`` with the lists training, validation and test.
3. ``lits``: ``volume-N.nii`` and ``segmentation-N.nii`` in one folder.

Without a split, cases with a mask are training cases and the others are test cases. ``cases.csv`` lists each case with
its files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ConfigError
from slicemill.ct.grid_checks import shear_degrees
from slicemill.ct.labels import IGNORE, Labels, format_labels
from slicemill.store.case import CaseInfo
from slicemill.store.layout import DatasetFormat
from slicemill.store.split import Split

Part = Literal["training", "validation", "test"]
LITS_ID = re.compile(r"volume-(0|[1-9]\d*)")
TABLE = "cases.csv"
NNUNET_DATASET, NNUNET_SPLITS, MONAI_DATALIST = "dataset.json", "splits_final.json", "datalist.json"
DOCUMENTS: dict[DatasetFormat, frozenset[str]] = {
    "nnunet": frozenset({NNUNET_DATASET, NNUNET_SPLITS}),
    "monai": frozenset({MONAI_DATALIST}),
    "lits": frozenset(),
}
"""Documents that an export of each format may write."""
ITK_SHEAR_DEGREES = 1e-3
"""Shear above which SimpleITK 2.5 refuses a NIfTI file; the rounding of a header is below it."""
Document = tuple[str, Any]
"""File name and JSON value."""


@dataclass(frozen=True, kw_only=True)
class PlannedCase:
    """A case and its files."""

    case_id: str
    patient_id: str
    part: Part
    """Part of the first split that names the case."""
    image: str
    """Path relative to the exported folder, with forward slashes."""
    label: str | None
    """None without a mask."""


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """The files of an exported collection."""

    form: DatasetFormat
    suffix: str
    cases: tuple[PlannedCase, ...]
    labels: Mapping[str, int]
    """Label names and the values in the exported files."""
    changed: Mapping[int, int]
    """Stored value to exported value, where they differ."""
    documents: tuple[Document, ...]

    def values(self) -> npt.NDArray[np.uint8] | None:
        """Return the exported value of each stored value, uint8[256]; None if all are equal."""
        if not self.changed:
            return None
        table = np.arange(256, dtype=np.uint8)
        for value, exported in self.changed.items():
            table[value] = exported
        return table


def plan_dataset(
    infos: Sequence[CaseInfo], form: DatasetFormat, suffix: str, splits: Mapping[str, Split] | None = None
) -> DatasetPlan:
    """Return the files of a collection.

    Parameters
    ----------
    infos
        The cases of the store, in its order.
    suffix
        ``.nii.gz`` or ``.nii``.
    splits
        File name to split, for messages. Cases that no split names are left out.

    Raises
    ------
    ConfigError
        The splits contradict each other, a training case has no mask, or the format cannot hold the labels.
    """
    by_id = {info.case_id: info for info in infos}
    parts = _assign_parts(by_id, splits or {})
    chosen = [by_id[case_id] for case_id in by_id if case_id in parts]
    if not chosen:
        raise ConfigError("there is no case to export.")
    labels = _common_labels(chosen)
    values = _choose_values(labels, form)
    folds = list((splits or {}).values())
    names = _number(chosen) if form == "lits" else {info.case_id: info.case_id for info in chosen}
    cases = tuple(_place(info, parts[info.case_id], names[info.case_id], form, suffix) for info in chosen)
    documents: tuple[Document, ...] = ()
    if form == "nnunet":
        documents = _describe_nnunet(chosen, cases, values, suffix, folds)
    elif form == "monai":
        documents = ((MONAI_DATALIST, _describe_monai(cases, values, folds)),)
    return DatasetPlan(
        form=form,
        suffix=suffix,
        cases=cases,
        labels=values,
        changed={old: values[name] for name, old in labels.values.items() if values[name] != old},
        documents=documents,
    )


def _assign_parts(infos: Mapping[str, CaseInfo], splits: Mapping[str, Split]) -> dict[str, Part]:
    """Return the part of each case that is exported."""
    if not splits:
        return {case_id: "training" if info.mask else "test" for case_id, info in infos.items()}
    parts: dict[str, Part] = {}
    for name, split in splits.items():
        lists: dict[Part, tuple[str, ...]] = {
            "training": split.train,
            "validation": split.validation,
            "test": split.test,
        }
        for part, case_ids in lists.items():
            for case_id in case_ids:
                earlier = parts.setdefault(case_id, part)
                if (earlier == "test") != (part == "test"):
                    raise ConfigError(
                        f"{case_id} is a test case of one split, and a training or validation case of another. "
                        "Export the splits one by one, each to a folder of its own.",
                        where=name,
                    )
    bare = sorted(case_id for case_id, part in parts.items() if part != "test" and not infos[case_id].mask)
    if bare:
        raise ConfigError(
            f"{len(bare)} training or validation cases have no mask: {', '.join(bare[:5])}. "
            "Take them out of the split, or ingest them again with their masks."
        )
    return parts


def _common_labels(infos: Sequence[CaseInfo]) -> Labels:
    """Return the labels that all cases with a mask share."""
    labeled = [(info.case_id, info.labels) for info in infos if info.labels]
    if not labeled:
        return Labels({})
    first_id, first = labeled[0]
    for case_id, labels in labeled:
        if labels != first:
            raise ConfigError(
                f"{first_id} and {case_id} have different labels ({format_labels(first.values)} and "
                f"{format_labels(labels.values)}). Ingest the collection with one --labels."
            )
    return first


def _choose_values(labels: Labels, form: DatasetFormat) -> dict[str, int]:
    """Return the value of each label in the exported files, in ascending order.

    nnU-Net wants 1, 2, 3 and so on, and the label `ignore` as the last. LiTS has the organ as 1 and tumor as 2.
    """
    if form == "nnunet":
        ordered = sorted(labels.values, key=lambda name: (name == IGNORE, labels.values[name]))
        return {name: number for number, name in enumerate(ordered, 1)}
    if form == "lits" and labels.values:
        if labels.organ is None or labels.tumor is None or len(labels.values) != 2:
            raise ConfigError(
                "LiTS has two labels, an organ and tumor; this store has "
                f"{format_labels(labels.values)} (organ {labels.organ or '-'}, tumor {labels.tumor or '-'}). "
                "Export it with --format nnunet or monai."
            )
        return {labels.organ: 1, labels.tumor: 2}
    return dict(labels.values)


def _number(infos: Sequence[CaseInfo]) -> dict[str, str]:
    """Return the number of each case in names of LiTS: its own, or else its place in the order of the store."""
    own = [LITS_ID.fullmatch(info.case_id) for info in infos]
    if all(own):
        return {info.case_id: match[1] for info, match in zip(infos, own, strict=True) if match}
    return {info.case_id: str(number) for number, info in enumerate(infos)}


def _place(info: CaseInfo, part: Part, name: str, form: DatasetFormat, suffix: str) -> PlannedCase:
    """Return a case with its files."""
    end = "Ts" if part == "test" else "Tr"
    if form == "lits":
        image, label = f"volume-{name}{suffix}", f"segmentation-{name}{suffix}"
    else:
        channel = "_0000" if form == "nnunet" else ""
        image, label = f"images{end}/{name}{channel}{suffix}", f"labels{end}/{name}{suffix}"
    return PlannedCase(
        case_id=info.case_id,
        patient_id=info.patient_id,
        part=part,
        image=image,
        label=label if info.mask else None,
    )


def _describe_nnunet(
    infos: Sequence[CaseInfo],
    cases: Sequence[PlannedCase],
    labels: Mapping[str, int],
    suffix: str,
    splits: Sequence[Split],
) -> tuple[Document, ...]:
    """Return nnU-Net's documents. By default it reads with SimpleITK, which refuses sheared grids (tilted gantry)."""
    is_sheared = any(shear_degrees(info.affine_lps) > ITK_SHEAR_DEGREES for info in infos)
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **labels},
        "numTraining": sum(case.part != "test" for case in cases),
        "file_ending": suffix,
        **({"overwrite_image_reader_writer": "NibabelIO"} if is_sheared else {}),
    }
    folds = [{"train": list(split.train), "val": list(split.validation)} for split in splits]
    return ((NNUNET_DATASET, dataset), *(((NNUNET_SPLITS, folds),) if folds else ()))


def _describe_monai(cases: Sequence[PlannedCase], labels: Mapping[str, int], splits: Sequence[Split]) -> dict[str, Any]:
    """Return MONAI's datalist. Several splits are folds: `fold` is the number of the split that validates the case."""
    several = len(splits) > 1
    if several:
        _check_folds(splits)
    fold_of = {case_id: number for number, split in enumerate(splits) for case_id in split.validation}

    def item(case: PlannedCase) -> dict[str, Any]:
        files = {"image": case.image, **({"label": case.label} if case.label else {})}
        fold = {"fold": fold_of.get(case.case_id, len(splits))} if splits and case.part != "test" else {}
        return {**files, **fold}

    validation = [] if several else [item(case) for case in cases if case.part == "validation"]
    return {
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(value): name for name, value in labels.items()}},
        "numTraining": sum(case.part != "test" for case in cases),
        "numTest": sum(case.part == "test" for case in cases),
        "training": [item(case) for case in cases if case.part == "training" or (several and case.part != "test")],
        **({"validation": validation} if validation else {}),
        "test": [item(case) for case in cases if case.part == "test"],
    }


def _check_folds(splits: Sequence[Split]) -> None:
    """Check that each case has one fold: it is validated by one split at most, and trains all others."""
    known = {case_id for split in splits for case_id in (*split.train, *split.validation)}
    validated = [case_id for split in splits for case_id in split.validation]
    if len(set(validated)) < len(validated) or any({*split.train, *split.validation} != known for split in splits):
        raise ConfigError(
            "MONAI's datalist gives each case one fold, so several splits must be the folds of one cross-validation: "
            "each case is validated by one of them and trains the others. Export them one by one, each to a folder of "
            "its own."
        )
