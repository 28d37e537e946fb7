"""Divide cases into train, validation and test parts: by patient, with a fixed seed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from slicemill.common.errors import StoreError
from slicemill.common.names import natural_key
from slicemill.store.reader import Store
from slicemill.store.split import Split
from slicemill.store.tables import make_manifest_row

Row = dict[str, Any]
"""A row of the manifest of a store."""


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Cases that must stay in one part: those of a patient, and copies of their scans under other names."""

    case_ids: tuple[str, ...]
    tumor_ml: float
    """Tumor volume of all cases, ml."""


def split_store(store: Store, *, validation: float, test: float, seed: int) -> Split:
    """Divide the cases of a store that have a mask at random (`make_split`).

    Every training on a store divides it here, so that networks that are used together have the same test patients.

    Raises
    ------
    StoreError
        Fewer than three patients have a mask.
    """
    rows = [make_manifest_row(case.info).columns() for case in store.values()]
    return make_split(rows, validation=validation, test=test, seed=seed)


def make_split(manifest: Sequence[Row], *, validation: float, test: float, seed: int) -> Split:
    """Divide the patients with masks at random.

    Patients without tumor, and each quarter of the others by tumor volume, are divided in the same proportion. Patients
    that share a scan of equal bytes or of equal voxels count as one, so that a copy under another name or in another
    file format cannot be in two parts.

    Raises
    ------
    StoreError
        Fewer than three patients have a mask.
    """
    groups = _group_cases(manifest)
    if len(groups) < 3:
        raise StoreError(
            f"training needs at least 3 patients with a mask (train, validation, test); the store has {len(groups)}."
        )
    shuffled = [groups[index] for index in np.random.default_rng(seed).permutation(len(groups))]
    strata = _burden_strata([group.tumor_ml for group in shuffled])
    shares = {"test": test, "validation": validation, "train": 1 - test - validation}
    parts: dict[str, list[_Group]] = {name: [] for name in shares}
    # In the order of strata, add each patient to the part that is farthest below its share.
    for number, index in enumerate(np.argsort(strata, kind="stable"), start=1):
        behind = {name: share * number - len(parts[name]) for name, share in shares.items() if share > 0}
        parts[max(behind, key=behind.__getitem__)].append(shuffled[int(index)])
    for part in ("train", "validation"):
        if not parts[part]:
            parts[part].append(max(parts.values(), key=len).pop())
    return _make_split(**parts)


def make_folds(manifest: Sequence[Row], *, folds: int, validation: float, seed: int) -> list[Split]:
    """Return one split per fold. Every patient is in the test part of exactly one fold.

    Patients are distributed in the order of their tumor volume, so folds have similar shares of tumor-free patients and
    of small and large tumors. Validation patients are also taken from the full range of that order.

    Raises
    ------
    StoreError
        There are fewer patients with a mask than folds need.
    """
    groups = _group_cases(manifest)
    if folds < 2 or len(groups) < max(folds, 3):
        raise StoreError(
            f"{folds} folds need at least {max(folds, 3)} patients with a mask, and there must be at least 2 folds; "
            f"the store has {len(groups)} patients."
        )
    rng = np.random.default_rng(seed)
    shuffled = [groups[index] for index in rng.permutation(len(groups))]
    ordered = sorted(shuffled, key=lambda group: group.tumor_ml)
    fold_of: list[int] = []
    while len(fold_of) < len(ordered):
        fold_of += rng.permutation(folds).tolist()
    count = max(1, round(validation * len(ordered)))
    splits = []
    for fold in range(folds):
        test = [group for group, own in zip(ordered, fold_of, strict=False) if own == fold]
        rest = [group for group, own in zip(ordered, fold_of, strict=False) if own != fold]
        splits.append(_split_rest(rest, test, count))
    return splits


def make_subset_folds(manifest: Sequence[Row], *, validation: float) -> dict[str, Split]:
    """Return one split per folder ``subset0``, ``subset1``, ..., as LUNA16 divides its scans, by the folder's name.

    The scans of the folder are the test part. Other scans of their patients, and copies of them, are in no part.

    Raises
    ------
    StoreError
        A scan with a mask has no such folder in its path, or there are fewer than two folders, or too few patients
        outside of one.
    """
    groups = sorted(_group_cases(manifest), key=lambda group: group.tumor_ml)
    subset_of = {row["case_id"]: _find_subset(row) for row in manifest if row["mask_path"] is not None}
    names = sorted(set(subset_of.values()), key=natural_key)
    if len(names) < 2:
        raise StoreError(f"folds by folder need scans in at least 2 folders; all are in {', '.join(names) or 'none'}.")
    count = max(1, round(validation * len(groups)))
    splits = {}
    for name in names:
        rest = [group for group in groups if all(subset_of[case_id] != name for case_id in group.case_ids)]
        if len(rest) < 2:
            raise StoreError(f"fold {name}: training needs at least 2 patients outside of it; there are {len(rest)}.")
        inside = tuple(case_id for case_id, subset in subset_of.items() if subset == name)
        splits[name] = _split_rest(rest, [_Group(case_ids=inside, tumor_ml=0.0)], count)
    return splits


def _find_subset(row: Row) -> str:
    folders = PurePosixPath(row["image_path"]).parent.parts
    found = [name for name in folders if re.fullmatch(r"subset\d+", name, re.IGNORECASE)]
    if not found:
        raise StoreError(
            f"case {row['case_id']} lies in no folder subset0, subset1, ... but in {row['image_path']!r}; "
            "leave out --subsets."
        )
    return found[-1].lower()


def _split_rest(rest: Sequence[_Group], test: Sequence[_Group], count: int) -> Split:
    """Return a fold: `count` groups for validation, evenly spaced over the rest, which is in order of burden."""
    chosen = {round((number + 0.5) * len(rest) / count - 0.5) for number in range(min(count, len(rest) - 1))}
    return _make_split(
        train=[group for number, group in enumerate(rest) if number not in chosen],
        validation=[group for number, group in enumerate(rest) if number in chosen],
        test=test,
    )


def _make_split(*, train: Sequence[_Group], validation: Sequence[_Group], test: Sequence[_Group]) -> Split:
    def sorted_ids(part: Sequence[_Group]) -> tuple[str, ...]:
        return tuple(sorted(case_id for group in part for case_id in group.case_ids))

    return Split(train=sorted_ids(train), validation=sorted_ids(validation), test=sorted_ids(test))


def _burden_strata(burdens_ml: Sequence[float]) -> list[int]:
    """Return 0 for patients without tumor, and 1 to 4 for the others by the quarter of their tumor volume.

    >>> _burden_strata([0.0, 5.0, 9.0, 1.0, 7.0])
    [0, 2, 4, 1, 3]
    """
    ranked = sorted(burden for burden in burdens_ml if burden)
    return [1 + 4 * ranked.index(burden) // len(ranked) if burden else 0 for burden in burdens_ml]


def _group_cases(manifest: Sequence[Row]) -> list[_Group]:
    """Return the cases with a mask in groups of equal patient, equal bytes or equal voxels, also through a chain.

    >>> rows = [{"case_id": c, "patient_id": p, "source_sha256": s, "mask_path": "m", "tumor_volume_ml": 1.0}
    ...     for c, p, s in (("1", "a", "x"), ("2", "b", "y"), ("3", "b", "x"), ("4", "c", "z"))]
    >>> [group.case_ids for group in _group_cases(rows)]
    [('1', '2', '3'), ('4',)]
    """
    rows = [row for row in manifest if row["mask_path"] is not None]
    parent = list(range(len(rows)))  # of each case in a forest; cases with one root are one group

    def find_root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, row in enumerate(rows):
        for key in ("patient_id", "source_sha256", "fingerprint"):
            if row.get(key) is not None:
                parent[find_root(index)] = find_root(first.setdefault((key, row[key]), index))
    members: dict[int, list[Row]] = {}
    for index, row in enumerate(rows):
        members.setdefault(find_root(index), []).append(row)
    groups = [
        _Group(
            case_ids=tuple(row["case_id"] for row in group),
            tumor_ml=float(sum(row["tumor_volume_ml"] or 0.0 for row in group)),
        )
        for group in members.values()
    ]
    return sorted(groups, key=lambda group: min(group.case_ids))
