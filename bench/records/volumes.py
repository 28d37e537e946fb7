"""The record of `bench volumes` as a Markdown table."""

from slicemill.bench.records.markdown import format_processor, format_ratio, table_text
from slicemill.bench.schema.data import VolumesRecord

PEERS = ("SimpleITK", "pynrrd")


def volumes_table(record: VolumesRecord) -> str:
    """Format the CPU time of readers of MetaImage and NRRD."""
    rows = [
        (
            name,
            f"{one.megabytes:.1f}",
            *(f"{one.cpu_milliseconds[way]:.2f}" for way in ("ours", "ours, as ingest")),
            *(f"{one.cpu_milliseconds[peer]:.2f}" if peer in one.cpu_milliseconds else "-" for peer in PEERS),
            format_ratio(one.ours_over["SimpleITK"].cpu),
        )
        for name, one in record.formats.items()
    ]
    machine = format_processor(record.machine)
    note = f"CPU ms a slice of {record.subject}; medians of {record.rounds} interleaved rounds, on {machine}."
    header = ["file", "MB", "ours", "ours, as ingest", *PEERS, "ours, times as fast as SimpleITK"]
    return table_text(header, rows, note)
