"""What commands print: lines, tables, and the way an InputError ends a command."""

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from store.errors import InputError


def say(text: str = "") -> None:
    """Print a line of result to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def peak_mib() -> float:
    """Return the most memory that this process has had resident, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under a header, in columns; numbers to the right.

    >>> print(table(["case", "dice"], [["volume-1", 0.91234]]))
    case       dice
    volume-1  0.912
    """
    cells = [[cell(value) for value in row] for row in rows]
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


def cell(value: object) -> str:
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


@contextmanager
def errors_shown() -> Iterator[None]:
    """End the process with exit status 1 and one line when the user handed in something wrong or the disk is full."""
    try:
        yield
    except InputError as error:
        sys.stderr.write(f"slicemill: {error}\n")
        raise SystemExit(1) from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(
            f"slicemill: {where}{error.strerror or error}. Make room or correct the path, and run the same command again.\n"
        )
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("slicemill: interrupted; what was finished is kept, the same command goes on from there.\n")
        raise SystemExit(130) from None
