"""Measures of one region of a case, and rows of evaluation.csv."""

import math
from dataclasses import dataclass, replace

from slicemill.measure.evaluation.detection import THRESHOLDS, Mode, count_by_volume
from slicemill.measure.evaluation.score import CaseScores
from slicemill.measure.evaluation.statistics import nan_to_none

Row = dict[str, str | bool | int | float | None]
"""Column -> cell of a table."""
OVERLAPS = ("dice", "jaccard", "voe", "rvd", "rvd_lits", "precision", "recall")
"""Measures computed from voxel counts of both masks."""
MISSING_DISTANCE_MM = 9001.0
"""Value of the LiTS program for undefined distances, and for the burden without a predicted organ."""


@dataclass(frozen=True, kw_only=True)
class RegionMeasures:
    """All measures of one region of a case; NaN for undefined measures."""

    dice: float
    jaccard: float
    voe: float
    rvd: float
    rvd_lits: float
    precision: float
    recall: float
    assd_mm: float
    rmsd_mm: float
    mssd_mm: float
    hd95_mm: float
    surface_dice: float
    error_ml: float
    """Volume of the prediction minus that of the reference."""
    absolute_error_ml: float

    def items(self) -> list[tuple[str, float]]:
        """Return names and values in order."""
        return list(vars(self).items())


def measure_region(case: CaseScores, name: str, mode: Mode) -> RegionMeasures:
    """Return the measures of a region, by the mode's rules for empty masks."""
    counts, (reference_ml, predicted_ml) = case.regions[name], case.volumes_ml[name]
    measures = RegionMeasures(
        dice=counts.dice,
        jaccard=counts.jaccard,
        voe=counts.voe,
        rvd=counts.rvd,
        rvd_lits=counts.rvd_lits,
        precision=counts.precision,
        recall=counts.recall,
        **vars(case.surfaces[name]),
        error_ml=predicted_ml - reference_ml,
        absolute_error_ml=abs(predicted_ml - reference_ml),
    )
    if mode == "corrected":
        return measures
    if not counts.reference and not counts.predicted:
        measures = replace(measures, dice=1.0, jaccard=1.0, voe=0.0)
    large = ("assd_mm", "rmsd_mm", "mssd_mm", "hd95_mm", "rvd", "rvd_lits")
    missing = [name for name, value in measures.items() if name in large and math.isnan(value)]
    return replace(measures, **dict.fromkeys(missing, MISSING_DISTANCE_MM))


def make_row(case: CaseScores, mode: Mode = "corrected") -> Row:
    """Return a case as a row of evaluation.csv."""
    row: Row = {"case_id": case.case_id}
    for name in case.regions:
        reference_ml, predicted_ml = case.volumes_ml[name]
        cells = {f"{measure}_{name}": nan_to_none(value) for measure, value in measure_region(case, name, mode).items()}
        row |= {f"{measure}_{name}": cells[f"{measure}_{name}"] for measure in ("dice", "precision", "recall")}
        row |= {f"reference_{name}_ml": reference_ml, f"predicted_{name}_ml": predicted_ml}
        row |= cells
    if case.burden is not None:
        reference, predicted = map(nan_to_none, case.burden)
        row |= {"reference_burden": reference, "predicted_burden": predicted}
    if case.lesions is not None:
        matchings = case.lesions.matchings
        row |= {
            "reference_lesions": matchings[THRESHOLDS[0]].references,
            "predicted_lesions": matchings[THRESHOLDS[0]].predictions,
        }
        row |= {f"lesions_found_above_{threshold:g}": one.true_positive for threshold, one in matchings.items()}
        bands = count_by_volume(matchings[THRESHOLDS[0]], case.lesions.references_ml)
        row |= {f"lesions_{band}": references for band, (_, references) in bands.items()}
        row |= {f"lesions_found_{band}": found for band, (found, _) in bands.items()}
    if case.tumor is not None:
        row |= {
            "has_tumor": any(case.tumor.truth),
            "tumor_found": any(case.tumor.predicted),
            "tumor_voxels": int(case.tumor.voxels.case),
            "tumor_score": case.tumor.reported.case if case.tumor.reported else None,
        }
    return row
