"""Command lines that run slicemill in another process."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2].resolve()
"""The folder that holds the package: the checkout, or site-packages."""


def slicemill_command(*words: object) -> list[str]:
    """Return the command line of ``slicemill WORDS`` for this interpreter.

    ``-P`` removes the working folder from the import path, so that no user file is imported instead of a library. It
    is omitted in the checkout's folder: without an installation, Python finds the package only through the working
    folder.
    """
    safe_path = [] if Path.cwd() == ROOT else ["-P"]
    return [sys.executable, *safe_path, "-m", "slicemill", *map(str, words)]
