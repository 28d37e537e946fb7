"""The list of the rows of tables of points that are not used as they stand: ``points_left_out.csv``.

Rows of the store's cases are read from the cases, so that the list is complete after every run. Rows that belong to no
scan have no case; what they call their scan is not written, because it may identify a person.
"""

from collections.abc import Sequence

from slicemill.common.files import Location, write_csv
from slicemill.ingest.point_tables import UnmatchedPoint
from slicemill.store.reader import open_store

LEFT_OUT = "points_left_out.csv"
COLUMNS = ("case_id", "table", "line", "rows", "reason")


def write_left_out(root: Location, unmatched: Sequence[UnmatchedPoint]) -> None:
    """Write the list of a store; unreadable cases are left to the tables to report."""
    cases, _ = open_store(root).read_cases()
    rows = [
        {"case_id": case.case_id, "table": one.table, "line": one.line, "rows": 1, "reason": one.reason}
        for case in cases
        for one in case.info.points_left_out
    ]
    rows += [
        {"case_id": None, "table": one.table, "line": one.line, "rows": one.rows, "reason": one.reason}
        for one in unmatched
    ]
    write_csv(root / LEFT_OUT, rows, COLUMNS)
