"""The samples of a classifier: which points of a store are nodules, which are not, and which are left out.

Per case:

1. Each nodule of the points is a positive sample, at its own center.
2. A candidate in a nodule's radius is that nodule: of class 1 it adds nothing, of class 0 the tables contradict each
   other. A candidate of class 1 in no nodule contradicts them, too. Contradictions are left out and listed.
3. A candidate in the radius of an excluded finding is left out.
4. The other candidates of class 0 are negative samples. Duplicates (`slicemill.store.point_tables`) are left out and
   listed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import StoreError
from slicemill.ct.points import has_ratings, is_malignant
from slicemill.store.point_tables import DUPLICATE_MM, NONE, compare_candidates
from slicemill.store.reader import Case

BANDS_MM = (6.0, 10.0)
"""Limits of the diameter bands that are drawn equally often."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A point to cut a crop around, and its class."""

    case_id: str
    xyz_mm: tuple[float, float, float]
    """Position in LPS mm."""
    positive: bool
    diameter_mm: float | None = None
    """Annotated diameter; None if unknown, and for negative samples."""

    @property
    def band(self) -> int:
        """Return the diameter band: 0 below 6 mm, 1 to 10 mm, 2 above; an unknown diameter is in the middle one."""
        diameter = self.diameter_mm
        return 1 if diameter is None else int(np.searchsorted(BANDS_MM, diameter, side="right"))


@dataclass(frozen=True, kw_only=True)
class LeftOutSample:
    """A point or candidate that training does not use."""

    case_id: str
    what: str
    """Id of the point, or line of the table of candidates."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of some cases, and what was left out."""

    used: tuple[Sample, ...]
    left_out: tuple[LeftOutSample, ...] = ()
    surplus: int = 0
    """Negative samples beyond the number that is kept for each positive one; not in `left_out`."""

    def of(self, *, positive: bool) -> list[Sample]:
        """Return the samples of one class."""
        return [sample for sample in self.used if sample.positive is positive]


def join_samples(parts: Sequence[Samples]) -> Samples:
    """Return the samples of several cases."""
    return Samples(
        used=tuple(sample for part in parts for sample in part.used),
        left_out=tuple(one for part in parts for one in part.left_out),
        surplus=sum(part.surplus for part in parts),
    )


def find_nodule_samples(case: Case) -> Samples:
    """Return the samples of a case for nodule or not, by the rules above."""
    case_id, points = case.case_id, case.points or ()
    nodules = [point for point in points if point.kind == "nodule"]
    used = [
        Sample(case_id=case_id, xyz_mm=point.xyz_mm, positive=True, diameter_mm=point.diameter_mm) for point in nodules
    ]
    table = case.candidates
    if table is None or not len(table):
        return Samples(used=tuple(used))
    found = compare_candidates(table, points)
    is_nodule, in_excluded = table[:, 3] == 1, found.in_excluded & ~found.in_nodule
    negative = ~is_nodule & ~found.in_nodule & ~in_excluded
    repeats = negative & (found.duplicate_of != NONE)
    reasons = {
        "class 0, but inside a nodule": ~is_nodule & found.in_nodule,
        "class 1, but in no nodule": is_nodule & ~found.in_nodule & ~in_excluded,
        "inside an excluded finding": in_excluded,
        f"within {DUPLICATE_MM:g} mm of another candidate": repeats,
    }
    left_out = [
        LeftOutSample(case_id=case_id, what=f"candidates, line {int(table[row, 4])}", reason=reason)
        for reason, rows in reasons.items()
        for row in np.flatnonzero(rows)
    ]
    used += [
        Sample(case_id=case_id, xyz_mm=(float(x), float(y), float(z)), positive=False)
        for x, y, z in table[negative & ~repeats, :3]
    ]
    return Samples(used=tuple(used), left_out=tuple(left_out))


def are_rated(cases: Iterable[Case]) -> bool:
    """Return whether malignancy is a rating from 1 to 5 (`has_ratings`); of all cases of a store."""
    return has_ratings(point.malignancy for case in cases for point in case.points or ())


def find_malignancy_samples(cases: Sequence[Case], *, ratings: bool) -> Samples:
    """Return nodules as samples, positive where malignant.

    What is neither by `is_malignant`, a nodule without a value or a rating of 3, is left out.

    Raises
    ------
    StoreError
        A value is neither.
    """
    nodules = [(case.case_id, point) for case in cases for point in case.points or () if point.kind == "nodule"]
    used, left_out = [], []
    for case_id, point in nodules:
        try:
            positive = is_malignant(point.malignancy, ratings=ratings)
        except ValueError as error:
            name = f"malignancy of {point.id} of case {case_id}"
            raise StoreError(f"{name} {error}. Correct the table of points.") from None
        if positive is None:
            is_middle = point.malignancy is not None
            reason = "malignancy 3 of 5: neither benign nor malignant" if is_middle else "no malignancy"
            left_out.append(LeftOutSample(case_id=case_id, what=point.id, reason=reason))
            continue
        used.append(Sample(case_id=case_id, xyz_mm=point.xyz_mm, positive=positive, diameter_mm=point.diameter_mm))
    return Samples(used=tuple(used), left_out=tuple(left_out))


def keep_negatives(samples: Samples, most: int, rng: np.random.Generator) -> Samples:
    """Keep at most `most` negative samples for each positive one, at random, and count the rest; the order stays."""
    negatives = [index for index, sample in enumerate(samples.used) if not sample.positive]
    limit = most * (len(samples.used) - len(negatives))
    if len(negatives) <= limit:
        return samples
    dropped = set(rng.permutation(negatives)[limit:].tolist())
    kept = tuple(sample for index, sample in enumerate(samples.used) if index not in dropped)
    return Samples(used=kept, left_out=samples.left_out, surplus=len(dropped))


def draw_epoch(samples: Sequence[Sample], batch: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Draw the samples of an epoch: intp[steps, batch], half of each batch positive.

    Positive samples are drawn from the diameter bands in turn, each band in random order again and again; so are
    negative samples, which are one band if their diameters are unknown. An epoch has as many steps as draw each sample
    of the rarer class once.
    """
    half = batch // 2
    counts = [sum(sample.positive is positive for sample in samples) for positive in (True, False)]
    steps = max(1, -(-min(counts) // half))
    columns = []
    for positive, size in ((True, half), (False, batch - half)):
        bands: dict[int, list[int]] = {}
        for index, sample in enumerate(samples):
            if sample.positive is positive:
                bands.setdefault(sample.band, []).append(index)
        streams = [_cycle(bands[band], steps * size, rng) for band in sorted(bands)]
        columns.append(np.stack(streams, axis=1).reshape(-1)[: steps * size].reshape(steps, size))
    return np.concatenate(columns, axis=1)


def _cycle(indices: Sequence[int], count: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return `count` indices: all in random order, again and again."""
    rounds = [rng.permutation(np.asarray(indices, dtype=np.intp)) for _ in range(-(-count // len(indices)))]
    return np.concatenate(rounds)[:count]
