"""Output of commands: lines, tables, numbers, and the exit status after an error.

Names and labels come from files. Whatever could control a terminal is escaped by `escape`.
"""

import contextlib
import errno
import math
import os
import resource
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from slicemill.common.errors import InputError, UsageError
from slicemill.common.extras import describe_missing
from slicemill.common.failures import find_memory_detail, is_exhausted
from slicemill.common.output import current_output, escape, log_traceback
from slicemill.common.signals import Terminated, raise_on_stop_signals

BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", ".:-=+*#@"


def print_line(text: str = "") -> None:
    """Print one line of result to standard output; line ends and other control characters are escaped.

    With `--quiet` it is only logged; with `--json` it goes to standard error.
    """
    output = current_output()
    output.write_log("info", text)
    if not output.quiet:
        _write_line(sys.stderr if output.json else sys.stdout, text)


def print_always(text: str = "") -> None:
    """Print a line that `--quiet` does not hide: a failure, or what the command was called to print."""
    output = current_output()
    output.write_log("result", text)
    _write_line(sys.stderr if output.json else sys.stdout, text)


def print_json(document: Any) -> None:
    """Print plain values or records as JSON to standard output; numbers that are not finite become null."""
    import json

    from slicemill.common.documents import to_plain

    text = json.dumps(finite_or_null(to_plain(document)), indent=2, ensure_ascii=False)
    for line in text.split("\n"):
        _write_line(sys.stdout, line)


def finite_or_null(value: Any) -> Any:
    """Return plain values with null for nan and infinities, which JSON does not have.

    >>> finite_or_null({"dice": [0.5, float("nan")]})
    {'dice': [0.5, None]}
    """
    if isinstance(value, dict):
        return {str(key): finite_or_null(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_lines(text: str) -> None:
    """Print several lines of result, such as a table, to standard output."""
    for line in text.split("\n"):
        print_line(line)


def print_message(text: str) -> None:
    """Print one line about the command itself to standard error."""
    current_output().write_log("error", text)
    _write_line(sys.stderr, f"slicemill: {text}")


def _write_line(stream: TextIO | None, text: str) -> None:
    """Write a line if anyone reads it: the work of a command goes on without its terminal or its pipe."""
    if stream is None or stream.closed:
        return
    line = escape(text) + "\n"
    try:
        encoding = stream.encoding or "utf-8"
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        discard_output(stream)


def discard_output(stream: TextIO) -> None:
    """Redirect a stream to nowhere, also for the flush at the end of Python."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)


def open_closed_streams() -> None:
    """Connect closed standard streams to nowhere; else the next file to be opened becomes the standard output."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard stream is open and a terminal."""
    return stream is not None and not stream.closed and stream.isatty()


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
    """Return the lines of `table_rows` as one text.

    >>> print(format_table(["case", "dice"], [["volume-1", 0.91234]]))
    case       dice
    volume-1  0.912
    """
    return "\n".join(table_rows(header, rows))


def table_rows(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return rows under a header as lines of text in columns, escaped; numbers are aligned right."""
    titles = [escape(title) for title in header]
    cells = [[escape(format_cell(value)) for value in row] for row in rows]
    widths = [max(len(line[column]) for line in [titles, *cells]) for column in range(len(header))]
    right = [
        bool(rows) and all(isinstance(row[column], int | float) or row[column] is None for row in rows)
        for column in range(len(header))
    ]
    lines = [titles, *cells]
    return [
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]


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

    Exit status 2 for a UsageError, 1 for any other InputError, an OSError, a missing extra or a lack of memory, 130
    after Ctrl-C, 143 after SIGTERM.
    """
    with raise_on_stop_signals():
        try:
            yield
        except InputError as error:
            _show_traceback()
            print_message(str(error))
            raise SystemExit(2 if isinstance(error, UsageError) else 1) from None
        except KeyboardInterrupt as error:
            terminated = isinstance(error, Terminated)
            print_message(
                f"{'ended by SIGTERM' if terminated else 'interrupted'}; what was finished is kept. "
                "Run the same command again to continue."
            )
            raise SystemExit(143 if terminated else 130) from None
        except Exception as error:
            reason = describe_missing(error) or _describe_system_error(error)
            if reason is None:
                raise
            _show_traceback()
            print_message(reason)
            raise SystemExit(1) from None


def _show_traceback() -> None:
    """Log the traceback of the error that ends a command, and print it with `--verbose`."""
    log_traceback()
    if current_output().verbose:
        for line in traceback.format_exc().splitlines():
            _write_line(sys.stderr, line)


def _describe_system_error(error: Exception) -> str | None:
    """Return what the system refused and the way out, or None for an exception that is a bug."""
    detail = find_memory_detail(error)
    if detail is not None:
        remedy = "Close other programs, use fewer workers, or allow more memory (ulimit -v),"
        return f"not enough memory{detail}. {remedy} and run the same command again."
    if not isinstance(error, OSError) or (error.filename is None and error.errno is None):
        return None
    where = f"{error.filename}: " if error.filename else ""
    remedy = "Free disk space," if error.errno == errno.ENOSPC else "Correct that, or the path,"
    if is_exhausted(error):
        remedy = "Allow more open files (ulimit -n), or use fewer workers,"
    return f"{where}{error.strerror or error}. {remedy} and run the same command again."
