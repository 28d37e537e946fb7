"""I of N: which part of a collection is a run's, where the runs of a job array share it."""

import re

from store.errors import UsageError


def shard_of(text: str | None) -> tuple[int, int] | None:
    """Read ``I/N``: every Nth thing, from the Ith on; None where nothing was said.

    >>> shard_of("0/8"), shard_of(None)
    ((0, 8), None)

    Raises
    ------
    UsageError
        It is not of that form, or I is not below N.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UsageError(f"--shard {text}: expected I/N with 0 <= I < N, like 0/8.")
    return int(match[1]), int(match[2])
