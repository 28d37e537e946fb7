"""`slicemill demo --lungs`: from points of nodules to a FROC curve on unseen chests, through the commands of a user.

phantom (to train, to test) -> ingest --points --lungs -> train --recipe nodules -> export -> infer --candidates on the
training scans -> ingest --candidates -> train --crops -> export to one file -> tune -> infer on the test scans -> froc
of the candidates as the segmentation ranks them, and as the classifier does.

All is counted in epochs and steps, so that the result does not depend on the speed of the machine. The chests are
small and the trainings short: the figures show that the commands work together, and not how good a network can be.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicemill.common.countdown import Countdown, Step, show_countdown
from slicemill.common.documents import to_document
from slicemill.common.errors import UsageError
from slicemill.common.extras import require_extras
from slicemill.common.files import read_json, write_bytes, write_json
from slicemill.common.machine import machine_info
from slicemill.common.terminal import format_table, print_lines
from slicemill.demo import EXTRAS, Commands

SEGMENTATION, MODEL = "segmentation.onnx", "lung.nodules"
"""The segmentation, and the file of both networks."""
TEST_SEED, LAST_SEED = 9099, 99
"""Seed of the test chests, and the last one for training (docs/guides/chest-phantoms.md)."""
SETTINGS = """\
# Settings of the segmentation that differ from those of --recipe nodules: pixels stay as wide as they are, the network
# is small, and no chest of the store is kept for tests.
spacing_mm = 0.0
test = 0.0
"""


@dataclass(frozen=True, kw_only=True)
class DemoAmounts:
    """How much the demo makes and trains. All amounts are here, and they are counts: no result depends on a clock."""

    cases: int = 18
    """Chests for training and validation."""
    nodules: int = 10
    """Nodules in each of them. The test chests have as many as LUNA16's scans, 1.3 on average."""
    test_cases: int = 8
    """Chests that no network has seen."""
    size: int = 160
    """Pixels along a slice's side; 160 of them are 2 mm wide each."""
    validation: float = 0.2
    """Share of the chests for validation."""
    width: int = 8
    """Channels of the first level of the U-Net."""
    crop: int = 64
    """Side of its training crops, pixels."""
    epochs: int = 2
    """Epochs of the segmentation."""
    steps: int = 350
    """Batches in each of these epochs."""
    crop_epochs: int = 14
    """Epochs of the classifier; each draws about as many crops as there are of nodules."""

    def settings(self) -> str:
        """Return the settings of the segmentation as TOML, on top of --recipe nodules."""
        names = ("crop", "width", "steps", "validation")
        return SETTINGS + "".join(f"{name} = {getattr(self, name)}\n" for name in names)

    def steps_of_demo(self) -> list[Step]:
        """Return the commands with their seconds on two idle cores with AVX2."""
        usual = DemoAmounts()
        trained, unseen = self.cases / usual.cases, self.test_cases / usual.test_cases
        fitted = self.epochs * self.steps / (usual.epochs * usual.steps)
        classified = trained * self.crop_epochs / usual.crop_epochs
        return [Step(name=name, seconds=seconds) for name, seconds in (
            ("phantom", 70 * trained), ("phantom", 26 * unseen), ("ingest", 5 * trained), ("ingest", 4 * unseen),
            ("train", 112 * fitted), ("export", 18), ("infer", 32 * trained), ("ingest", 8 * trained),
            ("train", 82 * classified), ("export", 14), ("tune", 26 * trained), ("infer", 32 * unseen),
            ("froc", 4), ("froc", 4),
        )]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NoduleDemoOptions:
    """Options of the demo on chests."""

    out: Path
    """Folder for everything."""
    amounts: DemoAmounts = DemoAmounts()
    seed: int = 0
    """Seed of the chests to train on, of the split and of the trainings."""
    provider: str = "auto"
    """Execution provider of the inference."""

    def __post_init__(self) -> None:
        """Check the seed.

        Raises
        ------
        UsageError
            It is none of those for training.
        """
        if not 0 <= self.seed <= LAST_SEED:
            raise UsageError(f"--seed must be 0 to {LAST_SEED} with --lungs; it is {self.seed}: others are for tests.")


@dataclass(frozen=True, kw_only=True)
class PointScores:
    """Detection of nodules on the test chests, by LUNA16's rules."""

    cpm: float
    cpm_interval: tuple[float, float]
    """95 % bootstrap interval over scans."""
    sensitivity: Mapping[str, float]
    """Share of the nodules that are found, by false positives a scan."""
    by_diameter: Mapping[str, float | None]
    """CPM by band of diameters; None without nodules."""


@dataclass(frozen=True, kw_only=True)
class NoduleSummary:
    """Content of ``summary.json``."""

    seed: int
    cases: Mapping[str, int]
    """Number of chests by part: training (with validation), test."""
    size: int
    """Pixels along a slice's side."""
    nodules: int
    """Nodules in the test chests."""
    segmentation: PointScores
    """Candidates ranked by the probability of the segmentation."""
    classifier: PointScores
    """The same candidates, ranked by the classifier."""
    minutes: float
    machine: Mapping[str, Any]


def run_nodule_demo(options: NoduleDemoOptions) -> NoduleSummary:
    """Run every command, write ``summary.json``, and print the summary.

    Raises
    ------
    InputError
        A command failed; its message was printed before.
    ConfigError
        An extra is not installed.
    """
    require_extras(*EXTRAS)
    start = time.perf_counter()
    countdown = Countdown(options.amounts.steps_of_demo())
    with show_countdown(countdown) as has_bar:
        commands = Commands(countdown, has_bar=has_bar)
        _make_chests(options, commands)
        _train_networks(options, commands)
        _find_and_score(options, commands)
    alone, judged = (read_json(options.out / name / "froc.json") for name in ("scores-segmentation", "scores"))
    summary = NoduleSummary(
        seed=options.seed,
        cases={"training": options.amounts.cases, "test": options.amounts.test_cases},
        size=options.amounts.size,
        nodules=judged["findings"],
        segmentation=read_scores(alone),
        classifier=read_scores(judged),
        minutes=round((time.perf_counter() - start) / 60, 2),
        machine=machine_info(),
    )
    write_json(options.out / "summary.json", to_document(summary))
    print_lines("\n".join(describe(summary, options.out)))
    return summary


def _make_chests(options: NoduleDemoOptions, commands: Commands) -> None:
    """Make the chests, and the stores of both."""
    out, amounts = options.out, options.amounts
    size = ("--lungs", "--size", amounts.size)
    train = ("--cases", amounts.cases, "--nodules", amounts.nodules, "--seed", options.seed)
    commands.run("phantom", out / "train", *size, *train)
    commands.run("phantom", out / "test", *size, "--cases", amounts.test_cases, "--seed", TEST_SEED)
    for part, store in (("train", "store"), ("test", "test-store")):
        commands.run("ingest", *_ingest_words(out / part, out / store))


def _ingest_words(chests: Path, store: Path) -> list[object]:
    return [chests / "scans", store, "--points", chests / "annotations.csv", "--lungs", chests / "lungs"]


def _train_networks(options: NoduleDemoOptions, commands: Commands) -> None:
    """Train both networks, and write them into one file: the segmentation, and the classifier of its candidates."""
    out, amounts, seed = options.out, options.amounts, ("--seed", options.seed)
    split, settings, segmentation = out / "run-segmentation" / "split.json", out / "settings.toml", out / SEGMENTATION
    write_bytes(settings, amounts.settings().encode())
    recipe = ("--recipe", "nodules", "--config", settings, "--epochs", amounts.epochs)
    commands.run("train", out / "store", out / "run-segmentation", *recipe, *seed)
    commands.run("export", out / "run-segmentation", segmentation)
    found, store = out / "found-in-training", out / "store-candidates"
    commands.run("infer", segmentation, out / "train" / "scans", "--out", found, "--candidates", *_provider(options))
    commands.run("ingest", *_ingest_words(out / "train", store), "--candidates", found / "candidates.csv")
    crops = ("--crops", "--split", split, "--epochs", amounts.crop_epochs)
    commands.run("train", store, out / "run-classifier", *crops, *seed)
    commands.run("export", out / "run-classifier", out / MODEL, "--segmentation", segmentation)
    commands.run("tune", out / MODEL, store, "--split", split)


def _find_and_score(options: NoduleDemoOptions, commands: Commands) -> None:
    """Find the nodules of the test chests, and score them: as the classifier ranks them, and by the segmentation."""
    out, found = options.out, options.out / "found"
    commands.run("infer", out / MODEL, out / "test" / "scans", "--out", found, *_provider(options))
    for column, scores in (("segmentation_mean", "scores-segmentation"), ("probability", "scores")):
        table = found / "candidates.csv"
        commands.run("froc", table, out / "test-store", "--ranked-by", column, "--out", out / scores)


def _provider(options: NoduleDemoOptions) -> tuple[str, str]:
    return "--provider", options.provider


def read_scores(document: Mapping[str, Any]) -> PointScores:
    """Return what the summary shows of a ``froc.json``."""
    low, high = document["cpm_interval"]
    rates = zip(document["rates"], document["sensitivity_between"], strict=True)
    return PointScores(
        cpm=document["cpm"],
        cpm_interval=(low, high),
        sensitivity={f"{rate:g}": share for rate, share in rates},
        by_diameter={name: part["cpm"] for name, part in document["parts"].items()},
    )


def describe(summary: NoduleSummary, out: Path) -> list[str]:
    """Return the one-screen summary."""
    ways = {"segmentation alone": summary.segmentation, "with the classifier": summary.classifier}
    bands = list(summary.classifier.by_diameter)
    rows = [
        [name, one.cpm, *(one.sensitivity[rate] for rate in ("1", "4")), *(one.by_diameter[band] for band in bands)]
        for name, one in ways.items()
    ]
    header = ["", "CPM", "found at 1", "found at 4", *(f"CPM {band}" for band in bands)]
    results = (out / "found" / "candidates.csv", out / "scores" / "froc.png", out / "summary.json")
    return [
        f"\n{summary.nodules} nodules in {summary.cases['test']} test chests, found at 1 and 4 false alarms a scan:\n",
        format_table(header, rows),
        f"\nSynthetic chests, {summary.size} pixels wide, short trainings: these figures say nothing about patients.",
        f"{summary.minutes:.1f} minutes; {', '.join(map(str, results))}",
    ]
