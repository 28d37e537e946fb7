"""Calibration of a classifier: probabilities of candidates that mean what they say, in the same order as before.

A classifier is trained on as many candidates of each class, while most candidates of a scan are none of its nodules.
So its probabilities are too high, and how much too sharp or too flat they are depends on the training. With the log
odds z of its output, the calibrated probability is ``sigmoid((z + shift) / temperature)`` (Guo et al. 2017 fit the
temperature alone; Platt 1999 both).

1. Both numbers maximize the likelihood of the classes of candidates that the network was not trained on. Targets are
   Platt's, (n + 1) / (n + 2) and 1 / (m + 2) for n nodules and m others, so that classes without overlap have finite
   numbers, too.
2. The order is the same by construction: the temperature is above 0, and within LIMITS no two probabilities that
   float32 tells apart become equal in float64.
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
TEMPERATURES, SHIFTS = (0.5, 20.0), (-12.0, 1.4)
"""Limits. The log odds of the float32 next to 1 are 16.6, and (16.6 + 1.4) / 0.5 is 36, where float64 still has
different numbers below 1."""
SMALLEST, LARGEST = 1e-7, 1 - 2**-24
"""Range of the probabilities for the fit, as 0 and 1 have no log odds."""


@dataclass(frozen=True, kw_only=True)
class NotCalibrated:
    """Why there is no calibration."""

    reason: str


def calibrate(probability: npt.ArrayLike, calibration: CropCalibration | None) -> Floats:
    """Return calibrated probabilities float64[n] of a classifier's output, 0 to 1; without one, the same numbers.

    >>> calibrate([0.0, 0.5, 0.9, 1.0], None).tolist()
    [0.0, 0.5, 0.9, 1.0]
    """
    raw = np.asarray(probability, dtype=np.float64)
    if calibration is None:
        return raw
    return _sigmoid((_log_odds(raw) + calibration["shift"]) / calibration["temperature"])


def fit_calibration(true: Floats, false: Floats) -> CropCalibration | NotCalibrated:
    """Fit both numbers to the probabilities of candidates in nodules, float64[n], and elsewhere, float64[m]."""
    if min(len(true), len(false)) < FEWEST:
        return NotCalibrated(
            reason=f"{len(true)} candidates in nodules and {len(false)} elsewhere; {FEWEST} of each are needed"
        )
    probability = np.concatenate([true, false])
    is_nodule = np.arange(len(probability)) < len(true)
    temperature, shift = _maximize_likelihood(probability, is_nodule)
    fitted = CropCalibration(
        temperature=temperature,
        shift=shift,
        in_nodules=len(true),
        elsewhere=len(false),
        ece_before=0.0,
        ece_after=0.0,
        reliability_before=[],
        reliability_after=[],
    )
    before = measure_reliability(probability, is_nodule)
    after = measure_reliability(calibrate(probability, fitted), is_nodule)
    fitted["reliability_before"], fitted["reliability_after"] = before, after
    fitted["ece_before"], fitted["ece_after"] = calibration_error(before), calibration_error(after)
    return fitted


def _maximize_likelihood(probability: Floats, is_nodule: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return temperature and shift; the likelihood has one maximum, as it is concave in 1 / T and shift / T."""
    from scipy.optimize import minimize

    odds = _log_odds(np.clip(probability, SMALLEST, LARGEST))
    nodules, others = int(is_nodule.sum()), int((~is_nodule).sum())
    target = np.where(is_nodule, (nodules + 1) / (nodules + 2), 1 / (others + 2))

    def loss(values: Floats) -> tuple[float, Floats]:
        scale, shift = np.exp(-values[0]), values[1]
        scaled = (odds + shift) * scale
        slope = (_sigmoid(scaled) - target) / len(target)
        value = (np.logaddexp(0.0, scaled) - target * scaled).mean()
        return float(value), np.array([-(slope * scaled).sum(), slope.sum() * scale])

    low, high = np.log(TEMPERATURES)
    best = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(low, high), SHIFTS]).x
    temperature = float(np.clip(np.exp(best[0]), *TEMPERATURES))
    return temperature, float(best[1])


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
    return [
        f"calibration: temperature {fitted['temperature']:.3g}, shift {fitted['shift']:.3g}",
        f"expected calibration error: {fitted['ece_before']:.4f} before, {fitted['ece_after']:.4f} after",
        *table_rows(["calibration", "mean probability", "share of nodules", "candidates"], rows),
    ]


def _log_odds(probability: Floats) -> Floats:
    """Return the log odds; -inf and inf of 0 and 1."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(probability) - np.log1p(-probability), dtype=np.float64)


def _sigmoid(odds: Floats) -> Floats:
    """Return 1 / (1 + exp(-odds)), in the form that keeps small probabilities."""
    with np.errstate(over="ignore"):
        small = np.exp(np.minimum(odds, 0.0))  # exp(odds) below 0, else 1
        return np.asarray(small / (small + np.exp(-np.maximum(odds, 0.0))), dtype=np.float64)
