"""What can be dropped on the page of `slicemill serve`, and that the answer is that of `infer` on the same scan."""

import csv
import gzip
import io
import json
import struct
import time
import zipfile

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 (its own documentation's name)
from PIL import Image

from slicemill.store.training_scans import TrainingScans
from tests.contents import content
from tests.ct.dicom_objects.series import IN_PLANE, make_series, write_series
from tests.infer.commands import run_command
from tests.infer.networks import write_described, write_model, write_threshold
from tests.web.jobs import HU, TUMORS, dropping, make_hu, serving_jobs, write_nifti

TRAINING = TrainingScans(
    cases=4,
    slice_spacing_mm=(2.0, 3.0),
    pixel_mm=(0.5, 1.5),
    body_cm2=(8.0, 16.0),
    body_hu=((-90, -70), (-90, -70), (-90, -70)),
)
"""What `make_hu` is within, with the margins, but not what is brighter or has other slices."""
PICTURE = {"low": -200, "high": 300, "left": 0, "top": 0, "right": 64, "bottom": 48}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    models = [
        write_threshold(folder / "net.onnx"),
        write_model(folder / "plain.onnx", {"bright": 1}),
        write_described(folder / "described.onnx", TRAINING),
    ]
    (folder / "private").mkdir()
    with serving_jobs(models, folder / "private") as one:
        yield one


@pytest.fixture
def page(served):
    with dropping(served) as client:
        yield client
        for job in client.client.get("/api/server").json()["jobs"]:
            client.end(job["id"])
    served.wait_until_empty()


def mask_of(page, state):
    data = page.result(state, "segmentation.nii.gz")
    image = nib.Nifti1Image.from_bytes(gzip.decompress(data))
    return np.asarray(image.dataobj), image.affine


def write_itk(path, hu=None):
    image = sitk.GetImageFromArray(make_hu() if hu is None else hu)
    image.SetSpacing((1.0, 1.0, 2.5))
    sitk.WriteImage(image, str(path))
    return path


def write_dicom(folder, directions=IN_PLANE[3], shape=(5, 16, 16)):
    series = make_series(directions, shape)
    hu = np.full(series.grid.stored_shape, -50, dtype=np.int16)
    hu[1:3, 2:5, 3:9] = 90
    return write_series(series, folder, hu)


def test_a_mask_is_that_of_infer(page, served, tmp_path):
    scan = write_nifti(tmp_path / "ct.nii.gz")
    model = served.jobs.models._words[1]
    assert run_command("infer", model, scan, "--out", tmp_path / "out", "--provider", "cpu").exit_code == 0
    (expected,) = (tmp_path / "out").rglob("*ct.nii.gz")
    state = page.finish(scan)
    assert gzip.decompress(page.result(state, "segmentation.nii.gz")) == content(expected)
    report = json.loads(page.result(state, "segmentation.json"))
    of_infer = json.loads(expected.with_name("ct.json").read_text())
    assert {**report, "scan": ""} == {**of_infer, "scan": ""}


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "mha", "nrrd"])
def test_one_file_of_each_format(page, tmp_path, suffix):
    path = tmp_path / f"a scan.{suffix}"
    state = page.finish(write_nifti(path) if "nii" in suffix else write_itk(path))
    assert state["name"] == path.name
    assert state["answer"]["headline"] == "Tumor found: 2, largest 10 mm (slice 4)"
    mask, _ = mask_of(page, state)
    assert np.array_equal(mask.T[..., ::1] if "nii" in suffix else mask.T, make_hu() == HU)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mhd", "nhdr", "hdr"])
def test_a_header_and_its_data_are_put_together_again(page, tmp_path, suffix):
    if suffix == "hdr":
        nib.save(nib.Nifti1Pair(make_hu().T, np.diag([-1, -1, 2.5, 1])), tmp_path / "ct.img")
    else:
        write_itk(tmp_path / f"ct of a person.{suffix}")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    state = page.finish(*files)
    assert state["answer"]["headline"] == "Tumor found: 2, largest 10 mm (slice 4)"


def test_a_header_without_its_data_says_what_is_missing(page, tmp_path):
    write_itk(tmp_path / "ct.mhd")
    failure = page.fail(tmp_path / "ct.mhd")
    assert "ct.raw" in failure
    assert "slicemill-serve" not in failure


def test_the_files_of_a_series_give_dicom_results(page, tmp_path):
    files = write_dicom(tmp_path / "series")
    state = page.finish(*files)
    names = {file["name"] for file in state["files"]}
    assert {"measures.seg.dcm", "measures.sr.dcm", "measures.seg.nrrd"} <= names
    assert state["missing"] == []
    seg = pydicom.dcmread(io.BytesIO(page.result(state, "measures.seg.dcm")))
    source = pydicom.dcmread(files[0])
    assert seg.Modality == "SEG"
    assert (seg.StudyInstanceUID, seg.PatientID) == (source.StudyInstanceUID, source.PatientID)
    with zipfile.ZipFile(io.BytesIO(page.result(state, "all.zip"))) as archive:
        assert set(archive.namelist()) == names - {"all.zip"}
        assert archive.testzip() is None


def zipped(path, files, name=lambda file: file.name):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, name(file))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dicom", "nifti", "metaimage"])
def test_an_archive_is_what_is_in_it(page, tmp_path, kind):
    if kind == "dicom":
        files = write_dicom(tmp_path / "x")
    elif kind == "nifti":
        files = [write_nifti(tmp_path / "ct.nii.gz")]
    else:
        write_itk(tmp_path / "ct.mhd")
        files = sorted(tmp_path.iterdir())
    state = page.finish(zipped(tmp_path / "all.zip", files, lambda file: f"export/1/{file.name}"))
    assert state["answer"]["kind"] == "found"
    assert ("measures.seg.dcm" in {file["name"] for file in state["files"]}) == (kind == "dicom")


@pytest.mark.slow
def test_of_several_series_the_user_picks_one(page, tmp_path):
    long = write_dicom(tmp_path / "a", shape=(7, 16, 16))
    short = write_dicom(tmp_path / "b", IN_PLANE[5], (4, 16, 16))
    for file in short:  # a series of its own
        dataset = pydicom.dcmread(file)
        dataset.SeriesInstanceUID = "1.2.3.99"
        dataset.SeriesNumber = 9
        dataset.SOPInstanceUID = f"1.2.3.99.{dataset.InstanceNumber}" if "InstanceNumber" in dataset else (
            dataset.SOPInstanceUID + ".9")  # fmt: skip
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(file)
    archive = zipped(tmp_path / "study.zip", [*long, *short], lambda file: f"{file.parent.name}/{file.name}")
    job = page.drop(archive)
    state = page.wait(job, "choosing", "failed")
    details = [choice["detail"] for choice in state["choices"]]
    assert len(details) == 2
    assert any(detail.startswith("7 slices") for detail in details)
    index = next(index for index, detail in enumerate(details) if detail.startswith("4 slices"))
    deadline = time.monotonic() + 60
    while sorted(page.state(job)["thumbnails"]) != [0, 1]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    gray = np.frombuffer(page.client.get(f"/api/jobs/{job}/choices/{index}").content, np.uint8).reshape(96, 96)
    assert {37, 142} <= set(np.unique(gray)), "-50 and 90 HU from -100 to 240"
    assert (gray == 142).sum() / (gray > 0).sum() == pytest.approx(18 / 256, rel=0.2)
    assert page.client.get(f"/api/jobs/{job}/choices/2").status_code == 404
    assert page.post(f"/api/jobs/{job}/choose", {"index": 7}).status_code == 400
    assert page.post(f"/api/jobs/{job}/choose", {"index": index}).status_code == 204
    state = page.wait(job)
    assert state["status"] == "done", state["failure"]
    assert state["slices"] == 4
    assert page.post(f"/api/jobs/{job}/choose", {"index": 0}).status_code == 409


def test_a_scan_that_cannot_be_drawn_can_still_be_passed_over(page, tmp_path):
    whole = write_nifti(tmp_path / "good.nii").read_bytes()
    (tmp_path / "damaged.nii.gz").write_bytes(gzip.compress(whole[: len(whole) // 4]))
    large = bytearray(whole)
    large[42:46] = struct.pack("<hh", 32_000, 32_000)  # dim[1], dim[2]
    (tmp_path / "large.nii.gz").write_bytes(gzip.compress(large))
    job = page.drop(*sorted(tmp_path.glob("*.nii*")))
    state = page.wait(job, "choosing", "failed")
    usable = {choice["name"]: index for index, choice in enumerate(state["choices"]) if choice["refused"] is None}
    assert len(usable) >= 2, state["choices"]
    deadline = time.monotonic() + 60
    while usable["good.nii"] not in page.state(job)["thumbnails"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert page.post(f"/api/jobs/{job}/choose", {"index": usable["good.nii"]}).status_code == 204
    assert page.wait(job)["status"] == "done"


def test_a_synthetic_scan_needs_no_files_and_files_are_no_synthetic_scan(page, tmp_path):
    job = page.create()
    assert page.post(f"/api/jobs/{job}/start", {"is_example": True}).status_code == 204
    state = page.wait(job)
    assert (state["status"], state["name"], state["slices"]) == ("done", "Synthetic scan", 40)
    job = page.create()
    page.put(job, "a.nii", write_nifti(tmp_path / "a.nii").read_bytes())
    assert page.post(f"/api/jobs/{job}/start", {"is_example": True}).status_code == 409


def draw_picture(path, mode="L", **options):
    gray = np.full((48, 64), 60, dtype=np.uint8)
    gray[10:20, 8:24] = 200
    Image.fromarray(gray).convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["slice.png", "slice.jpg"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_picture_is_answered_in_percent_and_called_less_reliable(page, tmp_path, name, mode):
    state = page.finish(draw_picture(tmp_path / name, mode, quality=95), picture=PICTURE)
    assert state["answer"]["headline"] == "Tumor found: 1 area"
    assert state["answer"]["details"][0].startswith("Together 5.2 % of the frame")
    warnings = page.client.get(f"/api/cases/{state['id']}/progress").json()["warnings"]
    assert any("less reliable" in warning for warning in warnings)
    assert any("pixel size is unknown" in warning for warning in warnings)


@pytest.mark.slow
def test_a_pixel_size_and_a_frame_change_the_answer(page, tmp_path):
    path = draw_picture(tmp_path / "a.png")
    state = page.finish(path, picture={**PICTURE, "pixel_mm": 2.0})
    assert state["answer"]["headline"] == "Tumor found: 1 area, longest 37 mm"
    assert state["answer"]["details"][0].startswith("Together 6.40 cm²")
    state = page.finish(path, picture={**PICTURE, "left": 16})
    assert mask_of(page, state)[0].shape == (48, 48, 1)
    assert mask_of(page, state)[0].sum() == 80
    state = page.finish(path, picture={**PICTURE, "low": -1000, "high": -500})
    assert state["answer"]["kind"] == "none"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"right": 65}, "the frame must lie in the picture, 64 x 48 pixels"),
        ({"right": 8}, "at least 16 x 16"),
        ({"low": 300}, "the window must rise"),
        ({"low": -40000}, "the window must rise"),
        ({"pixel_mm": 0}, "the pixel size must be"),
    ],
)
def test_a_window_or_frame_that_does_not_fit_is_refused(page, tmp_path, change, why):
    assert why in page.fail(draw_picture(tmp_path / "a.png"), picture={**PICTURE, **change})


@pytest.mark.slow
def test_what_is_no_gray_picture_of_a_slice_is_refused(page, tmp_path):
    color = np.zeros((48, 64, 3), dtype=np.uint8)
    color[:, :4, 0] = 200
    Image.fromarray(color).save(tmp_path / "color.png")
    assert "6% of its pixels are colored" in page.fail(tmp_path / "color.png", picture=PICTURE)
    (tmp_path / "text.png").write_text("no picture")
    assert "text.png: cannot be read as a picture" in page.fail(tmp_path / "text.png", picture=PICTURE)
    assert "needs the window" in page.fail(draw_picture(tmp_path / "a.png"))
    Image.new("L", (8000, 6000)).save(tmp_path / "large.png")
    assert "8000 x 6000" in page.fail(tmp_path / "large.png", picture=PICTURE)


def test_a_model_without_tumor_or_probabilities_says_so(page, tmp_path):
    state = page.finish(write_nifti(tmp_path / "ct.nii"), model=1)
    assert state["answer"]["kind"] == "volumes"
    assert state["answer"]["headline"].startswith("This model has no label for tumor. bright: ")
    assert "threshold cannot be changed" in state["threshold_note"]
    masks = page.client.get(f"/api/cases/{state['id']}").json()["masks"]
    assert [mask["threshold"] for mask in masks] == [None]


@pytest.mark.slow
def test_a_scan_unlike_those_of_the_training_is_less_reliable_in_words(page, tmp_path):
    doubt = "Less reliable: outside of what the model was trained on: "

    def doubts(path, model, **request):
        answer = page.finish(path, model=model, **request)["answer"]
        return [detail.removeprefix(doubt) for detail in answer["details"] if detail.startswith(doubt)]

    scan = write_nifti(tmp_path / "ct.nii")
    assert doubts(scan, 2) == []
    assert page.client.get("/api/server").json()["models"][2]["trained_on"].startswith("slices 2 to 3 mm apart, ")
    image = nib.load(scan)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([1, 1, 9.0, 1]) @ image.affine), tmp_path / "far.nii")
    assert doubts(tmp_path / "far.nii", 2) == ["its slices are 22.5 mm apart (2 to 3 mm in training)."]
    assert doubts(tmp_path / "far.nii", 0) == [], "a model that does not say it"
    gray = np.tile(np.linspace(0, 255, 64), (48, 1)).astype(np.uint8)
    Image.fromarray(gray).save(tmp_path / "a.png")
    assert doubts(tmp_path / "a.png", 2, picture=PICTURE) == [], "a picture has no size, and its window cuts the HU"


def test_without_tumor_the_answer_is_not_that_all_is_well(page, tmp_path):
    hu = np.full((6, 20, 20), -80, dtype=np.int16)
    hu[:, :4] = -1000
    answer = page.finish(write_nifti(tmp_path / "ct.nii", hu))["answer"]
    assert answer["kind"] == "none"
    assert answer["headline"] == "No tumor above the threshold"
    assert "does not mean that there is none" in answer["details"][0]


def test_the_mean_hu_of_the_table_is_that_of_measure(page, tmp_path, rng):
    hu = make_hu() + rng.integers(-20, 20, make_hu().shape, dtype=np.int16)
    state = page.finish(write_nifti(tmp_path / "ct.nii", hu))
    rows = list(csv.DictReader(io.StringIO(page.result(state, "lesions.csv").decode())))
    table = page.client.get(f"/api/cases/{state['id']}/parts/0/1").json()
    assert len(table["mean_hu"]) == len(rows) == len(TUMORS)
    assert np.allclose(table["mean_hu"], [float(row["hu_mean"]) for row in rows], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [1, 128, 255])
def test_the_lesions_of_a_threshold_are_those_of_its_voxels(page, tmp_path, threshold):
    """The table of a threshold comes from the same code as that of the mask, over the voxels of the map."""
    hu = make_hu()
    hu[3, 10, 12] = 29  # below one half
    hu[9, 20, 30] = 60
    state = page.finish(write_nifti(tmp_path / "ct.nii", hu))
    base = f"/api/cases/{state['id']}"
    case = page.client.get(base).json()
    assert [mask["threshold"] for mask in case["masks"]] == [None, 128]
    size = case["shape"]
    probability = np.stack(
        [
            np.frombuffer(page.client.get(f"{base}/mask/1/axial/{z}").content, np.uint8).reshape(size[1:])
            for z in range(size[0])
        ]
    )
    table = page.client.get(f"{base}/parts/1/{threshold}").json()
    assert sum(part["voxels"] for part in table["parts"]) == int((probability >= threshold).sum())
    assert table["slice_voxels"] == (probability >= threshold).sum(axis=(1, 2)).tolist()
    if threshold == 128:
        mask = page.client.get(f"{base}/parts/0/1").json()
        assert mask["parts"] == table["parts"]
        assert mask["count"] == len(TUMORS)


def test_a_scan_with_text_in_its_name_stays_text(page, tmp_path):
    job = page.create()
    name = "../../<img src=x onerror=alert(1)>\u202e.nii"
    assert page.put(job, name, write_nifti(tmp_path / "a.nii").read_bytes()).status_code == 204
    page.post(f"/api/jobs/{job}/start")
    state = page.wait(job)
    assert state["status"] == "done"
    assert state["name"] == name
