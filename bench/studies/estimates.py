"""Estimates of run times, from finished runs or from a pilot."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

from slicemill.bench.studies.results import FoldRun, RunResult


@dataclass(frozen=True, kw_only=True)
class RunTime:
    """Times of a run."""

    variant: str
    steps: int
    training_minutes: float
    minutes: float
    """Time of all commands, minutes."""


def run_time(result: RunResult) -> RunTime:
    """Return the times of a finished run."""
    return RunTime(
        variant=result.variant,
        steps=result.settings["epochs"] * result.settings["steps"],
        training_minutes=result.training.minutes,
        minutes=result.minutes,
    )


def estimate_minutes(run: FoldRun, steps: int, known: Sequence[RunTime]) -> float:
    """Estimate the minutes of a run from the known times of its variant, or else of all variants.

    Training time grows with the steps; the rest is constant.
    """
    same = [time for time in known if time.variant == run.variant] or known
    return median(time.minutes + time.training_minutes * (steps / time.steps - 1) for time in same)


def minutes_left(runs: Collection[FoldRun], steps: int, finished: dict[FoldRun, RunResult], jobs: int) -> float:
    """Estimate the minutes until all runs are finished; at least one must be."""
    known = [run_time(result) for result in finished.values()]
    return sum(estimate_minutes(run, steps, known) for run in runs if run not in finished) / jobs
