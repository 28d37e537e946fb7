"""The table of `bench infer --range`."""

from slicemill.bench.records.markdown import format_processor, format_ratio, table_text
from slicemill.bench.schema.networks import RangeRecord


def range_table(record: RangeRecord) -> str:
    """Format the gain of the organ's range over all slices."""
    header = ["scans", "slices with liver", "slices labeled", "over all slices", "of the bare network on those slices"]
    rows = [
        (
            name,
            f"{row.liver_share:.2f}",
            f"{row.labeled / row.slices:.2f}",
            format_ratio(row.over_all.cpu),
            format_ratio(row.of_network.cpu),
        )
        for name, row in record.rows.items()
    ]
    note = f"Masks are equal, voxel by voxel. Ratios of CPU time, medians of {record.rounds} rounds, files to files, "
    return table_text(header, rows, f"{note}{record.unit}, on {format_processor(record.machine)}.")
