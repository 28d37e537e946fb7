"""The records of the studies of nodules as Markdown tables."""

from slicemill.bench.records.markdown import format_processor, table_text
from slicemill.bench.schema.nodules import ContextScore, NoduleContextRecord, NoduleRulesRecord

SHOWN = 5
RATES = ("1/8", "1/4", "1/2", "1", "2", "4", "8")


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
    low, high = score.over_first_interval
    return f"{score.over_first:+.3f} [{low:+.3f}, {high:+.3f}]"
