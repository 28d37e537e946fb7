"""Folders of PNG slices beside DICOM series, as CHAOS ships them, as masks of `measure` and `evaluate`."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from slicemill.common.errors import PairingError
from slicemill.common.files import read_json
from slicemill.ct.formats.dicom.lookup import open_series
from slicemill.ct.formats.nifti.make import make_header
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.labels import LITS_LABELS
from slicemill.measure.inputs.pairs import pair_up
from slicemill.measure.lesions.jobs import gather_jobs
from tests.infer.commands import run_command
from tests.ingest.test_png_masks import ORDERS, make_mask, write_chaos

LABELS = ["--labels", "liver=1"]


@pytest.fixture
def chaos(tmp_path):
    """Two patients whose slices are named from the top down, and their masks as NIfTI below ``masks``."""
    for seed, name in enumerate(("1", "2")):
        folder = tmp_path / "CT" / name
        mask = make_mask(seed)
        write_chaos(folder, mask, order=ORDERS["down"])
        grid = open_series(folder / "DICOM_anon").grid
        path = tmp_path / "masks" / name / "DICOM_anon.nii.gz"  # as `infer` names it
        path.parent.mkdir(parents=True)
        write_volume(path, make_header(grid), np.uint8, mask.astype(np.uint8))
    return tmp_path


def test_measures_are_those_of_the_same_masks_as_nifti(chaos):
    for masks, images, out in (("CT", None, "a"), ("masks", "CT", "b")):
        words = ["--image", chaos / images] if images else []
        result = run_command("measure", chaos / masks, *words, "--out", chaos / out, *LABELS)
        assert result.exit_code == 0, result.output
    for name in ("1", "2"):
        mine, other = (read_json(chaos / out / name / "DICOM_anon.json") for out in ("a", "b"))
        assert mine["volumes_ml"] == other["volumes_ml"]
        assert mine["source"]["image"] == other["source"]["image"]
        assert mine["source"]["mask"]["name"] == "Ground"


@pytest.mark.parametrize("swapped", [False, True])
def test_scores_are_those_of_the_same_masks_as_nifti(swapped, chaos):
    """Whichever is the reference, and with one voxel that differs."""
    path = chaos / "masks" / "2" / "DICOM_anon.nii.gz"
    mask = make_mask(1)
    z, y, x = np.argwhere(mask)[0]
    mask[z, y, x] = False
    grid = open_series(chaos / "CT" / "2" / "DICOM_anon").grid
    write_volume(path, make_header(grid), np.uint8, mask.astype(np.uint8))
    folders = (chaos / "CT", chaos / "masks") if swapped else (chaos / "masks", chaos / "CT")
    result = run_command("evaluate", *folders, "--out", chaos / "scores", *LABELS)
    assert result.exit_code == 0, result.output
    dice = {row["case_id"]: row["dice_liver"] for row in read_json(chaos / "scores" / "evaluation.json")["by_case"]}
    count = int(mask.sum())
    assert dice == {"1/DICOM_anon": 1, "2/DICOM_anon": pytest.approx(2 * count / (2 * count + 1), abs=1e-4)}


def test_a_single_folder_is_a_mask(chaos):
    folder = chaos / "CT" / "1"
    (job,) = gather_jobs(folder / "Ground", None, None)
    assert (job.name, job.image) == ("Ground", folder / "DICOM_anon")
    (pair,) = pair_up(chaos / "masks" / "1", folder / "Ground").pairs
    assert pair.reference.mask.image == folder / "DICOM_anon"
    (pair,) = pair_up(folder / "Ground", chaos / "masks" / "1").pairs
    assert pair.image == folder / "DICOM_anon"


def test_slices_beside_two_series_or_none_are_failures_that_say_so(chaos):
    shutil.copytree(chaos / "CT" / "2" / "DICOM_anon", chaos / "CT" / "1" / "DICOM_late")
    result = run_command("measure", chaos / "CT", "--out", chaos / "a", *LABELS)
    assert result.exit_code == 1
    assert "a DICOM series only, and there is none for this folder, or there are several" in " ".join(
        result.output.split()
    )
    shutil.rmtree(chaos / "CT" / "1" / "DICOM_late")
    shutil.copytree(chaos / "CT" / "1" / "Ground", chaos / "alone" / "masks" / "1")
    result = run_command("evaluate", chaos / "alone", chaos / "alone", *LABELS)
    assert result.exit_code == 1
    assert "Put it beside the folder of its series" in " ".join(result.output.split())


def test_slices_in_another_folder_are_paired_with_a_series_of_their_name(chaos):
    shutil.move(chaos / "CT" / "1" / "DICOM_anon", chaos / "scans" / "1")
    shutil.move(chaos / "CT" / "1" / "Ground", chaos / "slices" / "1" / "Ground")
    (job,) = gather_jobs(chaos / "slices", chaos / "scans", None)
    assert (job.name, job.image) == ("1", chaos / "scans" / "1")


def test_pictures_beside_other_masks_or_scans_are_no_masks(chaos):
    pictures = chaos / "masks" / "labels" / "pictures"
    shutil.copytree(chaos / "CT" / "1" / "Ground", pictures)
    assert [job.mask.suffix for job in gather_jobs(chaos / "masks", None, None)] == [".gz", ".gz"]
    shutil.copytree(chaos / "CT" / "1" / "DICOM_anon", chaos / "series" / "p1")
    shutil.copytree(pictures, chaos / "series" / "pictures")
    assert [job.mask.name for job in gather_jobs(chaos / "series", None, None)] == ["p1"]


@pytest.mark.parametrize(("inside", "path"), [(".", "."), ("deeper", "..")])
def test_a_folder_of_slices_may_be_the_one_that_the_user_is_in(inside, path, chaos, monkeypatch):
    """``.`` and ``..`` name no case; the folder does."""
    ground = chaos / "CT" / "1" / "Ground"
    if inside != ".":
        (ground / ".deeper").mkdir()  # hidden: the folder has PNG files only
        inside = ".deeper"
    monkeypatch.chdir(ground / inside)
    (job,) = gather_jobs(Path(path), None, LITS_LABELS)
    assert (job.name, job.image) == ("Ground", chaos / "CT" / "1" / "DICOM_anon")
    result = run_command("measure", path, "--out", chaos / "out", *LABELS)
    assert result.exit_code == 0, result.output
    assert read_json(chaos / "out" / "Ground.json")["source"]["mask"]["name"] == "Ground"
    for predictions, references in ((path, chaos / "CT" / "1"), (chaos / "CT" / "1", path)):
        (pair,) = pair_up(Path(predictions), Path(references)).pairs
        assert pair.reference.case_id.endswith("DICOM_anon")


def test_slices_of_both_sides_are_drawn_each_on_the_series_beside_them(tmp_path):
    """Two readers have the same masks and scans, but the files are named from other ends: every number is another."""
    for reader, order in (("a", "up"), ("b", "down")):
        write_chaos(tmp_path / reader / "1", make_mask(0), order=ORDERS[order])
    for folders in (("a", "b"), ("b", "a"), ("a/1/Ground", "b/1/Ground")):
        result = run_command("evaluate", *(tmp_path / name for name in folders), "--out", tmp_path / "scores", *LABELS)
        assert result.exit_code == 0, result.output
        (row,) = read_json(tmp_path / "scores" / "evaluation.json")["by_case"]
        assert row["dice_liver"] == 1


def test_a_copy_of_the_series_beside_the_slices_is_refused_as_their_scan(tmp_path):
    write_chaos(tmp_path / "a" / "1", make_mask(0), order=ORDERS["up"])
    write_chaos(tmp_path / "b" / "1", make_mask(0), order=ORDERS["down"])
    mask = tmp_path / "a" / "1" / "Ground"
    for image in ("a", "a/1", "a/1/DICOM_anon"):
        (job,) = gather_jobs(mask, tmp_path / image, LITS_LABELS)
        assert job.image == tmp_path / "a" / "1" / "DICOM_anon"
    with pytest.raises(PairingError, match="has its series beside it, .*; leave out --image"):
        gather_jobs(mask, tmp_path / "b" / "1" / "DICOM_anon", LITS_LABELS)
