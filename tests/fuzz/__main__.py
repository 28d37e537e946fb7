"""`python -m tests.fuzz --minutes 10`: damaged inputs, each in a process of its own."""

import argparse
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random

import psutil

from slicemill.common.terminal import print_line
from tests.fuzz.kinds import ATTEMPTS, sample_folder

CPU_SECONDS = 60
"""Most CPU time of an attempt, which a busy machine does not change; a sound input takes less than two seconds."""
HANG_SECONDS = 900
"""Most wall time of an attempt: one that waits for something takes no CPU time."""
MEMORY_MIB = 1000
"""Most memory of an attempt; a sound input takes less than a third."""


def try_seed(kind: str, seed: int) -> str:
    """Make one attempt in a forked process, and return what was wrong; empty if nothing was."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    reading, writing = os.pipe()
    inherited = psutil.Process().memory_info().rss
    child = os.fork()
    if child == 0:
        os.close(reading)
        os._exit(_attempt(kind, seed, folder, writing))
    os.close(writing)
    try:
        said = _read(reading)
        if said is None:
            os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    finally:
        os.close(reading)
        shutil.rmtree(folder, ignore_errors=True)
    if said is None:
        return f"no end after {HANG_SECONDS} s"
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        return f"no end after {CPU_SECONDS} s of CPU time"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    taken_mib = (usage.ru_maxrss * 1024 - inherited) >> 20
    if taken_mib > MEMORY_MIB:
        return f"took {taken_mib} MiB of memory"
    return said if code else ""


def _attempt(kind: str, seed: int, folder: Path, writing: int) -> int:
    """Make an attempt, write its traceback to a pipe, and return the exit status."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    try:
        ATTEMPTS[kind](Random(f"{kind} {seed}"), folder)  # noqa: S311 (no secret)
    except BaseException:  # noqa: BLE001 (each is a finding)
        os.write(writing, traceback.format_exc().encode(errors="replace")[-60_000:])
        return 1
    return 0


def _read(descriptor: int) -> str | None:
    """Return what a process writes until its end; None if it does not end."""
    parts, end = [], time.monotonic() + HANG_SECONDS
    while (left := end - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            part = os.read(descriptor, 1 << 16)
            if not part:
                return b"".join(parts).decode(errors="replace")
            parts.append(part)
    return None


def main() -> int:
    """Try the seeds; print each finding, and how many attempts each kind had."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="stop after this time")
    parser.add_argument("--count", type=int, default=sys.maxsize, help="attempts of each kind")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--kinds", nargs="+", choices=list(ATTEMPTS), default=list(ATTEMPTS))
    chosen = parser.parse_args()
    end = time.monotonic() + 60 * chosen.minutes
    samples = sample_folder()
    counts, findings = dict.fromkeys(chosen.kinds, 0), 0
    try:
        for seed in range(chosen.seed, chosen.seed + chosen.count):
            for kind in chosen.kinds:
                if time.monotonic() > end:
                    break
                counts[kind] += 1
                if found := try_seed(kind, seed):
                    findings += 1
                    print_line(f"--kinds {kind} --seed {seed}:\n{found}")
            if time.monotonic() > end:
                break
    finally:
        shutil.rmtree(samples, ignore_errors=True)
    attempts = ", ".join(f"{kind} {count}" for kind, count in counts.items())
    print_line(f"{findings} findings; seeds {chosen.seed} and on; attempts: {attempts}")
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
