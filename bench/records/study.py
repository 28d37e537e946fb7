"""The record of a study as Markdown, and as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slicemill.bench.records.tables import line, where
from slicemill.bench.studies.table import PARTS
from slicemill.common.files import atomic_write
from slicemill.measure.evaluation.statistics import bootstrap_interval

Row = dict[str, Any]
SEEN = {"validation": "validation parts, which recipes are chosen by", "test": "test parts, looked at afterwards"}


def quality_table(record: Row) -> str:
    """Return the record of a study as Markdown: for each region and part a row a variant."""
    lines: list[str] = []
    regions = list(next(iter(record["variants"].values()))["test"])
    for region in regions:
        for part in PARTS:
            known = record["variants"][record["reference"]][part][region]["patients"]
            lines += [
                line(
                    f"{region}, {part} ({known} patients)",
                    "Dice per patient, mean ± SD",
                    "median",
                    f"over {record['reference']} [95 %], p",
                    "Dice global",
                    "precision",
                    "recall",
                ),
                "|---|---|---|---|---|---|---|",
                *(variant_line(name, row, part, region) for name, row in record["variants"].items()),
                "",
            ]
    return "\n".join([*lines, notes(record)])


def yardstick_table(record: Row) -> str:
    """Return ours beside nnU-Net as Markdown."""
    lines: list[str] = []
    for region, gain in record["gain"].items():
        lines += [
            line(f"{region}, test", "Dice per patient, mean ± SD", "median", "Dice global", "precision", "recall"),
            "|---|---|---|---|---|---|",
            *(line(name, *score_cells(row[region])) for name, row in record["contenders"].items()),
            "",
            f"{region}: slicemill over nnU-Net {gain_text(gain)}, better in {gain['better']} of {gain['patients']} patients.",
            "",
        ]
    peer, ours = (row["training"] for row in record["contenders"].values())
    slices = sum(row["iterations"] * row["batch"] for row in peer) / len(peer)
    seen = sum(60 * row["minutes"] * row["slices_per_second"] for row in ours) / len(ours)
    folds = ", ".join(map(str, record["folds"]))
    note = (
        f"{record['collection']}, fold {folds} of {record['of_folds']}; {record['minutes']:g} minutes of training each, one after the other, "
        f"in which nnU-Net took {sum(row['iterations'] for row in peer) / len(peer):,.0f} steps over {slices:,.0f} slices of "
        f"{'x'.join(map(str, peer[0]['patch']))} and ours (variant {record['variant']}) about {seen:,.0f} slices. "
        f"nnU-Net is 2D, with its own plans and defaults but for when it stops and how many steps make an epoch. "
        f"{record['convention']}. "
        f"{record['date'][:10]}, commit {', '.join(record['commits'])}, on {where(record['machine'])}."
    )
    return "\n".join([*lines, note])


def variant_line(name: str, row: Row, part: str, region: str) -> str:
    """Return a variant as a row."""
    mean, middle, *pooled = score_cells(row[part][region])
    return line(name, mean, middle, "-" if row["gain"] is None else gain_text(row["gain"][part][region]), *pooled)


def score_cells(found: Row) -> list[str]:
    """Return mean with deviation, median, global Dice, precision, recall."""
    spread = "" if found["sd"] is None else f" ± {found['sd']:.3f}"
    pooled = (digits(found[key]) for key in ("dice_global", "precision_global", "recall_global"))
    return [digits(found["mean"]) + spread, digits(found["median"]), *pooled]


def gain_text(gain: Row) -> str:
    """Return what is gained patient by patient, with its interval and p."""
    if gain["mean"] is None or gain["low"] is None:
        return digits(gain["mean"])
    p = "" if gain["p"] is None else f", p {gain['p']:.2g}"
    return f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]{p}"


def notes(record: Row) -> str:
    """Return what a reader must know beside the figures."""
    variants = record["variants"]
    first = variants[record["reference"]]
    changed = "; ".join(
        f"{name}: {', '.join(f'{key} = {value}' for key, value in row['changes'].items())}"
        for name, row in variants.items()
        if row["changes"]
    )
    without = sum(row["cases_without_region"] for row in first["test"].values())
    return (
        f"{record['collection']}, {record['patients']} patients validated or tested, fold {listed(record['over']['folds'])} of "
        f"{record['folds']} by patient, seed {listed(record['over']['seeds'])}, {record['steps']:,} steps a run. "
        f"{'Post-processing chosen on the validation part of each fold, whose figures it flatters. ' if record.get('tuned') else ''}"
        f"Chosen by {record['chosen_by']}: {record['chosen']}. {changed}{'. ' if changed else ''}"
        f"{seed_by_seed(record)}{record['convention']} ({without} cases left out so in the test parts of {record['reference']}). "
        f"{first['minutes_a_run']:.1f} minutes a training, {record['date'][:10]}, commit {', '.join(record['commits'])}, "
        f"on {where(record['machine'])}."
    )


def listed(values: Sequence[int]) -> str:
    """Return numbers with commas.

    >>> listed([0, 2])
    '0, 2'
    """
    return ", ".join(map(str, values))


def seed_by_seed(record: Row) -> str:
    """Return each seed's own mean, of the variants that have several."""
    several = {name: row["mean_by_seed"] for name, row in record["variants"].items() if len(row["seeds"]) > 1}
    parts = [
        f"{name} by seed, {part} {', '.join(digits(value) for value in found[part].values())}"
        for name, found in several.items()
        for part in PARTS
    ]
    return f"{'; '.join(parts)}. " if parts else ""


def digits(value: float | None) -> str:
    """Return a score with three digits, a dash for None."""
    return "-" if value is None else f"{value:.3f}"


def draw(path: Path, record: Row) -> None:
    """Draw the chosen region's Dice of every patient under every variant: dots, joined by patient, with mean and 95 % interval."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names, region = list(record["variants"]), record["region"]
    width = max(7.0, 1.1 + 2 * 0.95 * len(names))
    figure, axes = pyplot.subplots(1, 2, figsize=(width, 5.2), sharey=True)
    for part, panel in zip(PARTS, axes, strict=True):
        by_patient = [record["variants"][name][part][region]["by_patient"] for name in names]
        for patient in sorted(set().union(*by_patient)):
            values = [found.get(patient) for found in by_patient]
            panel.plot(
                range(len(names)),
                [math.nan if value is None else value for value in values],
                "o-",
                color="0.6",
                markerfacecolor="0.75",
                markeredgecolor="0.4",
                markersize=4.5,
                linewidth=0.7,
                zorder=1,
            )
        for place, found in enumerate(by_patient):
            known = [value for value in found.values() if value is not None]
            if not known:
                continue
            mean, (low, high) = sum(known) / len(known), bootstrap_interval(known)
            panel.plot([place, place], [low, high], color="C3", linewidth=2.4, zorder=2, solid_capstyle="round")
            panel.plot(place, mean, "D", color="C3", markersize=8, markeredgecolor="white", zorder=3)
            panel.annotate(f"{mean:.2f}", (place, mean), (9, 0), textcoords="offset points", va="center", color="C3",
                           fontsize=9, fontweight="bold", zorder=4,
                           bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6})  # fmt: skip
        panel.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
        panel.set(xlim=(-0.4, len(names) - 0.3), ylim=(-0.02, 1.02), title=f"{SEEN[part]}")
        panel.title.set_fontsize(10)
        panel.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel(f"Dice of {region}, a dot a patient")
    figure.suptitle(
        f"{record['collection']}: {record['patients']} patients, {record['folds']} folds, {record['steps']:,} steps a run; "
        "diamond: mean, bar: its 95 % interval",
        fontsize=10,
    )
    figure.tight_layout()
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
    pyplot.close(figure)
