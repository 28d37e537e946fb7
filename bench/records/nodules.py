"""The records of the studies of nodules as Markdown tables."""

from collections.abc import Sequence

from slicemill.bench.records.markdown import format_processor, table_text
from slicemill.bench.schema.nodules import ContextScore, NoduleContextRecord, NoduleRulesRecord, NodulesRecord

SHOWN = 5
RATES = ("1/8", "1/4", "1/2", "1", "2", "4", "8")


def nodules_table(record: NodulesRecord) -> str:
    """Format the rankings, and malignancy."""
    bands = list(record.scores[0].by_diameter)
    rows = []
    for score in record.scores:
        over = (
            "-" if score.gain is None or score.gain_interval is None else _format_gain(score.gain, score.gain_interval)
        )
        low, high = score.cpm_interval
        rows.append(
            (
                str(score.seed),
                score.ranked_by,
                f"{score.cpm:.3f} [{low:.3f}, {high:.3f}]",
                over,
                *(f"{value:.3f}" for value in score.sensitivity),
                *("-" if score.by_diameter[band][1] is None else f"{score.by_diameter[band][1]:.3f}" for band in bands),
                f"{score.found} of {record.nodules}",
                f"{score.false_alarms / record.test_chests:.0f}",
            )
        )
    counts = ", ".join(f"{record.scores[0].by_diameter[band][0]} {band}" for band in bands)
    note = (
        f"{record.nodules} nodules ({counts}) in {record.test_chests} synthetic chests of {record.size} pixels that no "
        f"network was trained on (seed {record.test_seed}). The segmentation: {record.chests} chests of seed "
        f"{record.seed}, {record.minutes:g} minutes; the classifier: {record.unseen} more, {record.crop_minutes:g} "
        f"minutes. On {format_processor(record.machine)}."
    )
    parts = [*RATES, *(f"CPM {band}" for band in bands)]
    header = ["seed", "ranked by", "CPM [95 %]", "over the segmentation", *parts, "candidates", "false marks a scan"]
    return f"{table_text(header, rows, note)}\n\n{_malignancy_table(record)}"


def _malignancy_table(record: NodulesRecord) -> str:
    """Format the AUCs of malignancy."""
    rows = [
        (
            str(one.seed),
            f"{one.nodules} ({one.malignant})",
            f"{one.auc_diameter:.3f}",
            f"{one.auc_output:.3f}",
            f"{one.auc_both:.3f}",
            _format_gain(one.gain, one.gain_interval),
        )
        for one in record.malignancy
    ]
    areas = ("AUC of the diameter", "of the output", "of both", "over the diameter [95 %]")
    note = f"Nodules at their annotated centers, in chests of seed {record.test_seed + 1}."
    return table_text(["seed", "nodules (malignant)", *areas], rows, note)


def _format_gain(gain: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]"


def nodule_rules_table(record: NoduleRulesRecord) -> str:
    """Format the best rules."""
    rows = [
        (score.rule, f"{score.cpm:.3f}", *(f"{value:.3f}" for value in score.sensitivity))
        for score in record.settings[:SHOWN]
    ]
    note = (
        f"The best {SHOWN} of {len(record.settings)} rules on {record.findings} nodules in {record.cases} synthetic "
        f"chests (seed {record.seed}, {record.size} pixels), chosen on these; sensitivity at false positives per scan. "
        f"The limit is {record.limit:g}. On {format_processor(record.machine)}."
    )
    return table_text(["threshold, opening, diameters, rank", "CPM", *RATES], rows, note)


def nodule_context_table(record: NoduleContextRecord) -> str:
    """Format the networks."""
    rows = [
        (
            str(score.context),
            str(score.seed),
            f"{score.cpm:.3f}",
            _format_difference(score),
            *(f"{value:.3f}" for value in score.sensitivity),
            f"{score.found / max(1, record.nodules):.3f}",
            f"{score.false_alarms / max(1, record.scans):.0f}",
        )
        for score in record.scores
    ]
    note = (
        f"{record.nodules} nodules in {record.scans} scans that no network was trained on; {record.steps:,} steps of "
        f"`width` {record.width}, slices {record.context_spacing_mm:g} mm apart, candidates ranked by the mean "
        f"probability of the segmentation. On {format_processor(record.machine)}."
    )
    header = ["slices", "seed", "CPM", "over the first [95 %]", *RATES, "found at all", "false marks a scan"]
    return table_text(header, rows, note)


def _format_difference(score: ContextScore) -> str:
    if score.over_first is None or score.over_first_interval is None:
        return "-"
    return _format_gain(score.over_first, score.over_first_interval)
