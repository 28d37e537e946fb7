"""Reads CSV tables that people make in spreadsheets.

Comma, semicolon and tab separate cells; a first line ``sep=;`` is read. UTF-8 and UTF-16 with a byte order mark are
read, other encodings are refused. Column names are compared without case and outer spaces. Unknown, missing and doubled
columns are refused, and so are rows with more or fewer cells than the header; empty rows are skipped.
"""

import codecs
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slicemill.common.csv_cells import unguard_cell
from slicemill.common.errors import InputError
from slicemill.common.files import Location, read_file

SEPARATORS = ",;\t"
MAX_BYTES = 256 << 20
"""Limit of the size of a table: a million rows of 256 bytes."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table."""

    line: int
    """Number of its last line in the file, from 1."""
    cells: Mapping[str, str]
    """Column -> text without outer spaces."""
    separator: str = ","
    """Separator of the table's cells."""

    def number(self, column: str) -> float:
        """Return a number; it may have a decimal comma unless commas separate the cells.

        >>> Row(2, {"x": "1,5"}, ";").number("x")
        1.5

        Raises
        ------
        ValueError
            The text is not a number. ``1_0`` is none, although Python reads it as 10: it is part of a name.
        """
        text = self.cells[column]
        if "_" in text:
            raise ValueError(text)
        return float(text if self.separator == "," or "." in text else text.replace(",", "."))


def read_table(
    path: Location,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    keeps_further: bool = False,
    error: type[InputError] = InputError,
) -> list[Row]:
    """Read the rows of a table; none if it has a header only.

    Parameters
    ----------
    required, optional
        Names of the columns, in lower case.
    keeps_further
        Whether other columns are allowed; they are returned, too.
    error
        The error to raise.

    Raises
    ------
    InputError
        The file cannot be read, or its columns or cells do not fit.
    """
    lines = _decode(path, error).splitlines(keepends=True)
    first, separator = 1, ""
    if lines and lines[0].strip().lower().startswith("sep="):
        separator, first = lines[0].strip("\r\n ")[4:5], 2
        if separator not in SEPARATORS or not separator:
            raise error(
                f"its first line is {lines[0].strip()!r}; the separator must be a comma, ; or a tab.", where=path
            )
        del lines[0]
    known = (*required, *optional)
    separator = separator or find_separator(lines, known)
    reader = csv.reader(io.StringIO("".join(lines), newline=""), delimiter=separator, strict=True)
    try:
        rows = [(reader.line_num + first - 1, [unguard_cell(cell.strip()) for cell in cells]) for cells in reader]
    except csv.Error as problem:
        raise error(f"{path}, line {reader.line_num + first - 1}: cannot be read as CSV ({problem}).") from problem
    rows = [(line, cells) for line, cells in rows if any(cells)]
    header = check_header(path, rows, required, known, keeps_further=keeps_further, error=error)
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise error(
                f"{path}, line {line}: has {len(cells)} cells, but the header has {len(header)} columns. "
                "Put quotes around cells that contain the separator."
            )
    return [Row(line, dict(zip(header, cells, strict=True)), separator) for line, cells in rows[1:]]


def _decode(path: Location, error: type[InputError]) -> str:
    try:
        data = read_file(path, MAX_BYTES)
    except OSError as problem:
        raise error(f"cannot be read as CSV ({problem.strerror or problem}).", where=path) from problem
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        byte = data[problem.start]
        raise error(
            f"must be UTF-8, or UTF-16 with a byte order mark; byte {problem.start} is {byte:#04x}. "
            "Save it as CSV UTF-8.",
            where=path,
        ) from problem
    if "\0" in text:
        what = "UTF-16 without a byte order mark" if "\0" in text[:4] else "a NUL character"
        raise error(f"contains {what}; save the table as CSV UTF-8.", where=path)
    return text


def find_separator(lines: Sequence[str], known: Sequence[str]) -> str:
    """Return the separator that gives the first line with text the most known columns, then the most columns."""
    header = next((line for line in lines if line.strip()), "")

    def count(separator: str) -> tuple[int, int]:
        names = [name.strip().strip('"').strip().lower() for name in header.split(separator)]
        return sum(name in known for name in names), len(names)

    return max(SEPARATORS, key=count)


def check_header(
    path: Location,
    rows: Sequence[tuple[int, Sequence[str]]],
    required: Sequence[str],
    known: Sequence[str],
    *,
    keeps_further: bool,
    error: type[InputError],
) -> list[str]:
    """Return the names of the columns in lower case."""
    columns = f"the columns are {', '.join(known)} ({', '.join(required)} required)"
    header = [name.lower() for name in rows[0][1]] if rows else []
    while header and not header[-1] and all(len(cells) == len(header) and not cells[-1] for _, cells in rows):
        header.pop()  # spreadsheets write a separator behind the last column
        for _, cells in rows:
            del cells[-1]  # type: ignore[attr-defined]
    shown = ", ".join(rows[0][1]) if rows else "nothing"
    if missing := [name for name in required if name not in header]:
        raise error(
            f"has no column {', '.join(missing)}; {columns}, the header line has {shown}. Rename the columns.",
            where=path,
        )
    if unknown := [name for name in header if name not in known and not keeps_further]:
        raise error(f"the column {unknown[0]!r} is unknown; {columns}. Rename or remove it.", where=path)
    if twice := [name for name in header if header.count(name) > 1]:
        raise error(f"the column {twice[0]!r} occurs more than once; keep one of them.", where=path)
    return header
