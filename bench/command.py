"""Command lines that run slicemill in another process."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2].resolve()
"""The folder that holds the package: the checkout, or site-packages."""


def slicemill_command(*words: object) -> list[str]:
    """Return the command line of ``slicemill WORDS`` for this interpreter.

    ``-P`` keeps the working folder off the import path: no file of the user is imported instead of a library. It is
    left out in the folder of the checkout, because without an installation only the working folder leads to the
    package there.
    """
    safe_path = [] if Path.cwd() == ROOT else ["-P"]
    return [sys.executable, *safe_path, "-m", "slicemill", *map(str, words)]
