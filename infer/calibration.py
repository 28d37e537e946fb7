"""Calibration of a classifier: probabilities of candidates that mean what they say.

A classifier is trained on as many candidates of each class, while most candidates of a scan are none of its nodules.
So its probabilities are too high, and how much too sharp or too flat they are depends on the training. With the log
odds z of its output, the calibrated probability is ``sigmoid((z + shift) / temperature)`` (Guo et al. 2017 fit the
temperature alone; Platt 1999 both). Where the table of candidates has the mean probability of the segmentation that
found them, ``weight * s`` is added to it, with the log odds s of this mean: two networks that err in different ways.

1. The numbers maximize the likelihood of the classes of candidates that the network was not trained on. Targets are
   Platt's, (n + 1) / (n + 2) and 1 / (m + 2) for n nodules and m others, so that classes without overlap have finite
   numbers, too.
2. Without a weight the order is the same by construction: the temperature is above 0, and within the limits no two
   probabilities that float32 tells apart become equal in float64.
3. The expected calibration error (ECE) is the mean over all candidates of the difference, in each of BINS equal ranges
   of the probability, between its mean and the share of nodules.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.common.terminal import table_rows
from slicemill.store.crop_card import CropCalibration, ReliabilityBin

Floats = npt.NDArray[np.float64]
FEWEST = 20
"""Fewest candidates in nodules, and fewest elsewhere, for two numbers that are fitted to them."""
BINS = 10
TEMPERATURES, SHIFTS = (0.5, 20.0), (-40.0, 1.4)
"""Limits. The log odds of the float32 next to 1 are 16.6, and (16.6 + 1.4) / 0.5 is 36, where float64 still has
different numbers below 1."""
WEIGHT = "segmentation_weight"
WEIGHTS, WEIGHTED_TEMPERATURES = (0.0, 2.9), (1.0, 20.0)
"""Limits with a weight: (16.6 + 1.4) / 1 + 2.9 * 6.2 is 36, too."""
FLOOR = 1 / 510
"""Means of a segmentation are from FLOOR to 1 - FLOOR: its probabilities have steps of 1 / 255. Log odds to 6.2."""
SMALLEST, LARGEST = 1e-7, 1 - 2**-24
"""Range of the probabilities for the fit, as 0 and 1 have no log odds."""


@dataclass(frozen=True, kw_only=True)
class NotCalibrated:
    """Why there is no calibration."""

    reason: str


def calibrate(probability: npt.ArrayLike, means: Floats, calibration: CropCalibration | None) -> Floats:
    """Return calibrated probabilities float64[n] of a classifier's output; without a calibration, the same numbers.

    `means` are the mean probabilities of the segmentation, float64[n]; they count if the calibration has a weight.

    >>> calibrate([0.0, 0.5, 0.9, 1.0], np.full(4, 0.5), None).tolist()
    [0.0, 0.5, 0.9, 1.0]
    """
    raw = np.asarray(probability, dtype=np.float64)
    if calibration is None:
        return raw
    odds = (log_odds(raw) + calibration["shift"]) / calibration["temperature"]
    weight = segmentation_weight(calibration)
    return sigmoid(odds + weight * _odds_of_means(means) if weight else odds)


def segmentation_weight(calibration: CropCalibration) -> float:
    """Return the weight of the segmentation's mean probability; 0 without one."""
    return calibration.get("segmentation_weight", 0.0)


def fit_calibration(
    probability: Floats, means: Floats, is_nodule: npt.NDArray[np.bool_]
) -> CropCalibration | NotCalibrated:
    """Fit the numbers to candidates: the classifier's output, the segmentation's mean, and the class, each [n].

    If a mean is NaN, as the table of candidates has none, no weight is fitted.
    """
    nodules = int(is_nodule.sum())
    others = len(is_nodule) - nodules
    if min(nodules, others) < FEWEST:
        return NotCalibrated(
            reason=f"{nodules} candidates in nodules and {others} elsewhere; {FEWEST} of each are needed"
        )
    temperature, shift, weight = _maximize_likelihood(probability, means, is_nodule)
    fitted = CropCalibration(
        temperature=temperature,
        shift=shift,
        segmentation_weight=weight,
        in_nodules=nodules,
        elsewhere=others,
        ece_before=0.0,
        ece_after=0.0,
        reliability_before=[],
        reliability_after=[],
    )
    before = measure_reliability(probability, is_nodule)
    after = measure_reliability(calibrate(probability, means, fitted), is_nodule)
    fitted["reliability_before"], fitted["reliability_after"] = before, after
    fitted["ece_before"], fitted["ece_after"] = calibration_error(before), calibration_error(after)
    return fitted


def _maximize_likelihood(
    probability: Floats, means: Floats, is_nodule: npt.NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Return temperature, shift and weight; there is one maximum: it is concave in 1 / T, shift / T and the weight."""
    from scipy.optimize import minimize

    odds = log_odds(np.clip(probability, SMALLEST, LARGEST))
    has_means = bool(np.isfinite(means).all())
    seen = _odds_of_means(means) if has_means else np.zeros(len(odds))
    nodules, others = int(is_nodule.sum()), int((~is_nodule).sum())
    target = np.where(is_nodule, (nodules + 1) / (nodules + 2), 1 / (others + 2))

    def loss(values: Floats) -> tuple[float, Floats]:
        scale, shift, weight = np.exp(-values[0]), values[1], values[2]
        own = (odds + shift) * scale
        total = own + weight * seen
        slope = (sigmoid(total) - target) / len(target)
        value = (np.logaddexp(0.0, total) - target * total).mean()
        return float(value), np.array([-(slope * own).sum(), slope.sum() * scale, (slope * seen).sum()])

    temperatures, weights = (WEIGHTED_TEMPERATURES, WEIGHTS) if has_means else (TEMPERATURES, (0.0, 0.0))
    low, high = np.log(temperatures)
    best = minimize(loss, np.zeros(3), jac=True, method="L-BFGS-B", bounds=[(low, high), SHIFTS, weights]).x
    return float(np.clip(np.exp(best[0]), *temperatures)), float(best[1]), float(np.clip(best[2], *weights))


def measure_reliability(probability: Floats, is_nodule: npt.NDArray[np.bool_]) -> list[ReliabilityBin]:
    """Return the reliability curve: a point for each of BINS equal ranges of the probability that has candidates.

    >>> measure_reliability(np.array([0.05, 0.95, 0.97]), np.array([False, True, False]))[1]
    {'mean_probability': 0.96, 'share_of_nodules': 0.5, 'candidates': 2}
    """
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    return [
        ReliabilityBin(
            mean_probability=float(probability[inside].mean()),
            share_of_nodules=float(is_nodule[inside].mean()),
            candidates=int(inside.sum()),
        )
        for inside in (place == number for number in range(BINS))
        if inside.any()
    ]


def calibration_error(curve: list[ReliabilityBin]) -> float:
    """Return the expected calibration error of a reliability curve."""
    total = sum(one["candidates"] for one in curve)
    return sum(abs(one["mean_probability"] - one["share_of_nodules"]) * one["candidates"] for one in curve) / total


def describe_calibration(fitted: CropCalibration | NotCalibrated) -> list[str]:
    """Return lines about a calibration: its numbers, and the reliability curve before and after."""
    if isinstance(fitted, NotCalibrated):
        return [f"no calibration: {fitted.reason}. Probabilities stay the network's output."]
    rows = [
        [when, f"{one['mean_probability']:.3f}", f"{one['share_of_nodules']:.3f}", one["candidates"]]
        for when, curve in (("before", fitted["reliability_before"]), ("after", fitted["reliability_after"]))
        for one in curve
    ]
    numbers = f"temperature {fitted['temperature']:.3g}, shift {fitted['shift']:.3g}"
    return [
        f"calibration: {numbers}, weight of the segmentation {segmentation_weight(fitted):.3g}",
        f"expected calibration error: {fitted['ece_before']:.4f} before, {fitted['ece_after']:.4f} after",
        *table_rows(["calibration", "mean probability", "share of nodules", "candidates"], rows),
    ]


def _odds_of_means(means: Floats) -> Floats:
    return log_odds(np.clip(means, FLOOR, 1 - FLOOR))


def log_odds(probability: Floats) -> Floats:
    """Return the log odds; -inf and inf of 0 and 1."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(probability) - np.log1p(-probability), dtype=np.float64)


def sigmoid(odds: Floats) -> Floats:
    """Return 1 / (1 + exp(-odds)), in the form that keeps small probabilities."""
    with np.errstate(over="ignore"):
        small = np.exp(np.minimum(odds, 0.0))  # exp(odds) below 0, else 1
        return np.asarray(small / (small + np.exp(-np.maximum(odds, 0.0))), dtype=np.float64)
