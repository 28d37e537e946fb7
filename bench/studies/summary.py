"""Results of runs -> the record of a study: scores of each variant, and what it gains over the first, patient by patient.

- Dice per case: 2 TP / (2 TP + FP + FN). A case in which neither mask has a region has no Dice there: it is left out and
  counted. A false alarm in a case without the region counts as 0.
- A patient's Dice is the mean over his cases, folds and seeds; mean, median and deviation are over patients.
- Global Dice, precision and recall are of the volumes (ml) of all cases, folds and seeds together.
- Differences are paired by patient, over the folds and seeds that both variants have: mean, 95 % bootstrap interval over
  patients, Wilcoxon's p.
- All figures are over the folds and seeds that all variants have, so that rows compare; where none is common, the record cannot be
  made. More seeds of a variant tell how far chance goes: each seed's own mean stands beside.
- A recipe is chosen by the validation parts alone. The test parts are for telling afterwards how well it does.
"""

import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median, stdev
from typing import Any

from slicemill.bench.studies.table import PARTS, Table
from slicemill.common.errors import ConfigError
from slicemill.common.machine import machine_info
from slicemill.ct.labels import TUMOR_WORDS
from slicemill.ct.overlap import mean_of
from slicemill.measure.evaluation.statistics import paired_difference, with_right_silence

Row = dict[str, Any]
CONVENTION = (
    "Dice per case of a case in which neither mask has the region is undefined: left out and counted; "
    "a false alarm in a case without the region counts as 0, against 1 of a variant that finds nothing there"
)


def summarize(table: Table, results: Sequence[Row]) -> Row:
    """Return the record of a study."""
    by_variant = {name: [row for row in results if row["variant"] == name] for name in table.variants}
    every = {name: rows for name, rows in by_variant.items() if rows}
    by_variant = common(every)
    reference = next(iter(by_variant))
    regions = list(results[0]["cases"][0]["regions"])
    main = main_region(regions)
    variants = {
        name: {
            "changes": dict(table.variants[name]),
            "runs": len(every[name]),
            "seeds": sorted({row["seed"] for row in every[name]}),
            "folds": sorted({row["fold"] for row in rows}),
            "minutes_a_run": round(median(row["training"]["minutes"] for row in rows), 2),
            **{part: {region: scores(cases_of(rows, part), region) for region in regions} for part in PARTS},
            "mean_by_seed": {part: mean_by_seed(every[name], part, main) for part in PARTS},
            "gain": None
            if name == reference
            else {
                part: {region: gain(rows, by_variant[reference], part, region) for region in regions} for part in PARTS
            },
        }
        for name, rows in by_variant.items()
    }
    return {
        "benchmark": "quality",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "collection": results[0]["collection"],
        "patients": len({case["patient_id"] for row in results for case in row["cases"]}),
        "folds": table.folds,
        "over": {
            "folds": sorted({row["fold"] for row in by_variant[reference]}),
            "seeds": sorted({row["seed"] for row in by_variant[reference]}),
        },
        "steps": table.epochs * table.steps,
        "settings": dict(table.settings),
        "tuned": table.tune,
        "convention": CONVENTION,
        "region": main,
        "reference": reference,
        "chosen": max(variants, key=lambda name: variants[name]["validation"][main]["mean"] or 0.0),
        "chosen_by": f"mean Dice of {main} over the patients of the validation parts",
        "variants": variants,
        "commits": sorted({str(row["machine"]["commit"]) for row in results}),
        "machine": machine_info(),
    }


def common(by_variant: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """Return of each variant's results those of the folds and seeds that all variants have.

    Raises
    ------
    ConfigError
        There is none.
    """
    shared = set.intersection(*({(row["fold"], row["seed"]) for row in rows} for rows in by_variant.values()))
    if not shared:
        names = ", ".join(by_variant)
        raise ConfigError(
            f"the variants {names} have no fold and seed in common yet; run them on the same --only-folds and --seeds."
        )
    return {name: [row for row in rows if (row["fold"], row["seed"]) in shared] for name, rows in by_variant.items()}


def mean_by_seed(results: Sequence[Row], part: str, region: str) -> dict[str, float | None]:
    """Return the mean Dice over patients of each seed by itself."""
    return {
        str(seed): scores(cases_of([row for row in results if row["seed"] == seed], part), region)["mean"]
        for seed in sorted({row["seed"] for row in results})
    }


def main_region(regions: Sequence[str]) -> str:
    """Return the region that a recipe is chosen by: tumor where one has such a name, else the last label.

    >>> main_region(["kidney", "Tumour", "cyst"]), main_region(["liver", "spleen"])
    ('Tumour', 'spleen')
    """
    return next((name for name in regions if any(word in name.lower() for word in TUMOR_WORDS)), regions[-1])


def cases_of(results: Iterable[Row], part: str) -> list[Row]:
    """Return the scored cases of one part of all results."""
    return [case for row in results for case in row["cases"] if case["part"] == part]


def dice_of(case: Row, region: str) -> float:
    """Return a case's Dice; NaN where neither mask has the region."""
    dice = case["regions"][region]["dice"]
    return math.nan if dice is None else float(dice)


def dice_by_patient(cases: Iterable[Row], region: str) -> dict[str, float]:
    """Return each patient's mean Dice; NaN where none of his cases has one."""
    found: dict[str, list[float]] = {}
    for case in cases:
        found.setdefault(case["patient_id"], []).append(dice_of(case, region))
    return {patient: mean_of(values) for patient, values in sorted(found.items())}


def scores(cases: Sequence[Row], region: str) -> Row:
    """Return the scores of a region over some cases; see the module."""
    patients = dice_by_patient(cases, region)
    known = [dice for dice in patients.values() if not math.isnan(dice)]
    rows = [case["regions"][region] for case in cases]
    present = dice_by_patient([case for case in cases if case["regions"][region]["reference_ml"] > 0], region)
    reference, predicted, overlap = (
        math.fsum(row[name] for row in rows) for name in ("reference_ml", "predicted_ml", "overlap_ml")
    )
    return {
        "patients": len(known),
        "mean": rounded(mean_of(known)),
        "median": rounded(median(known)) if known else None,
        "sd": rounded(stdev(known)) if len(known) > 1 else None,
        "mean_where_there_is_any": rounded(mean_of(list(present.values()))),
        "cases_without_region": sum(row["dice"] is None for row in rows),
        "dice_global": ratio(2 * overlap, reference + predicted),
        "precision_global": ratio(overlap, predicted),
        "recall_global": ratio(overlap, reference),
        "by_patient": {patient: rounded(dice) for patient, dice in patients.items()},
    }


def gain(results: Sequence[Row], reference: Sequence[Row], part: str, region: str) -> Row:
    """Return what a variant gains over the reference, over the folds and seeds that both have; see `with_right_silence`."""
    both = {(row["fold"], row["seed"]) for row in results} & {(row["fold"], row["seed"]) for row in reference}
    ours, theirs = (
        {
            (row["fold"], row["seed"], case["case_id"]): case
            for row in rows
            if (row["fold"], row["seed"]) in both
            for case in row["cases"]
            if case["part"] == part
        }
        for rows in (results, reference)
    )
    shared = [key for key in ours if key in theirs]
    pairs = with_right_silence([(dice_of(ours[key], region), dice_of(theirs[key], region)) for key in shared], best=1.0)
    by_patient: dict[str, list[tuple[float, float]]] = {}
    for key, pair in zip(shared, pairs, strict=True):
        by_patient.setdefault(ours[key]["patient_id"], []).append(pair)
    means = [(mean_of([a for a, _ in found]), mean_of([b for _, b in found])) for found in by_patient.values()]
    found = paired_difference([a for a, _ in means], [b for _, b in means])
    return {
        "patients": found.patients,
        "mean": rounded(found.mean),
        "low": rounded(found.low),
        "high": rounded(found.high),
        "p": rounded(found.p),
        "better": found.better,
    }


def rounded(value: float) -> float | None:
    """Return a figure as it stands in a record: four digits, None for NaN."""
    return None if math.isnan(value) else round(value, 4)


def ratio(part: float, whole: float) -> float | None:
    """Return a rounded ratio, None of nothing."""
    return round(part / whole, 4) if whole else None
