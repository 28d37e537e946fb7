"""Formats of scans that this version does not read: their names, and how to convert them."""

from collections import Counter
from collections.abc import Iterable

from slicemill.common.files import Location

DCM2NIIX = "dcm2niix: dcm2niix -z y -o OUT FOLDER"
UNREAD = {
    ".dcm": ("DICOM", DCM2NIIX),
}
"""Suffix -> name of the format, and a program with the command that converts it."""


def find_unread_format(name: str) -> tuple[str, str] | None:
    """Return the format of a file that is not read, and how to convert it; None for other files.

    >>> find_unread_format("a.DCM")[0], find_unread_format("a.mha")
    ('DICOM', None)
    """
    return next((known for suffix, known in UNREAD.items() if name.lower().endswith(suffix)), None)


def explain_unread(name: str) -> str:
    """Return the reason why a file of a format in UNREAD is left out."""
    known = find_unread_format(name)
    return "" if known is None else f"{known[0]}, which this version does not read; convert it with {known[1]}"


def explain_unread_files(files: Iterable[Location]) -> str:
    """Return the formats of files that are not read, with their number and the way out; empty if there are none.

    >>> from pathlib import Path
    >>> explain_unread_files([Path("a.dcm"), Path("b.dcm")])
    '2 files are DICOM, which this version does not read; convert them with dcm2niix: dcm2niix -z y -o OUT FOLDER'
    """
    counts = Counter(known for file in files if (known := find_unread_format(file.name)) is not None)
    return "; ".join(
        f"{count} file{'s are' if count > 1 else ' is'} {name}, which this version does not read; convert "
        f"{'them' if count > 1 else 'it'} with {how}"
        for (name, how), count in counts.items()
    )
