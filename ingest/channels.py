"""Which files ``x_0000``, ``x_0001`` are the channels of one scan, as nnU-Net names them, and which are scans.

They are channels if a mask is called ``x``, or if ``dataset.json`` lists several channels. They are scans if masks have
their full names, if ``dataset.json`` lists one channel, or if nothing shows that the collection names channels.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from slicemill.ct.formats.names import strip_suffix

NUMBERED = re.compile(r"(.+)_(\d{4})", re.DOTALL)
FIRST = "0000"


@dataclass(frozen=True, kw_only=True)
class Channels:
    """What the numbers at the end of the images' names are."""

    case_stem: dict[str, str]
    """Path of an image -> its name without suffix, and without the number if that is a channel."""
    extra: frozenset[str]
    """Images that are other channels of a scan than its CT."""
    notes: tuple[str, ...] = ()
    """Numbered files that nothing tells from channels."""


def find_channels(images: Sequence[str], masks: Iterable[str], names: Sequence[str]) -> Channels:
    """Return the channels among the images.

    Parameters
    ----------
    images, masks
        Paths relative to the collection.
    names
        Names of the channels by ``dataset.json``; empty if not stated. The one called CT is the scan, else the first.
    """
    of_masks = {_stem(path) for path in masks}
    groups: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    stems = {path: _stem(path) for path in images}
    for path, stem in stems.items():
        if match := NUMBERED.fullmatch(stem):
            groups[str(PurePosixPath(path).parent), match[1]].setdefault(match[2], path)
    used = any(
        FIRST in files and prefix in of_masks and f"{prefix}_{FIRST}" not in of_masks
        for (_, prefix), files in groups.items()
    )
    chosen = f"{_find_ct(names):04d}"
    extra: set[str] = set()
    doubtful: list[str] = []
    for (_, prefix), files in groups.items():
        if _are_channels(prefix, files, of_masks, names, used=used):
            scan = chosen if chosen in files else FIRST
            stems[files[scan]] = prefix
            extra |= {path for number, path in files.items() if number != scan}
        elif FIRST in files and not names and not any(f"{prefix}_{number}" in of_masks for number in files):
            doubtful += files.values()
    notes = []
    if doubtful:
        note = (
            f"{len(doubtful)} files like {', '.join(doubtful[:2])} are taken for scans of their own. If they are "
            "channels of a scan, put a dataset.json with channel_names above their folder."
        )
        notes.append(note)
    return Channels(case_stem=stems, extra=frozenset(extra), notes=tuple(notes))


def _stem(path: str) -> str:
    return strip_suffix(PurePosixPath(path).name)


def _find_ct(names: Sequence[str]) -> int:
    """Return the index of the channel named CT; 0 if there is none."""
    return next((index for index, name in enumerate(names) if name.strip().upper() == "CT"), 0)


def _are_channels(prefix: str, files: dict[str, str], of_masks: set[str], names: Sequence[str], *, used: bool) -> bool:
    if FIRST not in files or any(f"{prefix}_{number}" in of_masks for number in files):
        return False
    if len(files) == 1 or prefix in of_masks:
        return True
    if names:
        return all(int(number) < len(names) for number in files)
    return used
