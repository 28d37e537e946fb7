"""`slicemill demo`: everything on one collection, through the commands that a user would type.

phantom (unless --data is set) -> ingest -> train -> export -> tune -> infer on the test cases -> evaluate.
Then a one-screen summary with the trivial baseline, and a montage of image | reference | prediction.
"""

import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slicemill.baseline import score_baseline
from slicemill.bench.command import slicemill_command
from slicemill.bench.records.demo_scores import BandScores, DemoScores, DemoSummary, TumorComparison
from slicemill.common.documents import from_document, to_document
from slicemill.common.errors import ConfigError, InputError
from slicemill.common.files import read_json, write_json
from slicemill.common.machine import machine_info
from slicemill.common.terminal import format_table, print_line, print_lines
from slicemill.ct.labels import format_labels
from slicemill.ct.naming import parse_name
from slicemill.ct.overlap import mean_without_nan
from slicemill.ct.pictures import Panel, draw_labels, label_colors, make_montage, render_gray, save_png
from slicemill.ct.scan import ScanReader
from slicemill.measure.evaluation.totals import TumorTotals
from slicemill.store.reader import Case, Store, open_store
from slicemill.store.split import Split, read_split

PHANTOM_EPOCHS, DATA_MINUTES = 18, 4.0
"""Default length of the training: of phantoms, and of other data."""
TUMOR_MARGIN, LIVER_DICE = 0.15, 0.90
"""Goals of the demo on phantoms: mean tumor Dice above the baseline's where there is tumor, and mean liver Dice."""
FILES = (
    ("manifest", "store/manifest.csv"),
    ("collection", "preview.png"),
    ("training, on one page", "run/report.html"),
    ("Dice curves", "run/curves.png"),
    ("image | reference | prediction", "montage.png"),
    ("masks, reports, overlays", "segmented"),
    ("error pictures and scores", "scores"),
    ("this summary", "summary.json"),
)
"""Output files of the demo."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of the demo."""

    out: Path
    """Folder for everything."""
    data: Path | None = None
    """A collection; None makes phantoms."""
    cases: int = 36
    """Number of phantoms."""
    labels: str | None = None
    """Names of the label values, like tumor=1."""
    minutes: float | None = None
    """Training time, minutes. None trains PHANTOM_EPOCHS epochs of phantoms, or DATA_MINUTES of other data."""
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


def run_demo(options: DemoOptions) -> DemoSummary:
    """Run every command, write ``summary.json`` and the montage, and print the summary.

    Raises
    ------
    InputError
        A command failed; its message was printed before.
    """
    start = time.perf_counter()
    out, collection = options.out, options.collection
    store, split = _train_network(options)
    scans = [collection / store[case_id].info.image.name for case_id in split.test]
    masks, scores = out / "segmented", out / "scores"
    run_command("infer", out / "model.onnx", *scans, "--out", masks, "--provider", options.provider)
    run_command("evaluate", masks, collection, "--out", scores, *_label_option(options))
    baseline = score_baseline(store, split.train, split.test)
    evaluation = read_json(scores / "evaluation.json")
    draw_montage(out / "montage.png", store, split.test, masks)
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
    write_json(out / "summary.json", to_document(summary))
    print_summary(summary, out)
    return summary


def _train_network(options: DemoOptions) -> tuple[Store, Split]:
    """Make a tuned model from the scans; return the store and the split of the training."""
    out, collection = options.out, options.collection
    store_path, run, model = out / "store", out / "run", out / "model.onnx"
    if options.data is None:
        run_command("phantom", collection, "--cases", options.cases, "--seed", options.seed)
    elif not options.data.is_dir():
        raise ConfigError(f"{options.data}: there is no such folder.")
    run_command("ingest", collection, store_path, *_label_option(options), may_fail=True)
    run_command("store", "preview", store_path, "--out", out / "preview.png")
    labels = next(case.info.labels for case in open_store(store_path).values() if case.info.labels)
    if labels.tumor is None:
        raise ConfigError(
            f"{collection}: none of its labels ({format_labels(labels.values)}) is tumor; "
            "name one with --labels, like tumor=1."
        )
    config = ["--config", options.config] if options.config else []
    run_command("train", store_path, run, *config, *training_limits(options), "--seed", options.seed)
    run_command("export", run, model)
    run_command("tune", model, store_path, "--split", run / "split.json")
    store = open_store(store_path)
    return store, read_split(run / "split.json", store.case_ids)


def training_limits(options: DemoOptions) -> list[object]:
    """Return the options that end the training. A count of epochs gives equal results on slow and busy machines."""
    if options.minutes is None and options.data is None:
        return ["--epochs", PHANTOM_EPOCHS]
    return ["--max-minutes", DATA_MINUTES if options.minutes is None else options.minutes, "--epochs", 1000]


def _label_option(options: DemoOptions) -> list[str]:
    return ["--labels", options.labels] if options.labels else []


def run_command(*words: object, may_fail: bool = False) -> None:
    """Print and run a slicemill command.

    Parameters
    ----------
    may_fail : bool
        Whether exit status 1 is accepted.

    Raises
    ------
    InputError
        The command failed.
    """
    arguments = [str(word) for word in words]
    print_lines(f"\n$ slicemill {shlex.join(arguments)}")
    done = subprocess.run(slicemill_command(*arguments), check=False)  # noqa: S603 (a slicemill command)
    if done.returncode and not (may_fail and done.returncode == 1):
        raise InputError(f"slicemill {arguments[0]} ended with exit status {done.returncode}; its message is above.")


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


def compare_on_tumor(rows: Sequence[Mapping[str, Any]], tumor: str, baseline: BandScores) -> TumorComparison:
    """Compare network and baseline on the cases whose reference has tumor.

    Parameters
    ----------
    rows
        ``by_case`` of an evaluation.
    tumor
        Name of the tumor label.
    """
    with_tumor = [row for row in rows if row["has_tumor"]]
    return TumorComparison(
        cases=len(with_tumor),
        network=mean_without_nan([row[f"dice_{tumor}"] or 0.0 for row in with_tumor]),
        baseline=mean_without_nan([baseline.by_case[row["case_id"]] or 0.0 for row in with_tumor]),
    )


def print_summary(summary: DemoSummary, out: Path) -> None:
    """Print the one-screen summary."""
    scores = from_document(DemoScores, summary.scores, "evaluation", is_part=True)
    cases, band, on_tumor = summary.cases, summary.baseline, summary.where_there_is_tumor
    low, high = band.band_hu
    rows: list[tuple[object, ...]] = [
        (f"{name}, network", row.dice_per_case, row.dice_global, row.precision_global, row.recall_global)
        for name, row in scores.regions.items()
    ]
    rows.append((f"tumor, HU band {low}..{high}", band.dice_per_case, band.dice_global, None, None))
    print_lines(
        f"\n{cases['test']} test cases ({cases['train']} for training, "
        f"{cases['validation']} to choose the checkpoint):\n"
    )
    print_lines(format_table(["", "Dice per case", "Dice global", "precision", "recall"], rows))
    print_lines(
        f"\nmean tumor Dice of the {on_tumor.cases} cases with tumor: "
        f"network {on_tumor.network:.3f}, HU band {on_tumor.baseline:.3f}"
    )
    print_lines("(the band is the best one for the training cases; it uses the reference organ, if there is one)\n")
    detections = {"by case": scores.tumor_by_case, "by slice": scores.tumor_by_slice}
    detection_rows = [(name, *_detection_cells(detection)) for name, detection in detections.items() if detection]
    header = ["tumor yes/no", "with", "without", "accuracy", "sensitivity", "specificity", "AUC"]
    print_lines(format_table(header, detection_rows))
    print_lines(f"\n{summary.minutes} minutes in total. Output:")
    for what, path in FILES:
        print_line(f"  {what:32}{out / path}")


def _detection_cells(detection: TumorTotals) -> tuple[object, ...]:
    return (
        detection.positives,
        detection.negatives,
        detection.accuracy,
        detection.sensitivity,
        detection.specificity,
        detection.auc,
    )


def missed_goals(summary: DemoSummary) -> list[str]:
    """Describe the goals that the demo on phantoms did not reach."""
    on_tumor = summary.where_there_is_tumor
    liver = summary.scores["regions"]["liver"]["dice_per_case"]
    missed = []
    if on_tumor.network < on_tumor.baseline + TUMOR_MARGIN:
        missed.append(
            f"tumor Dice {on_tumor.network:.3f} is not {TUMOR_MARGIN} above the threshold's {on_tumor.baseline:.3f}"
        )
    if liver < LIVER_DICE:
        missed.append(f"liver Dice {liver:.3f} is below {LIVER_DICE}")
    return missed
