"""Puts the committed figures into the README: ``python -m slicemill.bench.records.readme``; a test fails when the two differ."""

import json
import re
from pathlib import Path
from typing import Any

from slicemill.bench.records.study import quality_table, yardstick_table
from slicemill.bench.records.tables import (
    all_table,
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
    plan_table,
    scale_table,
    store_table,
    train_table,
    where,
)

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
END = "<!-- end -->"


def rendered(figure: str, root: Path) -> str:
    """Return a figure's table as it must stand in the README, between its marks."""
    results = root / "bench" / "results"

    def record(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        return found

    def newest() -> dict[str, Any]:
        return record(f"runs/{max((results / 'runs').glob('*.json')).stem}")

    kind, _, name = figure.partition(": ")
    if figure == "all":
        table = all_table(newest())
    elif kind == "all":
        stage = newest()["stages"][name]
        table = TABLES[stage["benchmark"]](stage)
    elif figure == "plan":
        table = plan_table(*(record(name) for name in ("scale", "store", "infer", "lits")))
    elif kind == "scores":
        table = scores_table(record(name))
    else:
        found = record(figure)
        table = TABLES[found["benchmark"]](found)
    return f"<!-- {figure} -->\n{table}\n{END}"


def scores_table(summary: dict[str, Any]) -> str:
    """Return the scores of a whole-way run as Markdown."""
    band = summary["baseline"]
    lines = ["| | Dice per case | Dice global | precision | recall |", "|---|---|---|---|---|"]
    for name, row in summary["scores"]["regions"].items():
        figures = [row[key] for key in ("dice_per_case", "dice_global", "precision_global", "recall_global")]
        lines.append(
            f"| {name}, network | {' | '.join('-' if value is None else f'{value:.3f}' for value in figures)} |"
        )
    low, high = band["band_hu"]
    lines.append(
        f"| tumor, best HU band ({low} to {high}) | {band['dice_per_case']:.3f} | {band['dice_global']:.3f} | - | - |"
    )
    there = summary["where_there_is_tumor"]
    lines.append(
        f"| tumor, where there is tumor ({there['cases']} cases): network | {there['network']:.3f} | - | - | - |"
    )
    lines.append(f"| the same, best HU band | {there['baseline']:.3f} | - | - | - |")
    answers = []
    for part in ("case", "slice"):
        row = summary["scores"][f"tumor_by_{part}"]
        shown = ", ".join(
            f"{name} {row[name.lower()]:.2f}"
            for name in ("accuracy", "sensitivity", "specificity", "AUC")
            if row[name.lower()] is not None
        )
        answers.append(f"per {part} ({row['positives']} with, {row['negatives']} without): {shown}")
    return "\n".join(
        [
            *lines,
            "",
            f"Tumor yes or no, {'; '.join(answers)}. {summary['minutes']:.1f} minutes in all on {where(summary['machine'])}.",
        ]
    )


TABLES = {
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


def main() -> None:
    """Rewrite the tables of the README."""
    root = Path(__file__).resolve().parents[2]
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    for figure in FIGURES:
        pattern = rf"<!-- {figure} -->(?:.*?{END})?"
        text = re.sub(pattern, lambda _, figure=figure: rendered(figure, root), text, count=1, flags=re.DOTALL)  # type: ignore[misc]
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
