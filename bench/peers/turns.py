"""Runs in a peer's environment: does one round of work for every line that comes in, and says how long it took.

Only Python's own library is used here, since nothing of slicemill is installed there.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping


def take_turns(work: Callable[[], int]) -> None:
    """Say ready, then for every line ``go`` do the work once and say the seconds, the CPU seconds and how many slices came."""
    say({"ready": True})
    for line in sys.stdin:
        if line.strip() != "go":
            break
        start, cpu = time.perf_counter(), cpu_seconds()
        slices = work()
        answer = {"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - cpu, "slices": slices}
        say(answer)


def cpu_seconds() -> float:
    """Return what this process has worked on all cores, with its workers that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def say(answer: Mapping[str, object]) -> None:
    """Write a line that the other side reads at once."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
