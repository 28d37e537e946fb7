"""What commands print: lines, tables, and the way an InputError ends a command."""

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
    """Return the most memory that this process has had resident, MiB.

    Linux counts it anew for each program (VmHWM); what `getrusage` says there includes the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under a header, in columns; numbers to the right.

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
    """Return a value as it stands in a table: floats with three digits that count, nothing for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "-" if value != value else f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"  # noqa: PLR0124
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def count_noun(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> count_noun(1, "case"), count_noun(1200, "case")
    ('1 case', '1,200 cases')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_number(value: float) -> str:
    """Return a number with three digits that count.

    >>> format_number(1234.5), format_number(0.98765), format_number(7)
    ('1,234', '0.988', '7')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_range(values: Sequence[float]) -> str:
    """Return the lowest and the highest value, or the only one.

    >>> format_range([3, 1, 2]), format_range([2.5, 2.5])
    ('1 to 3', '2.5')
    """
    low, high = format_number(min(values)), format_number(max(values))
    return low if low == high else f"{low} to {high}"


def histogram_bars(values: Sequence[float], levels: str, width: int = 12, *, log: bool = False) -> str:
    """Return a histogram as one word of `width` signs: a space for none, else one of `levels`, the last for the most.

    Equal bins from the lowest to the highest value, of equal ratio with `log` (values of 0 then count into the lowest).

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
    signs = [levels[max(0, math.ceil(counts[place] / most * len(levels)) - 1)] for place in range(width)]
    return "".join(sign if counts[place] else " " for place, sign in enumerate(signs))


def bar_characters(encoding: str | None) -> str:
    """Return eight signs of rising height that an output of this encoding can show.

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
    """End the process with exit status 1 and one line when the user handed in something wrong or the disk is full; 2 for a wrong option."""
    try:
        yield
    except InputError as error:
        sys.stderr.write(f"slicemill: {error}\n")
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        way_out = "Make room" if error.errno == errno.ENOSPC else "Mend that, or correct the path"
        sys.stderr.write(f"slicemill: {where}{error.strerror or error}. {way_out}, and run the same command again.\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("slicemill: interrupted; what was finished is kept, the same command goes on from there.\n")
        raise SystemExit(130) from None
