"""Records of segmentation quality: variants of the settings, and slicemill against nnU-Net. Their Markdown tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from slicemill.bench.records.markdown import (
    format_integers,
    format_processor,
    format_score,
    table_lines,
)
from slicemill.bench.schema.base import BenchmarkRecord
from slicemill.common.documents import from_document

Part = Literal["validation", "test"]
PARTS: tuple[Part, ...] = ("validation", "test")
"""Parts of a fold that are scored. Variants are chosen by the first."""


class RegionScores(Struct, frozen=True, kw_only=True):
    """Scores of one region over cases; `slicemill.bench.studies.summary` defines them."""

    patients: int
    """Patients with a Dice."""
    mean: float | None
    """Mean Dice over patients."""
    median: float | None
    sd: float | None
    """Standard deviation over patients; None below two."""
    mean_where_there_is_any: float | None
    """Mean Dice over patients, of cases whose reference has the region."""
    cases_without_region: int
    """Cases in which neither mask has the region."""
    dice_global: float | None
    """Dice of the volumes of all cases together."""
    precision_global: float | None
    """Precision of the volumes of all cases together."""
    recall_global: float | None
    """Recall of the volumes of all cases together."""
    by_patient: Mapping[str, float | None]
    """Mean Dice of each patient; None if no case has one."""


class DiceGain(Struct, frozen=True, kw_only=True):
    """Paired difference of Dice, or of the share of lesions found, over patients."""

    patients: int
    mean: float | None
    low: float | None
    """Lower end of the 95 % bootstrap interval."""
    high: float | None
    """Upper end of the 95 % bootstrap interval."""
    p: float | None
    """p of Wilcoxon's signed-rank test, two-sided."""
    better: int


class LesionRecall(Struct, frozen=True, kw_only=True):
    """Reference lesions of one band of volume, over cases, folds and seeds; found: an overlap above 0."""

    found: int
    references: int
    gain: DiceGain | None
    """Paired difference of the share found, over patients with such lesions; None for the reference variant."""


class VariantScores(Struct, frozen=True, kw_only=True):
    """Results of one variant."""

    changes: Mapping[str, Any]
    """Settings that differ from the shared ones."""
    runs: int
    seeds: Sequence[int]
    folds: Sequence[int]
    minutes_a_run: float
    """Median training time of a run, minutes."""
    validation: Mapping[str, RegionScores]
    test: Mapping[str, RegionScores]
    mean_by_seed: Mapping[Part, Mapping[str, float | None]]
    """Mean Dice of the main region by part and seed."""
    gain: Mapping[Part, Mapping[str, DiceGain]] | None
    """Gain over the reference by part and region; None for the reference."""
    lesions: Mapping[Part, Mapping[str, LesionRecall]] | None = None
    """Part -> band of volume -> lesions found; missing in early records."""

    def scores(self, part: Part) -> Mapping[str, RegionScores]:
        """Return the scores of a part by region."""
        return self.validation if part == "validation" else self.test


class Coverage(Struct, frozen=True, kw_only=True):
    """Folds and seeds that all variants have."""

    folds: Sequence[int]
    seeds: Sequence[int]


class QualityRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="quality"):
    """Record of `bench quality`."""

    collection: str
    patients: int
    """Patients that were validated or tested."""
    folds: int
    over: Coverage
    steps: int
    settings: Mapping[str, Any]
    """Settings that all variants share."""
    minutes: float | None = None
    """Time limit of each training; None if the steps limit it."""
    tuned: bool = False
    """Whether post-processing was tuned on the validation parts; missing in early records."""
    convention: str
    region: str
    """The region that the variant is chosen by."""
    reference: str
    chosen: str
    """The variant with the best validation score."""
    chosen_by: str
    variants: Mapping[str, VariantScores]
    commits: Sequence[str]


class NnunetRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="yardstick"):
    """Record of `bench yardstick`."""

    collection: str
    folds: Sequence[int]
    of_folds: int
    minutes: float
    variant: str
    settings: Mapping[str, Any]
    """Its settings that are not the defaults."""
    convention: str
    region: str
    contenders: Mapping[str, Mapping[str, Any]]
    """nnU-Net, then slicemill: ``training`` with an entry for each fold, and `RegionScores` by region."""
    gain: Mapping[str, DiceGain]
    """Gain of slicemill over nnU-Net by region."""
    commits: Sequence[str]


class _NnunetTraining(Struct, frozen=True, kw_only=True):
    iterations: int
    batch: int
    patch: tuple[int, ...]


class _SlicemillTraining(Struct, frozen=True, kw_only=True):
    minutes: float
    slices_per_second: float


def quality_table(record: QualityRecord) -> str:
    """Format the scores of all variants as Markdown: one table for each region and part."""
    reference = record.variants[record.reference]
    lines: list[str] = []
    for region in reference.test:
        for part in PARTS:
            header = [
                f"{region}, {part} ({reference.scores(part)[region].patients} patients)",
                "Dice per patient, mean ± SD",
                "median",
                f"over {record.reference} [95 %], p",
                "Dice global",
                "precision",
                "recall",
            ]
            rows = [_variant_row(name, variant, part, region) for name, variant in record.variants.items()]
            lines += [*table_lines(header, rows), ""]
    return "\n".join([*lines, *_lesion_lines(record), _quality_note(record)])


def _lesion_lines(record: QualityRecord) -> list[str]:
    """Return the table of lesions found by volume in the test parts, without bands that no case has."""
    lesions = {name: (variant.lesions or {}).get("test", {}) for name, variant in record.variants.items()}
    bands = [name for name, one in lesions[record.reference].items() if one.references]
    if not bands:
        return []
    header = ["lesions found, test", *(f"{name.replace('_', ' ')}, over {record.reference} [95 %]" for name in bands)]
    rows = []
    for name, found in lesions.items():
        cells = [found.get(band) for band in bands]
        texts = ["-" if one is None else f"{one.found} of {one.references}{_format_change(one.gain)}" for one in cells]
        rows.append([name, *texts])
    return [*table_lines(header, rows), ""]


def _format_change(gain: DiceGain | None) -> str:
    """Format the change of a share with its interval; nothing for the reference."""
    return "" if gain is None else f", {_format_interval(gain)}"


def _variant_row(name: str, variant: VariantScores, part: Part, region: str) -> list[str]:
    mean, median, *pooled = _score_cells(variant.scores(part)[region])
    gain = "-" if variant.gain is None else _format_gain(variant.gain[part][region])
    return [name, mean, median, gain, *pooled]


def _score_cells(scores: RegionScores) -> list[str]:
    """Return mean with deviation, median, global Dice, precision, recall."""
    spread = "" if scores.sd is None else f" ± {scores.sd:.3f}"
    pooled = (scores.dice_global, scores.precision_global, scores.recall_global)
    return [format_score(scores.mean) + spread, format_score(scores.median), *map(format_score, pooled)]


def _format_gain(gain: DiceGain) -> str:
    """Format a gain with its interval and p, which records round to four digits."""
    if gain.low is None or gain.p is None:
        return _format_interval(gain)
    return f"{_format_interval(gain)}, {f'p {gain.p:.2g}' if gain.p else 'p < 0.0001'}"


def _format_interval(gain: DiceGain) -> str:
    """Format a gain with its interval."""
    if gain.mean is None or gain.low is None:
        return format_score(gain.mean)
    return f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def _quality_note(record: QualityRecord) -> str:
    first = record.variants[record.reference]
    without = sum(scores.cases_without_region for scores in first.test.values())
    tuned = "Post-processing chosen on the validation part of each fold, whose figures it flatters. "
    length = f"{record.minutes:g} minutes" if record.minutes else f"{record.steps:,} steps"
    return (
        f"{record.collection}, {record.patients} patients validated or tested, "
        f"fold {format_integers(record.over.folds)} of {record.folds} by patient, "
        f"seed {format_integers(record.over.seeds)}, {length} a run. {tuned if record.tuned else ''}"
        f"Chosen by {record.chosen_by}: {record.chosen}. {_describe_changes(record.variants)}"
        f"{_describe_seeds(record.variants)}{record.convention} "
        f"({without} cases left out so in the test parts of {record.reference}). "
        f"{first.minutes_a_run:.1f} minutes a training, {_origin(record)}."
    )


def _describe_changes(variants: Mapping[str, VariantScores]) -> str:
    changed = "; ".join(
        f"{name}: {', '.join(f'{key} = {value}' for key, value in variant.changes.items())}"
        for name, variant in variants.items()
        if variant.changes
    )
    return f"{changed}. " if changed else ""


def _describe_seeds(variants: Mapping[str, VariantScores]) -> str:
    """Describe the mean of each seed, for variants with several seeds."""
    parts = [
        f"{name} by seed, {part} {', '.join(map(format_score, variant.mean_by_seed[part].values()))}"
        for name, variant in variants.items()
        if len(variant.seeds) > 1
        for part in PARTS
    ]
    return f"{'; '.join(parts)}. " if parts else ""


def yardstick_table(record: NnunetRecord) -> str:
    """Format the scores of slicemill and nnU-Net as Markdown."""
    lines: list[str] = []
    for region, gain in record.gain.items():
        header = [f"{region}, test", "Dice per patient, mean ± SD", "median", "Dice global", "precision", "recall"]
        rows = [
            [name, *_score_cells(from_document(RegionScores, contender[region], f"{name}, {region}", is_part=True))]
            for name, contender in record.contenders.items()
        ]
        better = f"better in {gain.better} of {gain.patients} patients."
        lines += [
            *table_lines(header, rows),
            "",
            f"{region}: slicemill over nnU-Net {_format_gain(gain)}, {better}",
            "",
        ]
    return "\n".join([*lines, _yardstick_note(record)])


def _yardstick_note(record: NnunetRecord) -> str:
    nnunet, slicemill = (contender["training"] for contender in record.contenders.values())
    peers = from_document(tuple[_NnunetTraining, ...], nnunet, "training of nnU-Net", is_part=True)
    steps = _mean(training.iterations for training in peers)
    slices = _mean(training.iterations * training.batch for training in peers)
    seen = _mean(
        60 * training.minutes * training.slices_per_second
        for training in from_document(tuple[_SlicemillTraining, ...], slicemill, "training of slicemill", is_part=True)
    )
    return (
        f"{record.collection}, fold {format_integers(record.folds)} of {record.of_folds}; "
        f"{record.minutes:g} minutes of training each, one after the other, "
        f"in which nnU-Net took {steps:,.0f} steps over {slices:,.0f} slices of "
        f"{'x'.join(map(str, peers[0].patch))} and ours (variant {record.variant}) about {seen:,.0f} slices. "
        f"nnU-Net is 2D, with its own plans and defaults but for when it stops and how many steps make an epoch. "
        f"{record.convention}. {_origin(record)}."
    )


def _origin(record: QualityRecord | NnunetRecord) -> str:
    return f"{record.date[:10]}, commit {', '.join(record.commits)}, on {format_processor(record.machine)}"


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)
