"""The record of an experiment: scores of each variant, and what it gains over the reference, patient by patient.

- Dice per case: 2 TP / (2 TP + FP + FN). A case in which neither mask has a region has no Dice there: it is left out
  and counted. A false alarm in a case without the region counts as 0.
- A patient's Dice is the mean over the cases, folds and seeds; mean, median and deviation are over patients.
- Global Dice, precision and recall are of the volumes (ml) of all cases, folds and seeds together.
- Differences are paired by patient, over the folds and seeds that both variants have: mean, 95 % bootstrap interval
  over patients, Wilcoxon's p.
- All scores are over the folds and seeds that all variants have, so that variants can be compared; without a common
  one, there is no record. More seeds of a variant show the effect of chance: the record has the mean of each seed too.
- The best variant is chosen by the validation parts alone. The test parts only show how well it does.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median, stdev

from slicemill.bench.records.quality import (
    PARTS,
    Coverage,
    DiceGain,
    Part,
    QualityRecord,
    RegionScores,
    VariantScores,
)
from slicemill.bench.schema.base import origin
from slicemill.bench.studies.design import ExperimentDesign
from slicemill.bench.studies.lesion_recall import recall_by_volume
from slicemill.bench.studies.results import Result, RunResult, ScoredCase
from slicemill.bench.studies.rounding import round_gain, round_score
from slicemill.common.errors import ConfigError
from slicemill.ct.labels import TUMOR_WORDS
from slicemill.ct.overlap import mean_without_nan
from slicemill.measure.evaluation.statistics import paired_difference, score_true_negatives

CONVENTION = (
    "Dice per case of a case in which neither mask has the region is undefined: left out and counted; "
    "a false alarm in a case without the region counts as 0, against 1 of a variant that finds nothing there"
)


def summarize(design: ExperimentDesign, results: Sequence[RunResult]) -> QualityRecord:
    """Derive the record of an experiment from the results of its runs.

    Raises
    ------
    ConfigError
        The variants have no fold and seed in common.
    """
    by_variant = {name: [result for result in results if result.variant == name] for name in design.variants}
    by_variant = {name: group for name, group in by_variant.items() if group}
    common = select_common(by_variant)
    reference = next(iter(common))
    main = main_region(list(results[0].cases[0].regions))
    variants = {
        name: summarize_variant(
            design.variants[name], by_variant[name], group, None if name == reference else common[reference]
        )
        for name, group in common.items()
    }
    return QualityRecord(
        **origin(),
        collection=results[0].collection,
        patients=len({case.patient_id for result in results for case in result.cases}),
        folds=design.folds,
        over=Coverage(
            folds=sorted({result.fold for result in common[reference]}),
            seeds=sorted({result.seed for result in common[reference]}),
        ),
        steps=0 if design.minutes else design.total_steps,
        minutes=design.minutes or None,
        settings=dict(design.settings),
        tuned=design.tune,
        convention=CONVENTION,
        region=main,
        reference=reference,
        chosen=max(variants, key=lambda name: variants[name].validation[main].mean or 0.0),
        chosen_by=f"mean Dice of {main} over the patients of the validation parts",
        variants=variants,
        commits=sorted({str(result.machine["commit"]) for result in results}),
    )


def summarize_variant(
    changes: Mapping[str, object],
    results: Sequence[RunResult],
    common: Sequence[RunResult],
    reference: Sequence[RunResult] | None,
) -> VariantScores:
    """Summarize one variant.

    Parameters
    ----------
    results
        All results of the variant.
    common
        Those of the folds and seeds that all variants have.
    reference
        The same of the reference; None if this variant is the reference.
    """
    regions = list(results[0].cases[0].regions)
    main = main_region(regions)
    scores = {part: {region: score_region(cases_of(common, part), region) for region in regions} for part in PARTS}
    gain = None
    if reference is not None:
        gain = {part: {region: dice_gain(common, reference, part, region) for region in regions} for part in PARTS}
    return VariantScores(
        changes=dict(changes),
        runs=len(results),
        seeds=sorted({result.seed for result in results}),
        folds=sorted({result.fold for result in common}),
        minutes_a_run=round(median(result.training.minutes for result in common), 2),
        validation=scores["validation"],
        test=scores["test"],
        mean_by_seed={part: mean_by_seed(results, part, main) for part in PARTS},
        gain=gain,
        lesions={part: recall_by_volume(common, reference, part) for part in PARTS},
    )


def select_common(by_variant: Mapping[str, Sequence[RunResult]]) -> dict[str, list[RunResult]]:
    """Select, for each variant, the results of the folds and seeds that all variants have.

    Raises
    ------
    ConfigError
        No fold and seed is common to all variants.
    """
    shared = set.intersection(*({_fold_and_seed(result) for result in group} for group in by_variant.values()))
    if not shared:
        raise ConfigError(
            f"the variants {', '.join(by_variant)} have no fold and seed in common yet; "
            "run them on the same --only-folds and --seeds."
        )
    return {
        name: [result for result in group if _fold_and_seed(result) in shared] for name, group in by_variant.items()
    }


def _fold_and_seed(result: Result) -> tuple[int, int]:
    return result.fold, result.seed


def mean_by_seed(results: Sequence[RunResult], part: Part, region: str) -> dict[str, float | None]:
    """Return the mean Dice over patients of each seed."""
    by_seed = {
        seed: [result for result in results if result.seed == seed]
        for seed in sorted({result.seed for result in results})
    }
    return {str(seed): score_region(cases_of(group, part), region).mean for seed, group in by_seed.items()}


def main_region(regions: Sequence[str]) -> str:
    """Return the region that variants are chosen by: a tumor by its name, or else the last label.

    >>> main_region(["kidney", "Tumour", "cyst"]), main_region(["liver", "spleen"])
    ('Tumour', 'spleen')
    """
    return next((name for name in regions if any(word in name.lower() for word in TUMOR_WORDS)), regions[-1])


def cases_of(results: Iterable[Result], part: Part) -> list[ScoredCase]:
    """Return the scored cases of one part of all results."""
    return [case for result in results for case in result.cases if case.part == part]


def case_dice(case: ScoredCase, region: str) -> float:
    """Return a case's Dice; NaN if neither mask has the region."""
    dice = case.regions[region].dice
    return math.nan if dice is None else dice


def dice_by_patient(cases: Iterable[ScoredCase], region: str) -> dict[str, float]:
    """Return each patient's mean Dice; NaN if no case of the patient has one."""
    by_patient: dict[str, list[float]] = {}
    for case in cases:
        by_patient.setdefault(case.patient_id, []).append(case_dice(case, region))
    return {patient: mean_without_nan(values) for patient, values in sorted(by_patient.items())}


def score_region(cases: Sequence[ScoredCase], region: str) -> RegionScores:
    """Score a region over cases, as the module docstring defines."""
    patients = dice_by_patient(cases, region)
    known = [dice for dice in patients.values() if not math.isnan(dice)]
    volumes = [case.regions[region] for case in cases]
    present = dice_by_patient([case for case in cases if case.regions[region].reference_ml > 0], region)
    reference = math.fsum(volume.reference_ml for volume in volumes)
    predicted = math.fsum(volume.predicted_ml for volume in volumes)
    overlap = math.fsum(volume.overlap_ml for volume in volumes)
    return RegionScores(
        patients=len(known),
        mean=round_score(mean_without_nan(known)),
        median=round_score(median(known)) if known else None,
        sd=round_score(stdev(known)) if len(known) > 1 else None,
        mean_where_there_is_any=round_score(mean_without_nan(list(present.values()))),
        cases_without_region=sum(volume.dice is None for volume in volumes),
        dice_global=_ratio(2 * overlap, reference + predicted),
        precision_global=_ratio(overlap, predicted),
        recall_global=_ratio(overlap, reference),
        by_patient={patient: round_score(dice) for patient, dice in patients.items()},
    )


def dice_gain(results: Sequence[Result], reference: Sequence[Result], part: Part, region: str) -> DiceGain:
    """Compare the Dice of a variant and the reference, over the folds and seeds that both have.

    If only one of the two has a correct empty mask, its Dice is 1: see `score_true_negatives`.
    """
    both = {_fold_and_seed(result) for result in results} & {_fold_and_seed(result) for result in reference}
    variant_cases, reference_cases = (
        {
            (*_fold_and_seed(result), case.case_id): case
            for result in group
            if _fold_and_seed(result) in both
            for case in result.cases
            if case.part == part
        }
        for group in (results, reference)
    )
    shared = [key for key in variant_cases if key in reference_cases]
    pairs = score_true_negatives(
        [(case_dice(variant_cases[key], region), case_dice(reference_cases[key], region)) for key in shared], best=1.0
    )
    by_patient: dict[str, list[tuple[float, float]]] = {}
    for key, pair in zip(shared, pairs, strict=True):
        by_patient.setdefault(variant_cases[key].patient_id, []).append(pair)
    difference = paired_difference(
        [mean_without_nan([own for own, _ in group]) for group in by_patient.values()],
        [mean_without_nan([other for _, other in group]) for group in by_patient.values()],
    )
    return round_gain(difference)


def _ratio(part: float, total: float) -> float | None:
    """Return a rounded ratio; None if the total is 0."""
    return round(part / total, 4) if total else None
