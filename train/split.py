"""Who is trained on, who chooses the checkpoint, who is never seen: by patient, with a fixed seed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from slicemill.common.errors import StoreError
from slicemill.store.split import Split

Row = dict[str, Any]


def make_split(manifest: Sequence[Row], *, validation: float, test: float, seed: int) -> Split:
    """Share the patients with masks out; those without tumor, and each quarter of the rest by burden (ml), in the same proportion.

    Patients that share a scan of equal bytes or of equal voxels count as one, so that a copy under another name, or in
    another file format, cannot leak.

    Raises
    ------
    StoreError
        Fewer than three patients have a mask.
    """
    groups = _groups([row for row in manifest if row["mask_path"] is not None])
    if len(groups) < 3:
        raise StoreError(
            f"training needs at least 3 patients with a mask (train, validation, test); the store has {len(groups)}."
        )
    order = [groups[index] for index in np.random.default_rng(seed).permutation(len(groups))]
    strata = _strata(order)
    wanted = {"test": test, "validation": validation, "train": 1 - test - validation}
    parts: dict[str, list[list[Row]]] = {name: [] for name in wanted}
    for place, index in enumerate(np.argsort(strata, kind="stable"), start=1):
        part = max(
            (name for name in wanted if wanted[name] > 0), key=lambda name: wanted[name] * place - len(parts[name])
        )
        parts[part].append(order[int(index)])
    for part in ("train", "validation"):
        if not parts[part]:
            parts[part].append(max(parts.values(), key=len).pop())
    return Split(**{name: tuple(sorted(row["case_id"] for group in parts[name] for row in group)) for name in parts})


def _burden(group: Sequence[Row]) -> float:
    return float(sum(row["tumor_volume_ml"] or 0.0 for row in group))


def _strata(groups: Sequence[Sequence[Row]]) -> list[int]:
    """Return 0 for patients without tumor, 1 to 4 for the others by the quarter of their burden.

    >>> _strata([[{"tumor_volume_ml": ml}] for ml in (None, 5.0, 9.0, 1.0, 7.0)])
    [0, 2, 4, 1, 3]
    """
    ranked = sorted(burden for burden in map(_burden, groups) if burden)
    return [0 if not (burden := _burden(group)) else 1 + 4 * ranked.index(burden) // len(ranked) for group in groups]


def make_folds(manifest: Sequence[Row], *, folds: int, validation: float, seed: int) -> list[Split]:
    """Return one split a fold: every patient is in the test part of exactly one.

    Patients are dealt out in the order of their tumor burden (ml of tumor), so that each fold has its share of tumor-free
    ones and of small and large tumors; those that choose the checkpoint are taken from all over that order, too.

    Raises
    ------
    StoreError
        There are fewer patients with a mask than folds need.
    """
    groups = _groups([row for row in manifest if row["mask_path"] is not None])
    if folds < 2 or len(groups) < max(folds, 3):
        raise StoreError(
            f"{folds} folds need at least {max(folds, 3)} patients with a mask, and two folds at least; the store has {len(groups)} patients."
        )
    rng = np.random.default_rng(seed)
    shuffled = [groups[index] for index in rng.permutation(len(groups))]
    ordered = sorted(shuffled, key=_burden)
    fold_of: list[int] = []
    while len(fold_of) < len(ordered):
        fold_of += rng.permutation(folds).tolist()
    splits = []
    for fold in range(folds):
        rest = [group for group, of in zip(ordered, fold_of, strict=False) if of != fold]
        count = max(1, round(validation * len(ordered)))
        chosen = {round((place + 0.5) * len(rest) / count - 0.5) for place in range(min(count, len(rest) - 1))}
        parts = {
            "train": [group for place, group in enumerate(rest) if place not in chosen],
            "validation": [group for place, group in enumerate(rest) if place in chosen],
            "test": [group for group, of in zip(ordered, fold_of, strict=False) if of == fold],
        }
        splits.append(
            Split(
                **{
                    name: tuple(sorted(row["case_id"] for group in part for row in group))
                    for name, part in parts.items()
                }
            )
        )
    return splits


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the cases in groups that must stay together: of one patient, of equal bytes, of equal voxels, in a chain.

    >>> rows = [{"patient_id": p, "source_sha256": s} for p, s in (("a", "1"), ("b", "2"), ("b", "1"), ("c", "3"))]
    >>> [[row["patient_id"] for row in group] for group in _groups(rows)]
    [['a', 'b', 'b'], ['c']]
    """
    parent = list(range(len(rows)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, row in enumerate(rows):
        for key in ("patient_id", "source_sha256", "fingerprint"):
            if row.get(key) is None:
                continue
            parent[root(index)] = root(first.setdefault((key, row[key]), index))
    groups: dict[int, list[Row]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(root(index), []).append(row)
    return sorted(groups.values(), key=lambda group: min(str(row.get("case_id", "")) for row in group))
