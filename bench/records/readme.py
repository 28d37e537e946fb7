"""Write the tables of the committed records into the documentation: ``python -m slicemill.bench.records.readme``.

The README has the headlines, docs/benchmarks.md all other tables. A test fails if a table differs from its record.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicemill.bench.records.demo_scores import scores_table
from slicemill.bench.records.headlines import headlines_table
from slicemill.bench.records.plan import plan_table
from slicemill.bench.records.quality import NnunetRecord, QualityRecord, quality_table, yardstick_table
from slicemill.bench.records.range_table import range_table
from slicemill.bench.records.suite import all_table
from slicemill.bench.records.tables import TABLES
from slicemill.bench.schema.base import BenchmarkRecord, Document, kind_name, read_record
from slicemill.bench.schema.networks import RangeRecord
from slicemill.common.errors import InputError
from slicemill.common.files import read_json

HEADLINES = "headlines"
"""Name of the table in the README."""
FIGURES = (
    "scores: demo", "scores: real", "quality", "phantoms", "optimizers", "pixels", "yardstick", "ingest",
    "ingest-dicom", "nodules", "nodule-rules", "nodule-context", "volumes", "store", "loader", "train", "measure",
    "lits", "all", "infer", "infer-range", "all: peers-loading", "peers-inference", "instructions", "constants",
    "scale", "plan",
)  # fmt: skip
"""Names of the tables in docs/benchmarks.md. ``KIND: NAME`` is a part of a record; the others are names of records."""
END = "<!-- end -->"
FORMATS: dict[type[BenchmarkRecord], Callable[[Any], str]] = {
    **TABLES,
    QualityRecord: quality_table,
    NnunetRecord: yardstick_table,
    RangeRecord: range_table,
}
"""The table of each kind of record."""
KINDS = {kind_name(kind): kind for kind in FORMATS}
"""Kinds of records by their value of ``benchmark``."""


def format_record(document: Document) -> str:
    """Format a record as the table of its kind.

    Raises
    ------
    InputError
        The kind is not known, or a value is missing or has another type.
    """
    if (kind := KINDS.get(document.get("benchmark"))) is None:
        raise InputError(
            f"benchmark {document.get('benchmark')!r}: no such record; there are {', '.join(map(str, KINDS))}."
        )
    return FORMATS[kind](read_record(kind, document))


def render_figure(figure: str, root: Path) -> str:
    """Return a table of the documentation with its markers.

    Parameters
    ----------
    figure : str
        HEADLINES, or one of FIGURES.
    root : Path
        The checkout.
    """
    results = root / "bench" / "results"

    def record(name: str) -> dict[str, Any]:
        return read_json(results / f"{name}.json")

    def newest_suite() -> dict[str, Any]:
        return read_json(max((results / "runs").glob("*.json")))

    kind, _, name = figure.partition(": ")
    if figure == HEADLINES:
        table = headlines_table(
            *map(record, ("lits", "ingest-dicom", "store", "loader", "peers-inference", "phantoms"))
        )
    elif figure == "all":
        table = all_table(newest_suite())
    elif kind == "all":
        table = format_record(newest_suite()["stages"][name])
    elif figure == "plan":
        table = plan_table(*map(record, ("scale", "store", "infer", "lits")))
    elif kind == "scores":
        table = scores_table(record(name))
    else:
        table = format_record(record(figure))
    return f"<!-- {figure} -->\n{table}\n{END}"


def main() -> None:
    """Rewrite the tables of the README and of docs/benchmarks.md."""
    root = Path(__file__).resolve().parents[2]
    for page, figures in ((root / "README.md", (HEADLINES,)), (root / "docs" / "benchmarks.md", FIGURES)):
        text = page.read_text(encoding="utf-8")
        for figure in figures:
            table = render_figure(figure, root).replace("\\", r"\\")
            text = re.sub(rf"<!-- {figure} -->(?:.*?{END})?", table, text, count=1, flags=re.DOTALL)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
