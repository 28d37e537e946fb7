"""nnU-Net's 2D configuration on a fold of a study, for the same minutes on the same device as ours.

1. An environment of its own is made once in the study's folder, from the pinned versions in ``nnunet/requirements.txt``.
2. The fold's cases leave our store as NIfTI, in nnU-Net's layout; its ``splits_final.json`` is our fold.
3. nnU-Net plans, preprocesses, trains for the minutes and segments the test cases (``nnunet/peer.py``).
4. Ours trains for the same minutes, with the settings of one variant, and segments the test cases.
5. ``slicemill evaluate`` scores both.

Minutes are those of training epochs, validation between them included, on both sides; planning, preprocessing, ingest, export
and prediction are not counted. One after the other, with all cores: nothing else should run.
"""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicemill.bench.peers.environment import FILES, environment
from slicemill.bench.studies.runs import (
    Run,
    Shell,
    StudyFolder,
    carry_out,
    check_same,
    identity,
    locked,
    scored_cases,
)
from slicemill.bench.studies.study import Study, prepare
from slicemill.bench.studies.summary import CONVENTION, cases_of, gain, main_region, scores
from slicemill.common.errors import ConfigError, UsageError
from slicemill.common.files import read_json, to_json, write_bytes, write_json
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress
from slicemill.common.terminal import print_line
from slicemill.store.layout import ArrayName
from slicemill.store.reader import Store
from slicemill.store.split import read_split
from slicemill.store.to_nifti import export_case
from slicemill.train.run.setup import choose_device, common_labels

DATASET = "Dataset001_fold"
EPOCH = {"cuda": 250, "cpu": 10}
"""Iterations that make an epoch: nnU-Net's own on a GPU; on a CPU, where one takes seconds, fewer, so that there are epochs at all."""
ENDLESS = 100_000
"""Epochs of ours, whose end is that of the minutes."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Duel:
    """What is compared."""

    study: Study
    """Its first variant is ours; its folds and first seed."""
    minutes: float

    def __post_init__(self) -> None:
        """Check what cannot work."""
        if not self.minutes > 0:
            raise UsageError(f"--minutes {self.minutes:g}: must be above 0.")

    def run(self, contender: str, fold: int) -> Run:
        """Return a contender's run: its name says the minutes."""
        name = f"{contender}-{self.minutes:g}-minutes".replace(".", "-")
        return Run(variant=name, fold=fold, seed=self.study.table.seeds[0])

    @property
    def ours(self) -> str:
        """Return the variant that stands for us."""
        return self.study.runs()[0].variant

    @property
    def folds(self) -> Sequence[int]:
        """Return the folds to compare on."""
        return self.study.only_folds or range(self.study.table.folds)


def run_duel(duel: Duel) -> Row:
    """Do what is left on every fold and return the record.

    Raises
    ------
    InputError
        nnU-Net cannot be installed or fails, or one of our stages does; the message names the log.
    """
    place = duel.study.place
    found: dict[str, list[Row]] = {"nnU-Net 2D": [], "slicemill": []}
    with locked(place.out) as shell:
        store = prepare(duel.study, shell)
        python = environment(place.out / "nnunet", FILES / "requirements.txt", "nnU-Net")
        device = choose_device("auto").type
        for fold in duel.folds:
            split = read_split(place.split(fold), store.case_ids)
            theirs, mine = duel.run("nnunet-2d", fold), duel.run(duel.ours, fold)
            config = duel.study.table.config(duel.ours, mine.seed).changed(epochs=ENDLESS, max_minutes=duel.minutes)
            own = identity(config, duel.study.table, place, split)
            peer = {
                **own,
                "export": {},
                "tune": {},
                "settings": {"minutes": duel.minutes, "iterations": EPOCH[device], "device": device},
            }
            print_line(f"fold {fold}: nnU-Net, {duel.minutes:g} minutes of training on {device}")
            found["nnU-Net 2D"].append(
                once(place, theirs, peer, lambda run, sought: peer_run(run, place, sought, (shell, store, python)))
            )
            print_line(f"fold {fold}: {duel.ours}, {duel.minutes:g} minutes")
            found["slicemill"].append(
                once(place, mine, own, lambda run, sought: carry_out(run, place, sought, shell, print_line))
            )
    return record_of(duel, found)


def once(place: StudyFolder, run: Run, sought: Row, work: Callable[[Run, Row], Row]) -> Row:
    """Return a run's result: the one that is there, if it is of the same settings, else a new one."""
    if not place.result(run).exists():
        return work(run, sought)
    result = read_json(place.result(run))
    check_same(place.result(run), result, sought)
    print_line(f"{run}: done before")
    return result


def peer_run(run: Run, place: StudyFolder, sought: Row, means: tuple[Shell, Store, Path]) -> Row:
    """Train nnU-Net on a fold, segment its test cases, score them; write the result and return it."""
    shell, store, python = means
    folder, settings = place.folder(run), sought["settings"]
    log = folder / "log.txt"
    dataset = folder / "raw" / DATASET
    write_dataset(dataset, store, sought["split"])
    places = [f"nnUNet_{name}={folder / name}" for name in ("raw", "preprocessed", "results")]
    entry = python.with_name("nnUNetv2_plan_and_preprocess")
    shell.start(("env", *places, entry, "-d", 1, "-c", "2d", "-np", 1, "-npfp", 1), log)
    folds = [{"train": sought["split"]["train"], "val": sought["split"]["validation"]}]
    write_bytes(folder / "preprocessed" / DATASET / "splits_final.json", to_json(folds).encode())
    words = (FILES / "peer.py", DATASET, folder, "--minutes", settings["minutes"],
             "--iterations", settings["iterations"], "--device", settings["device"])  # fmt: skip
    shell.start(("env", *places, python, *words), log)
    shell.type(("evaluate", folder / "segmented", place.store, "--out", folder / "scores"), log)
    said = read_json(folder / "peer.json")
    result = {
        "benchmark": "quality peer",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "variant": run.variant,
        "fold": run.fold,
        "seed": run.seed,
        **sought,
        "training": said,
        "cases": scored_cases(folder / "scores" / "evaluation.json", {"test": sought["split"]["test"]}, store),
        "machine": machine_info(),
    }
    write_json(place.result(run), result)
    return result


def write_dataset(dataset: Path, store: Store, split: Row) -> None:
    """Write a fold's cases as nnU-Net's raw data: training and validation cases with masks, test cases without.

    Raises
    ------
    ConfigError
        The label values are not 1, 2, 3 and so on, as nnU-Net wants them.
    """
    values = common_labels(store).values
    if sorted(values.values()) != list(range(1, len(values) + 1)):
        raise ConfigError(f"{store.root}: nnU-Net wants label values 1, 2, 3 and so on; these are {dict(values)}.")
    known = [*split["train"], *split["validation"]]
    with progress("export", len(known) + len(split["test"]), "cases") as advance:
        for case_id in known:
            _export(store, case_id, dataset / "imagesTr" / f"{case_id}_0000.nii.gz", "image")
            _export(store, case_id, dataset / "labelsTr" / f"{case_id}.nii.gz", "label")
            advance(1, case_id)
        for case_id in split["test"]:
            _export(store, case_id, dataset / "imagesTs" / f"{case_id}_0000.nii.gz", "image")
            advance(1, case_id)
    document = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **values},
        "numTraining": len(known),
        "file_ending": ".nii.gz",
    }
    write_json(dataset / "dataset.json", document)


def _export(store: Store, case_id: str, out: Path, array: ArrayName) -> None:
    """Write an array of a case as NIfTI, unless an earlier call did."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        export_case(store[case_id], out, array=array)


def record_of(duel: Duel, found: dict[str, list[Row]]) -> Row:
    """Return the record: scores of both on the test parts, and what ours gains, patient by patient."""
    results = [row for rows in found.values() for row in rows]
    regions = list(results[0]["cases"][0]["regions"])
    theirs, ours = found.values()
    return {
        "benchmark": "yardstick",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "collection": results[0]["collection"],
        "folds": list(duel.folds),
        "of_folds": duel.study.table.folds,
        "minutes": duel.minutes,
        "variant": duel.ours,
        "settings": {**duel.study.table.settings, **duel.study.table.variants[duel.ours]},
        "convention": CONVENTION,
        "region": main_region(regions),
        "contenders": {
            name: {
                "training": [row["training"] for row in rows],
                **{region: scores(cases_of(rows, "test"), region) for region in regions},
            }
            for name, rows in found.items()
        },
        "gain": {region: gain(ours, theirs, "test", region) for region in regions},
        "commits": sorted({str(row["machine"]["commit"]) for row in results}),
        "machine": machine_info(),
    }
