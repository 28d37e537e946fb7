"""DICOM series are segmented like files of other formats."""

import nibabel as nib
import numpy as np
import pytest

import slicemill
from slicemill.common.errors import ScanError
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import load_scan
from slicemill.infer.run.watch import WatchFolder
from tests.ct.dicom.made import make_series, make_volume, save_series, write_series
from tests.infer.commands import run_command


def names(jobs):
    return [job.name for job in jobs]


class TestGather:
    def test_a_folder_gives_a_job_for_each_series(self, tmp_path):
        write_series(tmp_path / "in" / "p1")
        slices = make_series(make_volume()) + make_series(make_volume(), SeriesInstanceUID="1.9", SeriesNumber=4)
        save_series(tmp_path / "in" / "p2", slices)
        write_series(tmp_path / "in" / "seg", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
        jobs, left_out = gather([tmp_path / "in"])
        assert names(jobs) == ["p1.nii.gz", "p2_3.nii.gz", "p2_4.nii.gz"]
        assert {one.reason for one in left_out} == {"a DICOM segmentation (SEG), not a CT"}

    def test_a_series_is_one_job_however_it_is_named(self, tmp_path):
        write_series(tmp_path / "in" / "p1")
        folder = tmp_path / "in" / "p1"
        for inputs in ([folder], sorted(folder.iterdir()), [str(folder / "IM*")], [str(tmp_path / "in" / "*")]):
            jobs, _ = gather(inputs)
            assert names(jobs) == ["p1.nii.gz"], inputs
            assert load_scan(jobs[0]).volume.shape == (5, 6, 7)

    def test_a_stamp_changes_with_any_slice(self, tmp_path):
        write_series(tmp_path / "p1")
        (job,), _ = gather([tmp_path / "p1"])
        before = job.stamp()
        assert job.stamp() == before
        (tmp_path / "p1" / "IM004").touch()
        assert job.stamp() != before

    def test_a_folder_without_a_ct_says_what_it_has(self, tmp_path):
        write_series(tmp_path / "in", SOPClassUID="1.2.840.10008.5.1.4.1.1.128")
        with pytest.raises(ScanError, match="contains no scans .* IM001: a PET image, not a CT"):
            gather([tmp_path / "in"])


def test_a_pattern_that_matches_other_files_says_so(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"text")
    with pytest.raises(ScanError, match="matches 2 paths, like a, but no .* file and no DICOM series"):
        gather([str(tmp_path / "*")])


def test_series_are_not_watched_but_named(tmp_path):
    write_series(tmp_path / "in" / "p1")
    watched = WatchFolder(folder=tmp_path / "in", settle_seconds=0, log=lambda _: None)
    assert watched.find_ready(0) == []
    assert list(watched.left_out) == [tmp_path / "in" / "p1"]


@pytest.mark.parametrize("tilt", [0, 14])
def test_masks_lie_on_the_series(tilt, model, tmp_path):
    angle = np.radians(tilt)
    orientation = [1, 0, 0, 0, np.cos(angle), -np.sin(angle)]
    volume = write_series(tmp_path / "in" / "p1", make_volume((5, 64, 64)), ImageOrientationPatient=orientation)
    gap = make_series(make_volume((6, 64, 64)))
    save_series(tmp_path / "in" / "p2", [one for k, one in enumerate(gap) if k != 3])
    done = run_command("infer", model, tmp_path / "in", "--out", tmp_path / "out", "--provider", "cpu")
    assert done.exit_code == 1
    assert "p2" in done.output
    assert "1 slice is missing" in done.output
    mask = nib.load(tmp_path / "out" / "p1.nii.gz")
    scan = load_scan(gather([tmp_path / "in" / "p1"])[0][0])
    assert mask.shape == (64, 64, 5)
    assert np.allclose(mask.affine, scan.grid.affine, atol=1e-4)
    segmentation = slicemill.Model(model).segment(tmp_path / "in" / "p1")
    assert np.array_equal(np.asarray(mask.dataobj), segmentation.label)
    assert np.array_equal(scan.volume.shape, volume.shape)


def test_info_describes_a_series(tmp_path):
    write_series(tmp_path / "p1")
    done = run_command("info", tmp_path / "p1")
    assert done.exit_code == 0
    assert "DICOM, explicit VR little endian" in done.output
    assert "Doe" not in done.output
