"""The whole way on one collection, through the commands that a user would type.

phantom (unless a collection is given) -> ingest -> train -> export -> tune -> infer on cases the training never saw -> evaluate,
then a one-screen summary beside the trivial baseline, and a montage of image | reference | prediction.
"""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slicemill.baseline import Baseline, threshold_baseline
from slicemill.common.errors import ConfigError, InputError
from slicemill.common.files import write_json
from slicemill.common.machine import machine_info
from slicemill.common.terminal import format_table, print_line
from slicemill.ct.labels import format_labels
from slicemill.ct.naming import name_of
from slicemill.ct.overlap import mean_of
from slicemill.ct.pictures import Tile, draw_labels, gray, label_colors, montage, save_png
from slicemill.ct.scan import ScanReader
from slicemill.store.reader import Store, open_store

TUMOR_MARGIN, LIVER_DICE = 0.15, 0.90
"""What the phantom demo must reach: tumor Dice over the baseline's where there is tumor, and liver Dice, means over cases."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """What to run the whole way on, and where to."""

    out: Path
    data: Path | None = None
    """A collection; None makes phantoms."""
    cases: int = 36
    """Phantoms to make."""
    labels: str | None = None
    minutes: float = 4.0
    """Training time."""
    seed: int = 0
    provider: str = "auto"
    config: Path | None = None
    """Settings of the training, as TOML."""


def whole_way(way: Way) -> dict[str, Any]:
    """Run every stage and return the summary that was shown.

    Raises
    ------
    InputError
        A stage failed; its own message stands above.
    """
    start = time.perf_counter()
    out = way.out
    collection, store, run, model = way.data or out / "collection", out / "store", out / "run", out / "model.onnx"
    masks, scores = out / "segmented", out / "scores"
    if way.data is None:
        command("phantom", collection, "--cases", way.cases, "--seed", way.seed)
    elif not way.data.is_dir():
        raise ConfigError(f"{way.data}: there is no such folder.")
    command("ingest", collection, store, *(["--labels", way.labels] if way.labels else []), may_fail=True)
    command("store", "preview", store, "--out", out / "preview.png")
    settings = ["--config", way.config] if way.config else []
    if (labels := next(case.info.labels for case in open_store(store) if case.info.labels)).tumor is None:
        raise ConfigError(
            f"{collection}: none of its labels ({format_labels(labels.values)}) is tumor; name one with --labels, like tumor=1."
        )
    command("train", store, run, *settings, "--max-minutes", way.minutes, "--epochs", 1000, "--seed", way.seed)
    command("export", run, model)
    command("tune", model, store, "--split", run / "split.json")
    opened = open_store(store)
    split = json.loads((run / "split.json").read_text(encoding="utf-8"))
    scans = [collection / opened[case_id].info.image.name for case_id in split["test"]]
    command("infer", model, *scans, "--out", masks, "--provider", way.provider)
    command("evaluate", masks, collection, "--out", scores, *(["--labels", way.labels] if way.labels else []))
    baseline = threshold_baseline(opened, split["train"], split["test"])
    evaluation = json.loads((scores / "evaluation.json").read_text(encoding="utf-8"))
    draw_montage(out / "montage.png", opened, split["test"], masks)
    summary = {
        "collection": "phantoms" if way.data is None else way.data.name,
        "cases": {part: len(ids) for part, ids in split.items()},
        "seed": way.seed,
        "training_minutes": way.minutes,
        "config": way.config.read_text(encoding="utf-8") if way.config else None,
        "minutes": round((time.perf_counter() - start) / 60, 2),
        "scores": {key: evaluation[key] for key in ("regions", "tumor_by_case", "tumor_by_slice", "by_case")},
        "baseline": baseline.as_json(),
        "where_there_is_tumor": where_there_is_tumor(evaluation["by_case"], evaluation["tumor"], baseline),
        "machine": machine_info(),
    }
    write_json(out / "summary.json", summary)
    show(summary, baseline, out)
    return summary


def command(*words: object, may_fail: bool = False) -> None:
    """Type a slicemill command, as a user would."""
    arguments = [str(word) for word in words]
    print_line(f"\n$ slicemill {shlex.join(arguments)}")
    done = subprocess.run([sys.executable, "-m", "slicemill", *arguments], check=False)  # noqa: S603 (our own command)
    if done.returncode and not (may_fail and done.returncode == 1):
        raise InputError(
            f"slicemill {arguments[0]} ended with exit status {done.returncode}; its message stands above."
        )


def draw_montage(path: Path, store: Store, cases: list[str], masks: Path) -> None:
    """Draw for each case the slice with most tumor (or most of any label): image | reference | prediction."""
    predictions = {prediction_key(file.relative_to(masks).as_posix()): file for file in sorted(masks.rglob("*.nii*"))}
    tiles = []
    for case_id in cases:
        case = store[case_id]
        labels = case.info.labels
        if labels is None or case.label is None:
            continue
        voxels = case.info.slice_stats.voxels
        counts = (
            voxels[labels.tumor]
            if labels.tumor and any(voxels[labels.tumor])
            else np.sum(list(voxels.values()), axis=0).tolist()
        )
        z = int(np.argmax(counts))
        with ScanReader(predictions[prediction_key(case.info.image.name)], "mask") as reader:
            predicted = reader.read()
        picture, colors = gray(case.image[z]), label_colors(labels)
        tiles += [
            Tile(picture=picture, caption=f"{case_id}  z={z}"),
            Tile(picture=draw_labels(picture, case.label[z], colors), caption="reference"),
            Tile(picture=draw_labels(picture, predicted[z], colors), caption="prediction"),
        ]
    save_png(path, montage(tiles, 6 if len(tiles) > 9 else 3))


def prediction_key(name: str) -> tuple[str, str]:
    """Return what a scan and its segmentation share."""
    found = name_of(name)
    return found.folder, found.key


def show(summary: dict[str, Any], baseline: Baseline, out: Path) -> None:
    """Print the one-screen summary."""
    scores, cases = summary["scores"], summary["cases"]
    rows: list[tuple[object, ...]] = [
        (f"{name}, network", row["dice_per_case"], row["dice_global"], row["precision_global"], row["recall_global"])
        for name, row in scores["regions"].items()
    ]
    rows.append(
        (f"tumor, HU band {baseline.low}..{baseline.high}", baseline.dice_per_case, baseline.dice_global, None, None)
    )
    print_line(
        f"\n{cases['test']} cases that training never saw ({cases['train']} trained on, {cases['validation']} chose the checkpoint):\n"
    )
    print_line(format_table(["", "Dice per case", "Dice global", "precision", "recall"], rows))
    there = summary["where_there_is_tumor"]
    print_line(
        f"\nwhere there is tumor ({there['cases']} cases), mean tumor Dice: network {there['network']:.3f}, HU band {there['baseline']:.3f}"
    )
    print_line(
        "(the band is the best for the training cases and is told where the reference organ is, if there is one)\n"
    )
    answers = [
        (f"by {part}", *scores[f"tumor_by_{part}"].values()) for part in ("case", "slice") if scores[f"tumor_by_{part}"]
    ]
    print_line(
        format_table(["tumor yes/no", "with", "without", "accuracy", "sensitivity", "specificity", "AUC"], answers)
    )
    print_line(f"\n{summary['minutes']} minutes in all. What to look at:")
    for what, path in (
        ("manifest", "store/manifest.csv"),
        ("collection", "preview.png"),
        ("training, on one page", "run/report.html"),
        ("Dice curves", "run/curves.png"),
        ("image | reference | prediction", "montage.png"),
        ("masks, reports, overlays", "segmented"),
        ("error pictures and scores", "scores"),
        ("this summary", "summary.json"),
    ):
        print_line(f"  {what:32}{out / path}")


def where_there_is_tumor(rows: list[dict[str, Any]], tumor: str, baseline: Baseline) -> dict[str, Any]:
    """Return both mean tumor Dices over the cases whose reference has tumor: there, neither gains nor loses by empty masks."""
    with_tumor = [row for row in rows if row["has_tumor"]]
    return {
        "cases": len(with_tumor),
        "network": mean_of([row[f"dice_{tumor}"] or 0.0 for row in with_tumor]),
        "baseline": mean_of([baseline.by_case[row["case_id"]] for row in with_tumor]),
    }


def goals(summary: dict[str, Any]) -> list[str]:
    """Return what the phantom demo was to reach and did not."""
    tumor, baseline = (summary["where_there_is_tumor"][name] for name in ("network", "baseline"))
    liver = summary["scores"]["regions"]["liver"]["dice_per_case"]
    missed = []
    if tumor < baseline + TUMOR_MARGIN:
        missed.append(f"tumor Dice {tumor:.3f} is not {TUMOR_MARGIN} above the threshold's {baseline:.3f}")
    if liver < LIVER_DICE:
        missed.append(f"liver Dice {liver:.3f} is below {LIVER_DICE}")
    return missed
