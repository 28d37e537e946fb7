"""A rule about lesions that is fitted to cases with references: a logistic regression over what is known of a lesion.

1. A lesion counts as true if the reference has tumor in at least one of its voxels.
2. With fewer than LEAST_LESIONS true or false lesions, or lesions of fewer than two patients, nothing is fitted.
3. The weights are fitted. The score below which lesions are removed is the one with the best mean Dice of tumor.
4. The patients are divided into up to FOLDS parts, each with all its scans. The Dice of a case is that under a rule of
   the other parts, so that it is not flattered by the fit. The rule itself is that of all cases.

The squared weights of the features, divided by their standard deviations, are penalized (L2), the intercept is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan

import numpy as np
import numpy.typing as npt

from slicemill.ct.overlap import Overlap, mean_without_nan
from slicemill.infer.lesion_features import LesionFeatures, keep_lesions, score_lesions
from slicemill.store.model_card import LesionRule, PostprocessRules

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
LEAST_LESIONS = 20
"""Below it, a rule of seven numbers follows chance."""
FOLDS = 5
PENALTY = 1.0
LEAST_SCORES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Scores that are tried as the least one."""
LEAST_GAIN = 0.01
"""What a fitted rule must add to the mean Dice of tumor. Of made-up cases whose hits were chance, 3 to 7 of 100 gained
more (6 cases of 12 lesions, 15 of 12, 15 of 4; on cases that the rule was not fitted to)."""
STEPS = 100


@dataclass(frozen=True, kw_only=True)
class LesionTable:
    """The predicted lesions of a case with their hits."""

    reference: int
    """Voxels of tumor in the reference."""
    found: LesionFeatures
    hits: Floats
    """Voxels of each lesion that are tumor in the reference."""

    def dice(self, kept: Mask) -> float:
        """Return the tumor Dice of the lesions that are kept, bool[n]; NaN where neither mask has tumor."""
        hits, predicted = int(self.hits[kept].sum()), int(self.found.voxels[kept].sum())
        return Overlap(hits, predicted - hits, self.reference - hits).dice

    def dice_of(self, rules: PostprocessRules) -> float:
        """Return the tumor Dice of the lesions that the rules keep."""
        return self.dice(keep_lesions(self.found, rules))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted rule, or why there is none."""

    rule: LesionRule | None = None
    tumor: float = nan
    """Mean Dice of tumor, each case under a rule that was fitted to other patients."""
    reason: str = ""
    """Why there is no rule."""


def fit_lesion_rule(tables: Sequence[LesionTable], patients: Sequence[str]) -> Fit:
    """Fit a rule to the lesions of cases; `patients` names the patient of each."""
    columns = [table.found.columns() for table in tables]
    true = [table.hits > 0 for table in tables]
    counts = [int(sum(np.count_nonzero(part == wanted) for part in true)) for wanted in (True, False)]
    with_lesions = [number for number, part in enumerate(true) if len(part)]
    tested = list(dict.fromkeys(patients[number] for number in with_lesions))
    if min(counts) < LEAST_LESIONS or len(tested) < 2:
        return Fit(
            reason=f"{counts[0]} lesions are tumor and {counts[1]} are not, of patients: {len(tested)}; it needs "
            f"{LEAST_LESIONS} of each, of 2 patients"
        )
    cases = list(zip(tables, columns, true, strict=True))
    dice = [table.dice(np.zeros(0, dtype=bool)) if not len(part) else nan for table, _, part in cases]
    for fold in range(min(FOLDS, len(tested))):
        held_out = [number for number in with_lesions if patients[number] in tested[fold::FOLDS]]
        rule = _fit([cases[number] for number in with_lesions if number not in held_out])
        for number in held_out:
            dice[number] = tables[number].dice(score_lesions(columns[number], rule) >= rule.least_score)
    return Fit(rule=_fit([cases[number] for number in with_lesions]), tumor=mean_without_nan(dice))


def _fit(cases: Sequence[tuple[LesionTable, Floats, Mask]]) -> LesionRule:
    """Return the rule of cases, each with the features and the truth of its lesions, with the best least score."""
    rule = fit_weights(np.concatenate([case[1] for case in cases]), np.concatenate([case[2] for case in cases]))
    scores = [(table, score_lesions(columns, rule)) for table, columns, _ in cases]
    dice = {least: mean_without_nan([table.dice(found >= least) for table, found in scores]) for least in LEAST_SCORES}
    return replace(rule, least_score=max(dice, key=lambda least: dice[least]))


def fit_weights(columns: Floats, true: Mask) -> LesionRule:
    """Fit a logistic regression with L2 penalty by Newton's method; `columns` is float64[n, 6], `true` is bool[n]."""
    center, scale = columns.mean(axis=0), columns.std(axis=0)
    scale[scale < np.finfo(np.float32).eps * np.maximum(1, np.abs(center))] = np.inf  # constant: of no use
    design = np.column_stack([np.ones(len(columns)), (columns - center) / scale])
    penalty = np.diag([0.0, *[PENALTY] * columns.shape[1]])
    weights = np.zeros(design.shape[1])
    for _ in range(STEPS):
        scores = 1 / (1 + np.exp(-np.clip(design @ weights, -500, 500)))
        slope = design.T @ (scores - true) + penalty @ weights
        curvature = (design.T * (scores * (1 - scores))) @ design + penalty
        curvature[0, 0] += np.finfo(np.float64).eps  # all of one kind: no intercept is best
        step = np.linalg.solve(curvature, slope)
        step *= min(1.0, 5 / max(float(np.abs(step).max()), 1e-300))
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    raw = weights[1:] / scale
    intercept = float(weights[0] - raw @ center)
    names = LesionRule.FEATURES
    return LesionRule(intercept=intercept, least_score=0.5, **dict(zip(names, map(float, raw), strict=True)))
