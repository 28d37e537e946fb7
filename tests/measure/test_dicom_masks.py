"""SEG, RTSTRUCT and series of label values as masks of `measure` and `evaluate`."""

import json
import shutil

import numpy as np
import pytest

from slicemill.common.errors import PairingError
from slicemill.common.files import read_json
from slicemill.ct.formats.nifti.header import sign_header
from slicemill.ct.formats.nifti.make import make_header
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.labels import Labels
from slicemill.ct.mask_files import name_labels
from slicemill.measure.inputs.pairs import pair_up
from slicemill.measure.lesions.jobs import gather_jobs
from slicemill.web.entries import ViewRequest, find_entries
from tests.ct.dicom_objects.series import IN_PLANE, make_label, make_series, write_series
from tests.infer.commands import run_command

LABELS = ["--labels", "liver=1,tumor=2"]
KINDS = {"seg": ["--dicom-seg"], "labelmap": ["--dicom-seg", "--seg-type", "labelmap"], "rtstruct": ["--rtstruct"]}


def write_case(folder, name="p1", uid="1.2.3.4", seed=1):
    """Write a series below ``scans`` and its mask as NIfTI below ``masks``; return series and label."""
    series = make_series(IN_PLANE[6])
    for header in series.headers:
        header.SeriesInstanceUID = uid
        header.SOPInstanceUID = f"{uid}.{header.InstanceNumber}"
    label = make_label(series.grid.stored_shape)
    hu = np.random.default_rng(seed).integers(0, 90, label.shape, dtype=np.int16)
    write_series(series, folder / "scans" / name, hu)
    write_volume(folder / "masks" / f"{name}.nii.gz", make_header(series.grid), np.uint8, series.grid.to_file(label))
    return series, label


def write_objects(folder, kind):
    """Write the masks of a folder as DICOM objects below ``objects``, under names that say nothing of the scans."""
    words = ["measure", folder / "masks", "--image", folder / "scans", "--out", folder / "made", *LABELS]
    result = run_command(*words, *KINDS[kind])
    assert result.exit_code == 0, result.output
    (folder / "objects").mkdir()
    for number, path in enumerate(sorted((folder / "made").glob("*.dcm"))):
        shutil.move(path, folder / "objects" / f"1.2.9.{number}.dcm")
    return folder / "objects"


@pytest.fixture
def case(tmp_path):
    write_case(tmp_path)
    return tmp_path


def numbers(value):
    """Return all numbers of a part of a record, in order."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for one in value for number in numbers(one)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.parametrize("kind", KINDS)
def test_measures_are_those_of_the_same_mask_as_nifti(kind, case):
    objects = write_objects(case, kind)
    for out, more in (("a", LABELS), ("b", [])):
        result = run_command("measure", objects, "--image", case / "scans", "--out", case / out, *more)
        assert result.exit_code == 0, result.output
        mine, other = read_json(case / out / "1.2.9.0.json"), read_json(case / "made" / "p1.json")
        for key in mine.keys() - {"name", "case_id", "source", "warnings", "stamp", "dicom"}:
            assert numbers(mine[key]) == pytest.approx(numbers(other[key]), rel=1e-5, abs=1e-3), key
        assert len(mine["lesions"]) > 0


def test_a_single_object_finds_its_series_in_a_folder_of_several(case):
    objects = write_objects(case, "seg")
    write_case(case, "p2", "1.2.3.5")
    result = run_command("measure", objects / "1.2.9.0.dcm", "--image", case / "scans", "--out", case / "a", *LABELS)
    assert result.exit_code == 0, result.output
    shutil.rmtree(case / "scans" / "p1")
    write_case(case, "p3", "1.2.3.6")
    result = run_command("measure", objects / "1.2.9.0.dcm", "--image", case / "scans", "--out", case / "b", *LABELS)
    assert result.exit_code == 1
    assert "refers to no series in this folder" in result.output


def test_an_object_without_its_scan_is_refused(case):
    objects = write_objects(case, "seg")
    result = run_command("measure", objects, "--out", case / "a", *LABELS)
    assert result.exit_code == 1
    assert "the grid of its scan" in " ".join(result.output.split())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", ["masks", "objects"])
def test_predictions_and_references_in_dicom_score_as_nifti(kind, prediction, case):
    """The series that a mask refers to, or the name of that series, pairs them."""
    write_objects(case, kind)
    (case / "both").mkdir()
    shutil.copytree(case / "objects", case / "both" / "objects")
    shutil.copytree(case / "scans", case / "both" / "scans")
    result = run_command("evaluate", case / prediction, case / "both", "--out", case / "scores", *LABELS)
    assert result.exit_code == 0, result.output
    (row,) = read_json(case / "scores" / "evaluation.json")["by_case"]
    assert (row["case_id"], row["dice_liver"], row["dice_tumor"]) == ("p1", 1, 1)


@pytest.mark.slow
def test_an_object_is_drawn_on_the_grid_of_the_other_mask_if_there_is_no_scan(case):
    objects = write_objects(case, "seg")
    (objects / "1.2.9.0.dcm").rename(objects / "p1.dcm")
    for prediction, reference in (("masks", "objects"), ("objects", "masks")):
        out = case / f"scores-{prediction}"
        result = run_command("evaluate", case / prediction, case / reference, "--out", out, *LABELS)
        assert result.exit_code == 0, result.output
        assert read_json(out / "evaluation.json")["by_case"][0]["dice_tumor"] == 1
    result = run_command("evaluate", objects, objects, "--out", case / "both")
    assert result.exit_code == 1
    assert "the grid of its scan" in " ".join(result.output.split())


def test_a_mask_of_another_place_is_a_failure(case):
    objects = write_objects(case, "seg")
    (objects / "1.2.9.0.dcm").rename(objects / "p1.dcm")
    series, label = write_case(case)
    affine = series.grid.affine.copy()
    affine[0, 3] += 0.4
    moved = type(series.grid)(shape=series.grid.shape, affine=affine)
    write_volume(case / "masks" / "p1.nii.gz", make_header(moved), np.uint8, moved.to_file(label))
    result = run_command("evaluate", case / "masks", objects, "--out", case / "scores", *LABELS)
    assert result.exit_code == 1
    assert "must lie on the voxels of a slice of its scan" in " ".join(result.output.split())


def test_masks_of_different_series_do_not_pair_by_name(case):
    objects = write_objects(case, "seg")
    (objects / "1.2.9.0.dcm").rename(objects / "p1.dcm")
    write_case(case / "other", uid="1.2.3.99")
    other = write_objects(case / "other", "seg")
    (other / "1.2.9.0.dcm").rename(other / "p1.dcm")
    with pytest.raises(PairingError, match="none of the 1 masks matches"):
        pair_up(objects, other)


def write_report(path):
    """Write the fields by which a report of `infer` is known."""
    path.write_text(json.dumps({"model_sha256": "0" * 64, "slice_tumor_scores": []}))


@pytest.mark.parametrize("name", ["p1", "p1_mask"])
def test_an_object_beside_the_same_mask_in_another_format_is_one_mask(name, case):
    write_objects(case, "seg")
    (case / "masks" / "p1.nii.gz").rename(case / "masks" / f"{name}.nii.gz")
    shutil.copy(case / "objects" / "1.2.9.0.dcm", case / "masks" / f"{name}.seg.dcm")
    if name == "p1":
        write_report(case / "masks" / "p1.json")
    (job,) = gather_jobs(case / "masks", case / "scans", None)
    assert job.mask.name == f"{name}.nii.gz"
    (pair,) = pair_up(case / "masks", case / "masks").pairs
    assert pair.prediction.name == f"{name}.nii.gz"


def test_a_mask_of_another_format_that_names_its_model_is_known_without_a_report(case):
    write_objects(case, "seg")
    shutil.copy(case / "objects" / "1.2.9.0.dcm", case / "masks" / "p1.seg.dcm")
    series, label = write_case(case)
    header = sign_header(make_header(series.grid), "0" * 64)
    write_volume(case / "masks" / "p1.nii.gz", header, np.uint8, series.grid.to_file(label))
    assert [job.mask.name for job in gather_jobs(case / "masks", case / "scans", None)] == ["p1.nii.gz"]


@pytest.mark.parametrize("more", [[], ["p2_mask.nii.gz"]])
def test_a_scan_of_another_format_beside_its_object_is_no_mask(more, case):
    """The scan, as NIfTI, and its SEG have one name."""
    series, label = write_case(case)
    write_objects(case, "seg")
    folder = case / "export"
    folder.mkdir()
    shutil.copy(case / "objects" / "1.2.9.0.dcm", folder / "p1.seg.dcm")
    hu = np.random.default_rng(1).integers(-900, 900, label.shape, dtype=np.int16)
    write_volume(folder / "p1.nii.gz", make_header(series.grid), np.int16, series.grid.to_file(hu))
    for name in more:
        shutil.copy(case / "masks" / "p1.nii.gz", folder / name)
    jobs = gather_jobs(folder, folder, None)
    assert sorted(job.mask.name for job in jobs) == ["p1.seg.dcm", *more]
    assert {job.mask.name: job.image for job in jobs}["p1.seg.dcm"] == folder / "p1.nii.gz"
    (pair,) = pair_up(folder, case / "masks").pairs
    assert pair.prediction.name == "p1.seg.dcm"
    result = run_command("evaluate", folder, case / "masks", "--out", case / "scores", *LABELS)
    assert result.exit_code == 0, result.output
    assert read_json(case / "scores" / "evaluation.json")["by_case"][0]["dice_tumor"] == 1
    (reference,) = (pair.reference for pair in pair_up(case / "masks", folder).pairs)
    assert (reference.mask.path.name, reference.mask.image) == ("p1.seg.dcm", folder / "p1.nii.gz")


def test_masks_of_infer_beside_an_object_of_another_case_stay_references(case):
    write_objects(case, "seg")
    shutil.copy(case / "objects" / "1.2.9.0.dcm", case / "masks" / "p9.dcm")
    write_report(case / "masks" / "p1.json")
    names = {pair.reference.mask.path.name for pair in pair_up(case / "masks", case / "masks").pairs}
    assert names == {"p1.nii.gz", "p9.dcm"}


def test_a_series_of_label_values_is_a_mask(case):
    series, label = write_case(case)
    write_series(series, case / "truth" / "masks" / "p1", label.astype(np.int16))
    result = run_command("evaluate", case / "masks", case / "truth", "--out", case / "scores", *LABELS)
    assert result.exit_code == 0, result.output
    assert read_json(case / "scores" / "evaluation.json")["by_case"][0]["dice_tumor"] == 1
    result = run_command("measure", case / "truth", "--image", case / "scans", "--out", case / "out", *LABELS)
    assert result.exit_code == 0, result.output


def test_scans_in_dicom_are_no_masks_beside_masks(case):
    shutil.copytree(case / "scans", case / "masks" / "scans")
    assert [job.mask.name for job in gather_jobs(case / "masks", None, None)] == ["p1.nii.gz"]
    assert [pair.reference.case_id for pair in pair_up(case / "masks", case / "masks").pairs] == ["p1"]


def test_labels_come_from_the_names_of_segments(case):
    objects = write_objects(case, "rtstruct")
    assert name_labels(objects.glob("*.dcm")) == Labels({"liver": 1, "tumor": 2}, organ="liver", tumor="tumor")
    assert name_labels([*objects.glob("*.dcm"), case / "masks" / "p1.nii.gz"]) is None


def test_the_viewer_shows_an_object(case):
    objects = write_objects(case, "seg")
    (entry,) = find_entries(ViewRequest(path=objects, scans=case / "scans"))
    (mask,) = entry.open().masks
    assert mask.failure is None
    assert sum(np.count_nonzero(slab.voxels) for slab in mask.source.slabs([])) > 0
