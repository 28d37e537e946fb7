"""Protocol of a peer's script: run one round of work per input line, and write its times as JSON.

Only Python's standard library is used, because slicemill is not installed there.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping


def serve_rounds(work: Callable[[], int]) -> None:
    """Write ready; then run a round per line ``go`` and write its seconds, CPU seconds and slices."""
    send_reply({"ready": True})
    for line in sys.stdin:
        if line.strip() != "go":
            break
        start, cpu = time.perf_counter(), cpu_seconds()
        slices = work()
        send_reply({"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - cpu, "slices": slices})


def cpu_seconds() -> float:
    """Return the CPU time of this process on all cores, and of its workers that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def send_reply(message: Mapping[str, object]) -> None:
    """Write a line of JSON and flush it."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
