"""`slicemill demo --lungs`: from points of nodules to a FROC curve on unseen chests, through the commands of a user.

phantom (to train, to test) -> ingest -> train -> export -> infer --candidates on the training scans -> ingest with
these candidates -> train --crops -> export -> tune -> infer on the test scans, without and with the classifier -> froc
of both.

All is counted in epochs and steps, so that the result does not depend on the speed of the machine. The chests are
small and the trainings short: the figures show that the way holds, and not how good it can be.
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

SIZE = 160
"""Pixels along a slice's side; they are 2 mm wide."""
TEST_SEED, LAST_SEED = 9099, 99
"""Seed of the test chests, and the last one for training (docs/guides/chest-phantoms.md)."""
EPOCHS, CROP_EPOCHS = 6, 40
SETTINGS = """\
# Settings of the segmentation that differ from those of --recipe nodules: pixels stay as wide as they are, the network
# is small, and no chest of the store is kept for tests.
spacing_mm = 0.0
crop = 64
width = 12
steps = 150
validation = 0.2
test = 0.0
"""
STEPS = (
    ("phantom", 40.0), ("phantom", 12.0), ("ingest", 7.0), ("ingest", 4.0), ("train", 200.0), ("export", 6.0),
    ("infer", 40.0), ("ingest", 7.0), ("train", 90.0), ("export", 6.0), ("tune", 5.0), ("infer", 14.0), ("infer", 15.0),
    ("froc", 4.0), ("froc", 4.0),
)  # fmt: skip
"""The commands with their seconds for the default number of chests, on two idle cores."""


@dataclass(frozen=True, kw_only=True)
class NoduleDemoOptions:
    """Options of the demo on chests."""

    out: Path
    """Folder for everything."""
    cases: int = 24
    """Chests to train on."""
    test_cases: int = 8
    """Chests to test on."""
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
    nodules: int
    """Nodules in the test chests."""
    segmentation: PointScores
    """Candidates ranked by the segmentation's own probability."""
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
    scale = options.cases / NoduleDemoOptions(out=options.out).cases
    countdown = Countdown([Step(name=name, seconds=seconds * scale) for name, seconds in STEPS])
    with show_countdown(countdown) as has_bar:
        commands = Commands(countdown, has_bar=has_bar)
        _make_chests(options, commands)
        _train_networks(options, commands)
        _find_and_score(options, commands)
    alone, judged = (read_json(options.out / name / "froc.json") for name in ("scores-segmentation", "scores"))
    summary = NoduleSummary(
        seed=options.seed,
        cases={"training": options.cases, "test": options.test_cases},
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
    out, size = options.out, ("--lungs", "--size", SIZE)
    commands.run("phantom", out / "train", *size, "--cases", options.cases, "--seed", options.seed)
    commands.run("phantom", out / "test", *size, "--cases", options.test_cases, "--seed", TEST_SEED)
    for part, store in (("train", "store"), ("test", "test-store")):
        commands.run("ingest", *_ingest_words(out / part, out / store))


def _ingest_words(chests: Path, store: Path) -> list[object]:
    return [chests / "scans", store, "--points", chests / "annotations.csv", "--lungs", chests / "lungs"]


def _train_networks(options: NoduleDemoOptions, commands: Commands) -> None:
    """Train, export and tune the segmentation and the classifier of its candidates."""
    out, seed = options.out, ("--seed", options.seed)
    store, split, settings = out / "store", out / "run-segmentation" / "split.json", out / "settings.toml"
    segmentation, classifier = out / "segmentation.onnx", out / "classifier.onnx"
    write_bytes(settings, SETTINGS.encode())
    recipe = ("--recipe", "nodules", "--config", settings, "--epochs", EPOCHS)
    commands.run("train", store, out / "run-segmentation", *recipe, *seed)
    commands.run("export", out / "run-segmentation", segmentation)
    found = out / "found-in-training"
    commands.run("infer", segmentation, out / "train" / "scans", "--out", found, "--candidates", *_provider(options))
    commands.run("ingest", *_ingest_words(out / "train", store), "--candidates", found / "candidates.csv")
    crops = ("--crops", "--split", split, "--epochs", CROP_EPOCHS)
    commands.run("train", store, out / "run-classifier", *crops, *seed)
    commands.run("export", out / "run-classifier", classifier, "--segmentation", segmentation)
    commands.run("tune", classifier, store, "--split", split)


def _find_and_score(options: NoduleDemoOptions, commands: Commands) -> None:
    """Find the nodules of the test chests, and score them: by the segmentation alone, and by the classifier."""
    out = options.out
    ways = (
        ("found-by-segmentation", "scores-segmentation", ["--candidates"]),
        ("found", "scores", ["--classifier", out / "classifier.onnx"]),
    )
    for found, _, words in ways:
        scans = out / "test" / "scans"
        commands.run("infer", out / "segmentation.onnx", scans, "--out", out / found, *words, *_provider(options))
    for found, scores, _ in ways:
        commands.run("froc", out / found / "candidates.csv", out / "test-store", "--out", out / scores)


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
        f"\nSynthetic chests, {SIZE} pixels wide, and short trainings: these figures say nothing about patients.",
        f"{summary.minutes:.1f} minutes; {', '.join(map(str, results))}",
    ]
