"""An experiment of `bench quality`: every variant on every fold with every seed. It can be resumed.

1. Phantoms are made if requested; the collection is ingested and cut into folds by patient. Finished steps are skipped.
2. Runs with a result are skipped, the others are started or resumed, `jobs` at a time, each on its own share of the
   cores.
3. The record is derived from the results alone.

Every training takes the same number of steps, so that a result does not depend on the load of the machine; or, if the
design says so, the same minutes, so that a variant with cheaper steps makes more of them. Nothing else should run then.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from slicemill.bench.records.quality import PARTS
from slicemill.bench.studies.design import ExperimentDesign
from slicemill.bench.studies.estimates import minutes_left
from slicemill.bench.studies.fold_run import RunRequest
from slicemill.bench.studies.parallel import run_all, show_epochs
from slicemill.bench.studies.results import (
    QUALITY_RUN,
    ExperimentFolder,
    FoldRun,
    RunInputs,
    RunResult,
    check_same_inputs,
    plain_json,
)
from slicemill.bench.studies.runner import CommandRunner, lock_experiment
from slicemill.common.documents import from_document, read_document
from slicemill.common.errors import ConfigError, InputError, UsageError
from slicemill.common.files import read_json
from slicemill.common.progress import progress
from slicemill.common.terminal import count_noun, print_line
from slicemill.ct.overlap import mean_without_nan
from slicemill.store.reader import Store, is_store, open_store
from slicemill.store.split import read_split

PHANTOM_SEED = 7
"""Not the demo's seed: settings were tried on the demo's phantoms."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Variants, data and folder of an experiment."""

    design: ExperimentDesign
    out: Path
    variants: tuple[str, ...] = ()
    """Variants to run; empty for all."""
    data: Path | None = None
    """The collection; None makes phantoms."""
    phantoms: int = 0
    only_folds: tuple[int, ...] = ()
    """Folds to run; empty for all."""
    jobs: int = 1

    def __post_init__(self) -> None:
        """Check the combination of options."""
        cores = len(os.sched_getaffinity(0))
        if (self.data is None) == (self.phantoms == 0):
            raise UsageError("an experiment runs on --data DIR or on --phantoms N; pass one of the two.")
        if self.data is not None and not self.data.is_dir():
            raise ConfigError(f"{self.data}: there is no such folder; pass the collection with --data.")
        if unknown := [name for name in self.variants if name not in self.design.variants]:
            raise ConfigError(f"--variants {unknown[0]}: the table has {', '.join(self.design.variants)}.")
        if wrong := [fold for fold in self.only_folds if not 0 <= fold < self.design.folds]:
            raise ConfigError(f"--only-folds {wrong[0]}: the folds are 0 to {self.design.folds - 1}.")
        if not 1 <= self.jobs <= cores:
            raise ConfigError(f"--jobs {self.jobs}: this machine has {count_noun(cores, 'core')}, and a job needs one.")

    @property
    def folder(self) -> ExperimentFolder:
        """Return its paths. They are absolute, because commands may run in other folders."""
        return ExperimentFolder(out=self.out.absolute(), data=(self.data or self.out / "phantoms").absolute())

    @property
    def folds(self) -> tuple[int, ...]:
        """Return the folds to run."""
        return self.only_folds or tuple(range(self.design.folds))

    def runs(self) -> list[FoldRun]:
        """Return all runs, fold by fold, so that a stopped experiment has compared all variants on some folds."""
        variants = self.variants or tuple(self.design.variants)
        return [
            FoldRun(variant=variant, fold=fold, seed=seed)
            for seed in self.design.seeds
            for fold in self.folds
            for variant in variants
        ]

    def request(self, run: FoldRun, store: Store) -> RunRequest:
        """Return the request of a run: its settings, and the inputs that its result must match."""
        config = self.design.config(run.variant, run.seed)
        split = read_split(self.folder.split_file(run.fold), store.case_ids)
        inputs = RunInputs(
            collection=self.folder.data.name,
            settings=plain_json(asdict(config)),
            export={"--min-lesion-ml": self.design.min_lesion_ml},
            tune={"tuned": self.design.tune},
            split=asdict(split),
        )
        return RunRequest(run=run, config=config, inputs=inputs)


def prepare(experiment: Experiment, runner: CommandRunner) -> Store:
    """Make or update the collection, the store and the folds, and open the store.

    Raises
    ------
    InputError
        A command failed; the message names its log.
    """
    folder, design = experiment.folder, experiment.design
    log = folder.out / "prepare.log"
    if experiment.data is None:
        size = design.phantom_size
        print_line(f"{count_noun(experiment.phantoms, 'phantom')} of {size} pixels: {folder.data.name}")
        options = ("--cases", experiment.phantoms, "--size", size, "--seed", PHANTOM_SEED)
        small = ("--small-tumors",) if design.phantom_small_tumors else ()
        runner.run_slicemill(("phantom", folder.data, *options, *small), log)
    labels = ("--labels", design.labels) if design.labels and experiment.data is not None else ()
    print_line(f"ingest: {folder.store.name}")
    try:
        runner.run_slicemill(("ingest", folder.data, folder.store, *labels), log)
    except InputError as error:
        if not is_store(folder.store):
            raise
        print_line(f"{error} The experiment goes on without the cases that could not be ingested.")
    runner.run_slicemill(("split", folder.store, folder.out / "folds", "--folds", design.folds), log)
    return open_store(folder.store)


def run_experiment(experiment: Experiment) -> list[RunResult]:
    """Do the unfinished runs, and return all results of the design in the folder, including those of earlier calls.

    Raises
    ------
    ConfigError
        A result was made with other settings, or another process works in the folder.
    InputError
        Runs failed; the others are done.
    """
    folder = experiment.folder
    with lock_experiment(folder.out) as runner:
        store = prepare(experiment, runner)
        requests = {run: experiment.request(run, store) for run in experiment.runs()}
        finished = read_finished(folder, requests)
        for run, result in finished.items():
            check_same_inputs(folder.result_file(run), result.inputs, requests[run].inputs)
        left = [request for run, request in requests.items() if run not in finished]
        print_line(
            f"{count_noun(len(requests), 'run')}: {len(finished)} done before, {len(left)} to do, "
            f"{experiment.jobs} at a time"
        )
        failed = _run_unfinished(experiment, left, finished, runner)
    if failed:
        raise InputError(
            f"{count_noun(len(failed), 'run')} of {len(requests)} failed, the others are done; first: {failed[0]} "
            "Fix the cause and repeat the command: it does the remaining runs."
        )
    return collect_results(experiment, store)


def _run_unfinished(
    experiment: Experiment, left: list[RunRequest], finished: dict[FoldRun, RunResult], runner: CommandRunner
) -> list[str]:
    """Do the runs that are left, add their results to `finished`, and return the failures."""
    folder = experiment.folder
    failed: list[str] = []
    total, timed = len(left) + len(finished), bool(experiment.design.minutes)
    amount = (len(left), "runs") if timed else (len(left) * experiment.design.epochs, "epochs")
    with (
        progress("quality", *amount) as advance,
        show_epochs(folder, [] if timed else [request.run for request in left], advance) as stages,
    ):
        for run, outcome in run_all(left, folder, runner, jobs=experiment.jobs, stages=stages):
            if isinstance(outcome, InputError):
                failed.append(f"{run}: {outcome}")
                print_line(f"failed: {failed[-1]}")
                continue
            finished[run] = outcome
            advance(int(timed), "")
            minutes = minutes_left(experiment.runs(), experiment.design.total_steps, finished, experiment.jobs)
            print_line(
                f"{len(finished)} of {total}: {run}: {format_scores(outcome)}; {outcome.minutes:.1f} minutes, "
                f"about {minutes:.0f} left"
            )
    return failed


def read_finished(folder: ExperimentFolder, runs: Iterable[FoldRun]) -> dict[FoldRun, RunResult]:
    """Read the results of the runs that are finished."""
    paths = {run: folder.result_file(run) for run in runs}
    return {run: read_document(RunResult, path) for run, path in paths.items() if path.exists()}


def collect_results(experiment: Experiment, store: Store) -> list[RunResult]:
    """Read all results of the design's variants, in its order, and check that they were made from the same inputs."""
    order = list(experiment.design.variants)
    results = []
    for path in sorted((experiment.folder.out / "results").glob("*.json")):
        document = read_json(path)
        if document.get("benchmark") != QUALITY_RUN or document["variant"] not in order:
            continue
        result = from_document(RunResult, document, str(path))
        check_same_inputs(path, result.inputs, experiment.request(result.run, store).inputs)
        results.append(result)
    return sorted(results, key=lambda result: (order.index(result.variant), result.seed, result.fold))


def format_scores(result: RunResult) -> str:
    """Format the mean Dice of each part and region in a few words."""
    texts = []
    for part in PARTS:
        cases = [case.regions for case in result.cases if case.part == part]
        scores = [
            f"{name} {mean_without_nan([dice for case in cases if (dice := case[name].dice) is not None]):.3f}"
            for name in (cases[0] if cases else ())
        ]
        texts.append(f"{part} {', '.join(scores)}")
    return "; ".join(texts)
