"""Lesions found by volume, and the paired difference of their share between two variants."""

from collections.abc import Mapping, Sequence

from slicemill.bench.records.quality import LesionRecall, Part
from slicemill.bench.studies.results import Result, ScoredCase
from slicemill.bench.studies.rounding import round_gain
from slicemill.measure.evaluation.detection import BAND_NAMES
from slicemill.measure.evaluation.statistics import paired_difference


def recall_by_volume(
    results: Sequence[Result], reference: Sequence[Result] | None, part: Part
) -> dict[str, LesionRecall]:
    """Count the lesions of each band of volume that a variant found; `reference` has the same folds and seeds.

    A patient's share is over the cases, folds and seeds together. Results without counts give nothing.
    """
    own = [case for result in results for case in result.cases if case.part == part]
    if not any(case.lesions for case in own):
        return {}
    other = None if reference is None else [c for result in reference for c in result.cases if c.part == part]
    return {band: _recall(own, other, band) for band in BAND_NAMES}


def _recall(own: Sequence[ScoredCase], other: Sequence[ScoredCase] | None, band: str) -> LesionRecall:
    counts = count_by_patient(own, band)
    gain = None
    if other is not None:
        before = count_by_patient(other, band)
        patients = sorted(counts.keys() & before.keys())
        difference = paired_difference([_share(counts[p]) for p in patients], [_share(before[p]) for p in patients])
        gain = round_gain(difference)
    return LesionRecall(
        found=sum(found for found, _ in counts.values()),
        references=sum(references for _, references in counts.values()),
        gain=gain,
    )


def count_by_patient(cases: Sequence[ScoredCase], band: str) -> Mapping[str, tuple[int, int]]:
    """Return the lesions found, and all, of one band of volume, of each patient with such lesions."""
    counts: dict[str, tuple[int, int]] = {}
    for case in cases:
        found, references = case.lesions.get(band, (0, 0))
        if references:
            before = counts.get(case.patient_id, (0, 0))
            counts[case.patient_id] = before[0] + found, before[1] + references
    return counts


def _share(counts: tuple[int, int]) -> float:
    return counts[0] / counts[1]
