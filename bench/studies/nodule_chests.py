"""How well nodules are found in synthetic chests that no network has seen: `bench nodules`.

phantom (to train, to test, to test malignancy) -> ingest -> for each seed: train --recipe nodules -> export -> infer
--candidates on all training chests -> ingest --candidates -> train --crops -> train --crops --malignancy -> export to
one file -> tune -> infer on the test chests -> froc, ranked by the classifier, and by the segmentation.

The segmentation does not train on some of the chests. Its candidates there are as those in a new scan, so the
classifier learns from them, too, and is tuned on them. Chests to test malignancy have many nodules each, which are
judged at their annotated centers: the difference of two AUCs needs more nodules than the test chests have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.bench.schema.base import origin
from slicemill.bench.schema.nodules import MalignancyScore, NodulesRecord, NodulesScore
from slicemill.bench.studies.nodule_context import score_candidates
from slicemill.bench.studies.runner import CommandRunner, lock_experiment
from slicemill.common.errors import UsageError
from slicemill.common.files import read_json, write_bytes
from slicemill.common.terminal import print_line
from slicemill.ct.chest.spec import ChestSpec
from slicemill.ct.overlap import area_under_roc
from slicemill.infer.malignancy import JudgedNodules, calibrate_malignancy
from slicemill.infer.tune_classifier import join_nodules, judge_nodules, open_tunable
from slicemill.measure.evaluation.findings import read_store_findings
from slicemill.measure.evaluation.froc import compare_cpm
from slicemill.measure.evaluation.luna16 import read_candidates
from slicemill.store.reader import open_store
from slicemill.store.split import Split, write_split

LOG = "log.txt"
NODULES = 10
"""In each chest to train on, and to test malignancy on. Chests to test have as many as LUNA16's scans."""
LAST_SEED = 99
"""Highest seed of chests to train on (docs/guides/chest-phantoms.md)."""
SETTINGS = """\
spacing_mm = 0.0
crop = 64
width = 8
steps = 2400
mining = 1
"""
"""Settings of the segmentation, on top of --recipe nodules."""
RESAMPLES = 1000
SEGMENTATION, CLASSIFIER = "segmentation", "classifier"
RANKED_BY = {SEGMENTATION: "segmentation_mean", CLASSIFIER: "probability"}
"""Network -> the column of the candidates that it gives."""


@dataclass(frozen=True, kw_only=True)
class ChestStudy:
    """How much is drawn and trained."""

    out: Path
    size: int = 416
    """Pixels along a slice's side: 416 of them are 0.8 mm wide each."""
    chests: int = 52
    """Chests of the segmentation; every thirteenth validates."""
    unseen: int = 28
    """Further chests of the classifier; every fifth validates."""
    test_chests: int = 40
    malignancy_chests: int = 20
    """Chests with NODULES each, to test malignancy on."""
    seed: int = 41
    """Of the chests to train on."""
    test_seed: int = 9006
    """Of the test chests; those of malignancy have the next one."""
    minutes: float = 38.0
    """Time limit of the segmentation's training."""
    crop_minutes: float = 20.0
    """Time limit of the classifier's training."""
    malignancy_minutes: float = 5.0
    seeds: tuple[int, ...] = (0,)
    """Of the trainings."""

    def __post_init__(self) -> None:
        """Check numbers and seeds.

        Raises
        ------
        UsageError
            There are too few chests, or seeds to train and to test are mixed up.
        """
        for name, least in (("chests", 13), ("unseen", 5), ("test_chests", 1), ("malignancy_chests", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}.")
        if not 0 <= self.seed <= LAST_SEED < self.test_seed:
            raise UsageError(
                f"--seed {self.seed}, --test-seed {self.test_seed}: seeds to train have at most {LAST_SEED}, seeds to "
                "test more."
            )
        if not self.seeds:
            raise UsageError("--seeds: name at least one.")


def make_splits(study: ChestStudy) -> tuple[Split, Split]:
    """Return the split of the segmentation, and that of the classifier.

    >>> segmentation, classifier = make_splits(ChestStudy(out=Path("x"), chests=13, unseen=5))
    >>> [len(part) for part in (segmentation.train, segmentation.validation, segmentation.test)]
    [12, 1, 5]
    >>> [len(part) for part in (classifier.train, classifier.validation, classifier.test)]
    [16, 2, 0]
    """
    names = [ChestSpec(seed=(study.seed, case)).name for case in range(study.chests + study.unseen)]
    seen, unseen = names[: study.chests], names[study.chests :]
    first, second = -(study.chests // 13), -(study.unseen // 5)
    train, validation = tuple(seen[:first]), tuple(seen[first:])
    return (
        Split(train=train, validation=validation, test=tuple(unseen)),
        Split(train=(*train, *unseen[:second]), validation=(*validation, *unseen[second:])),
    )


def run(study: ChestStudy) -> NodulesRecord:
    """Run every command that is left, and score.

    Raises
    ------
    InputError
        A command failed.
    ConfigError
        Another process works in the folder.
    """
    with lock_experiment(study.out) as runner:
        for words in plan_chests(study):
            _run(runner, study.out, words)
        for seed in study.seeds:
            folder = study.out / f"seed-{seed}"
            folder.mkdir(exist_ok=True)
            write_bytes(folder / "settings.toml", SETTINGS.encode())
            for part, split in zip((SEGMENTATION, CLASSIFIER), make_splits(study), strict=True):
                write_split(folder / f"split-{part}.json", split)
            for words in plan_seed(study, folder, seed):
                _run(runner, study.out, words)
    return make_record(study)


def _run(runner: CommandRunner, out: Path, words: Sequence[object]) -> None:
    print_line(" ".join(map(str, words)))
    runner.run_slicemill(words, out / LOG)


def plan_chests(study: ChestStudy) -> list[list[object]]:
    """Return the commands that draw chests and make their stores."""
    out, many = study.out, ["--nodules", NODULES]
    parts: list[tuple[str, int, int, list[object]]] = [
        ("train", study.chests + study.unseen, study.seed, list(many)),
        ("test", study.test_chests, study.test_seed, []),
        ("malignancy", study.malignancy_chests, study.test_seed + 1, list(many)),
    ]
    lines: list[list[object]] = []
    for name, cases, seed, more in parts:
        drawn = ["phantom", out / name, "--lungs", "--cases", cases, "--seed", seed, "--size", study.size]
        lines += [[*drawn, *more], _ingest(out / name, out / f"{name}-store")]
    return lines


def _ingest(chests: Path, store: Path) -> list[object]:
    return ["ingest", chests / "scans", store, "--points", chests / "annotations.csv", "--lungs", chests / "lungs"]


def plan_seed(study: ChestStudy, folder: Path, seed: int) -> list[list[object]]:
    """Return the commands of a seed of the trainings."""
    out, store = study.out, folder / "store"
    segmentation, model, found = folder / "segmentation.onnx", folder / "lung.nodules", folder / "found-in-training"
    settings = ["--recipe", "nodules", "--config", folder / "settings.toml", "--epochs", 4]
    split = ["--split", folder / f"split-{CLASSIFIER}.json"]
    crops = ["--crops", *split, "--seed", seed, "--epochs"]
    judged, tested = folder / "found", out / "test-store"
    small = ["--viewer-mb", 0]
    return [
        ["train", out / "train-store", folder / SEGMENTATION, *settings, "--seed", seed, "--max-minutes", study.minutes,
         "--split", folder / f"split-{SEGMENTATION}.json"],
        ["export", folder / SEGMENTATION, segmentation],
        ["infer", segmentation, out / "train" / "scans", "--out", found, "--candidates", *small],
        [*_ingest(out / "train", store), "--candidates", found / "candidates.csv"],
        ["train", store, folder / CLASSIFIER, *crops, 1000, "--max-minutes", study.crop_minutes],
        ["train", store, folder / "malignancy", *crops, 100, "--malignancy", "--from", folder / CLASSIFIER,
         "--max-minutes", study.malignancy_minutes],
        ["export", folder / "malignancy", model, "--segmentation", segmentation],
        ["tune", model, store, *split],
        ["infer", model, out / "test" / "scans", "--out", judged, *small],
        *(
            ["froc", judged / "candidates.csv", tested, "--ranked-by", column, "--out", folder / f"scores-{name}"]
            for name, column in RANKED_BY.items()
        ),
    ]  # fmt: skip


def make_record(study: ChestStudy) -> NodulesRecord:
    """Return the record of what all commands made."""
    findings = read_store_findings(study.out / "test-store", None, None)
    scores: list[NodulesScore] = []
    malignancy: list[MalignancyScore] = []
    for seed in study.seeds:
        folder = study.out / f"seed-{seed}"
        table = folder / "found" / "candidates.csv"
        counted = {
            name: score_candidates(read_candidates(table, findings, column), findings)
            for name, column in RANKED_BY.items()
        }
        gain = compare_cpm(counted[CLASSIFIER].hits, counted[SEGMENTATION].hits, None)
        for name, one in counted.items():
            froc = read_json(folder / f"scores-{name}" / "froc.json")
            scores.append(
                NodulesScore(
                    seed=seed,
                    ranked_by=name,
                    cpm=froc["cpm"],
                    cpm_interval=froc["cpm_interval"],
                    sensitivity=froc["sensitivity_between"],
                    by_diameter={part: [curve["findings"], curve["cpm"]] for part, curve in froc["parts"].items()},
                    found=one.found,
                    false_alarms=one.false_alarms,
                    gain=round(gain.difference, 4) if name == CLASSIFIER else None,
                    gain_interval=[round(value, 4) for value in gain.interval] if name == CLASSIFIER else None,
                )
            )
        malignancy.append(_score_malignancy(folder / "lung.nodules", study.out / "malignancy-store", seed))
    shared = set(NodulesRecord.__struct_fields__) & set(ChestStudy.__dataclass_fields__)
    amounts: dict[str, Any] = {name: getattr(study, name) for name in shared}
    return NodulesRecord(
        nodules=sum(len(points) for points in findings.included.values()),
        scores=scores,
        malignancy=malignancy,
        **amounts,
        **origin(),
    )


def _score_malignancy(model: Path, store: Path, seed: int) -> MalignancyScore:
    """Judge the nodules of a store at their annotated centers."""
    classifier = open_tunable(model, "cpu")
    parts = [judge_nodules(classifier, case, ratings=False) for case in open_store(store).values()]
    numbers = classifier.card.malignancy_calibration
    judged = join_nodules(parts)
    both = calibrate_malignancy(judged.output, judged.diameter_mm, numbers)
    low, high = bootstrap_gain(parts, [calibrate_malignancy(part.output, part.diameter_mm, numbers) for part in parts])
    diameter = area_under_roc(judged.malignant, judged.diameter_mm)
    area = area_under_roc(judged.malignant, both)
    return MalignancyScore(
        seed=seed,
        nodules=len(judged.malignant),
        malignant=int(judged.malignant.sum()),
        auc_diameter=round(diameter, 4),
        auc_output=round(area_under_roc(judged.malignant, judged.output), 4),
        auc_both=round(area, 4),
        gain=round(area - diameter, 4),
        gain_interval=[round(low, 4), round(high, 4)],
    )


def bootstrap_gain(
    chests: Sequence[JudgedNodules], malignancy: Sequence[npt.NDArray[np.float64]]
) -> tuple[float, float]:
    """Return the 95 % interval, over chests, of the AUC of `malignancy` minus that of the diameter."""
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(chests), size=len(chests))
        truth = np.concatenate([chests[index].malignant for index in drawn])
        if truth.any() and not truth.all():
            diameter = np.concatenate([chests[index].diameter_mm for index in drawn])
            both = np.concatenate([malignancy[index] for index in drawn])
            gains.append(area_under_roc(truth, both) - area_under_roc(truth, diameter))
    if not gains:
        return float("nan"), float("nan")
    low, high = np.percentile(gains, [2.5, 97.5])
    return float(low), float(high)
