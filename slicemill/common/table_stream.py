"""Reads long CSV tables row by row, by the rules of `slicemill.common.tables`: memory does not grow with the rows."""

import codecs
import csv
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from slicemill.common.csv_cells import unguard_cell
from slicemill.common.errors import InputError
from slicemill.common.files import Location, open_stream
from slicemill.common.tables import SEPARATORS, Row, check_header, find_separator

MAX_ROWS = 20_000_000
"""Limit of the rows of a table."""
STEP = 1 << 20
"""Characters between two calls of `advance`."""
MAX_LINE = 1 << 20
"""Limit of the characters of a line."""


def iterate_table(
    path: Location,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    keeps_further: bool = False,
    error: type[InputError] = InputError,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[Row]:
    """Yield the rows of a table, as `slicemill.common.tables.read_table` returns them.

    `advance` is called now and then with the number of characters that were read.

    Raises
    ------
    InputError
        The file cannot be read, or its columns or cells do not fit.
    """
    try:
        with open_stream(path) as raw:
            buffered = io.BufferedReader(raw, 1 << 20)
            start = buffered.peek(4)[:4]
            is_utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            text = io.TextIOWrapper(buffered, encoding="utf-16" if is_utf16 else "utf-8-sig", newline="")
            yield from _iterate_lines(
                path, _check_lines(path, text, error, advance), (required, optional), keeps_further, error
            )
    except UnicodeDecodeError as problem:
        raise error(
            f"must be UTF-8, or UTF-16 with a byte order mark; it has the byte {problem.object[problem.start]:#04x}. "
            "Save it as CSV UTF-8.",
            where=path,
        ) from problem
    except OSError as problem:
        raise error(f"cannot be read as CSV ({problem.strerror or problem}).", where=path) from problem


def _check_lines(
    path: Location, text: io.TextIOWrapper, error: type[InputError], advance: Callable[[int], None]
) -> Iterator[str]:
    """Yield the lines of a text; lines without end and NUL characters are refused."""
    count = 0
    while line := text.readline(MAX_LINE):
        if "\0" in line:
            raise error("contains a NUL character; save the table as CSV UTF-8.", where=path)
        if len(line) >= MAX_LINE:
            raise error(f"has a line of more than {MAX_LINE:,} characters.", where=path)
        count += len(line)
        if count >= STEP:
            advance(count)
            count = 0
        yield line
    advance(count)


def _iterate_lines(
    path: Location,
    lines: Iterator[str],
    columns: tuple[Sequence[str], Sequence[str]],
    keeps_further: bool,  # noqa: FBT001 (passed on)
    error: type[InputError],
) -> Iterator[Row]:
    required, known = columns[0], (*columns[0], *columns[1])
    start = _read_start(path, lines, known, error)
    header: list[str] | None = None
    for line, texts in _iterate_cells(path, start, lines, error):
        if header is None:
            names = [(line, texts)] if texts else []
            header = check_header(path, names, required, known, keeps_further=keeps_further, error=error)
            continue
        cells = texts[:-1] if len(texts) == len(header) + 1 and not texts[-1] else texts
        if len(cells) != len(header):
            raise error(
                f"{path}, line {line}: has {len(cells)} cells, but the header has {len(header)} columns. "
                "Put quotes around cells that contain the separator."
            )
        yield Row(line, dict(zip(header, cells, strict=True)), start.separator)
    if header is None:
        check_header(path, [], required, known, keeps_further=keeps_further, error=error)


@dataclass(frozen=True, slots=True)
class _Start:
    """The lines of a table before its first row."""

    header: str
    """The first line with text; empty if there is none."""
    separator: str
    skipped: int
    """Lines before the header."""


def _read_start(path: Location, lines: Iterator[str], known: Sequence[str], error: type[InputError]) -> _Start:
    skipped, separator = 0, ""
    for line in lines:
        if not skipped and line.strip().lower().startswith("sep="):
            separator = line.strip("\r\n ")[4:5]
            if separator not in SEPARATORS or not separator:
                raise error(
                    f"its first line is {line.strip()!r}; the separator must be a comma, ; or a tab.", where=path
                )
        elif line.strip():
            return _Start(line, separator or find_separator([line], known), skipped)
        skipped += 1
    return _Start("", ",", skipped)


def _iterate_cells(
    path: Location, start: _Start, lines: Iterator[str], error: type[InputError]
) -> Iterator[tuple[int, list[str]]]:
    """Yield number and texts of the lines with text; the header without an empty last cell."""
    reader = csv.reader(itertools.chain([start.header], lines), delimiter=start.separator, strict=True)
    try:
        for number, cells in enumerate(reader):
            if number > MAX_ROWS:
                raise error(f"has more than {MAX_ROWS:,} rows.", where=path)
            texts = [unguard_cell(cell.strip()) for cell in cells]
            if any(texts):
                yield reader.line_num + start.skipped, texts if number or texts[-1] else texts[:-1]
    except csv.Error as problem:
        raise error(f"{path}, line {reader.line_num + start.skipped}: cannot be read as CSV ({problem}).") from problem
