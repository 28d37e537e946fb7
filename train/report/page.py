"""The report of a training run, as one page that needs no other file: ``report.html``.

It is made from the run folder, the store and the best weights, and is written last. If the run is killed before that,
the same command writes it.
"""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.files import write_bytes
from slicemill.common.html import render
from slicemill.common.terminal import count_noun
from slicemill.ct.labels import Labels
from slicemill.ct.overlap import Overlap, mean_without_nan
from slicemill.ct.page_slices import PageSlices
from slicemill.ct.pictures import label_colors
from slicemill.store.case import CaseInfo
from slicemill.train.config import Config
from slicemill.train.network.step import build_network
from slicemill.train.report.cases import CaseScores, score_case, sort_worst_first, write_cases
from slicemill.train.report.curves import draw_curves
from slicemill.train.run.checkpoint import BEST, State, load_weights
from slicemill.train.run.environment import RunEnvironment, read_environment
from slicemill.train.run.setup import (
    BEST_CASES,
    CASES,
    CONFIG,
    CURVES,
    ENVIRONMENT,
    METRICS,
    REPORT,
    SPLIT,
    WORST_CASES,
    RunModel,
    Setup,
    read_run_model,
)
from slicemill.train.run.validate import Overlaps

MAX_FIGURES = 4
"""Maximum number of regions whose Dice is shown at the top."""
DISCLAIMER = "For research use; not a medical device. Nothing here is a diagnosis."
ROLES = {"train": "training", "validation": "choice of the weights", "test": "not used in training"}
FILES = (
    (CONFIG, "the settings, for --config"),
    (SPLIT, "the case ids of the three parts, for --split"),
    (METRICS, "one row per epoch; the same as TensorBoard's events"),
    (CASES, "one row per validation case"),
    (ENVIRONMENT, "machine, versions, store, and each start of the training"),
    (f"{CURVES}, {WORST_CASES}, {BEST_CASES}", "the pictures of this page"),
    (BEST, "the best weights, which are exported"),
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A label in the legend of the pictures."""

    name: str
    css_color: str


@dataclass(frozen=True, kw_only=True)
class SettingsTables:
    """The settings of a run."""

    changed: Table
    """Those that differ from the defaults."""
    defaults: str
    """The others, as one line."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The content of the page."""

    folder: Path
    setup: Setup
    state: State
    overlaps: Mapping[str, Overlaps]
    """Overlaps of the validation cases, by case id."""
    worst: tuple[tuple[str, PageSlices], ...]
    """Ids and slices of the worst cases."""
    environment: RunEnvironment
    model: RunModel

    @property
    def name(self) -> str:
        """Return the name of the folder."""
        return self.folder.resolve().name

    def info(self, case_id: str) -> CaseInfo:
        """Return a case's attributes in the store."""
        return self.setup.store[case_id].info


def write_report(folder: Path, setup: Setup, state: State) -> None:
    """Segment the validation cases with the best weights, and write their table, pictures, the curves and the page."""
    network = build_network(setup.labels, setup.config).to(setup.device)
    load_weights(folder / BEST, network)
    cases = write_cases(folder, setup, network)
    draw_curves(folder / CURVES, state.history, setup.labels)
    run = Run(
        folder=folder,
        setup=setup,
        state=state,
        overlaps=cases.overlaps,
        worst=cases.worst,
        environment=read_environment(folder),
        model=read_run_model(folder),
    )
    write_bytes(folder / REPORT, render_page(run))


def render_page(run: Run) -> bytes:
    """Return the page as HTML."""
    setup, config = run.setup, run.setup.config
    scores = sort_worst_first([score_case(run.info(case_id), overlaps) for case_id, overlaps in run.overlaps.items()])
    return render(
        "train/report/page.html",
        title=f"{run.name}: report of a training",
        name=run.name,
        folder=run.folder,
        files={"config": CONFIG, "split": SPLIT, "curves": CURVES, "worst": WORST_CASES, "best": BEST_CASES},
        file_list=FILES,
        config=config,
        model=run.model,
        state=run.state,
        slices=run.worst,
        label_names=list(setup.labels.values),
        case_count=count_noun(len(setup.store), "case"),
        validation_count=count_noun(len(scores), "validation case"),
        test_count=count_noun(len(setup.split.test), "test case"),
        test_ids=setup.split.test,
        ending=describe_ending(run.state, config),
        disclaimer=DISCLAIMER,
        figures=key_figures(run),
        legend=legend(setup.labels),
        scores=score_table(pool_overlaps(run.overlaps), scores),
        cases=case_table(scores, setup.labels),
        split=split_table(run),
        settings=settings_tables(config),
        facts=list_facts(run.environment),
        starts=start_table(run.environment),
        shell_name=shlex.quote(run.name),
        shell_store=shlex.quote(run.model.store),
    )


def key_figures(run: Run) -> list[tuple[str, object]]:
    """Return the figures at the top of the page, each with its name."""
    dices = [(f"Dice global, {name}", overlap.dice) for name, overlap in pool_overlaps(run.overlaps).items()]
    return [
        *dices[:MAX_FIGURES],
        (f"best epoch of {run.state.epoch}", run.state.best_epoch),
        ("minutes of training", round(run.state.seconds / 60, 1)),
        ("training slices per second", run.state.history[-1].slices_per_second),
    ]


def describe_ending(state: State, config: Config) -> str:
    """Return the reason why training ended."""
    if config.patience and state.epoch - state.best_epoch >= config.patience:
        return f"It ended after {config.patience} epochs without a better validation Dice (patience)."
    if config.max_minutes and state.seconds >= 60 * config.max_minutes:
        return f"It ended after its {config.max_minutes:g} minutes (max_minutes)."
    return f"It ended after its {state.epoch} epochs."


def pool_overlaps(by_case: Mapping[str, Overlaps]) -> Overlaps:
    """Return the counts of each region over all cases."""
    totals: Overlaps = {}
    for overlaps in by_case.values():
        for name, overlap in overlaps.items():
            totals[name] = totals.get(name, Overlap()) + overlap
    return totals


def score_table(pooled: Overlaps, scores: Sequence[CaseScores]) -> Table:
    """Return the scores of each region: global ones from `pooled`, means over the cases from `scores`."""
    rows = []
    for name, overlap in pooled.items():
        regions = [score.regions[name] for score in scores]
        dices = [region.dice for region in regions if region.dice is not None]
        errors = [region.error_ml for region in regions]
        between = f"{min(dices):.3f} to {max(dices):.3f}" if dices else None
        volume_errors = mean_without_nan(errors), mean_without_nan([abs(error) for error in errors])
        rows.append(
            (name, overlap.dice, mean_without_nan(dices), between, overlap.precision, overlap.recall, *volume_errors)
        )
    header = (
        "region",
        "Dice global",
        "Dice per case",
        "lowest to highest",
        "precision",
        "recall",
        "volume error, ml",
        "absolute error, ml",
    )
    return Table(header=header, rows=rows)


def case_table(scores: Sequence[CaseScores], labels: Labels) -> Table:
    """Return the table of validation cases, without columns that repeat another."""
    rows = [score.as_row() for score in scores]
    repeated = {"patient_id"} if all(score.patient_id == score.case_id for score in scores) else set()
    repeated |= {"dice"} if len(labels.values) == 1 else set()
    columns = [column for column in rows[0] if column not in repeated]
    header = [column.replace("_ml", ", ml").replace("_id", "").replace("_", " ") for column in columns]
    return Table(header=header, rows=[[row[column] for column in columns] for row in rows])


def split_table(run: Run) -> Table:
    """Return the parts of the split in numbers."""
    tumor, split = run.setup.labels.tumor, run.setup.split
    rows = []
    for (part, role), case_ids in zip(ROLES.items(), (split.train, split.validation, split.test), strict=True):
        infos = [run.info(case_id) for case_id in case_ids]
        patients, slices = {info.patient_id for info in infos}, sum(info.shape[0] for info in infos)
        row: list[object] = [part, role, len(patients), len(infos), slices]
        if tumor is not None:
            row.append(sum(any(info.slice_stats.voxels.get(tumor, ())) for info in infos))
        rows.append(row)
    header = ["part", "use", "patients", "cases", "slices", *(["cases with tumor"] if tumor else [])]
    return Table(header=header, rows=rows)


def settings_tables(config: Config) -> SettingsTables:
    """Return the settings that differ from the defaults as a table, and the others as a line."""
    default = dataclasses.asdict(Config())
    lines = [
        (name, _format_setting(value), _format_setting(default[name]))
        for name, value in dataclasses.asdict(config).items()
    ]
    changed = [line for line in lines if line[1] != line[2]]
    return SettingsTables(
        changed=Table(header=("setting", "here", "default"), rows=changed),
        defaults=", ".join(f"{name} = {value}" for name, value, usual in lines if value == usual),
    )


def _format_setting(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def list_facts(environment: RunEnvironment) -> list[tuple[str, object]]:
    """Return machine, versions and store, each with its name."""
    facts: list[tuple[str, object]] = []
    for name, value in environment.environment.items():
        if isinstance(value, dict):
            facts.append((name, ", ".join(f"{key} {one}" for key, one in value.items())))
        elif isinstance(value, list):
            facts.append((name, "; ".join(map(str, value)) or None))
        else:
            facts.append((name.replace("_", " "), value))
    return facts


def start_table(environment: RunEnvironment) -> Table:
    """Return the starts of the run with the changes since the start before."""
    rows = [
        (
            start.utc,
            start.after_epoch,
            "; ".join(f"{name}: {before} -> {now}" for name, (before, now) in start.changed.items()),
        )
        for start in environment.starts
    ]
    return Table(header=("started (UTC)", "after epoch", "changes"), rows=rows)


def legend(labels: Labels) -> list[Outline]:
    """Return the colors of the outlines."""
    names = {value: name for name, value in labels.values.items()}
    return [Outline(name=names[values[0]], css_color=f"rgb{color}") for values, color in label_colors(labels)]
