"""The file that says which cases are trained on, choose the checkpoint, and are never seen: three lists of case ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import ConfigError
from slicemill.common.files import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Split:
    """Case ids of the three parts; no patient is in two of them."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def write_split(path: Path, split: Split) -> None:
    """Write a split as JSON: three lists of case ids."""
    write_json(path, {"train": split.train, "validation": split.validation, "test": split.test})


def read_split(path: Path, known: Sequence[str]) -> Split:
    """Read a split and check it against the case ids of the store.

    Raises
    ------
    ConfigError
        It cannot be read, names an unknown case, or a case stands in two parts.
    """
    try:
        document = read_json(path)
        split = Split(
            train=tuple(document["train"]),
            validation=tuple(document["validation"]),
            test=tuple(document.get("test", ())),
        )
        if not all(
            isinstance(case_id, str) for part in (split.train, split.validation, split.test) for case_id in part
        ):
            raise TypeError("case ids are strings")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: must hold a JSON object with the lists train, validation and test ({error})."
        ) from error
    if not split.train or not split.validation:
        raise ConfigError(f"{path}: train and validation must each name at least one case.")
    ids = [*split.train, *split.validation, *split.test]
    unknown = sorted(set(ids) - set(known))
    if unknown:
        raise ConfigError(f"{path}: names cases that the store does not have: {', '.join(unknown[:5])}.")
    if len(set(ids)) != len(ids):
        raise ConfigError(f"{path}: a case stands in two parts; every case may stand in one.")
    return split
