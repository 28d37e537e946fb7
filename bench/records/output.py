"""Output of a benchmark's record."""

from pathlib import Path

from slicemill.bench.records.readme import format_record
from slicemill.bench.schema.base import Document
from slicemill.common.files import to_json, write_json
from slicemill.common.terminal import print_line, print_lines


def print_record(record: Document, json: Path | None) -> None:
    """Print a record as its table and as one JSON line, and write it to a file if `json` is not None."""
    print_lines(format_record(record))
    print_line()
    print_line(to_json(record))
    if json is not None:
        write_json(json, record)
