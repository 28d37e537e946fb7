"""Left-out files are listed with their reasons, and counted beyond the first ones."""

from pathlib import Path

import pytest

from slicemill.common.left_out import SHOWN, LeftOut, print_left_out


@pytest.mark.parametrize(("number", "more"), [(0, 0), (1, 0), (SHOWN, 0), (SHOWN + 1, 1), (SHOWN + 60, 60)])
def test_each_file_is_listed_with_its_reason_or_counted(capsys, number, more):
    print_left_out([LeftOut(Path(f"scans/{index}.nii"), f"reason {index}") for index in range(number)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:SHOWN] == [f"left out: scans/{index}.nii: reason {index}" for index in range(number - more)]
    assert lines[SHOWN:] == ([f"left out: {more} more"] if more else [])
