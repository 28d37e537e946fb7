"""Options that several commands share, and parsers of their values."""

import math
import re
from typing import Annotated

import typer

from slicemill.common.errors import UsageError

INPUT, LABELS, NETWORK, CHECKS = "Input", "Labels", "Network", "Checks"
OUTPUT, MACHINE, RERUN, MESSAGES = "Output", "Machine", "Running again", "Messages"
"""Panels of the options in --help; common options have none, and come first."""


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Parse ``I/N``: every Nth item, starting with item I. None stays None.

    >>> parse_shard("0/8"), parse_shard(None)
    ((0, 8), None)

    Raises
    ------
    UsageError
        The text has another form, or I is not below N.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UsageError(f"--shard {text}: expected I/N with 0 <= I < N, like 0/8.")
    return int(match[1]), int(match[2])


def require_finite(value: float | None) -> float | None:
    """Return an option's value unchanged; the callback of every option that is a float.

    Raises
    ------
    typer.BadParameter
        The value is nan or infinite.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the result as one JSON document; other lines go to standard error.",
        rich_help_panel=MESSAGES,
    ),
]
