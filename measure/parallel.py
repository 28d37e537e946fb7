"""Cases done in processes of their own, each by itself: what becomes of one does not touch the others.

With one worker, or one case, all happens in this process. Ctrl-C drops the cases that wait and ends those in hand: files appear
whole or not at all, so that nothing half done stays.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(items)), mp_context=context, initializer=_end_at_once)
    try:
        waiting = {pool.submit(work, item): place for place, item in enumerate(items)}
        for future in as_completed(waiting):
            place = waiting[future]
            try:
                result = future.result()
            except BrokenProcessPool:
                result = died(items[place])
            yield place, result
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_at_once() -> None:
    """Let a worker end at Ctrl-C without a word; the process that started it says what there is to say."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
