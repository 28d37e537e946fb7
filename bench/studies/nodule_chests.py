"""How well nodules are found in synthetic chests that no network has seen: `bench nodules`.

phantom (to train, to test, to test malignancy) -> ingest -> for each seed: train --recipe nodules -> export -> infer
--candidates on all training chests -> ingest --candidates -> train --crops -> train --crops --malignancy -> export to
one file -> tune -> infer on the test chests -> froc, ranked by the segmentation, and by the tuned classifier.

The segmentation does not train on some of the chests. Its candidates there are as those in a new scan, so the
classifier learns from them, too. It is tuned on the validation chests of both networks. Chests to test malignancy have
many nodules each, which are judged at their annotated centers: the difference of two AUCs needs more nodules than the
test chests have.

`infer --mirror` labels all slices: it ranks candidates better, as it averages over each slice and its mirror image
(docs/benchmarks.md).
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.bench.schema.base import origin
from slicemill.bench.schema.nodules import BandScore, MalignancyScore, NodulesRecord, NodulesScore
from slicemill.bench.studies.nodule_context import score_candidates
from slicemill.bench.studies.runner import CommandRunner, lock_experiment
from slicemill.common.errors import UsageError
from slicemill.common.files import read_json, write_bytes
from slicemill.common.tables import read_table
from slicemill.common.terminal import print_line
from slicemill.ct.chest.collection import VERSION
from slicemill.ct.chest.spec import ChestSpec
from slicemill.ct.overlap import area_under_roc
from slicemill.infer.malignancy import JudgedNodules, calibrate_malignancy
from slicemill.infer.tune_classifier import join_nodules, judge_nodules, open_tunable
from slicemill.measure.evaluation.findings import Findings, read_store_findings
from slicemill.measure.evaluation.froc import compare_cpm
from slicemill.measure.evaluation.luna16 import read_candidates
from slicemill.store.reader import open_store
from slicemill.store.split import Split, write_split

Floats = npt.NDArray[np.float64]
LOG, MODEL, TABLE = "log.txt", "lung.nodules", "candidates.csv"
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
    """Chests of the segmentation; the last thirteenth validates."""
    unseen: int = 18
    """Further chests of the classifier; the last fifth validates."""
    test_chests: int = 40
    """Chests with as many nodules as LUNA16's scans."""
    malignancy_chests: int = 12
    """Chests with NODULES each, to test malignancy on."""
    seed: int = 41
    """Of the chests to train on."""
    test_seed: int = 9010
    """Of the test chests; those of malignancy have the next one."""
    minutes: float = 36.0
    """Time limit of the segmentation's training."""
    crop_minutes: float = 16.0
    """Time limit of the classifier's training."""
    malignancy_minutes: float = 5.0
    """Time limit of the training of malignancy."""
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
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UsageError("--seeds: name at least one, and each once.")


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
    UsageError
        The test chests have no nodules, or those of malignancy are all alike.
    ConfigError
        Another process works in the folder.
    """
    with lock_experiment(study.out) as runner:
        for words in plan_chests(study):
            _run(runner, study.out, words)
        require_nodules(study)
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
    print_line(shlex.join(["slicemill", *map(str, words)]))
    runner.run_slicemill(words, out / LOG)


def require_nodules(study: ChestStudy) -> None:
    """Check, before anything is trained, that there is something to score.

    Raises
    ------
    UsageError
        The test chests have no nodules, or those of malignancy are all malignant or all benign.
    """
    tested, judged = (read_table(study.out / part / "annotations.csv", required=("malignancy",), keeps_further=True)
                      for part in ("test", "malignancy"))  # fmt: skip
    if not tested:
        raise UsageError(f"--test-chests {study.test_chests}: these chests have no nodule. Draw more.")
    if len({row.cells["malignancy"] for row in judged}) < 2:
        raise UsageError(
            f"--malignancy-chests {study.malignancy_chests}: the nodules of these chests are all malignant or all "
            "benign. Draw more."
        )


def plan_chests(study: ChestStudy) -> list[list[object]]:
    """Return the commands that draw chests and make their stores."""
    out, full = study.out, ["--nodules", NODULES]
    lines: list[list[object]] = []
    for part, cases, seed, count in (
        ("train", study.chests + study.unseen, study.seed, full),
        ("test", study.test_chests, study.test_seed, []),
        ("malignancy", study.malignancy_chests, study.test_seed + 1, full),
    ):
        drawn = ["phantom", out / part, "--lungs", "--cases", cases, "--seed", seed, "--size", study.size]
        lines += [[*drawn, *count], _ingest(out / part, out / f"{part}-store")]
    return lines


def _ingest(chests: Path, store: Path) -> list[object]:
    return ["ingest", chests / "scans", store, "--points", chests / "annotations.csv", "--lungs", chests / "lungs"]


def plan_seed(study: ChestStudy, folder: Path, seed: int) -> list[list[object]]:
    """Return the commands of a seed of the trainings."""
    out, store, found = study.out, folder / "store", folder / "found"
    segmentation, model, found_in_training = folder / "segmentation.onnx", folder / MODEL, folder / "found-in-training"
    settings = ["--recipe", "nodules", "--config", folder / "settings.toml", "--epochs", 5]
    split = ["--split", folder / f"split-{CLASSIFIER}.json"]
    crops = ["--crops", *split, "--seed", seed, "--epochs"]
    mirrored = ["--mirror", "--viewer-mb", 0]
    return [
        ["train", out / "train-store", folder / SEGMENTATION, *settings, "--seed", seed, "--max-minutes", study.minutes,
         "--split", folder / f"split-{SEGMENTATION}.json"],
        ["export", folder / SEGMENTATION, segmentation, "--probability"],
        ["infer", segmentation, out / "train" / "scans", "--out", found_in_training, "--candidates", *mirrored],
        [*_ingest(out / "train", store), "--candidates", found_in_training / "candidates.csv"],
        ["train", store, folder / CLASSIFIER, *crops, 1000, "--max-minutes", study.crop_minutes],
        ["train", store, folder / "malignancy", *crops, 100, "--malignancy", "--from", folder / CLASSIFIER,
         "--max-minutes", study.malignancy_minutes],
        ["export", folder / "malignancy", model, "--segmentation", segmentation, "--mirror"],
        ["tune", model, store, *split],
        ["infer", model, out / "test" / "scans", "--out", found, *mirrored],
        *(
            ["froc", found / TABLE, out / "test-store", "--ranked-by", column, "--out", folder / f"scores-{name}"]
            for name, column in RANKED_BY.items()
        ),
    ]  # fmt: skip


def make_record(study: ChestStudy) -> NodulesRecord:
    """Return the record of what all commands made."""
    findings = read_store_findings(study.out / "test-store", None, None)
    folders = {seed: study.out / f"seed-{seed}" for seed in study.seeds}
    return NodulesRecord(
        chests_version=VERSION,
        size=study.size,
        chests=study.chests,
        unseen=study.unseen,
        test_chests=study.test_chests,
        malignancy_chests=study.malignancy_chests,
        seed=study.seed,
        test_seed=study.test_seed,
        minutes=study.minutes,
        crop_minutes=study.crop_minutes,
        malignancy_minutes=study.malignancy_minutes,
        nodules=sum(len(points) for points in findings.included.values()),
        scores=[score for seed, folder in folders.items() for score in _score_rankings(folder, findings, seed)],
        malignancy=[
            _score_malignancy(folder / MODEL, study.out / "malignancy-store", seed) for seed, folder in folders.items()
        ],
        **origin(),
    )


def _score_rankings(folder: Path, findings: Findings, seed: int) -> list[NodulesScore]:
    """Score the candidates as the segmentation ranks them, and as the classifier does."""
    counted = {
        name: score_candidates(read_candidates(folder / "found" / TABLE, findings, column), findings)
        for name, column in RANKED_BY.items()
    }
    gain = compare_cpm(counted[CLASSIFIER].hits, counted[SEGMENTATION].hits)
    scores = []
    for name, one in counted.items():
        froc = read_json(folder / f"scores-{name}" / "froc.json")
        compared = name == CLASSIFIER
        scores.append(
            NodulesScore(
                seed=seed,
                ranked_by=name,
                cpm=round(froc["cpm"], 4),
                cpm_interval=_round(froc["cpm_interval"]),
                sensitivity=_round(froc["sensitivity_between"]),
                by_diameter={
                    band: BandScore(
                        nodules=part["findings"],
                        cpm=None if part["cpm"] is None else round(part["cpm"], 4),
                        cpm_interval=None if part["cpm"] is None else _round(part["cpm_interval"]),
                    )
                    for band, part in froc["parts"].items()
                },
                found=one.found,
                false_alarms=one.false_alarms,
                gain=round(gain.difference, 4) if compared else None,
                gain_interval=_round(gain.interval) if compared else None,
            )
        )
    return scores


def _round(values: Sequence[float]) -> list[float]:
    return [round(float(value), 4) for value in values]


def _score_malignancy(model: Path, store: Path, seed: int) -> MalignancyScore:
    """Judge the nodules of a store at their annotated centers."""
    classifier = open_tunable(model, "cpu")
    chests = [judge_nodules(classifier, case, ratings=False) for case in open_store(store).values()]
    numbers = classifier.card.malignancy_calibration
    judged = join_nodules(chests)
    diameter = area_under_roc(judged.malignant, judged.diameter_mm)
    area, interval = None, None
    if numbers is not None:
        both = [calibrate_malignancy(chest.output, chest.diameter_mm, numbers) for chest in chests]
        area, interval = area_under_roc(judged.malignant, np.concatenate(both)), bootstrap_gain(chests, both)
    return MalignancyScore(
        seed=seed,
        nodules=len(judged.malignant),
        malignant=int(judged.malignant.sum()),
        auc_diameter=round(diameter, 4),
        auc_output=round(area_under_roc(judged.malignant, judged.output), 4),
        auc_both=None if area is None else round(area, 4),
        gain=None if area is None else round(area - diameter, 4),
        gain_interval=None if interval is None else _round(interval),
    )


def bootstrap_gain(chests: Sequence[JudgedNodules], malignancy: Sequence[Floats]) -> tuple[float, float]:
    """Return the 95 % interval, over chests, of the AUC of `malignancy` minus that of the diameter.

    `malignancy`: float64[n] of each chest. Samples of one class are left out; the chests together must have both.
    """
    rng = np.random.default_rng(0)
    gains: list[float] = []
    while len(gains) < RESAMPLES:
        drawn = rng.integers(len(chests), size=len(chests))
        truth = np.concatenate([chests[index].malignant for index in drawn])
        if truth.any() and not truth.all():
            diameter = np.concatenate([chests[index].diameter_mm for index in drawn])
            told = np.concatenate([malignancy[index] for index in drawn])
            gains.append(area_under_roc(truth, told) - area_under_roc(truth, diameter))
    low, high = np.percentile(gains, [2.5, 97.5])
    return float(low), float(high)
