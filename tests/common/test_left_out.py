"""Left-out files are listed with their reasons: a line for each reason, and counted beyond the first lines."""

from pathlib import Path

import pytest

from slicemill.common.left_out import GROUPED, SHOWN, LeftOut, print_left_out
from slicemill.common.output import use_output


def listed(capsys, left_out):
    print_left_out(left_out)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("number", "more"), [(0, 0), (1, 0), (SHOWN, 0), (SHOWN + 1, 1), (SHOWN + 60, 60)])
def test_files_with_reasons_of_their_own_have_a_line_or_are_counted(capsys, number, more):
    lines = listed(capsys, [LeftOut(Path(f"scans/{index}.nii"), f"reason {index}") for index in range(number)])
    assert lines[:SHOWN] == [f"left out: scans/{index}.nii: reason {index}" for index in range(number - more)]
    assert lines[SHOWN:] == ([f"left out: {more} more; --verbose lists all"] if more else [])


def test_files_with_one_reason_share_a_line(capsys):
    masks = [LeftOut(Path(f"lits/segmentation-{index}.nii"), "is a mask") for index in range(131)]
    other = LeftOut(Path("lits/notes.nii"), "is empty")
    assert listed(capsys, [*masks, other]) == [
        "left out: 131 files in lits, like segmentation-0.nii: is a mask",
        "left out: lits/notes.nii: is empty",
    ]


def test_few_files_with_one_reason_are_named(capsys):
    masks = [LeftOut(Path(f"lits/{index}.nii"), "is a mask") for index in range(GROUPED - 1)]
    assert listed(capsys, masks) == [f"left out: lits/{index}.nii: is a mask" for index in range(GROUPED - 1)]


def test_files_beyond_the_last_line_are_counted_one_by_one(capsys):
    alone = [LeftOut(Path(f"a/{index}.nii"), f"reason {index}") for index in range(SHOWN)]
    masks = [LeftOut(Path(f"b/{index}/mask.nii"), "is a mask") for index in range(5)]
    assert listed(capsys, [*alone, *masks])[-1] == "left out: 5 more; --verbose lists all"
    assert listed(capsys, masks) == ["left out: 5 files in 5 folders, like mask.nii: is a mask"]


def test_verbose_lists_every_file(capsys):
    masks = [LeftOut(Path(f"lits/{index}.nii"), "is a mask") for index in range(SHOWN + 60)]
    with use_output(quiet=False, verbose=True, log_file=None):
        assert len(listed(capsys, masks)) == SHOWN + 60
