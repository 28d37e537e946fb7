"""Drop files from the page cache, so that the next read comes from the disk."""

import os
from collections.abc import Iterable
from pathlib import Path


def drop_from_cache(paths: Iterable[Path]) -> None:
    """Drop files from the page cache. Data that are not on the disk yet are written first.

    Any user may do this for a file that they may read (posix_fadvise, DONTNEED). The disk's own cache keeps its
    contents.
    """
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def files_below(folder: Path) -> list[Path]:
    """Return every file below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
