"""MetaImage and NRRD through infer, info, measure, evaluate and `slicemill.Model`: as NIfTI of the same voxels."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own documentation's name)

import slicemill
from slicemill.common.errors import ScanError
from slicemill.ct.geometry import RAS_TO_LPS
from slicemill.ct.scan import ScanReader
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import load_scan
from slicemill.infer.run.outputs import check_output_paths
from tests.infer.commands import run_command

FORMATS = ["mha", "mhd", "nrrd", "nhdr"]
UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.1"


@pytest.fixture(scope="module")
def scan(collection):
    """A scan of the collection as an image of SimpleITK, in an axis order of its own."""
    path = next(path for path in sorted(collection.rglob("volume-*.nii*")))
    return sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAI")


def write(scan, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(scan, str(path), useCompression=path.suffix in (".mha", ".nhdr"))
    return path


def test_masks_of_every_format_are_those_of_nifti_on_the_same_grid(scan, model, tmp_path):
    write(scan, tmp_path / "in" / "nii.nii.gz")
    for suffix in FORMATS:
        write(scan, tmp_path / "in" / f"{suffix}.{suffix}")
    done = run_command("infer", model, tmp_path / "in", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    expected = nib.load(tmp_path / "out" / "nii.nii.gz")
    assert np.asarray(expected.dataobj).any()
    for suffix in FORMATS:
        mask = nib.load(tmp_path / "out" / f"{suffix}.nii.gz")
        assert np.array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
        assert np.allclose(mask.affine, expected.affine, atol=1e-4)
        assert int(mask.header["sform_code"]) == 1
        report = json.loads((tmp_path / "out" / f"{suffix}.json").read_text())
        assert report["volumes_ml"] == json.loads((tmp_path / "out" / "nii.json").read_text())["volumes_ml"]
    assert "0 done" in run_command("infer", model, tmp_path / "in", "--out", tmp_path / "out").output


def test_a_sheared_scan_gets_a_mask_without_a_qform(scan, model, tmp_path):
    path = write(scan, tmp_path / "a.nhdr")
    text = path.read_bytes().decode()
    old = next(line for line in text.splitlines() if line.startswith("space directions"))
    x, y, z = scan.GetSpacing()
    path.write_bytes(text.replace(old, f"space directions: ({x},0,0) (0,{y},0) (0,{z * 0.25},{z})").encode())
    done = run_command("infer", model, path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    mask = nib.load(tmp_path / "out" / "a.nii.gz")
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (1, 0)
    with ScanReader(path, "image") as reader:
        assert np.allclose(mask.affine, reader.grid.affine, atol=1e-4)
        assert any("sheared" in warning for warning in reader.warnings)


def test_names_with_dots_keep_them(scan, model, tmp_path):
    write(scan, tmp_path / "subset0" / f"{UID}.mhd")
    (job,), left_out = gather([tmp_path / "subset0"])
    assert (job.name, job.stem, left_out) == (f"{UID}.nii.gz", UID, [])
    done = run_command("infer", model, tmp_path / "subset0", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").glob("1.3*")} == {f"{UID}.nii.gz", f"{UID}.json", f"{UID}.png"}


def test_an_output_never_takes_the_place_of_a_scan_or_its_voxels(scan, tmp_path):
    path = write(scan, tmp_path / "a.mhd")
    jobs, _ = gather([path])
    with pytest.raises(ScanError, match="would overwrite"):
        check_output_paths(jobs, tmp_path)


def test_a_changed_file_of_voxels_is_another_scan(scan, tmp_path):
    path = write(scan, tmp_path / "a.mhd")
    (job,), _ = gather([path])
    before = job.stamp()
    (tmp_path / "a.raw").write_bytes((tmp_path / "a.raw").read_bytes() + b"1")
    assert job.stamp() != before


def test_what_lacks_its_voxels_is_named(scan, tmp_path):
    write(scan, tmp_path / "a.mhd")
    write(scan, tmp_path / "b.mha")
    (tmp_path / "a.raw").rename(tmp_path / "other.raw")
    jobs, left_out = gather([tmp_path])
    assert [job.name for job in jobs] == ["b.nii.gz"]
    assert {path.name for path, _ in left_out} == {"a.mhd", "other.raw"}


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_model_of_python_takes_every_format(suffix, scan, model, tmp_path):
    opened = slicemill.Model(model)
    expected = opened.segment(write(scan, tmp_path / "a.nii.gz"))
    result = opened.segment(write(scan, tmp_path / f"b.{suffix}"))
    assert np.array_equal(result.label_lps, expected.label_lps)
    assert result.label.shape == scan.GetSize()
    assert np.allclose(result.affine, expected.affine, atol=1e-4)
    saved = result.save(tmp_path / "out.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(saved))), result.label.T)


@pytest.mark.parametrize("suffix", FORMATS)
def test_info_describes_every_format(suffix, scan, tmp_path):
    path = write(scan, tmp_path / f"a.{suffix}")
    done = run_command("info", path, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["format"] == ("MetaImage" if suffix[0] == "m" else "NRRD")
    assert found["shape"] == list(scan.GetSize())[::-1]
    assert found["axes"] == "RAI"
    assert found["bytes"] == sum(file.stat().st_size for file in tmp_path.iterdir())


@pytest.mark.slow
def test_masks_of_every_format_are_measured_and_evaluated_alike(collection, tmp_path):
    for path in sorted(collection.rglob("*.nii*")):
        kind = "masks" if path.name.startswith("seg") else "scans"
        number = path.name.partition("-")[2].partition(".")[0]
        image = sitk.ReadImage(str(path))
        for folder, suffix in (("nifti", "nii.gz"), ("nrrd", "seg.nrrd"), ("meta", "mha")):
            name = f"{number}.{suffix}" if kind == "masks" else f"{number}.{suffix.removeprefix('seg.')}"
            target = tmp_path / folder / kind / name
            target.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(target), useCompression=True)
    labels = ["--labels", "liver=1,tumor=2"]
    tables = []
    for folder in ("nifti", "nrrd", "meta"):
        root = tmp_path / folder
        done = run_command(
            "measure", root / "masks", "--image", root / "scans", "--out", root / "measured", *labels)  # fmt: skip
        assert done.exit_code == 0, done.output
        tables.append((root / "measured" / "lesions.csv").read_text())
    assert tables[0] == tables[1] == tables[2]
    slicer, meta = tmp_path / "nrrd" / "masks", tmp_path / "meta" / "masks"
    done = run_command("evaluate", slicer, meta, "--out", tmp_path / "scores", *labels)
    assert done.exit_code == 0, done.output
    assert "1.000" in done.output
    # measured beside its input: its copies for 3D Slicer are not measured
    shutil.move(tmp_path / "nifti" / "measured", tmp_path / "nifti" / "masks" / "measured")
    done = run_command("measure", tmp_path / "nifti" / "masks", "--out", tmp_path / "again", *labels)
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "again" / "measured").exists()


@pytest.mark.parametrize("suffix", FORMATS)
def test_scans_in_a_bucket_are_read_as_on_a_disk(suffix, bucket, scan, tmp_path):
    place, _ = bucket
    path = write(scan, tmp_path / f"a.{suffix}")
    for file in sorted(tmp_path.iterdir()):
        (place / "in" / file.name).upload(file)
    (place / "in" / "alone.raw").write_bytes(b"1")
    jobs, left_out = gather([place / "in"])
    assert [job.name for job in jobs] == ["a.nii.gz"]
    assert [path.name for path, _ in left_out] == ["alone.raw"]
    assert np.array_equal(load_scan(jobs[0]).volume, load_scan(gather([path])[0][0]).volume)
    with ScanReader(place / "in" / path.name, "image") as remote, ScanReader(path, "image") as local:
        for reader in (remote, local):
            reader.read()
        assert remote.finish() == local.finish()
        assert np.allclose(RAS_TO_LPS @ remote.grid.affine, RAS_TO_LPS @ local.grid.affine)
