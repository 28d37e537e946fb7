"""The cases that are shown, of which a few are open."""

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from slicemill.web.marks import Marks
from slicemill.web.opened import OpenCase

if TYPE_CHECKING:  # what finds cases takes long to import, and `slicemill serve` does not need it
    from collections.abc import Sequence

    from slicemill.web.entries import Entry

MAX_OPEN = 3
"""Cases that stay open: the shown one, the next, and the previous. Each has a temporary file."""


class Cases(Protocol):
    """The cases of a server."""

    @property
    def entries(self) -> "Sequence[Entry]":
        """Return the cases of the list."""

    @property
    def marks(self) -> Marks | None:
        """Return the marks of cases; None if they cannot be marked."""

    def find_open(self, number: int) -> OpenCase | None:
        """Return a case if it is open."""

    def open(self, number: int) -> OpenCase:
        """Return a case, opened if it is not."""


class Viewer:
    """The cases of a session; safe to use from several threads."""

    def __init__(self, entries: "Sequence[Entry]", marks: Marks | None = None) -> None:
        self.entries = tuple(entries)
        self.marks = marks
        self._open: OrderedDict[int, OpenCase] = OrderedDict()
        self._lock = threading.Lock()

    def find_open(self, number: int) -> OpenCase | None:
        """Return a case if it is open; does not wait while another is opened."""
        return self._open.get(number)

    def open(self, number: int) -> OpenCase:
        """Return a case, opened if it is not; the one that was used the longest ago may be closed for it.

        Raises
        ------
        IndexError
            There is no such case.
        InputError
            The case cannot be opened.
        """
        if not 0 <= number < len(self.entries):
            raise IndexError(f"case {number} of {len(self.entries)}")
        with self._lock:
            if number not in self._open:
                self._open[number] = OpenCase(self.entries[number].open())
            self._open.move_to_end(number)
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)[1].stop()
            return self._open[number]

    def close(self) -> None:
        """Stop reading."""
        with self._lock:
            for case in self._open.values():
                case.stop()
            self._open.clear()
