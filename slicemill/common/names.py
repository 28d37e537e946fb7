"""Names and paths as text: their natural order, and whether they can be written to tables."""

import re

from slicemill.common.files import Location


def natural_key(text: str) -> list[tuple[int, str]]:
    """Return a sort key that orders numbers in a text by value.

    >>> sorted(["volume-10", "volume-9"], key=natural_key)
    ['volume-9', 'volume-10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def is_text(path: Location) -> bool:
    """Return whether a path can be written to tables: it is valid UTF-8 without NUL."""
    try:
        return b"\0" not in str(path).encode()
    except UnicodeEncodeError:
        return False
