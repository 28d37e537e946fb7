"""The table of `bench viewer`."""

from slicemill.bench.records.markdown import format_processor, table_text
from slicemill.bench.schema.data import ViewerRecord


def viewer_table(record: ViewerRecord) -> str:
    """Format the times of the viewer's frames."""
    rows = [
        ("slices a second", f"{record.slices_per_second:.0f}"),
        ("frame while scrolling, ms, median", f"{record.frame_ms:.1f}"),
        ("frame while scrolling, ms, 95 %", f"{record.slow_frame_ms:.1f}"),
        ("frame while turning in 3-D, ms, median", f"{record.turn_ms:.1f}"),
    ]
    note = (
        f"{record.slices} slices of {record.side} x {record.side}, {record.rounds} rounds, Chromium {record.browser}, "
        f"on {format_processor(record.machine)}, load {record.load[0]:.1f} to {record.load[1]:.1f}."
    )
    return table_text(["viewer", "measured"], rows, note)
