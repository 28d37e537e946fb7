"""The limits of a process's memory (`ulimit -v` and `-d`), checked before a command loads its libraries.

Where they are too low, most libraries do not raise an error: OpenBLAS exits or sends itself an interrupt, pyarrow and
onnxruntime abort, and Dask waits for ever. So a limit below what the libraries of a command need is refused. Above it,
a lack of memory is reported where it occurs.
"""

import os
import resource
import threading
from typing import NamedTuple

from slicemill.common.errors import ConfigError


class Need(NamedTuple):
    """What the libraries of a command need on a machine with one core, MiB."""

    address_mib: int
    """Of address space: `ulimit -v`, RLIMIT_AS."""
    data_mib: int
    """Of private memory: `ulimit -d`, RLIMIT_DATA."""


PLAIN = Need(512, 220)
"""numpy, scipy, zarr and pyarrow. Lowest limits that worked: 425,000 and 200,000 kB (`slicemill store manifest`)."""
ONNX = Need(640, 300)
"""The same and onnxruntime. Lowest limits that worked each time: 500,000 and 260,000 kB (`slicemill infer`)."""
DASK = Need(1250, 400)
"""The same and Dask. Lowest limits that worked: 1,100,000 and 300,000 kB (`slicemill ingest`, 2 workers)."""
TORCH = Need(1600, 700)
"""The same and torch. Lowest limits that worked: 1,600,000 and 600,000 kB (`slicemill train` of a tiny network)."""
THREAD_MIB = 8
"""Stack of a thread, the default of Linux."""
MOST_THREADS = 64
"""Threads that each of two OpenBLAS libraries, numpy's and scipy's, starts: one per core, at most these."""
START_SECONDS = 60.0
"""How long a new thread may take for its first step."""


def require_memory_limits(need: Need, command: str) -> None:
    """Check that the limits of this process's memory allow the libraries of a command to load.

    Raises
    ------
    ConfigError
        A limit is too low.
    """
    cores = len(os.sched_getaffinity(0))
    threads_mib = 2 * THREAD_MIB * min(cores, MOST_THREADS)
    for what, kind, least_mib in (
        ("address space (ulimit -v)", resource.RLIMIT_AS, need.address_mib),
        ("private memory (ulimit -d)", resource.RLIMIT_DATA, need.data_mib),
    ):
        limit, needed = resource.getrlimit(kind)[0], (least_mib + threads_mib) * 2**20
        if limit != resource.RLIM_INFINITY and limit < needed:
            raise ConfigError(
                f"not enough memory: the limit of {what} is {limit // 1024:,} kB; {command} needs at least "
                f"{needed // 1024:,} kB to load its libraries on {cores} cores. Raise the limit, or request more "
                "memory where a batch system sets it."
            )


class _Started(threading.Event):
    """What `Thread.start` waits for, with a limit."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the event is set, or raise MemoryError after START_SECONDS."""
        started = super().wait(START_SECONDS if timeout is None else timeout)
        if not started and timeout is None:
            raise MemoryError("can't start new thread")
        return started


def bound_thread_starts() -> None:
    """Make `Thread.start` raise MemoryError, in this process, if the new thread lacks the memory for its first step.

    Python then ends the thread without an exception, and `Thread.start` waits for it for ever (seen with 3.11).
    """
    start = threading.Thread.start

    def bounded(thread: threading.Thread) -> None:
        thread._started = _Started()  # type: ignore[attr-defined]
        start(thread)

    threading.Thread.start = bounded  # type: ignore[method-assign, assignment]
