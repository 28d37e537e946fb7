"""Marks of cases: what a person who looks through them decided, in a CSV file."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from slicemill.common.errors import InputError
from slicemill.common.files import write_csv
from slicemill.common.tables import read_table

Mark = Literal["good", "bad", "unsure"]
MARKS: tuple[Mark, ...] = get_args(Mark)
COLUMNS = ("case", "mark")


class Marks:
    """The marks of cases, written to a CSV file at each change; safe to use from several threads.

    A file that exists is continued. Marks of cases that are not shown are kept.
    """

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one.

        Raises
        ------
        InputError
            The file is not a table of marks.
        """
        self.path = path
        self._lock = threading.Lock()
        self._marks: dict[str, Mark] = {}
        rows = read_table(path, required=COLUMNS) if path.exists() else []
        for row in rows:
            mark = next((one for one in MARKS if one == row.cells["mark"]), None)
            if mark is None:
                raise InputError(
                    f"line {row.line}: a mark must be one of {', '.join(MARKS)}; it is {row.cells['mark']!r}.",
                    where=path,
                )
            self._marks[row.cells["case"]] = mark

    def get(self, case: str) -> Mark | None:
        """Return the mark of a case; None without one."""
        return self._marks.get(case)

    def put(self, case: str, mark: Mark | None) -> None:
        """Mark a case, or remove its mark, and write the file.

        Raises
        ------
        OSError
            The file cannot be written; the mark is then as before.
        """
        with self._lock:
            changed = {name: old for name, old in self._marks.items() if name != case}
            if mark is not None:
                changed[case] = mark
            write_csv(self.path, _rows(changed), COLUMNS)
            self._marks = changed


def _rows(marks: dict[str, Mark]) -> Sequence[dict[str, str]]:
    return [{"case": name, "mark": mark} for name, mark in marks.items()]
