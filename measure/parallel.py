"""Cases done in processes of their own, each by itself: what becomes of one does not touch the others.

With one worker, or one case, all happens in this process. A process that dies, say for want of memory, takes those beside it along:
the cases that are left are done one at a time then, until it shows whose it was. Ctrl-C drops the cases that wait and ends those in
hand, which put away what they had half written.
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


def each(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, died: Callable[[Item], Result]
) -> Iterator[tuple[int, Result]]:
    """Yield the place of each item and what `work` made of it, as they end; what `died` says of one whose process died.

    >>> list(each(abs, [-3, 4], 1, abs))
    [(0, 3), (1, 4)]
    """
    if workers == 1 or len(items) <= 1:
        yield from ((place, work(item)) for place, item in enumerate(items))
        return
    left = dict(enumerate(items))
    together = min(workers, len(left))
    while left:
        for place, result in _until_one_dies(work, dict(left), together):
            del left[place]
            yield place, result
        if left and together == 1:
            place = min(left)  # one process does them in order, so it was this one's
            yield place, died(left.pop(place))
            together = max(1, min(workers, len(left)))
        else:
            together = 1


def _until_one_dies(
    work: Callable[[Item], Result], items: Mapping[int, Item], workers: int
) -> Iterator[tuple[int, Result]]:
    """Yield places and results, of all items, or of those that ended before a process died."""
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_when_told)
    try:
        waiting = {pool.submit(_unless_ending, work, item): place for place, item in items.items()}
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


def _end_when_told() -> None:
    """Have a worker end at Ctrl-C and when it is terminated, without a word; the process that started it says what there is to say."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def _end(*_: Any) -> None:
    if not _ENDING.is_set():  # a second word must not disturb what the first one has it put away
        _ENDING.set()
        raise SystemExit


def _unless_ending(work: Callable[[Item], Result], item: Item) -> Result:
    """Do the work in a worker that has not been told to end; the pool would give it more."""
    if _ENDING.is_set():
        raise SystemExit
    return work(item)
