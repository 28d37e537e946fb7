"""What the text headers of MetaImage and NRRD have in common: numbers, and names of files with voxels.

A header is untrusted. A file that it names must lie beside it: nothing in a header leads to another folder.
"""

import re
from pathlib import Path

from slicemill.common.errors import ReadError, ScanError
from slicemill.common.files import Location, open_stream

NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
MAX_DATA_FILES = 100_000
PATTERN = re.compile(r"%(0?)(\d{0,2})d")
"""A number in a pattern of file names, as in C: ``%d``, ``%03d``."""


def parse_numbers(text: str, count: int, field: str, path: Location) -> list[float]:
    """Return exactly `count` finite numbers of a field.

    >>> parse_numbers("1 -2.5 3e2", 3, "Offset", Path("a.mha"))
    [1.0, -2.5, 300.0]
    """
    words = text.split()
    if len(words) != count or not all(NUMBER.fullmatch(word) for word in words):
        raise ScanError(f"{field} must be {count} numbers; it is {shorten(text)!r}. Correct the header.", where=path)
    return [float(word) for word in words]


def parse_integers(text: str, count: int, field: str, path: Location) -> list[int]:
    """Return exactly `count` integers of a field, each of at most 18 digits."""
    words = text.split()
    if len(words) != count or not all(re.fullmatch(r"[+-]?\d{1,18}", word) for word in words):
        raise ScanError(f"{field} must be {count} integers; it is {shorten(text)!r}. Correct the header.", where=path)
    return [int(word) for word in words]


def shorten(text: str) -> str:
    """Return the start of a text of a header, for a message."""
    return text if len(text) <= 60 else f"{text[:60]}..."


def read_start(path: Location, most_bytes: int) -> bytes:
    """Return up to the first `most_bytes` of a file.

    Raises
    ------
    ScanError
        The file cannot be opened, or is no regular file.
    """
    data = b""
    try:
        with open_stream(path) as stream:
            while len(data) < most_bytes and (block := stream.read(most_bytes - len(data))):
                data += block
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror or error}.", where=path) from error
    return data


def is_plain_name(name: str) -> bool:
    """Return whether a text is the name of a file in the same folder, and nothing that leads out of it.

    >>> [is_plain_name(text) for text in ("a b.raw", "../a.raw", "/etc/passwd", "C:a.raw", "x\\\\a.raw", "..", ".a")]
    [True, False, False, False, False, False, False]
    """
    return bool(name) and not name.startswith(".") and not re.search(r"[/\\:\x00-\x1f]", name)


def locate_data_file(name: str, field: str, header: Location) -> Location:
    """Return the path of a file that a header names.

    Raises
    ------
    ScanError
        It is not a plain name, or it is a link to another folder than the header's.
    """
    if not is_plain_name(name):
        raise ScanError(
            f"{field} must be the name of a file in the same folder; it is {shorten(name)!r}, which is not read. "
            "Put the file beside the header and correct the field.",
            where=header,
        )
    path = header.with_name(name)
    if path == header:
        raise ScanError(f"{field} names the header itself. Correct the field.", where=header)
    if isinstance(path, Path) and isinstance(header, Path) and path.is_symlink():
        folders = (header.parent.resolve(), header.resolve().parent)
        if path.resolve().parent not in folders:
            raise ScanError(
                f"{field} names {name}, a link to a file in another folder, which is not read. "
                "Put the file itself beside the header.",
                where=header,
            )
    return path


def expand_pattern(text: str, field: str, header: Location) -> list[str]:
    """Return the names of ``PATTERN FIRST LAST STEP``, the last one included; C's ``%d`` in the pattern is the number.

    >>> expand_pattern("slice%02d.raw 1 5 2", "ElementDataFile", Path("a.mhd"))
    ['slice01.raw', 'slice03.raw', 'slice05.raw']
    """
    words = text.rsplit(maxsplit=3)
    if len(words) != 4 or text.count("%") != 1 or len(PATTERN.findall(words[0])) != 1:
        raise ScanError(
            f"{field} must be a pattern like slice%03d.raw with first and last number and step; it is "
            f"{shorten(text)!r}. Correct the header.",
            where=header,
        )
    first, last, step = parse_integers(" ".join(words[1:]), 3, field, header)
    numbers = range(first, last + (1 if step > 0 else -1), step) if step else range(0)
    if not 1 <= len(numbers) <= MAX_DATA_FILES or min(first, last) < 0:
        raise ScanError(f"{field} must name files by numbers from 0 on; it is {shorten(text)!r}.", where=header)
    start, end = PATTERN.split(words[0])[0], PATTERN.split(words[0])[-1]
    fill, width = PATTERN.findall(words[0])[0]
    return [f"{start}{str(number).rjust(int(width or 0), '0' if fill else ' ')}{end}" for number in numbers]
