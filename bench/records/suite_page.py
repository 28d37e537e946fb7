"""The page of `bench all`: ``bench.html`` with its pictures ``stages.png`` and ``shares.png``."""

from pathlib import Path

from slicemill.bench.harness.catalog import STAGES
from slicemill.bench.records.compare import contender_times
from slicemill.bench.schema.base import Document, read_record
from slicemill.bench.schema.suite import SuiteRecord
from slicemill.common.files import write_bytes
from slicemill.common.html import render
from slicemill.common.machine import format_machine

PICTURE, SHARES, PAGE = "stages.png", "shares.png", "bench.html"


def write_page(folder: Path, document: Document) -> Path:
    """Write the page next to its pictures and return its path."""
    record = read_record(SuiteRecord, document)
    headlines = {name: stage.headline for name, stage in record.stages.items()}
    page = render(
        "bench/records/suite_page.html",
        record=record,
        machine=format_machine(record.machine).replace("\n", ". "),
        stages_picture=folder / PICTURE,
        shares_picture=folder / SHARES,
        stage_rows=[
            (name, STAGES[name].what, row.per_second, row.limit.name, row.limit.fraction, row.verified)
            for name, row in headlines.items()
        ],
        peer_rows=[
            (name, peer, row.per_second, row.times, row.what)
            for name, headline in headlines.items()
            for peer, row in headline.peers.items()
        ],
        limit_rows=[(name, row.most, row.unit) for name, row in record.machine_limits.items()],
        contender_rows={name: contender_rows(stage) for name, stage in document["stages"].items()},
    )
    write_bytes(folder / PAGE, page)
    return folder / PAGE


def contender_rows(stage: Document) -> list[tuple[object, ...]]:
    """Return a row for each contender of a stage: name, median, least and most units a second, rounds."""
    rows: list[tuple[object, ...]] = []
    for name, seconds in contender_times(stage):
        ordered = sorted(seconds)
        rows.append((name, 1 / ordered[len(ordered) // 2], 1 / ordered[-1], 1 / ordered[0], len(ordered)))
    return rows
