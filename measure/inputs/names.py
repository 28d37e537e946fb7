"""Which of several known files a name refers to: masks, scans and references are matched by relative path."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from slicemill.ct.naming import derive_case_id, parse_name


class InFolder(Protocol):
    """An item that is matched by its name and by its folder."""

    @property
    def folder(self) -> str:
        """Return the folder, as `slicemill.ct.naming.Name.folder`."""


Item = TypeVar("Item", bound=InFolder)
Index = dict[str, list[Item]]
"""Key of a file (`match_keys`) -> the items that are known under it."""


def match_keys(relative: str) -> list[str]:
    """Return the keys of a file, the most exact first: folder and key, case id, key alone."""
    name = parse_name(relative)
    return [f"{name.folder}/{name.key}", derive_case_id(relative), *([f"*/{name.key}"] if name.key else [])]


def add_to_index(index: "Index[Item]", keys: Iterable[str], item: Item) -> None:
    """Register an item under each of its keys."""
    for key in dict.fromkeys(keys):
        index.setdefault(key, []).append(item)


def find_match(relative: str, index: Mapping[str, Sequence[Item]], *, exact: bool = False) -> Item | None:
    """Return the one item that a file's relative path matches; None if there is none or more than one.

    With `exact`, only folder and key are compared. Otherwise a case id or a key matches too, but only if one of the two
    folders is the end of the other: ``001.nii.gz`` matches ``a/001.nii.gz``; ``b/001.nii.gz`` does not.
    """
    folder = parse_name(relative).folder
    for key in match_keys(relative)[: 1 if exact else None]:
        near = [item for item in index.get(key, ()) if is_path_end(item.folder, folder)]
        if len(near) == 1:
            return near[0]
    return None


def is_path_end(folder: str, other: str) -> bool:
    """Return whether one of two folders is the end of the other.

    >>> is_path_end("", "a"), is_path_end("site/a", "a"), is_path_end("b", "a"), is_path_end("ba", "a")
    (True, True, False, False)
    """
    short, long = sorted((folder, other), key=len)
    return not short or f"/{long}".endswith(f"/{short}")
