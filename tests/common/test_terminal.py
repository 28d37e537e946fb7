"""What commands print: tables, one line per error, and results next to a progress bar."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from slicemill.common.errors import InputError, UsageError
from slicemill.common.terminal import format_table, report_errors

HERE = Path(__file__).parents[2]


def test_a_table_aligns_numbers_to_the_right_and_marks_what_is_missing():
    assert format_table(["a", "n"], [["x", 1], ["yy", None]]) == "a   n\nx   1\nyy  -"


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (InputError("a.nii: is broken."), 1, "slicemill: a.nii: is broken.\n"),
        (UsageError("--mode x: choose a or b."), 2, "slicemill: --mode x: choose a or b.\n"),
        (OSError(28, "No space left on device", "x.part"), 1, "slicemill: x.part: No space left on device."),
        (KeyboardInterrupt(), 130, "slicemill: interrupted"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_no_traceback(error, status, shown, capsys):
    with pytest.raises(SystemExit) as stopped, report_errors():
        raise error
    assert stopped.value.code == status
    assert capsys.readouterr().err.startswith(shown)


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError), report_errors():
        raise KeyError("x")


def test_results_stay_on_standard_output_beside_a_bar_on_a_terminal():
    code = (
        "from slicemill.common.progress import progress\nfrom slicemill.common.terminal import print_line\n"
        "with progress('infer', 2, 'scans') as advance:\n    print_line('a worker'); advance(1, 'none failed')"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, cwd=HERE, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16)
    os.close(ours)
    assert done.stdout == b"a worker\n"
    assert b"1/2 scans" in shown
    assert b"a worker" not in shown
