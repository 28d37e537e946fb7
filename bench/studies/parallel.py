"""Several runs at the same time, each on its own cores, with the progress of their trainings."""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

from slicemill.bench.studies.fold_run import RunRequest, run_fold
from slicemill.bench.studies.results import ExperimentFolder, FoldRun, RunResult
from slicemill.bench.studies.runner import CommandRunner, pin_to_cores
from slicemill.common.errors import InputError
from slicemill.common.progress import Advance

POLL_SECONDS = 2.0
"""Time between two looks at the metrics of the trainings."""


def run_all(
    requests: Sequence[RunRequest],
    folder: ExperimentFolder,
    runner: CommandRunner,
    *,
    jobs: int,
    stages: dict[FoldRun, str],
) -> Iterator[tuple[FoldRun, RunResult | InputError]]:
    """Yield each run as it ends, with its result or the reason why it failed.

    Parameters
    ----------
    jobs : int
        Runs at the same time. Each is pinned to its own share of the cores.
    stages : dict
        Updated with the current command of each run.
    """
    cores = sorted(os.sched_getaffinity(0))
    free = [cores[job::jobs] for job in range(jobs)]
    lock = threading.Lock()

    def work(request: RunRequest) -> RunResult | InputError:
        with lock:
            own = free.pop()
        try:
            pin_to_cores(own)
            return run_fold(request, folder, runner, lambda stage: stages.update({request.run: stage}))
        except InputError as error:
            return error
        finally:
            stages.pop(request.run, None)
            with lock:
                free.append(own)

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        pending: dict[Future[RunResult | InputError], FoldRun] = {
            pool.submit(work, request): request.run for request in requests
        }
        try:
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield pending.pop(future), future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def show_epochs(folder: ExperimentFolder, runs: Sequence[FoldRun], advance: Advance) -> Iterator[dict[FoldRun, str]]:
    """Advance a progress bar by the epochs that the trainings finish, as their metrics files show.

    Yields a dictionary for the stage of each run, which is shown next to the bar.
    """
    stages: dict[FoldRun, str] = {}
    seen = dict.fromkeys(runs, 0)
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            for run in runs:
                epochs = epochs_done(folder, run)
                if epochs > seen[run]:
                    advance(epochs - seen[run], "")
                    seen[run] = epochs
            advance(0, "; ".join(f"{run}: {stage}" for run, stage in list(stages.items())))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stages
    finally:
        stop.set()
        watcher.join()


def epochs_done(folder: ExperimentFolder, run: FoldRun) -> int:
    """Return the epochs that a run's training has finished."""
    metrics = folder.run_folder(run) / "train" / "metrics.csv"
    try:
        return max(0, len(metrics.read_text(encoding="utf-8").splitlines()) - 1)
    except OSError:
        return 0
