"""Output paths: no output replaces a scan or another scan's output."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slicemill.common.errors import ScanError
from slicemill.ct.window import Window
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import Job
from slicemill.infer.run.outputs import OutputPaths, check_output_paths
from slicemill.infer.run.watch import filter_conflicts


def jobs_of(*names):
    return [Job(name=name, path=Path("in", name)) for name in names]


@pytest.mark.parametrize(
    ("names", "extras"),
    [
        (("a_liver.nii.gz", "a.nii.gz"), ["liver"]),
        (("a.nii.gz", "a_liver.nii.gz"), ["liver"]),
        (("a.nii.gz", "a_b.nii.gz"), ["b_c", "c"]),
        (("a.nii.gz",), ["liver", "liver"]),
    ],
)
def test_two_outputs_with_one_path_are_refused_in_a_list_and_in_a_watch_folder(names, extras, tmp_path):
    jobs, left_out = jobs_of(*names), {}
    with pytest.raises(ScanError, match="written next to its mask, would overwrite a file of"):
        check_output_paths(jobs, tmp_path, extras)
    taken = list(filter_conflicts(jobs, OutputPaths(tmp_path, extras), left_out.__setitem__))
    assert [job.name for job in taken] == list(names[: len(names) - 1])
    ((path, why),) = left_out.items()
    assert path == jobs[-1].path
    assert "written next to its mask, would overwrite a file of" in why
    assert not why.startswith("in/"), "the path precedes it"


@pytest.mark.parametrize(
    ("name", "of_the_run"),
    [
        ("summary.nii", True),
        ("summary-3-of-64.nii.gz", True),
        ("summary-worker-0.nii", True),
        ("summary-2.nii", False),
        ("p1/summary.nii", False),
        ("ledger.nii", False),
    ],
)
def test_an_output_of_a_scan_never_replaces_the_summary(name, of_the_run, tmp_path):
    left_out = {}
    kept = list(filter_conflicts(jobs_of("a.nii", name), OutputPaths(tmp_path), left_out.__setitem__))
    assert len(kept) == 2 - of_the_run
    assert ["overwrite the run's summary; rename the scan" in why for why in left_out.values()] == [True] * of_the_run


def test_a_later_run_replaces_no_output_of_a_scan_that_is_gone(tmp_path):
    for name in ("a_liver.nii", "b.nii"):
        (tmp_path / name).write_bytes(b"mask")
    earlier = ["a_liver.nii", "gone_liver.nii", "b.nii", "a.nii"]
    with pytest.raises(
        ScanError, match=r"a_liver.nii, written next to its mask, would overwrite a file of .*earlier run"
    ):
        check_output_paths(jobs_of("a.nii"), tmp_path, ["liver"], earlier)
    check_output_paths(jobs_of("b.nii", "gone.nii", "a_liver.nii"), tmp_path, ["liver"], earlier)
    check_output_paths(jobs_of("a.nii"), tmp_path, (), earlier)


def test_a_scan_that_arrives_again_keeps_its_output_paths(tmp_path):
    jobs = jobs_of("a.nii.gz", "b.nii.gz", "a.nii.gz")
    assert list(filter_conflicts(jobs, OutputPaths(tmp_path, ["liver"]), pytest.fail)) == jobs


def test_reports_and_pictures_replace_no_scan(tmp_path):
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "a.png")
    for name in ("a.hdr", "a.img", "b.nii"):
        (tmp_path / name).write_bytes(b"bytes")
    jobs, _ = gather([tmp_path / "b.nii", tmp_path / "a.png"], Window(-200, 300))
    check_output_paths(jobs, tmp_path / "out")
    jobs, _ = gather([tmp_path / "a.hdr", tmp_path / "a.png"], Window(-200, 300))
    with pytest.raises(ScanError, match=r"a\.(png|nii\.gz): an output would overwrite this scan"):
        check_output_paths(jobs, tmp_path)
    with pytest.raises(ScanError, match=r"a\.png: an output would overwrite this scan"):
        check_output_paths([Job(name="a.nii", path=Path("elsewhere", "a.nii")), jobs[1]], tmp_path)


def test_the_mask_of_a_pair_is_not_written_where_it_would_look_like_the_scan(tmp_path):
    for name in ("a.hdr", "a.img"):
        (tmp_path / name).write_bytes(b"bytes")
    with pytest.raises(ScanError, match=r"a\.nii\.gz: an output would overwrite this scan"):
        check_output_paths(gather([tmp_path])[0], tmp_path)
