"""The private folder of a server, with a folder for each job. Nothing of it is left when the server has ended.

A server that was killed leaves its folder. The next one that starts removes the folders whose owner's lock is free.
"""

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from slicemill.common.locks import CLAIMS, try_claim

PREFIX = "slicemill-serve-"
OWNER = "owner"
"""Name of the lock that a server holds on its folder."""
NEW_SECONDS = 60
"""Age from which a folder without a lock is no longer that of a server that is just starting."""


@contextlib.contextmanager
def private_folder(base: Path | None = None) -> Iterator[Path]:
    """Yield a new folder that only this user can open, and remove it after the block.

    The folders of servers that have ended without removing theirs are removed first.

    Raises
    ------
    OSError
        No folder can be made.
    """
    place = base or Path(tempfile.gettempdir())
    sweep(place)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))  # mode 0700
    try:
        with try_claim(folder, OWNER):
            yield folder
    finally:
        remove(folder)


def sweep(base: Path) -> list[Path]:
    """Remove the folders of this user's servers that have ended without doing so, and return them."""
    removed = []
    for folder in sorted(base.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            state = folder.lstat()
            if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
                continue
            if not (folder / CLAIMS / OWNER).exists():
                is_dead = time.time() - state.st_mtime > NEW_SECONDS
            else:
                with try_claim(folder, OWNER) as claim:
                    is_dead = claim is not None
            if is_dead:
                remove(folder)
                removed.append(folder)
    return removed


def remove(folder: Path) -> None:
    """Remove a folder and all in it; a child that is just ending may still add a file."""
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)
