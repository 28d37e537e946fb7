"""Files of an input that a command does not use, with reasons."""

from collections.abc import Sequence
from typing import NamedTuple

from slicemill.common.files import Location
from slicemill.common.terminal import print_line

SHOWN = 40
"""Maximum number of left-out files that are listed."""


class LeftOut(NamedTuple):
    """A file or folder of an input that is not used."""

    path: Location
    reason: str


def print_left_out(left_out: Sequence[LeftOut]) -> None:
    """Print a line for each of the first SHOWN files, and the number of the others."""
    for path, reason in left_out[:SHOWN]:
        print_line(f"left out: {path}: {reason}")
    if len(left_out) > SHOWN:
        print_line(f"left out: {len(left_out) - SHOWN} more")
