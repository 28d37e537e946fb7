"""The table of `bench infer --range`."""

from slicemill.bench.records.markdown import format_processor, format_ratio, table_text
from slicemill.bench.schema.networks import RangeRecord, RangeRow


def range_table(record: RangeRecord) -> str:
    """Format the gain of the organ's range over all slices, and that of other engines."""
    header = [
        "scans", "slices with liver", "slices labeled", "over all slices: time", "CPU time",
        "of the bare network on those slices: time", "CPU time",
    ]  # fmt: skip
    rows = [cells for name, row in record.rows.items() for cells in _rows(name, row)]
    missing = "".join(f" {name}: not run ({reason})." for name, reason in record.not_run.items())
    note = (
        "The masks of all slices and of the range are equal, voxel by voxel. "
        f"Medians of ratios in one round, {record.rounds} rounds, two scans a row, files to files, {record.unit}, "
        f"on {format_processor(record.machine)}, at a load of {record.load:.1f} before the start.{missing}"
    )
    return table_text(header, rows, note)


def _rows(name: str, row: RangeRow) -> list[tuple[str, ...]]:
    labeled = f"{row.labeled / row.slices:.2f}"
    share = f"{row.liver_share:.2f}"
    ratios = (row.over_all.wall, row.over_all.cpu, row.of_network.wall, row.of_network.cpu)
    others = [
        (f"{name}, {engine}", share, labeled, *map(format_ratio, (gain.over_all.wall, gain.over_all.cpu)), "-", "-")
        for engine, gain in row.engines.items()
    ]
    return [(name, share, labeled, *map(format_ratio, ratios)), *others]
