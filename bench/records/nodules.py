"""The records of the studies of nodules as Markdown tables."""

from collections.abc import Sequence

from slicemill.bench.records.markdown import format_processor, table_text
from slicemill.bench.schema.nodules import NoduleContextRecord, NoduleRulesRecord, NodulesRecord

SHOWN = 5
RATES = ("1/8", "1/4", "1/2", "1", "2", "4", "8")


def nodules_table(record: NodulesRecord) -> str:
    """Format the rankings, and malignancy."""
    rows = [
        (
            str(score.seed),
            score.ranked_by,
            f"{score.cpm:.3f} {_format_interval(score.cpm_interval)}",
            _format_gain(score.gain, score.gain_interval),
            *(f"{value:.3f}" for value in score.sensitivity),
            f"{score.found} of {record.nodules}",
            f"{score.false_alarms / record.test_chests:.0f}",
        )
        for score in record.scores
    ]
    header = ["seed", "ranked by", "CPM [95 %]", "over the segmentation", *RATES, "found at all", "false marks a scan"]
    note = (
        f"{record.nodules} nodules in {record.test_chests} synthetic chests of version "
        f"{record.chests_version} and {record.size} pixels that no network was trained on (seed {record.test_seed}); "
        "sensitivity at false positives per scan. The segmentation had "
        f"{record.chests} chests of seed {record.seed} and at most {record.minutes:g} minutes; the classifier "
        f"{record.unseen} chests more, and at most {record.crop_minutes:g} minutes. Its ranking has the segmentation's "
        f"mean probability in it. One training a seed; intervals are over test chests. On "
        f"{format_processor(record.machine)}."
    )
    tables = (table_text(header, rows, note), _bands_table(record), _malignancy_table(record))
    return "\n\n".join(tables)


def _bands_table(record: NodulesRecord) -> str:
    """Format the CPM by diameter."""
    bands = record.scores[0].by_diameter
    rows = [
        (
            str(score.seed),
            score.ranked_by,
            *("-" if one.cpm is None else f"{one.cpm:.2f} {_format_interval(one.cpm_interval, 2)}"
              for one in score.by_diameter.values()),
        )
        for score in record.scores
    ]  # fmt: skip
    header = ["seed", "ranked by", *(f"CPM {name} ({band.nodules} nodules)" for name, band in bands.items())]
    return table_text(header, rows, "").rstrip()


def _malignancy_table(record: NodulesRecord) -> str:
    """Format the AUCs of malignancy."""
    rows = [
        (
            str(one.seed),
            f"{one.nodules} ({one.malignant})",
            f"{one.auc_diameter:.3f}",
            f"{one.auc_output:.3f}",
            "-" if one.auc_both is None else f"{one.auc_both:.3f}",
            _format_gain(one.gain, one.gain_interval),
        )
        for one in record.malignancy
    ]
    areas = ("AUC of the diameter", "of the output", "of both", "over the diameter [95 %]")
    note = (
        f"Nodules at their annotated centers, in {record.malignancy_chests} chests of seed {record.test_seed + 1}; at "
        f"most {record.malignancy_minutes:g} minutes of training."
    )
    return table_text(["seed", "nodules (malignant)", *areas], rows, note)


def _format_interval(interval: Sequence[float] | None, digits: int = 3) -> str:
    return "" if interval is None else f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _format_gain(gain: float | None, interval: Sequence[float] | None) -> str:
    if gain is None or interval is None:
        return "-"
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
            _format_gain(score.over_first, score.over_first_interval),
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
