"""Stop signals: SIGTERM, which SLURM and Kubernetes send first, ends a command as Ctrl-C does.

1. The first signal raises an exception in the main thread, so that every command cleans up in one way.
2. A second SIGTERM is ignored: a scheduler and torchrun may each send one. A second Ctrl-C ends the process at once.
3. Threads that wait ask `is_stopping`.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []
"""Numbers of the stop signals since the command began. An Event's lock could be held by the interrupted thread."""


class Terminated(KeyboardInterrupt):
    """SIGTERM was received."""


def is_stopping() -> bool:
    """Return whether a stop signal was received."""
    return bool(_received)


@contextmanager
def leave_at_once_after_signals() -> Iterator[None]:
    """End the process without Python's own cleanup if the block, a whole command, was ended by a stop signal.

    Every command has cleaned up by then. Native threads of runtimes, such as onnxruntime's, may still stop, and abort
    the process if Python ends meanwhile: 4 of 17 runs of `infer` that were stopped in their last moments.
    """
    try:
        yield
    except SystemExit as end:
        if end.code in (130, 143):
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os._exit(int(end.code))
        raise


def start_helper(work: Callable[[], None]) -> threading.Thread:
    """Start a thread that ends with the process. Signals do not interrupt it: they are for the main thread."""

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@contextmanager
def raise_on_stop_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, and `Terminated` on SIGTERM, while the block runs in the main thread.

    A signal that is ignored stays ignored, as ``nohup`` and shells without job control need it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _raise)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


@contextmanager
def hold_sigterm() -> Iterator[None]:
    """Deliver a SIGTERM that arrives during the block at its end, for work that must not stop half way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if came:
        signal.raise_signal(signal.SIGTERM)


def _raise(number: int, _frame: FrameType | None) -> None:
    again = number in _received
    _received.append(number)
    if number == signal.SIGINT:
        if again:
            os.write(2, b"slicemill: interrupted again; ended at once.\n")
            os._exit(130)
        raise KeyboardInterrupt
    if not again:
        raise Terminated
