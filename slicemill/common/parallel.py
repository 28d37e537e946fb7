"""A process pool in which a crash affects one case only.

With one worker or one case, the work runs in this process. If a worker process crashes (usually out of memory), the
standard library's pool breaks and loses the cases of the other workers too. The remaining cases then run one at a time
until the case that crashes its worker is known. Ctrl-C and SIGTERM cancel the waiting cases and terminate the running
ones, which remove their incomplete files. A worker ends with the main process, however that ends.

loky restarts broken pools. But it is not a dependency, does not name the case that crashed the worker, and does not
terminate running cases in this order.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import Any, TypeVar

from slicemill.common.memory_limits import bound_thread_starts
from slicemill.common.signals import SIGNALS, start_helper

Item = TypeVar("Item")
Result = TypeVar("Result")
_ENDING = threading.Event()
_WORKING = threading.Lock()
"""Held while a worker is at work on an item."""


def map_isolated(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, on_crash: Callable[[Item], Result]
) -> Generator[tuple[int, Result], None, None]:
    """Yield the index and the result of each item, in order of completion; the caller closes what it leaves early.

    If the worker process of an item crashes, its result is that of `on_crash`.

    >>> list(map_isolated(abs, [-3, 4], 1, abs))
    [(0, 3), (1, 4)]
    """
    if workers == 1 or len(items) <= 1:
        yield from ((index, work(item)) for index, item in enumerate(items))
        return
    remaining = dict(enumerate(items))
    processes = min(workers, len(remaining))
    while remaining:
        with closing(_run_until_crash(work, dict(remaining), processes)) as results:
            for index, result in results:
                del remaining[index]
                yield index, result
        if remaining and processes == 1:
            index = min(remaining)  # one process takes the items in order, so this one crashed it
            yield index, on_crash(remaining.pop(index))
            processes = max(1, min(workers, len(remaining)))
        else:
            processes = 1


def _run_until_crash(
    work: Callable[[Item], Result], items: Mapping[int, Item], processes: int
) -> Generator[tuple[int, Result], None, None]:
    """Yield the results of all items, or of those that were finished before a process crashed."""
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(threads,))
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


def _start_worker(threads: int) -> None:
    """Make a worker exit silently on Ctrl-C and on SIGTERM, and when its main process was killed; divide the cores.

    OpenBLAS takes a thread for each core by default, and those of several workers would take turns and wait for each
    other. It reads the variable when numpy is loaded: after this, unless the user's own script loads numpy when a
    worker imports it.
    """
    os.putenv("OPENBLAS_NUM_THREADS", str(threads))
    for number in SIGNALS:
        signal.signal(number, _exit)
    bound_thread_starts()
    start_helper(_end_with_main_process)


def _end_with_main_process() -> None:
    """Wait for the end of the main process, interrupt the item as SIGTERM does, and end this process after it."""
    main = multiprocessing.parent_process()
    if main is not None:
        main.join()
        os.kill(os.getpid(), signal.SIGTERM)
        with _WORKING:  # not earlier: the item removes its incomplete files. Nor later: the pool's queue would wait
            os._exit(1)


def _exit(*_: Any) -> None:
    if not _ENDING.is_set():  # a second signal must not interrupt the cleanup that the first one started
        _ENDING.set()
        raise SystemExit


def _work_unless_ending(work: Callable[[Item], Result], item: Item) -> Result:
    """Do the work unless the worker is about to exit. The pool would still assign it the next item."""
    if _ENDING.is_set():
        raise SystemExit
    with _WORKING:
        return work(item)
