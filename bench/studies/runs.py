"""One run of a study: a variant trained on a fold with a seed, and scored on the cases that the fold keeps from training.

Everything goes through the commands that a user would type: train, export, infer, evaluate. What a run leaves::

    OUT/runs/<run>/settings.toml  train/  model.onnx  segmented/  scores/  log.txt
    OUT/results/<run>.json        small, written last: its presence means that the run is finished
"""

import datetime as dt
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from slicemill.bench.studies.table import PARTS, Table
from slicemill.common.errors import ConfigError, InputError
from slicemill.common.files import read_json, write_bytes, write_json
from slicemill.common.machine import machine_info
from slicemill.store.reader import Store, open_store
from slicemill.store.split import Split
from slicemill.train.config import Config, to_toml
from slicemill.train.run.checkpoint import read_state

BENCHMARK = "quality run"
"""What a result says it is."""
"""The checkout: a study runs its own version of the commands."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Which variant, fold and seed."""

    variant: str
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its folder and of its result."""
        return f"{self.variant}_fold-{self.fold}_seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.variant}, fold {self.fold}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """Where a study lies, and what it is made on."""

    out: Path
    data: Path
    """The collection: scans that `infer` reads."""

    @property
    def store(self) -> Path:
        """Return the slice store."""
        return self.out / "store"

    def split(self, fold: int) -> Path:
        """Return a fold's file."""
        return self.out / "folds" / f"fold-{fold}.json"

    def folder(self, run: Run) -> Path:
        """Return what a run is made in."""
        return self.out / "runs" / run.name

    def result(self, run: Run) -> Path:
        """Return the file that says that a run is finished."""
        return self.out / "results" / f"{run.name}.json"


def runs_of(seeds: Sequence[int], folds: Sequence[int], variants: Sequence[str]) -> list[Run]:
    """Return all runs of a study: fold by fold, so that a study that is stopped has compared its variants on whole folds."""
    return [Run(variant=name, fold=fold, seed=seed) for seed in seeds for fold in folds for name in variants]


def check_same(path: Path, before: Row, now: Row) -> None:
    """Refuse a finished result of other settings or another split; a setting that one of the two did not know yet is left out.

    Raises
    ------
    ConfigError
        They differ.
    """
    former = {"tune": {"tuned": False}, **before}  # results of earlier versions do not say that they were not
    differing = [
        f"the cases of {name}" if part == "split" else f"{name} {former[part][name]} -> {now[part][name]}"
        for part in ("settings", "export", "tune", "split")
        for name in former.get(part, {}).keys() & now.get(part, {}).keys()
        if former[part][name] != now[part][name]
    ]
    if before["collection"] != now["collection"]:
        differing.append(f"collection {before['collection']} -> {now['collection']}")
    if differing:
        raise ConfigError(
            f"{path}: is of other settings ({'; '.join(sorted(differing))}). Use another --out, or remove the file to do the run again."
        )


def identity(config: Config, table: Table, place: StudyFolder, split: Split) -> Row:
    """Return what a result must agree with to count as that of a run: collection, all settings, options of the export, whether it is tuned, split."""
    return {
        "collection": place.data.name,
        "settings": asdict(config),
        "export": {"--min-lesion-ml": table.min_lesion_ml},
        "tune": {"tuned": table.tune},
        "split": {part: list(ids) for part, ids in asdict(split).items()},
    }


def carry_out(run: Run, place: StudyFolder, sought: Row, shell: "Shell", tell: Callable[[str], None]) -> Row:
    """Train (or go on training), export, tune where asked for, segment, score; write the result and return it.

    Raises
    ------
    InputError
        A command failed; the message holds its last line and names the log.
    """
    folder, split, store = place.folder(run), sought["split"], open_store(place.store)
    settings, trained, model = folder / "settings.toml", folder / "train", folder / "model.onnx"
    given = [place.data / store[case_id].info.image.name for part in PARTS for case_id in split[part]]
    write_bytes(settings, to_toml_of(sought["settings"]).encode())
    tell("train")
    shell.type(
        ("train", place.store, trained, "--config", settings, "--split", place.split(run.fold)), folder / "log.txt"
    )
    start = time.perf_counter()
    for words in (
        ("export", trained, model, *(word for name, value in sought["export"].items() for word in (name, value))),
        *((("tune", model, place.store, "--split", place.split(run.fold)),) if sought["tune"]["tuned"] else ()),
        ("infer", model, *given, "--out", folder / "segmented"),
        ("evaluate", folder / "segmented", place.store, "--out", folder / "scores"),
    ):
        tell(str(words[0]))
        shell.type(words, folder / "log.txt")
    state = read_state(trained)
    result = {
        "benchmark": BENCHMARK,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        **asdict(run),
        **sought,
        "training": {
            "epochs": state.epoch,
            "best_epoch": state.best_epoch,
            "minutes": round(state.seconds / 60, 2),
            "slices_per_second": round(sum(row["slices_per_second"] for row in state.rows) / len(state.rows), 2),
        },
        "minutes": round((state.seconds + time.perf_counter() - start) / 60, 2),
        "cases": scored_cases(folder / "scores" / "evaluation.json", split, store),
        "machine": machine_info(),
    }
    write_json(place.result(run), result)
    return result


def to_toml_of(settings: Row) -> str:
    """Return settings as TOML."""
    return to_toml(Config().changed(**settings))


def scored_cases(evaluation: Path, split: Row, store: Store) -> list[Row]:
    """Return the rows of a result: for each case its patient, its part, and of each region Dice and volumes in ml.

    Raises
    ------
    InputError
        A case was not scored.
    """
    document = read_json(evaluation)
    rows = {row["case_id"]: row for row in document["by_case"]}
    scored = [(part, case_id) for part in PARTS for case_id in split.get(part, ())]
    missing = [case_id for _, case_id in scored if case_id not in rows]
    if missing:
        raise InputError(f"{evaluation}: has no scores of {', '.join(missing[:5])}; see log.txt beside its folder.")
    names = [key.removeprefix("dice_") for key in document["by_case"][0] if key.startswith("dice_")]
    return [
        {
            "case_id": case_id,
            "patient_id": store[case_id].info.patient_id,
            "part": part,
            "regions": {name: region_row(rows[case_id], name) for name in names},
        }
        for part, case_id in scored
    ]


def region_row(row: Row, name: str) -> Row:
    """Return Dice and the volumes reference, prediction and overlap, ml, of a region of a case.

    >>> region_row({"dice_t": 0.5, "recall_t": 0.5, "reference_t_ml": 2.0, "predicted_t_ml": 2.0}, "t")
    {'dice': 0.5, 'reference_ml': 2.0, 'predicted_ml': 2.0, 'overlap_ml': 1.0}
    """
    reference = row[f"reference_{name}_ml"]
    return {
        "dice": row[f"dice_{name}"],
        "reference_ml": reference,
        "predicted_ml": row[f"predicted_{name}_ml"],
        "overlap_ml": reference * (row[f"recall_{name}"] or 0.0),
    }


@dataclass(frozen=True, kw_only=True)
class Shell:
    """Starts commands one by one."""

    lock: BinaryIO
    """Held by whoever works on the study. It is the standard input of every command, which so holds it on when the study is killed."""

    def type(self, words: Iterable[object], log: Path) -> None:
        """Type a slicemill command of this checkout, its output appended to a log.

        Raises
        ------
        InputError
            It failed.
        """
        self.start((sys.executable, "-m", "slicemill", *words), log)

    def start(self, words: Iterable[object], log: Path) -> None:
        """Run a program, its output appended to a log.

        Raises
        ------
        InputError
            It failed; the message holds the last line of its output.
        """
        arguments = [str(word) for word in words]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"$ {' '.join(arguments)}\n")
            stream.flush()
            done = subprocess.run(  # noqa: S603 (commands of ours, and of the environment that we made)
                arguments, stdin=self.lock, stdout=stream, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode:
            said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            raise InputError(f"a command ended with exit status {done.returncode}: {said[-1]} All of it: {log}.")


@contextmanager
def locked(out: Path) -> Iterator[Shell]:
    """Yield a shell while nobody else works on the study in this folder.

    Raises
    ------
    ConfigError
        Someone does.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{out}: a study is at work here, or trainings of one that was killed; wait for them, or end them, or use another --out."
            ) from None
        yield Shell(lock=lock)


def pinned(cores: Sequence[int]) -> None:
    """Keep this thread, and the processes that it starts, to some cores; torch takes as many threads as it has cores."""
    os.sched_setaffinity(0, cores)
