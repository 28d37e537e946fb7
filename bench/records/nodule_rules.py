"""The record of `bench nodule-rules` as a Markdown table."""

from slicemill.bench.records.markdown import format_processor, table_text
from slicemill.bench.schema.data import NoduleRulesRecord

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
