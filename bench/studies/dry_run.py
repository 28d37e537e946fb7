"""`bench quality --dry-run`: the runs of an experiment, their state and estimated times."""

import dataclasses
import os
import tempfile
from pathlib import Path

from slicemill.bench.studies.estimates import RunTime, estimate_minutes, run_time
from slicemill.bench.studies.experiment import Experiment, read_finished
from slicemill.bench.studies.parallel import epochs_done
from slicemill.bench.studies.results import FoldRun
from slicemill.bench.studies.runner import CommandRunner, lock_experiment, pin_to_cores
from slicemill.common.files import write_bytes
from slicemill.common.terminal import count_noun, format_table, print_line, print_lines
from slicemill.store.reader import is_store
from slicemill.train.config import Config, to_toml
from slicemill.train.run.checkpoint import read_state

PILOT_STEPS, PILOT_CASES = 3, 3
OVERHEAD_MINUTES = 1.0
"""Time of a run without its training on one core: start-up, export, a dozen scans, pictures."""


def show_plan(experiment: Experiment) -> None:
    """Print the runs and their estimated times. Only a short pilot writes files, to a temporary folder."""
    design, runs = experiment.design, experiment.runs()
    finished = read_finished(experiment.folder, runs)
    known = [run_time(result) for result in finished.values()] or [_first_estimate(experiment)]
    left = {run: estimate_minutes(run, design.total_steps, known) for run in runs if run not in finished}
    source = "their time limit" if design.minutes else "a pilot"
    rows = [
        (run.variant, run.fold, run.seed, _state(experiment, run, done=run in finished), left.get(run)) for run in runs
    ]
    print_lines(format_table(["variant", "fold", "seed", "state", "minutes"], rows))
    print_line(
        f"{count_noun(len(runs), 'run')} of {design.length}, {len(left)} left; "
        f"about {sum(left.values()) / experiment.jobs:.0f} minutes with --jobs {experiment.jobs}, "
        f"by {'the finished runs' if finished else source}. Nothing was written (--dry-run)."
    )


def _state(experiment: Experiment, run: FoldRun, *, done: bool) -> str:
    if done:
        return "done"
    epochs = epochs_done(experiment.folder, run)
    return f"begun ({epochs} of {experiment.design.epochs} epochs)" if epochs else "to do"


def _first_estimate(experiment: Experiment) -> RunTime:
    """Return the time of a run by the time limit of the trainings, or else by a pilot."""
    design = experiment.design
    if not design.minutes:
        return measure_pilot(experiment)
    return RunTime(
        variant="",
        steps=design.total_steps,
        training_minutes=design.minutes,
        minutes=design.minutes + OVERHEAD_MINUTES,
    )


def measure_pilot(experiment: Experiment) -> RunTime:
    """Train a few steps of the first variant in a temporary folder, on the experiment's store or else on phantoms.

    Raises
    ------
    InputError
        The training failed.
    """
    design, first = experiment.design, experiment.runs()[0]
    config = dataclasses.replace(design, epochs=2, steps=PILOT_STEPS).config(first.variant, first.seed)
    with tempfile.TemporaryDirectory() as folder, lock_experiment(Path(folder)) as runner:
        store, trained = _pilot_store(experiment, config, Path(folder), runner), Path(folder) / "train"
        settings = Path(folder) / "settings.toml"
        write_bytes(settings, to_toml(config).encode())
        cores = sorted(os.sched_getaffinity(0))
        pin_to_cores(cores[:: experiment.jobs])
        try:
            runner.run_slicemill(("train", store, trained, "--config", settings), Path(folder) / "log.txt")
        finally:
            pin_to_cores(cores)
        state = read_state(trained)
    minutes = [PILOT_STEPS * config.batch / row["slices_per_second"] / 60 for row in state.rows]
    validating = (state.seconds / 60 - sum(minutes)) / 2
    training = 2 * minutes[1]  # the steps of the first epoch are slow
    return RunTime(
        variant="",
        steps=config.epochs * config.steps,
        training_minutes=training,
        minutes=training + design.epochs * validating + OVERHEAD_MINUTES,
    )


def _pilot_store(experiment: Experiment, config: Config, folder: Path, runner: CommandRunner) -> Path:
    """Return the experiment's store, or a store of a few phantoms if it has none yet."""
    if is_store(experiment.folder.store):
        print_line(f"a pilot of {PILOT_STEPS} steps")
        return experiment.folder.store
    size = max(experiment.design.phantom_size, config.size)
    print_line(f"a pilot of {PILOT_STEPS} steps on phantoms of {size} pixels")
    log, store = folder / "log.txt", folder / "store"
    runner.run_slicemill(("phantom", folder / "phantoms", "--cases", PILOT_CASES, "--size", size), log)
    runner.run_slicemill(("ingest", folder / "phantoms", store), log)
    return store
