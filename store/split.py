"""The split file: case ids for training, for validation (which chooses the checkpoint), and for the final test."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.documents import read_document, to_document
from slicemill.common.errors import ConfigError, InputError
from slicemill.common.files import write_json


@dataclass(frozen=True, kw_only=True)
class Split:
    """Case ids of the three parts; each patient is in one part only."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...] = ()


def write_split(path: Path, split: Split) -> None:
    """Write a split as JSON: three lists of case ids."""
    write_json(path, to_document(split))


def read_split(path: Path, case_ids: Sequence[str]) -> Split:
    """Read a split and check it against the case ids of the store.

    Raises
    ------
    ConfigError
        The file cannot be read, names an unknown case, or has a case in two parts.
    """
    try:
        split = read_document(Split, path)
    except InputError as error:
        reason = f"{error.reason} A split is a JSON object with the lists train, validation and test."
        raise ConfigError(reason, where=error.where) from error
    if not split.train or not split.validation:
        raise ConfigError("train and validation must each name at least one case.", where=path)
    ids = [*split.train, *split.validation, *split.test]
    unknown = sorted(set(ids) - set(case_ids))
    if unknown:
        raise ConfigError(f"names cases that are not in the store: {', '.join(unknown[:5])}.", where=path)
    if len(set(ids)) != len(ids):
        raise ConfigError("a case is in two parts; each case may be in one part only.", where=path)
    return split
