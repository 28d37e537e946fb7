"""Files of an input that a command does not use, with reasons."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from slicemill.common.files import Location
from slicemill.common.output import current_output
from slicemill.common.terminal import count_noun, print_line

SHOWN = 40
"""Maximum number of lines, without `--verbose`."""
GROUPED = 3
"""From this number on, the files with one reason share a line."""


class LeftOut(NamedTuple):
    """A file or folder of an input that is not used."""

    path: Location
    reason: str


def print_left_out(left_out: Sequence[LeftOut]) -> None:
    """Print the files that are left out: a line for each reason that several have, else for each file.

    At most SHOWN lines are printed, then the number of the other files. With `--verbose` each file has a line.
    """
    groups: dict[str, list[LeftOut]] = defaultdict(list)
    for one in left_out:
        groups["" if current_output().verbose else one.reason].append(one)
    lines: list[tuple[int, str]] = []
    for reason, files in groups.items():
        if reason and len(files) >= GROUPED:
            lines.append((len(files), f"left out: {describe_group(files)}: {reason}"))
        else:
            lines += [(1, f"left out: {path}: {why}") for path, why in files]
    shown = len(lines) if current_output().verbose else SHOWN
    for _, line in lines[:shown]:
        print_line(line)
    if len(lines) > shown:
        print_line(f"left out: {sum(number for number, _ in lines[shown:]):,} more; --verbose lists all")


def describe_group(files: Sequence[LeftOut]) -> str:
    """Return number, folders and an example of files.

    >>> from pathlib import Path
    >>> describe_group([LeftOut(Path(f"lits/masks/segmentation-{n}.nii"), "a mask") for n in range(131)])
    '131 files in lits/masks, like segmentation-0.nii'
    """
    folders = list(dict.fromkeys(str(one.path.parent) for one in files))
    where = folders[0] if len(folders) == 1 else count_noun(len(folders), "folder")
    return f"{len(files):,} files in {where}, like {PurePosixPath(str(files[0].path)).name}"
