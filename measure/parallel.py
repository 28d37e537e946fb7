"""A process pool in which each case succeeds or fails alone.

With one worker, or one case, all work runs in this process. If a worker process dies (usually for lack of memory), the
pool of the standard library breaks and loses the cases of the other workers too. The remaining cases then run one at a
time until the case that kills its process is known. Ctrl-C drops the waiting cases and ends the running ones, which
remove their half-written files.

loky restarts broken pools, but it is not a dependency, does not name the case that killed the worker, and does not end
running cases in this order.
"""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_ENDING = threading.Event()


def map_isolated(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, on_death: Callable[[Item], Result]
) -> Iterator[tuple[int, Result]]:
    """Yield the index and the result of each item, in order of completion.

    An item whose worker process died has the result of `on_death`.

    >>> list(map_isolated(abs, [-3, 4], 1, abs))
    [(0, 3), (1, 4)]
    """
    if workers == 1 or len(items) <= 1:
        yield from ((index, work(item)) for index, item in enumerate(items))
        return
    left = dict(enumerate(items))
    processes = min(workers, len(left))
    while left:
        for index, result in _run_until_a_death(work, dict(left), processes):
            del left[index]
            yield index, result
        if left and processes == 1:
            index = min(left)  # one process takes the items in order, so it died of this one
            yield index, on_death(left.pop(index))
            processes = max(1, min(workers, len(left)))
        else:
            processes = 1


def _run_until_a_death(
    work: Callable[[Item], Result], items: Mapping[int, Item], processes: int
) -> Iterator[tuple[int, Result]]:
    """Yield the results of all items, or of those that ended before a process died."""
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_handle_signals)
    try:
        waiting = {pool.submit(_work_unless_ending, work, item): index for index, item in items.items()}
        for future in as_completed(waiting):
            try:
                result = future.result()
            except BrokenProcessPool:
                continue
            yield waiting[future], result
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _handle_signals() -> None:
    """Make a worker exit silently at Ctrl-C and when it is terminated; the main process reports the reason."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)


def _exit(*_: Any) -> None:
    if not _ENDING.is_set():  # a second signal must not interrupt the cleanup that the first one started
        _ENDING.set()
        raise SystemExit


def _work_unless_ending(work: Callable[[Item], Result], item: Item) -> Result:
    """Do the work, unless the worker is about to exit: the pool would still give it the next item."""
    if _ENDING.is_set():
        raise SystemExit
    return work(item)
