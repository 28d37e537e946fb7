"""The whole suite as a picture and as one page: ``stages.png``, ``bench.html``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slicemill.bench.harness.catalog import STAGES
from slicemill.bench.harness.headline import Record
from slicemill.bench.records.tables import number
from slicemill.common import html as page
from slicemill.common.files import atomic_write, write_bytes
from slicemill.common.machine import format_machine

PICTURE, SHARES, PAGE = "stages.png", "shares.png", "bench.html"
LEGIBLE = 3.0
"""Percent of a bar that has room for its figure."""
OURS, THEIRS, LIMIT = "#2f6ea8", "#b9c3cd", "#c0392b"


def draw(path: Path, record: Record) -> None:
    """Draw a panel a stage: ours and its peers as bars, the limit as a line."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    stages = {name: stage["headline"] for name, stage in record["stages"].items()}
    heights = [0.62 + 0.3 * (1 + len(found["peers"])) for found in stages.values()]
    figure, axes = pyplot.subplots(
        len(stages), 1, figsize=(9.0, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for (name, found), panel in zip(stages.items(), axes[:, 0], strict=True):
        bars = {"slicemill": found["per_second"]}
        bars |= {peer: row["per_second"] for peer, row in found["peers"].items()}
        names, values = list(bars), list(bars.values())
        panel.barh(names, values, color=[OURS, *[THEIRS] * len(found["peers"])], height=0.66)
        panel.set_ylim(len(bars) - 0.4, -0.6)
        limit = found["limit"]["per_second"]
        panel.axvline(limit, color=LIMIT, linewidth=1.6)
        panel.set_xlim(0, 1.16 * max(limit, *values))
        for place, value in enumerate(values):
            panel.annotate(number(value), (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8,
                           bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.4})  # fmt: skip
        unit = record["stages"][name].get("unit", "slices").split(",")[0]
        panel.set_title(
            f"{name}: {unit} a second of {clock(record['stages'][name])}   (line: {found['limit']['name']})",
            fontsize=9,
            loc="left",
        )
        panel.tick_params(labelsize=8)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
    pyplot.close(figure)


def draw_shares(path: Path, stage: Record) -> None:
    """Draw where the time of the inference pipeline goes: a bar a network, with and without post-processing, all threads together."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    bars = {
        f"{network},\n{kind}": stages
        for network, measured in stage["results"]["whole"].items()
        for kind, stages in measured["stages"].items()
    }
    figure, panel = pyplot.subplots(figsize=(9.0, 0.9 + 0.62 * len(bars)), layout="constrained")
    left = dict.fromkeys(bars, 0.0)
    for color, name in enumerate(next(iter(bars.values()))):
        shares = [100 * stages[name]["share"] for stages in bars.values()]
        panel.barh(list(bars), shares, left=list(left.values()), label=name, height=0.66, color=f"C{color}")
        for place, (bar, share) in enumerate(zip(bars, shares, strict=True)):
            if share >= LEGIBLE:
                panel.text(left[bar] + share / 2, place, f"{share:.0f}", ha="center", va="center", fontsize=8)
            left[bar] += share
    panel.invert_yaxis()
    panel.set(xlim=(0, 100), xlabel="% of the time of all threads")
    panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=9, fontsize=8, frameon=False, handlelength=1.2)
    panel.tick_params(labelsize=8)
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
    pyplot.close(figure)


def clock(stage: Mapping[str, Any]) -> str:
    """Return by what a stage is timed, in a word or two."""
    return "CPU time" if stage.get("clock", "wall").startswith("CPU") else "time"


def write_page(folder: Path, record: Record) -> Path:
    """Write ``bench.html`` beside its picture and return its path."""
    machine = format_machine(record["machine"]).replace("\n", ". ")
    kind = "quick run, 3 rounds" if record["quick"] else "full run"
    parts = [
        "<h1>slicemill bench</h1>",
        page.paragraph(f"{record['date']}, {kind}. {machine}."),
        page.section(
            "Stages", page.picture(folder / PICTURE, "bars of every stage with its limit"), stage_table(record)
        ),
        page.section("Peers", peer_table(record)),
        page.section("Limits of this machine", limit_table(record)),
    ]
    if "infer" in record["stages"]:
        parts.append(
            page.section("infer: where the time goes", page.picture(folder / SHARES, "time shares of the pipeline"))
        )
    if record["failed"]:
        rows = list(record["failed"].items())
        parts.insert(2, page.section("Failed", page.table(["stage", "reason"], rows)))
    for name, stage in record["stages"].items():
        parts.append(page.section(f"{name}: every contender", contender_table(stage)))
    write_bytes(folder / PAGE, page.document("slicemill bench", "\n".join(parts)))
    return folder / PAGE


def stage_table(record: Record) -> str:
    """Return a row a stage."""
    rows = [
        (
            name,
            STAGES[name].what,
            stage["headline"]["per_second"],
            stage["headline"]["limit"]["name"],
            stage["headline"]["limit"]["fraction"],
            stage["headline"]["verified"],
        )
        for name, stage in record["stages"].items()
    ]
    header = ["stage", "what", "a second", "limit", "of the limit", "verified after the clock stopped"]
    return page.table(header, rows)


def peer_table(record: Record) -> str:
    """Return a row a peer."""
    rows = [
        (name, peer, row["per_second"], row["times"], row["what"])
        for name, stage in record["stages"].items()
        for peer, row in stage["headline"]["peers"].items()
    ]
    return page.table(["stage", "peer", "a second", "ours, times as fast", "what it does more or less"], rows)


def limit_table(record: Record) -> str:
    """Return a row a limit."""
    if record["limits"] is None:
        return page.paragraph("not measured")
    rows = [(name, row["most"], row["unit"]) for name, row in record["limits"]["results"].items()]
    return page.table(["limit", "at most", "unit"], rows)


def contender_table(stage: Record) -> str:
    """Return a row a contender of a stage: rate, median and spread."""
    from slicemill.bench.records.compare import rates

    rows = []
    for name, seconds in rates(stage):
        ordered = sorted(seconds)
        middle = ordered[len(ordered) // 2]
        rows.append((name, 1 / middle, 1 / ordered[-1], 1 / ordered[0], len(ordered)))
    return page.table(["contender", "a second, median", "least", "most", "rounds"], rows)
