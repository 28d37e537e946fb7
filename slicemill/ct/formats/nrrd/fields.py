"""The text of NRRD headers: fields, key/value pairs, and lists of vectors and quoted words."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from slicemill.common.errors import ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.text_header import NUMBER, read_start, shorten

MAX_HEADER_BYTES = 1 << 20
"""Longest header; 3D Slicer's of 117 segments have 100 KB."""
MAGIC = re.compile(r"NRRD000[1-9]")
SYNONYMS = {
    "datafile": "data file",
    "byteskip": "byte skip",
    "lineskip": "line skip",
    "centers": "centerings",
    "axismins": "axis mins",
    "axismaxs": "axis maxs",
}


@dataclass(frozen=True, kw_only=True)
class NrrdText:
    """A header as text."""

    start: bytes
    """The start of the file, at least the header."""
    size: int
    """Size of the header with the empty line after it, bytes."""
    fields: Mapping[str, str]
    """Fields by lower-case name."""
    pairs: Mapping[str, str]
    """Key/value pairs of segments; all others are ignored."""
    files: tuple[str, ...]
    """The lines after ``data file: LIST``."""


def read_text(path: Location) -> NrrdText:
    """Read the header of an NRRD file.

    Raises
    ------
    ScanError
        It is none.
    """
    start = read_start(path, MAX_HEADER_BYTES)
    if not MAGIC.match(start[:8].decode("ascii", errors="replace")):
        raise ScanError(f"is not an NRRD file: it starts with {start[:8]!r} instead of NRRD000.", where=path)
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    files: list[str] = []
    at = start.find(b"\n") + 1 or len(start)
    while at < len(start):
        end = start.find(b"\n", at)
        line = start[at : end if end >= 0 else len(start)].decode(errors="replace").rstrip("\r")
        at = end + 1 if end >= 0 else len(start)
        if not line.strip() and "list" not in fields:
            break
        if "list" in fields:
            files += [line.strip()] if line.strip() else []
        elif not line.startswith("#"):
            _add_line(line, fields, pairs, path)
    else:
        if len(start) == MAX_HEADER_BYTES:
            raise ScanError(f"its header has more than {MAX_HEADER_BYTES:,} bytes.", where=path)
    return NrrdText(start=start, size=at, fields=fields, pairs=pairs, files=tuple(files))


def _add_line(line: str, fields: dict[str, str], pairs: dict[str, str], path: Location) -> None:
    key, separator, text = line.partition(":")
    if not separator:
        raise ScanError(f"is not an NRRD file: its header has the line {shorten(line)!r}.", where=path)
    is_pair = text.startswith("=")
    if is_pair and not key.startswith("Segment"):
        return  # any text: ITK writes the metadata of the image before
    known = pairs if is_pair else fields
    name = key.strip() if is_pair else " ".join(key.lower().split())
    name = name if is_pair else SYNONYMS.get(name, name)
    value = text.removeprefix("=").strip()
    if known.setdefault(name, value) != value:
        raise ScanError(
            f"{shorten(name)} is stated twice, as {shorten(known[name])!r} and {shorten(value)!r}. Correct the header.",
            where=path,
        )
    if not is_pair and name == "data file" and value.split()[:1] == ["LIST"]:
        fields["list"] = ""


def parse_vectors(text: str, field: str, path: Location) -> list[list[float] | None]:
    """Return vectors of three numbers; ``none`` is None.

    >>> from pathlib import Path
    >>> parse_vectors("none (1,0,0) ( 0, -2.5, 0)", "space directions", Path("a.nrrd"))
    [None, [1.0, 0.0, 0.0], [0.0, -2.5, 0.0]]
    """
    found = re.findall(r"none|\([^()]*\)", text)
    if re.sub(r"none|\([^()]*\)", "", text).strip():
        raise ScanError(f"{field} must be vectors; it is {shorten(text)!r}. Correct the header.", where=path)
    vectors: list[list[float] | None] = []
    for word in found:
        numbers = word.strip("()").replace(",", " ").split()
        if word == "none":
            vectors.append(None)
        elif len(numbers) == 3 and all(NUMBER.fullmatch(number) for number in numbers):
            vectors.append([float(number) for number in numbers])
        else:
            raise ScanError(f"{field} must be vectors of 3 numbers; it has {shorten(word)!r}.", where=path)
    return vectors


def parse_quoted(text: str) -> list[str]:
    r"""Return quoted words.

    >>> parse_quoted('"mm" "mm" ""')
    ['mm', 'mm', '']
    """
    return re.findall(r'"([^"]*)"', text)
