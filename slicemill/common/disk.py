"""Free space of a disk, checked before work whose result would not fit."""

import errno
import os
import shutil
from pathlib import Path


def require_space(folder: Path, size: int, what: str) -> None:
    """Check that a folder's disk has room for `size` bytes; other programs may still take it meanwhile.

    Raises
    ------
    OSError
        It has not: ENOSPC, as if the disk were full; `what` names the work in its text.

    >>> require_space(Path("/"), 10**18, "this scan")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    OSError: [Errno 28] No space left on device: this scan may need 1e+09 GB of disk, and ... GB are free
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        room = f"{what} may need {size / 1e9:.3g} GB of disk, and {free / 1e9:.3g} GB are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {room}")
