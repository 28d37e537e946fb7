"""What commands print: tables, one line per error, and results next to a progress bar."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from slicemill.common.errors import InputError, UsageError
from slicemill.common.output import escape
from slicemill.common.terminal import format_table, print_line, print_lines, report_errors

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


HOSTILE = ("red\x1b[31mRED\x1b[2J", "new\nline", "c1\x9b31mx", "\u202egnp", "title\x1b]0;t\x07", "half\udcff", "\r")


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_of_a_name_reaches_the_terminal_raw(name, capsys):
    print_line(f"failed: {name}: is broken.")
    print_lines(format_table(["case", "n"], [[name, 1]]))
    with pytest.raises(SystemExit), report_errors():
        raise InputError(f"{name}: is broken.")
    shown = capsys.readouterr()
    assert (shown.out.count("\n"), shown.err.count("\n")) == (3, 1)
    assert all(letter.isprintable() or letter == "\n" for letter in shown.out + shown.err)
    assert escape(name).isprintable()


def test_names_in_other_scripts_stay_as_they_are():
    assert escape("Lebertumor é 肝臓 печень") == "Lebertumor é 肝臓 печень"


PRINTS = """
from pathlib import Path
import sys
from slicemill.common.terminal import open_closed_streams, print_line, print_message, report_errors
open_closed_streams()
with report_errors():
    for number in range(3000):
        print_line(f"done {number} \u809d")
    print_message("done")
    Path(sys.argv[1]).write_text("the work is done")
"""


@pytest.mark.parametrize("ending", [">&-", "2>&-", "<&- >&- 2>&-", "| head -1", "| true", "2>&1 | true"])
def test_without_a_reader_the_work_is_done_and_there_is_no_traceback(ending, tmp_path):
    (tmp_path / "prints.py").write_text(PRINTS)
    done = subprocess.run(  # noqa: S602 (redirections are a shell's)
        f"{sys.executable} {tmp_path / 'prints.py'} {tmp_path / 'done'} {ending}; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", cwd=HERE, env=os.environ | {"PYTHONPATH": str(HERE)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (tmp_path / "done").read_text() == "the work is done"
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_any_encoding_of_the_terminal_will_do(encoding, tmp_path):
    (tmp_path / "prints.py").write_text(PRINTS)
    done = subprocess.run(
        [sys.executable, tmp_path / "prints.py", tmp_path / "done"],
        cwd=HERE, env=os.environ | {"PYTHONPATH": str(HERE), "PYTHONIOENCODING": encoding}, capture_output=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"slicemill: done\n")
    assert done.stdout.splitlines()[0] == ("done 0 \u809d" if encoding == "utf-8" else "done 0 \\u809d").encode()
