"""Flags: reasons for a manual check of a case."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from slicemill.measure.lesions.load import LoadedCase
from slicemill.measure.lesions.measurements import CaseFigures, LesionMeasurement, Volume

FAR = 3.5
"""Modified z-score above which a volume is an outlier (Iglewicz and Hoaglin 1993)."""
ENOUGH_CASES = 5
"""Minimum number of cases for a comparison of volumes."""


def find_flags(case: LoadedCase, figures: CaseFigures, lesions: Sequence[LesionMeasurement]) -> Iterator[str]:
    """Yield the flags of one case."""
    organ = case.volume.labels.organ
    if organ and not figures.organ_ml:
        yield f"no {organ} found"
    if organ and figures.organ_ml:
        alone = [lesion.id for lesion in lesions if not touches_organ(case.volume, lesion.bbox_zyx)]
        if alone:
            yield f"lesion {', '.join(map(str, alone))} touches no {organ}"
    unsure = [one.id for one in lesions if one.probability_mean is not None and one.probability_mean < 0.5]
    if unsure:
        yield f"mean probability below 0.5 in lesion {', '.join(map(str, unsure))}"
    mean, removed = (case.model.mean_tumor_probability, case.model.removed_tumor_score) if case.model else (None, None)
    if mean is not None and mean < 0.5:
        yield f"the mean probability of the tumor voxels is {mean:.2f}"
    if removed is not None and removed > 0.5:
        yield f"no tumor, but the highest tumor score is {removed:.2f}"
    yield from (f"warning: {warning}" for warning in case.warnings)


def touches_organ(volume: Volume, box: Sequence[int]) -> bool:
    """Return whether the box around a lesion, enlarged by one voxel, contains organ."""
    organ = volume.labels.values[volume.labels.organ or ""]
    sides = tuple(slice(max(0, low - 1), high + 1) for low, high in zip(box[:3], box[3:], strict=True))
    return bool((volume.label[sides] == organ).any())


def flag_far_volumes(organ_ml: Mapping[str, float | None]) -> dict[str, str]:
    """Return case -> flag, for organ volumes whose logarithm has a modified z-score above FAR.

    The score uses the median and the median absolute deviation, because outliers change mean and standard deviation.
    """
    logarithms = {case: math.log(volume) for case, volume in organ_ml.items() if volume}
    if len(logarithms) < ENOUGH_CASES:
        return {}
    middle = statistics.median(logarithms.values())
    deviation = statistics.median(abs(value - middle) for value in logarithms.values())
    if not deviation:
        return {}
    scores = {case: 0.6745 * (value - middle) / deviation for case, value in logarithms.items()}
    return {
        case: f"organ volume {'above' if score > 0 else 'below'} the others (modified z {score:.1f})"
        for case, score in scores.items()
        if abs(score) > FAR
    }
