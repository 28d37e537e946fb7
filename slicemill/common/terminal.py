"""Output of commands: lines, tables, numbers, and the exit status after an error."""

import errno
import math
import resource
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from slicemill.common.errors import InputError, UsageError

BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", ".:-=+*#@"


def print_line(text: str = "") -> None:
    """Print a line of result to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def peak_mib() -> float:
    """Return the peak resident memory of this process, MiB.

    On Linux it is VmHWM, which starts at zero for each program; `getrusage` includes the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under a header as text in columns; numbers are aligned right.

    >>> print(format_table(["case", "dice"], [["volume-1", 0.91234]]))
    case       dice
    volume-1  0.912
    """
    cells = [[format_cell(value) for value in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(header), *cells]) for column in range(len(header))]
    right = [
        bool(rows) and all(isinstance(row[column], int | float) or row[column] is None for row in rows)
        for column in range(len(header))
    ]
    lines = [list(header), *cells]
    return "\n".join(
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def format_cell(value: object) -> str:
    """Return the text of a value in a table: floats with three digits, ``-`` for None and NaN."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def count_noun(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1.

    >>> count_noun(1, "case"), count_noun(1200, "case")
    ('1 case', '1,200 cases')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_number(value: float) -> str:
    """Return a number with three significant digits.

    >>> format_number(1234.5), format_number(0.98765), format_number(7)
    ('1,234', '0.988', '7')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_range(values: Sequence[float]) -> str:
    """Return the lowest and the highest value, or one if they are equal.

    >>> format_range([3, 1, 2]), format_range([2.5, 2.5])
    ('1 to 3', '2.5')
    """
    low, high = format_number(min(values)), format_number(max(values))
    return low if low == high else f"{low} to {high}"


def histogram_bars(values: Sequence[float], levels: str, width: int = 12, *, log: bool = False) -> str:
    """Return a histogram as a line of `width` characters: a space for an empty bin, else one of `levels` by height.

    Bins have equal width from the lowest to the highest value, or equal ratio with `log`, which counts zeros into the
    lowest bin.

    >>> histogram_bars([1, 1, 1, 2, 4], "123", width=4)
    '31 1'
    """
    if log:
        lowest = min((value for value in values if value > 0), default=1.0)
        values = [math.log(max(value, lowest)) for value in values]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    counts = Counter(min(width - 1, int((value - low) / span * width)) for value in values)
    most = max(counts.values())
    heights = [math.ceil(counts[index] / most * len(levels)) for index in range(width)]
    return "".join(levels[height - 1] if height else " " for height in heights)


def bar_characters(encoding: str | None) -> str:
    """Return eight characters of rising height that this encoding can represent.

    >>> bar_characters("utf-8"), bar_characters("ascii")
    ('▁▂▃▄▅▆▇█', '.:-=+*#@')
    """
    try:
        BLOCKS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return PLAIN_BLOCKS
    return BLOCKS


@contextmanager
def report_errors() -> Iterator[None]:
    """Print an error that the user can correct as one line, and end the process.

    Exit status 2 for a UsageError, 1 for any other InputError or an OSError, 130 after Ctrl-C.
    """
    try:
        yield
    except InputError as error:
        sys.stderr.write(f"slicemill: {error}\n")
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        remedy = "Free disk space" if error.errno == errno.ENOSPC else "Correct that, or the path"
        sys.stderr.write(f"slicemill: {where}{error.strerror or error}. {remedy}, and run the same command again.\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("slicemill: interrupted; what was finished is kept. Run the same command again to continue.\n")
        raise SystemExit(130) from None
