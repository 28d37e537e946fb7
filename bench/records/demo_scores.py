"""Scores of `slicemill demo`, as its summary holds them, and their Markdown table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slicemill.bench.records.markdown import format_processor, format_score, table_text
from slicemill.bench.schema.base import Document, read_record
from slicemill.measure.evaluation.totals import TumorTotals


@dataclass(frozen=True, kw_only=True)
class RegionDice:
    """Overlap of one region over the test cases."""

    dice_per_case: float | None
    """Mean Dice over cases."""
    dice_global: float | None
    """Dice of the voxels of all cases together."""
    precision_global: float | None
    """Precision of the voxels of all cases together."""
    recall_global: float | None
    """Recall of the voxels of all cases together."""


@dataclass(frozen=True, kw_only=True)
class DemoScores:
    """The part of an evaluation that the demo shows."""

    regions: Mapping[str, RegionDice]
    tumor_by_case: TumorTotals | None
    tumor_by_slice: TumorTotals | None


@dataclass(frozen=True, kw_only=True)
class BandScores:
    """Scores of the threshold baseline."""

    band_hu: tuple[int, int]
    """The HU band: low <= HU < high."""
    dice_per_case: float | None
    """Mean tumor Dice over cases."""
    dice_global: float | None
    """Tumor Dice of the voxels of all cases together."""
    by_case: Mapping[str, float | None]
    """Tumor Dice of each case; None if neither mask has tumor."""


@dataclass(frozen=True, kw_only=True)
class TumorComparison:
    """Mean tumor Dice over the cases whose reference has tumor. On these cases, empty masks score 0."""

    cases: int
    network: float
    baseline: float


@dataclass(frozen=True, kw_only=True)
class DemoSummary:
    """Content of ``summary.json``."""

    collection: str
    """Name of the collection's folder, or phantoms."""
    cases: Mapping[str, int]
    """Number of cases by part: train, validation, test."""
    seed: int
    """Seed of phantoms, split and training."""
    training_minutes: float | None
    """Time limit of the training, minutes; None if epochs were counted."""
    config: str | None
    """Settings of the training as TOML; None for the defaults."""
    minutes: float
    scores: Mapping[str, Any]
    """The parts ``regions``, ``tumor_by_case``, ``tumor_by_slice`` and ``by_case`` of the evaluation."""
    baseline: BandScores
    where_there_is_tumor: TumorComparison
    machine: Mapping[str, Any]


def scores_table(document: Document) -> str:
    """Format the scores of a demo as Markdown."""
    summary = read_record(DemoSummary, document)
    scores = read_record(DemoScores, summary.scores)
    band, tumor = summary.baseline, summary.where_there_is_tumor
    low, high = band.band_hu
    rows = [
        [
            f"{name}, network",
            *map(format_score, (row.dice_per_case, row.dice_global, row.precision_global, row.recall_global)),
        ]
        for name, row in scores.regions.items()
    ]
    rows += [
        [
            f"tumor, best HU band ({low} to {high})",
            format_score(band.dice_per_case),
            format_score(band.dice_global),
            "-",
            "-",
        ],
        [f"tumor, where there is tumor ({tumor.cases} cases): network", format_score(tumor.network), "-", "-", "-"],
        ["the same, best HU band", format_score(tumor.baseline), "-", "-", "-"],
    ]
    detections = {"case": scores.tumor_by_case, "slice": scores.tumor_by_slice}
    texts = [_format_detection(part, detection) for part, detection in detections.items() if detection is not None]
    note = (
        f"Tumor yes or no, {'; '.join(texts)}. {summary.minutes:.1f} minutes in all on "
        f"{format_processor(summary.machine)}."
    )
    header = ["", "Dice per case", "Dice global", "precision", "recall"]
    return table_text(header, rows, note)


def _format_detection(part: str, detection: TumorTotals) -> str:
    rates = {"accuracy": detection.accuracy, "sensitivity": detection.sensitivity, "specificity": detection.specificity,
             "AUC": detection.auc}  # fmt: skip
    shown = ", ".join(f"{name} {value:.2f}" for name, value in rates.items() if value is not None)
    return f"per {part} ({detection.positives} with, {detection.negatives} without): {shown}"
