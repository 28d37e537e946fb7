"""CPU time in which `ingest --dry-run` finds the files of a collection, by their number."""

import resource
import shutil
import subprocess
from pathlib import Path

from slicemill.bench.command import slicemill_command

FILES = {False: (500, 1000, 2000, 4000, 8000), True: (500, 1000, 2000)}
"""Numbers of files, by `quick`."""


def measure_found_files(folder: Path, count: int) -> float:
    """Return the CPU seconds of the command on `count` empty files, half of them masks, of which none pairs.

    Files that do not pair cost the most: each round of pairing and the reasons see all of them.
    """
    for number in range(count // 2):
        for name in (f"images/a{number}x.nii", f"masks/{number}b_{number}.nii"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    before = _children_seconds()
    done = subprocess.run(  # noqa: S603
        slicemill_command("ingest", folder, "--dry-run"), capture_output=True, text=True, check=False
    )
    seconds = _children_seconds() - before
    shutil.rmtree(folder)
    if done.returncode != 1 or "but only 0 pairs by name" not in done.stderr:
        raise RuntimeError(f"the command ended with {done.returncode}: {done.stderr[-500:]}")
    return seconds


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
