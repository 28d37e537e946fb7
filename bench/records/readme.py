"""Write the tables of the committed records into the README: ``python -m slicemill.bench.records.readme``.

A test fails if a table differs from its record.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicemill.bench.records.demo_scores import scores_table
from slicemill.bench.records.plan import plan_table
from slicemill.bench.records.quality import quality_table, yardstick_table
from slicemill.bench.records.schema import Document
from slicemill.bench.records.suite import all_table
from slicemill.bench.records.tables import (
    constants_table,
    export_table,
    infer_table,
    ingest_table,
    instructions_table,
    limits_table,
    lits_table,
    loader_table,
    measure_table,
    peers_inference_table,
    peers_table,
    scale_table,
    store_table,
    train_table,
)
from slicemill.common.files import read_json

FIGURES = (
    "scores: demo",
    "scores: real",
    "quality",
    "phantoms",
    "yardstick",
    "ingest",
    "store",
    "loader",
    "train",
    "measure",
    "lits",
    "all",
    "infer",
    "all: peers-loading",
    "peers-inference",
    "instructions",
    "constants",
    "scale",
    "plan",
)
"""Names of the tables in the README. ``KIND: NAME`` is a part of a record; the others are the names of records."""
END = "<!-- end -->"
TABLES: dict[str, Callable[[Document], str]] = {
    "constants": constants_table,
    "instructions": instructions_table,
    "limits": limits_table,
    "peers": peers_table,
    "peers inference": peers_inference_table,
    "scale": scale_table,
    "export": export_table,
    "infer": infer_table,
    "ingest": ingest_table,
    "store": store_table,
    "loader": loader_table,
    "train": train_table,
    "measure": measure_table,
    "ingest --scale lits": lits_table,
    "quality": quality_table,
    "yardstick": yardstick_table,
}
"""The table of each kind of record."""


def format_record(record: Document) -> str:
    """Format a record as the table of its kind."""
    return TABLES[record["benchmark"]](record)


def render_figure(figure: str, root: Path) -> str:
    """Return a table of the README with its markers.

    Parameters
    ----------
    figure : str
        One of FIGURES.
    root : Path
        The checkout.
    """
    results = root / "bench" / "results"

    def record(name: str) -> dict[str, Any]:
        return read_json(results / f"{name}.json")

    def newest_suite() -> dict[str, Any]:
        return read_json(max((results / "runs").glob("*.json")))

    kind, _, name = figure.partition(": ")
    if figure == "all":
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
    """Rewrite the tables of the README."""
    root = Path(__file__).resolve().parents[2]
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    for figure in FIGURES:
        table = render_figure(figure, root).replace("\\", r"\\")
        text = re.sub(rf"<!-- {figure} -->(?:.*?{END})?", table, text, count=1, flags=re.DOTALL)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
