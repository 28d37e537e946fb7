"""CSV for people who open it in a spreadsheet, which computes a cell that starts with ``=``, ``+``, ``-`` or ``@``.

Such a text gets a ``'`` before it, and loses it when our readers read it. Numbers stay numbers.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a formula in spreadsheets (https://owasp.org/www-community/attacks/CSV_Injection)."""


def guard_cell(value: object) -> object:
    """Return a cell that no spreadsheet computes: a text that starts like a formula gets a ``'`` before it.

    >>> guard_cell("=1+1"), guard_cell("-1.5"), guard_cell(-1.5), guard_cell("liver")
    ("'=1+1", '-1.5', -1.5, 'liver')
    """
    return f"'{value}" if isinstance(value, str) and _is_formula(value.lstrip("'")) else value


def unguard_cell(text: str) -> str:
    """Return the text that `guard_cell` was given.

    >>> unguard_cell("'=1+1"), unguard_cell("'liver'")
    ('=1+1', "'liver'")
    """
    return text[1:] if text.startswith("'") and _is_formula(text.lstrip("'")) else text


def _is_formula(text: str) -> bool:
    if not text.startswith(FORMULA_STARTS):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def unguard_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a row of `csv.DictReader` without the guards of its cells and of the header."""
    return {_unguard(name): _unguard(value) for name, value in row.items()}


def _unguard(value: Any) -> Any:
    """Remove the guard of a text; `csv.DictReader` adds None and lists for rows that are too short or too long."""
    return unguard_cell(value) if isinstance(value, str) else value


def format_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Return rows with equal keys as CSV; None becomes an empty cell. Without rows, `columns` are the header."""
    rows = list(rows)
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else columns)
    writer.writerow({name: guard_cell(name) for name in writer.fieldnames})
    writer.writerows({name: guard_cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()
