"""The end of `slicemill demo`: the one-screen summary, and its goals on phantoms."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slicemill.bench.records.demo_scores import BandScores, DemoScores, DemoSummary, TumorComparison
from slicemill.common.documents import from_document
from slicemill.common.terminal import count_noun, format_table, print_line, print_lines
from slicemill.ct.overlap import mean_without_nan
from slicemill.measure.evaluation.totals import TumorTotals

TUMOR_MARGIN, LIVER_DICE = 0.15, 0.90
"""Goals of the demo on phantoms: mean tumor Dice above the baseline's where there is tumor, and mean liver Dice."""
FILES = (
    ("manifest", "store/manifest.csv"),
    ("collection", "preview.png"),
    ("training, on one page", "run/report.html"),
    ("Dice curves", "run/curves.png"),
    ("image | reference | prediction", "montage.png"),
    ("masks, reports, overlays", "segmented"),
    ("error pictures and scores", "scores"),
    ("this summary", "summary.json"),
)
"""Output files of the demo."""


def compare_on_tumor(rows: Sequence[Mapping[str, Any]], tumor: str, baseline: BandScores) -> TumorComparison:
    """Compare network and baseline on the cases whose reference has tumor.

    Parameters
    ----------
    rows
        ``by_case`` of an evaluation.
    tumor
        Name of the tumor label.
    """
    with_tumor = [row for row in rows if row["has_tumor"]]
    return TumorComparison(
        cases=len(with_tumor),
        network=mean_without_nan([row[f"dice_{tumor}"] or 0.0 for row in with_tumor]),
        baseline=mean_without_nan([baseline.by_case[row["case_id"]] or 0.0 for row in with_tumor]),
    )


def print_summary(summary: DemoSummary, out: Path) -> None:
    """Print the one-screen summary."""
    scores = from_document(DemoScores, summary.scores, "evaluation", is_part=True)
    cases, band, on_tumor = summary.cases, summary.baseline, summary.where_there_is_tumor
    low, high = band.band_hu
    rows: list[tuple[object, ...]] = [
        (f"{name}, network", row.dice_per_case, row.dice_global, row.precision_global, row.recall_global)
        for name, row in scores.regions.items()
    ]
    rows.append((f"tumor, HU band {low}..{high}", band.dice_per_case, band.dice_global, None, None))
    print_lines(
        f"\n{cases['test']} test cases ({cases['train']} for training, "
        f"{cases['validation']} to choose the checkpoint):\n"
    )
    print_lines(format_table(["", "Dice per case", "Dice global", "precision", "recall"], rows))
    print_lines(
        f"\nmean tumor Dice of the {on_tumor.cases} cases with tumor: "
        f"network {on_tumor.network:.3f}, HU band {on_tumor.baseline:.3f}"
    )
    print_lines("(the band is the best one for the training cases; it uses the reference organ, if there is one)\n")
    detections = {"by case": scores.tumor_by_case, "by slice": scores.tumor_by_slice}
    detection_rows = [(name, *_detection_cells(detection)) for name, detection in detections.items() if detection]
    header = ["tumor yes/no", "with", "without", "accuracy", "sensitivity", "specificity", "AUC"]
    print_lines(format_table(header, detection_rows))
    print_lines(f"\n{summary.minutes} minutes in total. Output:")
    for what, path in FILES:
        print_line(f"  {what:32}{out / path}")


def _detection_cells(detection: TumorTotals) -> tuple[object, ...]:
    return (
        detection.positives,
        detection.negatives,
        detection.accuracy,
        detection.sensitivity,
        detection.specificity,
        detection.auc,
    )


def missed_goals(summary: DemoSummary) -> list[str]:
    """Describe the goals that the demo on phantoms did not reach."""
    on_tumor = summary.where_there_is_tumor
    liver = summary.scores["regions"]["liver"]["dice_per_case"]
    missed = []
    if on_tumor.network < on_tumor.baseline + TUMOR_MARGIN:
        missed.append(
            f"tumor Dice {on_tumor.network:.3f} is not {TUMOR_MARGIN} above the threshold's {on_tumor.baseline:.3f}"
        )
    if liver < LIVER_DICE:
        missed.append(f"liver Dice {liver:.3f} is below {LIVER_DICE}")
    return missed


def describe_goals(summary: DemoSummary) -> str:
    """Return lines that tell whether the demo on phantoms reached its goals."""
    missed = missed_goals(summary)
    if not missed:
        return (
            f"\ngoals met: tumor Dice at least {TUMOR_MARGIN} above the threshold's, "
            f"liver Dice at least {LIVER_DICE:.2f}"
        )
    lines = [f"\nEvery step ran. {count_noun(len(missed), 'goal')} missed:"]
    lines += [f"goal missed: {reason}" for reason in missed]
    return "\n".join(
        [*lines, "More epochs (--epochs) in a new folder (--out) raise the scores; so do more phantoms (--cases)."]
    )
