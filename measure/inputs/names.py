"""Matches masks, scans and references by relative path."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from slicemill.ct.naming import derive_case_id, parse_name


class InFolder(Protocol):
    """An item that is matched by name and folder."""

    @property
    def folder(self) -> str:
        """Return the folder, in the form of `slicemill.ct.naming.Name.folder`."""


Item = TypeVar("Item", bound=InFolder)
Index = dict[str, list[Item]]
"""Key of a file (`match_keys`) -> the items with this key."""


def match_keys(relative: str) -> list[str]:
    """Return the keys of a file, the most specific first: folder and key, case id, key only."""
    name = parse_name(relative)
    return [f"{name.folder}/{name.key}", derive_case_id(relative), *([f"*/{name.key}"] if name.key else [])]


def add_to_index(index: "Index[Item]", keys: Iterable[str], item: Item) -> None:
    """Add an item under each of its keys."""
    for key in dict.fromkeys(keys):
        index.setdefault(key, []).append(item)


def find_match(relative: str, index: Mapping[str, Sequence[Item]], *, exact: bool = False) -> Item | None:
    """Return the only item that matches a file's relative path; None if no item or several match.

    With `exact`, only folder and key are compared. Otherwise a case id or a key matches too, but only if one of the two
    folders is the end of the other: ``001.nii.gz`` matches ``a/001.nii.gz``; ``b/001.nii.gz`` does not.
    """
    return next((near[0] for near in _find_near(relative, index, exact=exact) if len(near) == 1), None)


def find_doubles(relative: str, index: Mapping[str, Sequence[Item]]) -> Sequence[Item]:
    """Return the items that match a file's folder and key if they are several, like ``001.nii`` and ``001.nii.gz``."""
    (near,) = _find_near(relative, index, exact=True)
    return near if len(near) > 1 else ()


def _find_near(relative: str, index: Mapping[str, Sequence[Item]], *, exact: bool) -> Iterator[list[Item]]:
    """Yield the items that match each of a file's keys."""
    folder = parse_name(relative).folder
    for key in match_keys(relative)[: 1 if exact else None]:
        yield [item for item in index.get(key, ()) if is_path_end(item.folder, folder)]


def is_path_end(folder: str, other: str) -> bool:
    """Return whether one of two folders is the end of the other.

    >>> is_path_end("", "a"), is_path_end("site/a", "a"), is_path_end("b", "a"), is_path_end("ba", "a")
    (True, True, False, False)
    """
    short, long = sorted((folder, other), key=len)
    return not short or f"/{long}".endswith(f"/{short}")
