"""A study: every variant on every fold with every seed, resumable, and its summary.

1. Phantoms are made where asked for; the collection is ingested and cut into folds by patient. Done before: nothing happens.
2. Runs with a result are skipped, others begun or gone on with, `jobs` at a time, each on its own share of the cores.
3. The summary is derived from the results alone.

Every training takes the same number of steps, not minutes, so that a result does not depend on what else the machine does.
"""

import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from slicemill.bench.studies.runs import (
    BENCHMARK,
    Run,
    Shell,
    StudyFolder,
    carry_out,
    check_same,
    identity,
    locked,
    pinned,
    runs_of,
    to_toml_of,
)
from slicemill.bench.studies.table import PARTS, Table
from slicemill.common.errors import ConfigError, InputError, UsageError
from slicemill.common.files import read_json, write_bytes
from slicemill.common.progress import Advance, progress
from slicemill.common.terminal import count_noun, format_table, print_line
from slicemill.ct.overlap import mean_of
from slicemill.store.reader import Store, is_store, open_store
from slicemill.store.split import read_split
from slicemill.train.run.checkpoint import read_state

PHANTOM_SEED = 7
"""Not the demo's, whose phantoms its settings were tried on."""
PILOT_STEPS, PILOT_CASES = 3, 3
OVERHEAD_MINUTES = 1.0
"""Of a run around its training on one core: starting, export, a dozen scans, pictures."""
LOOK_SECONDS = 2.0
"""How often the trainings are asked how far they are."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What to compare, on what, and where."""

    table: Table
    out: Path
    variants: tuple[str, ...] = ()
    """Variants to run; empty for all."""
    data: Path | None = None
    """The collection; None makes phantoms."""
    phantoms: int = 0
    """How many."""
    only_folds: tuple[int, ...] = ()
    """Folds to run; empty for all."""
    jobs: int = 1

    def __post_init__(self) -> None:
        """Check what cannot work."""
        if (self.data is None) == (self.phantoms == 0):
            raise UsageError("a study is made on --data DIR or on --phantoms N; name one of the two.")
        if self.data is not None and not self.data.is_dir():
            raise ConfigError(f"{self.data}: there is no such folder; name the collection with --data.")
        if unknown := [name for name in self.variants if name not in self.table.variants]:
            raise ConfigError(f"--variants {unknown[0]}: the table has {', '.join(self.table.variants)}.")
        if wrong := [fold for fold in self.only_folds if not 0 <= fold < self.table.folds]:
            raise ConfigError(f"--only-folds {wrong[0]}: the folds are 0 to {self.table.folds - 1}.")
        if not 1 <= self.jobs <= len(os.sched_getaffinity(0)):
            raise ConfigError(
                f"--jobs {self.jobs}: this machine has {count_noun(len(os.sched_getaffinity(0)), 'core')}, and a job needs one."
            )

    @property
    def place(self) -> StudyFolder:
        """Return its folders; absolute, as its commands run elsewhere."""
        return StudyFolder(out=self.out.absolute(), data=(self.data or self.out / "phantoms").absolute())

    def runs(self) -> list[Run]:
        """Return all its runs."""
        folds = self.only_folds or range(self.table.folds)
        return runs_of(self.table.seeds, folds, self.variants or tuple(self.table.variants))


def numbers(option: str, text: str | None) -> tuple[int, ...]:
    """Read ``0,1,2``; nothing for None.

    >>> numbers("--seeds", "0, 2")
    (0, 2)

    Raises
    ------
    UsageError
        It is no list of whole numbers.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"{option} {text}: expected whole numbers like 0,1,2.")
    return tuple(int(part) for part in parts)


def prepare(study: Study, shell: Shell) -> Store:
    """Make or bring up to date collection, store and folds, and open the store.

    Raises
    ------
    InputError
        A stage failed; the message names its log.
    """
    place, sought = study.place, study.table
    log = place.out / "prepare.log"
    if study.data is None:
        print_line(f"{count_noun(study.phantoms, 'phantom')} of {sought.phantom_size} pixels: {place.data.name}")
        words = ("--cases", study.phantoms, "--size", sought.phantom_size, "--seed", PHANTOM_SEED)
        shell.type(("phantom", place.data, *words), log)
    labels = ("--labels", sought.labels) if sought.labels and study.data is not None else ()
    print_line(f"ingest: {place.store.name}")
    try:
        shell.type(("ingest", place.data, place.store, *labels), log)
    except InputError as error:
        if not is_store(place.store):
            raise
        print_line(f"{error} The study goes on without what could not be ingested.")
    shell.type(("split", place.store, place.out / "folds", "--folds", sought.folds), log)
    return open_store(place.store)


def run_study(study: Study) -> list[Row]:
    """Do what is left of a study and return all results of its table that its folder has, of earlier calls too.

    Raises
    ------
    ConfigError
        A result is there that was made with other settings, or someone else works on the study.
    InputError
        Runs failed; the others are done.
    """
    place = study.place
    with locked(place.out) as shell:
        store = prepare(study, shell)
        sought = {run: sought_of(study, run, store) for run in study.runs()}
        finished = finished_of(place, sought)
        for run, result in finished.items():
            check_same(place.result(run), result, sought[run])
        left = {run: wanted for run, wanted in sought.items() if run not in finished}
        print_line(
            f"{count_noun(len(sought), 'run')}: {len(finished)} done before, {len(left)} to do, {study.jobs} at a time"
        )
        failed: list[str] = []
        with (
            progress("quality", len(left) * study.table.epochs, "epochs") as advance,
            begun(place, list(left), advance) as note,
        ):
            for run, outcome in carried_out(study, left, shell, note):
                if isinstance(outcome, InputError):
                    failed.append(f"{run}: {outcome}")
                    print_line(f"failed: {failed[-1]}")
                    continue
                finished[run] = outcome
                print_line(
                    f"{len(finished)} of {len(sought)}: {run}: {shown_scores(outcome)}; {outcome['minutes']:.1f} minutes, "
                    f"about {minutes_left(study, finished):.0f} left"
                )
    if failed:
        raise InputError(
            f"{count_noun(len(failed), 'run')} of {len(sought)} failed, the others are done; first: {failed[0]} "
            "Mend that, and run the same command again: it does what is left."
        )
    return gathered(study, store)


def gathered(study: Study, store: Store) -> list[Row]:
    """Return all results of the table's variants, in the table's order, each checked to be of the table's settings and folds."""
    place, order = study.place, list(study.table.variants)
    found = []
    for path in sorted((place.out / "results").glob("*.json")):
        result = read_json(path)
        if result.get("benchmark") != BENCHMARK or result["variant"] not in order:
            continue
        run = Run(**{name: result[name] for name in ("variant", "fold", "seed")})
        check_same(path, result, sought_of(study, run, store))
        found.append(result)
    return sorted(found, key=lambda row: (order.index(row["variant"]), row["seed"], row["fold"]))


def sought_of(study: Study, run: Run, store: Store) -> Row:
    """Return what a result of a run must agree with."""
    place, wanted = study.place, study.table
    split = read_split(place.split(run.fold), store.case_ids)
    return identity(wanted.config(run.variant, run.seed), wanted, place, split)


def finished_of(place: StudyFolder, runs: Iterable[Run]) -> dict[Run, Row]:
    """Return the results that are there."""
    return {run: read_json(place.result(run)) for run in runs if place.result(run).exists()}


def carried_out(
    study: Study, left: dict[Run, Row], shell: Shell, note: dict[Run, str]
) -> Iterator[tuple[Run, Row | InputError]]:
    """Yield runs with their results, or why they failed, as they end; each job keeps to its own cores."""
    cores = sorted(os.sched_getaffinity(0))
    free = [cores[job :: study.jobs] for job in range(study.jobs)]
    lock = threading.Lock()

    def work(run: Run) -> Row | InputError:
        with lock:
            mine = free.pop()
        try:
            pinned(mine)
            return carry_out(run, study.place, left[run], shell, lambda text: note.update({run: text}))
        except InputError as error:
            return error
        finally:
            note.pop(run, None)
            with lock:
                free.append(mine)

    with ThreadPoolExecutor(max_workers=study.jobs) as pool:
        pending: dict[Future[Row | InputError], Run] = {pool.submit(work, run): run for run in left}
        try:
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield pending.pop(future), future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def begun(place: StudyFolder, left: Sequence[Run], advance: Advance) -> Iterator[dict[Run, str]]:
    """Show how far the trainings are, from the tables that they write; yields where the stage of each run is noted."""
    note: dict[Run, str] = {}
    seen = dict.fromkeys(left, 0)
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(LOOK_SECONDS):
            for run in left:
                epochs = epochs_done(place, run)
                if epochs > seen[run]:
                    advance(epochs - seen[run], "")
                    seen[run] = epochs
            advance(0, "; ".join(f"{run}: {stage}" for run, stage in list(note.items())))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield note
    finally:
        stop.set()
        watcher.join()


def epochs_done(place: StudyFolder, run: Run) -> int:
    """Return the epochs that a run's training has finished."""
    try:
        return max(0, len((place.folder(run) / "train" / "metrics.csv").read_text(encoding="utf-8").splitlines()) - 1)
    except OSError:
        return 0


def shown_scores(result: Row) -> str:
    """Return the mean Dice per case of each part and region in a few words."""
    texts = []
    for part in PARTS:
        rows = [case["regions"] for case in result["cases"] if case["part"] == part]
        scores = [
            f"{name} {mean_of([row[name]['dice'] for row in rows if row[name]['dice'] is not None]):.3f}"
            for name in (rows[0] if rows else ())
        ]
        texts.append(f"{part} {', '.join(scores)}")
    return "; ".join(texts)


def minutes_of(study: Study, run: Run, finished: Sequence[Row]) -> float:
    """Return about how long a run takes, from the finished ones of its variant, else from all finished ones."""
    known = [row for row in finished if row["variant"] == run.variant] or list(finished)
    steps = study.table.epochs * study.table.steps
    taken: list[float] = [
        row["minutes"]
        + row["training"]["minutes"] * (steps / (row["settings"]["epochs"] * row["settings"]["steps"]) - 1)
        for row in known
    ]
    return median(taken)


def minutes_left(study: Study, finished: dict[Run, Row]) -> float:
    """Return about how many minutes the unfinished runs of a study take; some run is finished."""
    known = list(finished.values())
    return sum(minutes_of(study, run, known) for run in study.runs() if run not in finished) / study.jobs


def plan(study: Study) -> None:
    """Show the runs of a study, which are done, and about how long the others take; nothing is written but a short pilot's files, aside."""
    place = study.place
    runs = study.runs()
    finished = finished_of(place, runs)
    known = list(finished.values()) or [pilot(study)]
    rows = []
    for run in runs:
        epochs = epochs_done(place, run)
        state = "done" if run in finished else f"begun ({epochs} of {study.table.epochs} epochs)" if epochs else "to do"
        rows.append(
            (run.variant, run.fold, run.seed, state, None if run in finished else minutes_of(study, run, known))
        )
    print_line(format_table(["variant", "fold", "seed", "state", "minutes"], rows))
    left = [row[-1] or 0.0 for row in rows if row[3] != "done"]
    steps = study.table.epochs * study.table.steps
    print_line(
        f"{count_noun(len(runs), 'run')} of {steps:,} steps, {len(left)} left; about {sum(left) / study.jobs:.0f} minutes with "
        f"--jobs {study.jobs}, by {'the finished runs' if finished else 'a pilot'}. Nothing was written (--dry-run)."
    )


def pilot(study: Study) -> Row:
    """Train a few steps of the first variant, aside, on the study's store or else on phantoms, and return what a result says of time.

    The second of two epochs counts: the first one's steps are slow.

    Raises
    ------
    InputError
        The training failed.
    """
    place, sought = study.place, study.table
    first = study.runs()[0]
    with tempfile.TemporaryDirectory() as aside, locked(Path(aside)) as shell:
        folder = Path(aside)
        log, store, settings = folder / "log.txt", place.store, folder / "settings.toml"
        if not is_store(store):
            side = max(sought.phantom_size, sought.config(first.variant, first.seed).size)
            print_line(f"a pilot of {PILOT_STEPS} steps on phantoms of {side} pixels")
            store = folder / "store"
            shell.type(("phantom", folder / "phantoms", "--cases", PILOT_CASES, "--size", side), log)
            shell.type(("ingest", folder / "phantoms", store), log)
        else:
            print_line(f"a pilot of {PILOT_STEPS} steps")
        short = asdict(replace(sought, epochs=2, steps=PILOT_STEPS).config(first.variant, first.seed))
        write_bytes(settings, to_toml_of(short).encode())
        pinned_threads = sorted(os.sched_getaffinity(0))
        pinned(pinned_threads[:: study.jobs])
        try:
            shell.type(("train", store, folder / "train", "--config", settings), log)
        finally:
            pinned(pinned_threads)
        state = read_state(folder / "train")
    minutes = [PILOT_STEPS * short["batch"] / row["slices_per_second"] / 60 for row in state.rows]
    validating = (state.seconds / 60 - sum(minutes)) / 2
    return {
        "variant": "",
        "minutes": 2 * minutes[1] + sought.epochs * validating + OVERHEAD_MINUTES,
        "settings": short,
        "training": {"minutes": 2 * minutes[1]},
    }
