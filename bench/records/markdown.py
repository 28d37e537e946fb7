"""Cells and rows of Markdown tables, and the machine phrase under each of them."""

from collections.abc import Iterable, Sequence

from slicemill.bench.schema.base import Document, read_processor


def table_row(cells: Iterable[str]) -> str:
    """Format one row.

    >>> table_row(["a", "", "1"])
    '| a | | 1 |'
    """
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Format a header, its rule and the rows, a line each."""
    return [table_row(header), f"|{'---|' * len(header)}", *map(table_row, rows)]


def table_text(header: Sequence[str], rows: Iterable[Sequence[str]], note: str) -> str:
    """Format a table and the note below it."""
    return "\n".join([*table_lines(header, rows), "", note])


def format_ratio(value: float | None) -> str:
    """Format a ratio with two decimals; a dash where it was not measured."""
    return "-" if value is None else f"{value:.2f}"


def format_three_digits(value: float | None) -> str:
    """Format a figure with three significant digits; a dash for None.

    >>> format_three_digits(1234.5), format_three_digits(0.031), format_three_digits(None)
    ('1,234', '0.031', '-')
    """
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def format_score(value: float | None) -> str:
    """Format a score with three decimals; a dash for None."""
    return "-" if value is None else f"{value:.3f}"


def format_integers(values: Iterable[int]) -> str:
    """Format integers with commas between them.

    >>> format_integers([0, 2])
    '0, 2'
    """
    return ", ".join(map(str, values))


def format_processor(machine: Document) -> str:
    """Format the number of cores and the name of the processor of a machine."""
    processor = read_processor(machine)
    return f"{processor.cores} cores of {processor.cpu}"
