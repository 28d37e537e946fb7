"""`slicemill demo`: everything on one collection, through the commands that a user would type.

phantom (unless --data is set) -> ingest -> train -> export -> tune -> infer on the test cases -> evaluate.
Then a one-screen summary with the trivial baseline, and a montage of image | reference | prediction.
The training of phantoms has a fixed number of steps, so that its result does not depend on the speed of the machine.
"""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slicemill.baseline import score_baseline
from slicemill.bench.command import slicemill_command
from slicemill.bench.records.demo_scores import DemoSummary
from slicemill.common.countdown import Countdown, Step, show_countdown
from slicemill.common.documents import to_document
from slicemill.common.errors import ConfigError, InputError
from slicemill.common.extras import require_extras
from slicemill.common.files import read_json, write_json
from slicemill.common.machine import machine_info
from slicemill.common.signals import Terminated
from slicemill.common.terminal import is_terminal, print_line, print_lines
from slicemill.ct.labels import format_labels
from slicemill.ct.naming import parse_name
from slicemill.ct.pictures import Panel, draw_labels, label_colors, make_montage, render_gray, save_png
from slicemill.ct.scan import ScanReader
from slicemill.demo_summary import compare_on_tumor, print_summary
from slicemill.store.reader import Case, Store, open_store
from slicemill.store.split import Split, read_split

PHANTOM_EPOCHS, DATA_MINUTES = 6, 4.0
"""Default length of the training: of phantoms, and of other data."""
PHANTOM_SECONDS = {
    "phantom": 9.0, "ingest": 9.0, "preview": 5.0, "train": 630.0, "export": 12.0, "tune": 6.0, "infer": 6.0,
    "evaluate": 12.0, "summary": 3.0,
}  # fmt: skip
"""Seconds of each step of the demo with its defaults, on two idle cores with AVX2."""
LONGEST_STOP = 20.0
"""Seconds that a command has to write what it needs to continue, once it was interrupted."""
EXTRAS = ("ingest", "train", "cpu")
"""The extras that the demo needs; `gpu` has the packages of `cpu`."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of the demo."""

    out: Path
    """Folder for everything."""
    data: Path | None = None
    """A collection; None makes phantoms."""
    cases: int = 36
    """Number of phantoms."""
    epochs: int | None = None
    """Epochs of the training. None trains PHANTOM_EPOCHS epochs of phantoms, or by time."""
    labels: str | None = None
    """Names of the label values, like tumor=1."""
    minutes: float | None = None
    """Training time, minutes. None sets no limit on phantoms, nor if `epochs` are set; else it is DATA_MINUTES."""
    seed: int = 0
    """Seed of phantoms, split and training."""
    provider: str = "auto"
    """Execution provider of the inference."""
    config: Path | None = None
    """Settings of the training, as TOML."""

    @property
    def collection(self) -> Path:
        """Return the folder of the scans."""
        return self.data or self.out / "collection"


class Commands:
    """Runs the commands of a demo one after the other, and shows the time left."""

    def __init__(self, countdown: Countdown, *, has_bar: bool) -> None:
        self._countdown = countdown
        self._epochs = 1
        """The value of `--epochs` of the command that runs."""
        self._has_bar = has_bar

    def run(self, *words: object, may_fail: bool = False) -> None:
        """Run a command as the next step; see `run_command`."""
        self.begin(str(words[1] if words[0] == "store" else words[0]))
        if "--epochs" in words:
            self._epochs = int(str(words[words.index("--epochs") + 1]))
        run_command(*words, may_fail=may_fail, show=self._show)

    def begin(self, name: str) -> None:
        """Begin the next step."""
        self._countdown.begin(name)
        print_lines(f"\n[{self._countdown.place}: {self._countdown.describe_left()} in all]")

    def _show(self, line: str) -> None:
        print_line(line)
        share = epoch_share(line, self._epochs)
        if share is not None:
            self._countdown.report(share)
        note = None if self._has_bar else self._countdown.due_note()
        if note:
            print_line(f"[{note} in all]")


def run_demo(options: DemoOptions) -> DemoSummary:
    """Run every command, write ``summary.json`` and the montage, and print the summary.

    Raises
    ------
    InputError
        A command failed; its message was printed before.
    ConfigError
        There is no such collection, it has no masks with tumor, or an extra is not installed.
    """
    require_extras(*EXTRAS)
    if options.data is not None and not options.data.is_dir():
        raise ConfigError(f"{options.data}: there is no such folder.")
    start = time.perf_counter()
    countdown = Countdown(demo_steps(options))
    with show_countdown(countdown) as has_bar:
        commands = Commands(countdown, has_bar=has_bar)
        store, split = _train_network(options, commands)
        evaluation = _segment_test_cases(options, commands, store, split)
        commands.begin("summary")
        baseline = score_baseline(store, split.train, split.test)
        draw_montage(options.out / "montage.png", store, split.test, options.out / "segmented")
    summary = DemoSummary(
        collection="phantoms" if options.data is None else options.data.name,
        cases={part: len(ids) for part, ids in asdict(split).items()},
        seed=options.seed,
        training_minutes=options.minutes,
        config=options.config.read_text(encoding="utf-8") if options.config else None,
        minutes=round((time.perf_counter() - start) / 60, 2),
        scores={key: evaluation[key] for key in ("regions", "tumor_by_case", "tumor_by_slice", "by_case")},
        baseline=baseline,
        where_there_is_tumor=compare_on_tumor(evaluation["by_case"], evaluation["tumor"], baseline),
        machine=machine_info(),
    )
    write_json(options.out / "summary.json", to_document(summary))
    print_summary(summary, options.out)
    return summary


def demo_steps(options: DemoOptions) -> list[Step]:
    """Return the steps of the demo with their seconds on two idle cores. Those of other data are rough guesses."""
    epochs, minutes = training_length(options)
    scale = options.cases / DemoOptions(out=options.out).cases
    steps = [Step(name=name, seconds=seconds * scale) for name, seconds in PHANTOM_SECONDS.items()]
    if options.data is not None:
        steps = [step for step in steps if step.name != "phantom"]
    by_epochs = Step(name="train", seconds=PHANTOM_SECONDS["train"] * scale * epochs / PHANTOM_EPOCHS)
    by_time = Step(name="train", seconds=60 * (minutes or 0.0), limited=True)
    return [step if step.name != "train" else by_time if minutes else by_epochs for step in steps]


def _train_network(options: DemoOptions, commands: Commands) -> tuple[Store, Split]:
    """Make a tuned model from the scans; return the store and the split of the training."""
    out, collection = options.out, options.collection
    store_path, run, model = out / "store", out / "run", out / "model.onnx"
    if options.data is None:
        commands.run("phantom", collection, "--cases", options.cases, "--seed", options.seed)
    commands.run("ingest", collection, store_path, *_label_option(options), may_fail=True)
    commands.run("store", "preview", store_path, "--out", out / "preview.png")
    labels = next((case.info.labels for case in open_store(store_path).values() if case.info.labels), None)
    if labels is None:
        raise ConfigError(
            f"{collection}: none of its scans has a mask. The demo trains on masks, and compares with them."
        )
    if labels.tumor is None:
        raise ConfigError(
            f"{collection}: none of its labels ({format_labels(labels.values)}) is tumor; "
            "name one with --labels, like tumor=1."
        )
    config = ["--config", options.config] if options.config else []
    commands.run("train", store_path, run, *config, *training_limits(options), "--seed", options.seed)
    commands.run("export", run, model)
    commands.run("tune", model, store_path, "--split", run / "split.json")
    store = open_store(store_path)
    return store, read_split(run / "split.json", store.case_ids)


def _segment_test_cases(options: DemoOptions, commands: Commands, store: Store, split: Split) -> Mapping[str, Any]:
    """Segment and evaluate the cases that the training never saw; return the evaluation."""
    out, collection = options.out, options.collection
    scans = [collection / store[case_id].info.image.name for case_id in split.test]
    masks, scores = out / "segmented", out / "scores"
    commands.run("infer", out / "model.onnx", *scans, "--out", masks, "--provider", options.provider)
    commands.run("evaluate", masks, collection, "--out", scores, *_label_option(options))
    evaluation: Mapping[str, Any] = read_json(scores / "evaluation.json")
    return evaluation


def training_length(options: DemoOptions) -> tuple[int, float | None]:
    """Return the largest number of epochs, and the time limit in minutes.

    Phantoms are trained for a number of epochs: a slow or busy machine takes longer, and gets the same result.
    """
    minutes = options.minutes
    if minutes is None and options.epochs is None and options.data is not None:
        minutes = DATA_MINUTES
    return options.epochs or (PHANTOM_EPOCHS if minutes is None else 1000), minutes


def training_limits(options: DemoOptions) -> list[object]:
    """Return the options of `slicemill train` that end the training."""
    epochs, minutes = training_length(options)
    return ["--epochs", epochs, *([] if minutes is None else ["--max-minutes", minutes])]


def epoch_share(line: str, epochs: int) -> float | None:
    """Return the share of the epochs that are done, from a line of `slicemill train`; None for other lines.

    >>> epoch_share("epoch   9  loss 0.412  Dice (liver, tumor): ...", 18)
    0.5
    """
    match = re.match(r"epoch +(\d+)  loss ", line)
    return min(1.0, int(match[1]) / epochs) if match else None


def _label_option(options: DemoOptions) -> list[str]:
    return ["--labels", options.labels] if options.labels else []


def run_command(*words: object, may_fail: bool = False, show: Callable[[str], None] = print_line) -> None:
    """Print and run a slicemill command.

    Parameters
    ----------
    may_fail : bool
        Whether exit status 1 is accepted.
    show
        Called with each line of its output.

    Raises
    ------
    InputError
        The command failed.
    """
    arguments = [str(word) for word in words]
    print_line(f"$ slicemill {shlex.join(arguments)}")
    with subprocess.Popen(  # noqa: S603 (a slicemill command)
        slicemill_command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT
        if is_terminal(sys.stderr)
        else None,  # the demo's bar is there; the command needs none
        text=True,
        errors="backslashreplace",
    ) as process:
        try:
            for line in process.stdout or ():
                show(line.removesuffix("\n"))
        except BaseException as error:
            _stop(process, has_signal=isinstance(error, KeyboardInterrupt) and not isinstance(error, Terminated))
            raise
    if process.returncode and not (may_fail and process.returncode == 1):
        raise InputError(f"slicemill {arguments[0]} ended with exit status {process.returncode}; its message is above.")


def _stop(process: subprocess.Popen[str], *, has_signal: bool) -> None:
    """End a command, and give it time to save its work. Ctrl-C reaches it from the terminal, SIGTERM does not."""
    if not has_signal:
        process.terminate()
    try:
        process.communicate(timeout=LONGEST_STOP)
    except subprocess.TimeoutExpired:
        process.kill()


def draw_montage(path: Path, store: Store, cases: Sequence[str], masks: Path) -> None:
    """Draw for each case the slice with most tumor (or most of any label): image | reference | prediction."""
    predictions = {prediction_key(file.relative_to(masks).as_posix()): file for file in sorted(masks.rglob("*.nii*"))}
    tiles: list[Panel] = []
    for case_id in cases:
        tiles += _case_tiles(store[case_id], predictions)
    save_png(path, make_montage(tiles, 6 if len(tiles) > 9 else 3))


def _case_tiles(case: Case, predictions: Mapping[tuple[str, str], Path]) -> list[Panel]:
    """Draw three tiles of a case; none if it has no labels."""
    labels = case.info.labels
    if labels is None or case.label is None:
        return []
    voxels = case.info.slice_stats.voxels
    has_tumor = labels.tumor and any(voxels[labels.tumor])
    z = int(np.argmax(voxels[labels.tumor] if labels.tumor and has_tumor else np.sum(list(voxels.values()), axis=0)))
    with ScanReader(predictions[prediction_key(case.info.image.name)], "mask") as reader:
        predicted = reader.read()
    picture, colors = render_gray(case.image[z]), label_colors(labels)
    return [
        Panel(picture=picture, caption=f"{case.info.case_id}  z={z}"),
        Panel(picture=draw_labels(picture, case.label[z], colors), caption="reference"),
        Panel(picture=draw_labels(picture, predicted[z], colors), caption="prediction"),
    ]


def prediction_key(name: str) -> tuple[str, str]:
    """Return the part of the file name that a scan and its segmentation share."""
    parts = parse_name(name)
    return parts.folder, parts.key
