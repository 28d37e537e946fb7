"""Options that several benchmark commands share, and parsers of their values."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from slicemill.common.errors import UsageError

Quick = Annotated[bool, typer.Option("--quick", help="Run 3 rounds and fewer slices.")]
Data = Annotated[Path | None, typer.Option(help="Collection; its first scan with a mask is used. Default: a phantom.")]
Cold = Annotated[bool, typer.Option("--cold", help="Drop the files from the page cache before every run.")]
Environments = Annotated[
    Path, typer.Option(help="Folder of the peers' environments. They are created once and reused.")
]
Json = Annotated[Path | None, typer.Option(help="File to write the record to.")]


def parse_names(text: str | None) -> tuple[str, ...]:
    """Read names separated by commas; empty for None.

    >>> parse_names("default, one-slice"), parse_names(None)
    (('default', 'one-slice'), ())
    """
    return tuple(name.strip() for name in text.split(",")) if text else ()


def parse_known_names(option: str, text: str | None, known: Collection[str], kind: str) -> tuple[str, ...]:
    """Read names that must be among the known ones.

    Raises
    ------
    UsageError
        A name is not known. `kind` names it in the message.
    """
    names = parse_names(text)
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"{option} {unknown[0]}: no such {kind}; choose from {', '.join(known)}.")
    return names


def parse_integers(option: str, text: str | None) -> tuple[int, ...]:
    """Read integers separated by commas; empty for None.

    Raises
    ------
    UsageError
        It is not a list of integers.

    >>> parse_integers("--seeds", "0, 2")
    (0, 2)
    """
    parts = parse_names(text)
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"{option} {text}: expected integers like 0,1,2.")
    return tuple(int(part) for part in parts)
