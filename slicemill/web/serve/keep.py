"""Copies of results in the folder of ``--keep``."""

import errno
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from slicemill.web.serve.folder import remove


def keep_results(results: Path, keep: Path) -> Path:
    """Copy the results of a job into a new folder of `keep`, named by the time, and return it.

    They are copied under a hidden name first: a folder without a dot is complete.

    Raises
    ------
    OSError
        They cannot be copied; nothing of them stays in `keep`.
    """
    hidden = Path(tempfile.mkdtemp(prefix=".slicemill-", dir=keep))
    try:
        shutil.copytree(results, hidden, dirs_exist_ok=True)
        start = time.strftime("%Y-%m-%d-%H%M%S")
        for number in range(1, 1000):
            target = keep / (start if number == 1 else f"{start}-{number}")
            try:
                return hidden.rename(target)  # replaces an empty folder only
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), str(keep))
    except BaseException:
        remove(hidden)
        raise


def describe_copy_error(error: OSError) -> str:
    """Return why files could not be copied, without a path of this machine.

    >>> describe_copy_error(shutil.Error([("/a/b", "/c/b", "[Errno 28] No space left on device: '/c/b'")]))
    'No space left on device'
    """
    if not isinstance(error, shutil.Error):
        return error.strerror or type(error).__name__
    reasons = [re.match(r"\[Errno (\d+)\]", str(one[-1])) for one in error.args[0] if isinstance(one, tuple)]
    return next((os.strerror(int(found[1])) for found in reasons if found), "a file could not be copied")
