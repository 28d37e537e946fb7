"""The settings of training as a TOML file that explains them: `slicemill train --show-config`."""

import ast
import inspect
import textwrap
from typing import TYPE_CHECKING

from slicemill.train.config import CHOICES, to_toml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WIDTH = 110
"""Longest line of a comment."""


def field_docs(record: type) -> dict[str, str]:
    """Return the docstrings of a class's fields, by name, from its source; each is one line.

    >>> from slicemill.train.config import Config
    >>> field_docs(Config)["learning_rate"]
    'Highest learning rate.'
    """
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(body, ast.ClassDef)  # noqa: S101 (for mypy: the source of a class)
    docs = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            docs[field.target.id] = " ".join(str(below.value.value).split())
    return docs


def to_commented_toml(config: "DataclassInstance") -> str:
    """Return all settings as TOML, each below its description; `read_config` reads those of a `Config` back."""
    docs = field_docs(type(config))
    parts = ["# Settings of slicemill train. Keep the lines that you change, and pass the file with --config."]
    for line in to_toml(config).splitlines():
        name = line.partition(" = ")[0]
        parts.append("")
        parts += textwrap.wrap(docs[name], WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
        if name in CHOICES:  # those of a `Config`; no other settings have such names
            parts.append(f"# One of: {', '.join(map(str, CHOICES[name]))}.")
        parts.append(line)
    return "\n".join(parts) + "\n"
