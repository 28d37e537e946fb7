"""Which prediction belongs to which reference, and both on one grid."""

import base64
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import GeometryError, InputError, LabelError, PairingError, StoreError
from slicemill.common.files import read_json
from slicemill.ct.formats.nifti.header import grid_of_header
from slicemill.ct.formats.nifti.names import stem_of
from slicemill.ct.geometry import SAME_GRID_MM, Grid
from slicemill.ct.labels import Labels, format_labels, labels_from_json
from slicemill.ct.naming import case_id_of, find_files, name_of
from slicemill.ct.scan import ScanReader
from slicemill.ct.window import AIR_HU
from slicemill.store.reader import Case, is_store, open_store
from slicemill.store.statistics import value_counts

PROBABILITY = "_probability_"
"""What `infer --probability` puts between a mask's name and a label's."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where the truth of a case lies."""

    case_id: str
    """With its folder, where several have one id."""
    folder: str = ""
    """Where it lies below the references, as `slicemill.ct.naming.Name.folder`; a store has none."""
    mask: Path | None = None
    image: Path | None = None
    case: Case | None = None
    """In a store."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A predicted mask with its reference."""

    prediction: Path
    """The file, or the store."""
    name: str
    """Place of the file below the predictions, or the id of the stored case."""
    reference: Reference
    case: Case | None = None
    """The prediction, where it lies in a store."""


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """What belongs together, and what is left."""

    pairs: tuple[Pair, ...]
    missing: tuple[str, ...]
    """References without a prediction."""
    alone: tuple[str, ...]
    """Predictions without a reference."""
    damaged: tuple[tuple[str, str], ...] = ()
    """Stored cases that cannot be opened, with the reason."""


def pair_up(predictions: Path, references: Path) -> Pairing:
    """Return which prediction belongs to which reference.

    Raises
    ------
    PairingError
        There is nothing to compare, or two predictions are of one case.
    """
    damaged: dict[str, str] = {}
    known = _references(references, damaged)
    named = _predictions(predictions, damaged)
    exact = {name: reference for name in named if (reference := found(name, known, exact=True)) is not None}
    taken = {reference.case_id for reference in exact.values()}
    loose = {name: found(name, known) for name in named if name not in exact}
    pairs: dict[str, Pair] = {}
    alone = []
    for name, (file, case) in named.items():
        reference = exact.get(name) or loose[name]
        said = name if case is None else case.info.case_id
        if reference is None or (name not in exact and reference.case_id in taken):
            alone.append(said)
        elif reference.case_id in pairs:
            raise PairingError(
                f"{_place(pairs[reference.case_id])} and {file if case is None else f'{file}: {said}'} are both of the case "
                f"{reference.case_id}; keep one of them."
            )
        else:
            pairs[reference.case_id] = Pair(prediction=file, name=said, reference=reference, case=case)
    if not pairs:
        raise PairingError(
            f"{predictions}: none of its {len(named)} masks has the name of a reference in {references}."
        )
    everything = {one.case_id for several in known.values() for one in several}
    return Pairing(
        pairs=tuple(pairs.values()),
        missing=tuple(sorted(everything - set(pairs) - set(damaged))),
        alone=tuple(name for name in alone if name not in damaged and case_id_of(name) not in damaged),
        damaged=tuple(damaged.items()),
    )


def stored(root: Path, damaged: dict[str, str]) -> list[Case]:
    """Return the cases of a store that have a mask; those that cannot be opened go into `damaged`, with the reason."""
    store, cases = open_store(root), []
    for case_id in store.case_ids:
        try:
            cases.append(store[case_id])
        except StoreError as error:
            damaged[case_id] = str(error)
    return [case for case in cases if case.label is not None]


def _predictions(predictions: Path, damaged: dict[str, str]) -> dict[str, tuple[Path, Case | None]]:
    """Return name below the predictions -> file, or store and case; a stored case is known as a file of its id would be."""
    if is_store(predictions):
        cases = stored(predictions, damaged)
        if not cases:
            raise PairingError(
                f"{predictions}: holds no case with a mask; ingest the predicted masks with their scans."
            )
        return {f"{case.info.case_id}.nii": (predictions, case) for case in cases}
    files = [predictions] if predictions.is_file() else masks_in(predictions)
    if not files:
        raise PairingError(f"{predictions}: holds no mask (.nii or .nii.gz); `slicemill infer` writes them.")
    root = predictions.parent if predictions.is_file() else predictions
    return {file.relative_to(root).as_posix(): (file, None) for file in files}


class Placed(Protocol):
    """Something known by its name, and the folder in which it has that."""

    @property
    def folder(self) -> str:
        """Return the folder, as `slicemill.ct.naming.Name.folder`."""


Item = TypeVar("Item", bound=Placed)


def keys_of(relative: str) -> list[str]:
    """Return the names under which a file may be known, the most exact first: place and key, case id, key alone."""
    name = name_of(relative)
    return [f"{name.folder}/{name.key}", case_id_of(relative), *([f"*/{name.key}"] if name.key else [])]


def found(relative: str, known: Mapping[str, Sequence[Item]], *, exact: bool = False) -> Item | None:
    """Return what a file's name means of all that is `known` under a key; None where that is nothing or several.

    With `exact` only place and key are looked at. Else a case id or key counts, but only where one of the folders is the end of the
    other: ``001.nii.gz`` may be the case of ``a/001.nii.gz``, and ``b/001.nii.gz`` may not.
    """
    folder = name_of(relative).folder
    for key in keys_of(relative)[: 1 if exact else None]:
        near = [one for one in known.get(key, ()) if is_end(one.folder, folder)]
        if len(near) == 1:
            return near[0]
    return None


def is_end(folder: str, other: str) -> bool:
    """Return whether one of two folders is the end of the other.

    >>> is_end("", "a"), is_end("site/a", "a"), is_end("b", "a"), is_end("ba", "a")
    (True, True, False, False)
    """
    short, long = sorted((folder, other), key=len)
    return not short or f"/{long}".endswith(f"/{short}")


def _references(references: Path, damaged: dict[str, str]) -> dict[str, list[Reference]]:
    """Return references by every name under which they may be known."""
    if is_store(references):
        cases = stored(references, damaged)
        in_store: dict[str, list[Reference]] = {}
        for case in cases:
            case_id = case.info.case_id
            for key in dict.fromkeys([case_id, *keys_of(f"{case_id}.nii")]):
                in_store.setdefault(key, []).append(Reference(case_id=case_id, case=case))
        return in_store
    if not references.exists():
        raise PairingError(f"{references}: there is no such folder or store.")
    files = [references] if references.is_file() else find_files(references)
    root = references.parent if references.is_file() else references
    names = {file: name_of(file.relative_to(root).as_posix()) for file in files}
    masks = [file for file in files if names[file].role == "mask"] or files
    images = {
        (names[file].folder, names[file].key): file
        for file in files
        if names[file].role == "image" and file not in masks
    }
    scans = {mask: images.get((names[mask].folder, names[mask].key)) for mask in masks}
    case_ids = {mask: case_id_of((image or mask).relative_to(root).as_posix()) for mask, image in scans.items()}
    times = Counter(case_ids.values())
    by_key: dict[str, list[Reference]] = {}
    for mask, case_id in case_ids.items():
        name, relative = names[mask], mask.relative_to(root).as_posix()
        placed = name.folder if not name.key else f"{name.folder}/{case_id}".lstrip("/")
        reference = Reference(
            case_id=case_id if times[case_id] == 1 else placed, folder=name.folder, mask=mask, image=scans[mask]
        )
        for key in dict.fromkeys([*keys_of(relative), case_id]):
            by_key.setdefault(key, []).append(reference)
    return by_key


def labels_of_predictions(pairs: Sequence[Pair]) -> Labels | None:
    """Return the labels that the reports beside all predictions, or their store, name; None where one has none.

    Raises
    ------
    LabelError
        They name different ones.
    """
    named = [named_labels(pair) for pair in pairs]
    found = [labels for labels in named if labels is not None]
    if len(found) < len(named):
        return None
    if any(labels != found[0] for labels in found):
        raise LabelError(
            "the predictions come from models of different labels; evaluate them one model at a time, or pass --labels."
        )
    return found[0] if found else None


def named_labels(pair: Pair) -> Labels | None:
    """Return the labels that the report beside a prediction, or its store, names."""
    if pair.case is not None:
        return pair.case.info.labels
    report = report_of(pair)
    return labels_from_json(report) if report else None


def labels_of_references(pairs: Sequence[Pair]) -> Labels | None:
    """Return the labels of the store that holds the references, if one does."""
    return next((labels for pair in pairs if (labels := reference_labels(pair)) is not None), None)


def reference_labels(pair: Pair) -> Labels | None:
    """Return the labels of a reference in a store."""
    return None if pair.reference.case is None else pair.reference.case.info.labels


def check_agreement(pairs: Sequence[Pair], labels: Labels) -> None:
    """Refuse labels that mean other things in the predictions than in the store of the references.

    Raises
    ------
    LabelError
        They do: a name has two values, a value two names, or organ or tumor differ.
    """
    for pair in pairs:
        stored = reference_labels(pair)
        if stored is not None and not agree(labels, stored):
            raise LabelError(
                f"{pair.name}: {_source(pair)} names the labels {_said(labels)}, and its reference in the store {_said(stored)}; "
                "they must mean the same. Ingest the references with the model's labels, or pass --labels that are true of both."
            )


def check_reports(pairs: Sequence[Pair], labels: Labels) -> None:
    """Refuse predictions whose reports or store mean other things by a value than `labels`; those without either pass.

    Raises
    ------
    LabelError
        One does.
    """
    for pair in pairs:
        own = named_labels(pair)
        if own is not None and not agree(labels, own):
            raise LabelError(
                f"{pair.prediction}: {_source(pair)} names the labels {_said(own)}, and the other run {_said(labels)}; "
                "they must mean the same. Compare runs of one set of labels, or pass --labels that are true of both."
            )


def agree(labels: Labels, others: Labels) -> bool:
    """Return whether labels mean the same as far as both name something.

    >>> agree(Labels({"liver": 1, "tumor": 2}), Labels({"liver": 1})), agree(Labels({"liver": 1}), Labels({"tumor": 1}))
    (True, False)
    """
    ones, twos = (set(one.values.items()) for one in (labels, others))
    apart = any((name == other) != (value == number) for name, value in ones for other, number in twos)
    roles = (labels.organ, others.organ), (labels.tumor, others.tumor)
    return not apart and all(one is None or two is None or one == two for one, two in roles)


def _said(labels: Labels) -> str:
    return f"{format_labels(labels.values)} (organ {labels.organ or '-'}, tumor {labels.tumor or '-'})"


def _source(pair: Pair) -> str:
    return "its report" if pair.case is None else "its store"


def report_of(pair: Pair) -> dict[str, Any]:
    """Return the report that `infer` wrote beside a prediction; empty where there is none, and for a stored one."""
    return {} if pair.case is not None else report_beside(pair.prediction)


def report_beside(mask: Path) -> dict[str, Any]:
    """Return the report that `infer` wrote beside a mask; empty where there is none or another JSON file, even a broken one."""
    path = mask.with_name(stem_of(mask.name) + ".json")
    if not path.exists():
        return {}
    try:
        report = read_json(path)
    except InputError:
        return {}
    return report if "model_sha256" in report and "slice_tumor_scores" in report else {}


def masks_in(folder: Path) -> list[Path]:
    """Return the masks below a folder, without the probabilities and single labels that `infer` writes beside them."""
    files = find_files(folder)
    stems = {file.parent / stem_of(file.name) for file in files}
    return [file for file in files if not any(beside in stems for beside in _longer(file))]


def _longer(file: Path) -> list[Path]:
    """Return the masks that a file would lie beside, were it one of their probabilities or labels."""
    stem = stem_of(file.name)
    whole = [stem.partition(PROBABILITY)[0]] if PROBABILITY in stem else []
    for place in (index for index, sign in enumerate(stem) if sign == "_"):
        report = report_beside(file.with_name(f"{stem[:place]}.nii"))
        if stem[place + 1 :] in _label_parts(report):
            whole.append(stem[:place])
    return [file.parent / name for name in whole]


def _label_parts(report: dict[str, Any]) -> Collection[str]:
    """Return what stands for the labels of a report in names of files; nothing where it names none."""
    try:
        return labels_from_json(report).file_names().values()
    except LabelError:
        return ()


def probability_path(mask: Path, labels: Labels) -> Path | None:
    """Return where `infer --probability` puts the tumor's map beside a mask; None where no tumor is named."""
    if labels.tumor is None:
        return None
    stem = stem_of(mask.name)
    return mask.with_name(f"{stem}{PROBABILITY}{labels.file_names()[labels.tumor]}{mask.name[len(stem) :]}")


def masks_of(pair: Pair) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], Grid]:
    """Return prediction, reference, and the grid of the reference, on which both lie."""
    if pair.case is not None:
        label, own = stored_mask(pair.case)
        truth, grid = _reference_mask(pair, own)
        return np.ascontiguousarray(grid.to_stored(own.to_file(label))), truth, grid
    with ScanReader(pair.prediction, "mask") as prediction:
        truth, grid = _reference_mask(pair, prediction.grid)
        prediction.lie_on(grid)
        predicted = prediction.read()
        prediction.finish()
    return predicted, truth, grid


def _reference_mask(pair: Pair, own: Grid) -> tuple[npt.NDArray[np.uint8], Grid]:
    """Return the reference with its grid, which must be the prediction's own."""
    reference = pair.reference
    if reference.case is not None:
        truth, grid = stored_mask(reference.case)
        _check_grids(pair, own, grid)
        return truth, grid
    assert reference.mask is not None  # noqa: S101 (a reference is a file or a stored case)
    with ScanReader(reference.mask, "mask") as reader:
        _check_grids(pair, own, reader.grid)
        truth = reader.read()
        reader.finish()
        return truth, reader.grid


def stored_mask(case: Case) -> tuple[npt.NDArray[np.uint8], Grid]:
    """Return the mask of a stored case and the grid of its scan."""
    assert case.label is not None  # noqa: S101 (only cases with a mask are paired)
    return case.label[:], grid_of_header(base64.b64decode(case.info.image.header_b64))


def _check_grids(pair: Pair, grid: Grid, other: Grid) -> None:
    if grid.shape != other.shape:
        raise GeometryError(
            f"{_place(pair)}: has shape {grid.shape}, its reference {pair.reference.case_id} has {other.shape}."
        )
    if (apart := grid.distance_mm(other)) > SAME_GRID_MM:
        raise GeometryError(
            f"{_place(pair)}: lies {apart:.3g} mm from its reference {pair.reference.case_id}; they must share one grid."
        )


def _place(pair: Pair) -> str:
    return str(pair.prediction) if pair.case is None else f"{pair.prediction}: {pair.name}"


def check_values(label: npt.NDArray[np.uint8], labels: Labels, what: str) -> None:
    """Refuse values that no label has.

    Raises
    ------
    LabelError
        There is one.
    """
    odd = sorted({int(value) for value in np.flatnonzero(value_counts(label))} - {0, *labels.values.values()})
    if odd:
        raise LabelError(
            f"{what}: holds the values {odd} outside the labels {format_labels(labels.values)}; pass --labels."
        )


def image_of(pair: Pair, like: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Return the scan to draw on, or black where there is none of the masks' shape."""
    if pair.reference.case is not None:
        return pair.reference.case.image[:]
    if pair.reference.image is not None:
        with ScanReader(pair.reference.image, "image") as reader:
            if reader.grid.stored_shape == like.shape:
                volume: npt.NDArray[np.int16] = reader.read()
                return volume
    return np.full(like.shape, AIR_HU, dtype=np.int16)
