"""What came out of a training, as one page that opens anywhere: ``report.html``.

The page is derived from the run folder, the store and the weights that were kept, and is written last: a run that was killed
before it was there writes it when the same command is run again.
"""

import dataclasses
import html
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicemill.common import html as page
from slicemill.common.files import read_json, write_bytes
from slicemill.common.terminal import count_noun
from slicemill.ct.labels import Labels
from slicemill.ct.overlap import Overlap, mean_of
from slicemill.ct.pictures import label_colors
from slicemill.store.case import CaseInfo
from slicemill.train.config import Config
from slicemill.train.network.step import build
from slicemill.train.report.cases import Row, case_row, worst_first, write_cases
from slicemill.train.report.curves import draw_curves
from slicemill.train.run.checkpoint import BEST, State, load_weights
from slicemill.train.run.setup import (
    BEST_CASES,
    CASES,
    CONFIG,
    CURVES,
    ENVIRONMENT,
    METRICS,
    MODEL,
    REPORT,
    SPLIT,
    WORST_CASES,
    Setup,
)
from slicemill.train.run.validate import Overlaps

CARDS = 4
"""Regions whose Dice stands at the top."""
DISCLAIMER = "For research use; not a medical device. Nothing here is a diagnosis."
ALT = "The {} validation cases: image, reference and prediction at the slice with most tumor or label and at that with most error"
ROLES = {"train": "trained on", "validation": "chose the weights that are kept", "test": "never seen"}
FILES = (
    (CONFIG, "the settings; --config takes them"),
    (SPLIT, "the case ids of the three parts; --split takes them"),
    (METRICS, "a row an epoch; the same as TensorBoard's events"),
    (CASES, "a row a validation case"),
    (ENVIRONMENT, "machine, versions, store, and when training began and went on"),
    (f"{CURVES}, {WORST_CASES}, {BEST_CASES}", "the pictures of this page"),
    (BEST, "the weights that are kept and exported"),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that the page tells."""

    folder: Path
    setup: Setup
    state: State
    found: Mapping[str, Overlaps]
    """Overlaps of the validation cases, by case id."""
    started: Mapping[str, Any]
    """What ``environment.json`` holds."""
    model: Mapping[str, Any]
    """What ``model.json`` holds."""

    @property
    def rows(self) -> list[Row]:
        """Return the table of validation cases, the worst first."""
        return worst_first([case_row(self.info(case_id), found) for case_id, found in self.found.items()])

    def info(self, case_id: str) -> CaseInfo:
        """Return what the store knows of a case."""
        return self.setup.store[case_id].info


def write_report(folder: Path, setup: Setup, state: State) -> None:
    """Segment the validation cases with the best weights and write their table, pictures, the curves, and then the page."""
    network = build(setup.labels, setup.config).to(setup.device)
    load_weights(folder / BEST, network)
    found = write_cases(folder, setup, network)
    draw_curves(folder / CURVES, state.rows, setup.labels)
    path = folder / ENVIRONMENT
    started = read_json(path) if path.exists() else {}
    run = Run(folder=folder, setup=setup, state=state, found=found, started=started, model=read_json(folder / MODEL))
    write_bytes(folder / REPORT, page.document(f"{name_of(folder)}: report of a training", body(run)))


def name_of(folder: Path) -> str:
    """Return the name of a run: that of its folder."""
    return folder.resolve().name


def body(run: Run) -> str:
    """Return the sections of the page, most wanted first."""
    folder = run.folder
    chips = legend(run.setup.labels)
    parts = [
        header(run),
        page.section("Result on the validation cases", *result(run)),
        page.section("Curves", page.picture(folder / CURVES, "Dice, loss, learning rate and speed over epochs")),
        page.section("Worst validation cases", chips, page.picture(folder / WORST_CASES, ALT.format("worst"))),
    ]
    if len(run.found) > 1:
        best = page.picture(folder / BEST_CASES, ALT.format("best"))
        parts.append(page.section("Best validation cases", chips, best))
    parts += [
        page.section("Every validation case", *cases(run)),
        page.section("Split", split(run)),
        page.section("Settings", *settings(run.setup.config)),
        page.section("Environment", *environment(run.started)),
        page.section("How to go on", *going_on(run)),
        page.section("Files of this folder", page.pairs(FILES)),
        f'<p class="note">{DISCLAIMER}</p>',
    ]
    return "\n".join(parts)


def header(run: Run) -> str:
    """Return title, what was trained on what, and the key figures."""
    state, config, model = run.state, run.setup.config, run.model
    words = (
        f"A 2.5-D U-Net of context {config.context} and width {config.width} that labels {', '.join(run.setup.labels.values)}, "
        f"trained on the store {model['store']} of {count_noun(len(run.setup.store), 'case')}. {ending(state, config)}"
    )
    dices = [(f"Dice global, {name}", counts.dice) for name, counts in pooled(run.found).items()]
    figures = [
        *dices[:CARDS],
        (f"best epoch of {state.epoch}", state.best_epoch),
        ("minutes of training", round(state.seconds / 60, 1)),
        ("training slices per second", state.rows[-1]["slices_per_second"]),
    ]
    note = f'<p class="note">SHA-256 of the store: {html.escape(str(model["store_sha256"]))}<br>{DISCLAIMER}</p>'
    title = f"<h1>Training run {html.escape(name_of(run.folder))}</h1>"
    return f"<header>{title}{page.paragraph(words)}{note}{page.cards(figures)}</header>"


def ending(state: State, config: Config) -> str:
    """Return why training ended."""
    if config.patience and state.epoch - state.best_epoch >= config.patience:
        return f"It ended after {config.patience} epochs without a better validation Dice (patience)."
    if config.max_minutes and state.seconds >= 60 * config.max_minutes:
        return f"It ended after its {config.max_minutes:g} minutes (max_minutes)."
    return f"It ended after its {state.epoch} epochs."


def pooled(found: Mapping[str, Overlaps]) -> Overlaps:
    """Return the counts of each region over all cases."""
    totals: Overlaps = {}
    for overlaps in found.values():
        for name, counts in overlaps.items():
            totals[name] = totals.get(name, Overlap()) + counts
    return totals


def result(run: Run) -> list[str]:
    """Return the scores of each region, and how far to trust them."""
    rows = run.rows
    lines = []
    for name, counts in pooled(run.found).items():
        dices = [row[f"dice_{name}"] for row in rows if row[f"dice_{name}"] is not None]
        errors = [row[f"error_{name}_ml"] for row in rows]
        between = f"{min(dices):.3f} to {max(dices):.3f}" if dices else None
        scores = (counts.dice, mean_of(dices), between, counts.precision, counts.recall)
        lines.append((name, *scores, mean_of(errors), mean_of([abs(error) for error in errors])))
    columns = (
        "region",
        "Dice global",
        "Dice per case",
        "lowest to highest",
        "precision",
        "recall",
        "volume error, ml",
        "without sign, ml",
    )
    unseen = len(run.setup.split.test)
    words = (
        f"By the weights of epoch {run.state.best_epoch}, the best mean of Dice global. The {count_noun(len(rows), 'validation case')} chose "
        "these weights, which flatters the figures"
        + (f"; the {count_noun(unseen, 'test case')} can say more (see below)." if unseen else ".")
        + " Dice global counts the voxels of all cases together; a case in which neither mask has a region has no Dice there. "
        "Errors of volume are prediction - reference, in the mean."
    )
    return [page.table(columns, lines), page.paragraph(words)]


def cases(run: Run) -> list[str]:
    """Return the table of validation cases, without columns that would say the same again."""
    rows = run.rows
    again = {"patient_id"} if all(row["patient_id"] == row["case_id"] for row in rows) else set()
    again |= {"dice"} if len(run.setup.labels.values) == 1 else set()
    columns = [column for column in rows[0] if column not in again]
    titles = [column.replace("_ml", ", ml").replace("_id", "").replace("_", " ") for column in columns]
    note = '<p class="note">A click on the head of a column sorts. Errors are prediction - reference.</p>'
    return [note, page.table(titles, [[row[column] for column in columns] for row in rows], sortable=True)]


def split(run: Run) -> str:
    """Return the parts of the split in numbers."""
    tumor = run.setup.labels.tumor
    lines = []
    for part, role in ROLES.items():
        infos = [run.info(case_id) for case_id in getattr(run.setup.split, part)]
        counts = (len({info.patient_id for info in infos}), len(infos), sum(info.shape[0] for info in infos))
        line: list[object] = [part, role, *counts]
        if tumor is not None:
            line.append(sum(any(info.slice_stats.voxels.get(tumor, ())) for info in infos))
        lines.append(line)
    columns = ["part", "what for", "patients", "cases", "slices", *(["cases with tumor"] if tumor else [])]
    return page.table(columns, lines)


def settings(config: Config) -> list[str]:
    """Return the settings that are not the defaults as a table, and the others in a line."""
    default = dataclasses.asdict(Config())
    lines = [(name, _plain(value), _plain(default[name])) for name, value in dataclasses.asdict(config).items()]
    changed = [line for line in lines if line[1] != line[2]]
    same = ", ".join(f"{name} = {value}" for name, value, usual in lines if value == usual)
    if not changed:
        return [page.paragraph("All settings are the defaults."), f'<p class="note">{html.escape(same)}</p>']
    return [
        page.table(("setting", "here", "default"), changed),
        f'<p class="note">As by default: {html.escape(same)}</p>',
    ]


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def environment(started: Mapping[str, Any]) -> list[str]:
    """Return machine, versions, and the starts of the run with what had changed."""
    lines: list[tuple[str, object]] = []
    for name, value in started.get("environment", {}).items():
        if isinstance(value, dict):
            lines.append((name, ", ".join(f"{key} {one}" for key, one in value.items())))
        elif isinstance(value, list):
            lines.append((name, "; ".join(map(str, value)) or None))
        else:
            lines.append((name.replace("_", " "), value))
    starts = []
    for start in started.get("starts", []):
        changed = "; ".join(f"{name}: {before} -> {now}" for name, (before, now) in start["changed"].items())
        starts.append((start["utc"], start["after_epoch"], changed))
    return [page.pairs(lines), page.table(("started or went on (UTC)", "after epoch", "what had changed"), starts)]


def going_on(run: Run) -> list[str]:
    """Return the commands that make use of the run, and that which repeats it."""
    name = shlex.quote(name_of(run.folder))
    store = shlex.quote(str(run.model["store"]))
    unseen = run.setup.split.test
    words = f"The {count_noun(len(unseen), 'test case')} of {SPLIT} that training never saw: " + ", ".join(unseen[:20])
    return [
        page.paragraph(
            "In the folder that holds this one: one ONNX file, then scans of your own or those of the test part, then scores."
        ),
        page.commands(
            (
                f"slicemill export {name}/ model.onnx",
                "slicemill infer model.onnx SCANS --out segmented/",
                f"slicemill evaluate segmented/ {store} --out scores/",
            )
        ),
        page.paragraph(words + (", ..." if len(unseen) > 20 else ".")) if unseen else "",
        page.paragraph("The same training again:"),
        page.commands([f"slicemill train {store} again/ --config {name}/{CONFIG} --split {name}/{SPLIT}"]),
    ]


def legend(labels: Labels) -> str:
    """Return the colors of the outlines."""
    names = {value: name for name, value in labels.values.items()}
    chips = [
        f'<span class="chip" style="background: rgb{color}"></span>{html.escape(names[values[0]])}'
        for values, color in label_colors(labels)
    ]
    return f'<p class="note">Image | reference | prediction. Outlines:{"".join(chips)}</p>'
