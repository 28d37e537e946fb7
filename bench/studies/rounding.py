"""Scores as records have them: four digits, and None for NaN."""

import math

from slicemill.bench.records.quality import DiceGain
from slicemill.measure.evaluation.statistics import Difference


def round_score(value: float) -> float | None:
    """Round a score to four digits; None for NaN."""
    return None if math.isnan(value) else round(value, 4)


def round_gain(difference: Difference) -> DiceGain:
    """Return a paired difference as records have it."""
    rounded = {name: round_score(getattr(difference, name)) for name in ("mean", "low", "high", "p")}
    return DiceGain(patients=difference.patients, better=difference.better, **rounded)
