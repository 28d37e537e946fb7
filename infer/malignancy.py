"""Malignancy of candidates: the classifier's output beside the diameter, which alone tells much of it.

A classifier learns malignancy from nodules drawn alike from all diameters, so that it learns what a nodule looks like
and not how large it is. With the log odds m of its output and the diameter d, the malignancy of a candidate is
``sigmoid(weight * m + diameter_weight * ln(d / 10 mm) + shift)``: a logistic regression.

1. The numbers are fitted to nodules that the network was not trained on, with their annotated diameters. `infer` takes
   those of the candidates, of the ball of equal volume.
2. Nodules for it are few, so the weights have a prior: normal around 1 and around 0, with PRIOR_DEVIATIONS. The shift
   has none: it follows the share of these nodules that are malignant, and malignancy holds where the share is alike.
3. AUCs on the same nodules are stated: of the output, of the diameter, and of both. The last one flatters by the little
   that three numbers can learn by heart.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.overlap import area_under_roc
from slicemill.infer.calibration import LARGEST, SMALLEST, NotCalibrated, log_odds, sigmoid
from slicemill.store.crop_card import MalignancyCalibration, describe_malignancy

Floats = npt.NDArray[np.float64]
FEWEST = 10
"""Fewest malignant nodules, and fewest benign ones."""
MIDDLE_MM = 10.0
"""Diameter whose weight is 0."""
PRIOR_DEVIATIONS = 1.0, 2.0
"""Standard deviations of the priors of the output's weight and of the diameter's."""
LIMITS = (0.0, 4.0), (-8.0, 8.0), (-20.0, 20.0)
"""Ranges of the weights and of the shift: the output never counts in reverse."""


@dataclass(frozen=True, kw_only=True)
class JudgedNodules:
    """Nodules whose malignancy is known, n."""

    output: Floats
    """float64[n]: the classifier's output."""
    diameter_mm: Floats
    malignant: npt.NDArray[np.bool_]


def calibrate_malignancy(output: npt.ArrayLike, diameter_mm: Floats, numbers: MalignancyCalibration | None) -> Floats:
    """Return the malignancy float64[n] of candidates by output and diameter; without numbers, the output.

    >>> calibrate_malignancy([0.2, 0.9], np.array([4.0, 20.0]), None).tolist()
    [0.2, 0.9]
    """
    raw = np.asarray(output, dtype=np.float64)
    if numbers is None:
        return raw
    features = _features(raw, diameter_mm)
    return sigmoid(features @ [numbers["weight"], numbers["diameter_weight"], numbers["shift"]])


def fit_malignancy(nodules: JudgedNodules) -> MalignancyCalibration | NotCalibrated:
    """Fit the numbers: the most probable ones, given the nodules and the prior. There is one maximum."""
    from scipy.optimize import minimize

    truth = nodules.malignant
    malignant = int(truth.sum())
    benign = len(truth) - malignant
    if min(malignant, benign) < FEWEST:
        return NotCalibrated(
            reason=f"{malignant} malignant nodules and {benign} benign ones; {FEWEST} of each are needed"
        )
    features = _features(nodules.output, nodules.diameter_mm)
    center, precision = np.array([1.0, 0.0, 0.0]), np.array([*(deviation**-2 for deviation in PRIOR_DEVIATIONS), 0.0])

    def loss(values: Floats) -> tuple[float, Floats]:
        odds, away = features @ values, values - center
        value = (np.logaddexp(0.0, odds) - truth * odds).sum() + (precision * away**2).sum() / 2
        return float(value), features.T @ (sigmoid(odds) - truth) + precision * away

    best = minimize(loss, center, jac=True, method="L-BFGS-B", bounds=LIMITS).x
    return MalignancyCalibration(
        weight=float(best[0]),
        diameter_weight=float(best[1]),
        shift=float(best[2]),
        malignant=malignant,
        benign=benign,
        auc_output=area_under_roc(truth, nodules.output),
        auc_diameter=area_under_roc(truth, nodules.diameter_mm),
        auc_both=area_under_roc(truth, features @ best),
    )


def describe_malignancy_fit(fitted: MalignancyCalibration | NotCalibrated | None) -> list[str]:
    """Return lines about the numbers; none if the classifier has no malignancy."""
    if fitted is None:
        return []
    if isinstance(fitted, NotCalibrated):
        return [f"malignancy: {describe_malignancy(None)}: {fitted.reason}"]
    return [f"malignancy: {describe_malignancy(fitted)}"]


def _features(output: Floats, diameter_mm: Floats) -> Floats:
    """Return float64[n, 3]: log odds of the output, logarithm of the diameter, 1."""
    odds = log_odds(np.clip(output, SMALLEST, LARGEST))
    return np.column_stack([odds, np.log(diameter_mm / MIDDLE_MM), np.ones(len(odds))])
