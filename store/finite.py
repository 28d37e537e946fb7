"""Numbers that commands take: `nan` and `inf` read as floats, and pass every comparison with a lowest value."""

import math

import typer


def finite(value: float | None) -> float | None:
    """Return an option's value as it is; the callback of every option that is a float.

    Raises
    ------
    typer.BadParameter
        It is nan or infinite.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number that can be worked with; give a finite one.")
    return value
