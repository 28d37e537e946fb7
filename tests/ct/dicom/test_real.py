"""The real series of ../shared/data, with SimpleITK, dcm2niix and pydicom as oracles."""

import subprocess
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.pixels import apply_rescale

from slicemill.ct.formats.dicom.discover import find_dicom
from tests.conftest import REAL
from tests.ct.dicom.made import LOSSLESS, save
from tests.ct.dicom.test_orders import read

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("real_data")]
CRLM = REAL / "crlm-liver-ct" / "CRLM-CT-1004"
STRAIGHT = [CRLM, REAL / "dcmqi-liver-3slice" / "ct-3slice", REAL / "totalsegmentator-example" / "example_ct_dicom"]
TILTED = REAL / "dicom-edge-cases" / "gantrytilting"


def by_simpleitk(folder):
    """Return HU [z, y, x] and the affine, LPS, of a straight series."""
    files = sorted(folder.iterdir(), key=lambda path: float(pydicom.dcmread(path, force=True).ImagePositionPatient[2]))
    image = SimpleITK.ReadImage([str(path) for path in files])
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image), affine


@pytest.mark.parametrize("folder", STRAIGHT, ids=lambda path: path.name)
def test_straight_series_equal_simpleitk(folder):
    volume, grid, _, _ = read(folder)
    expected, affine = by_simpleitk(folder)
    assert np.array_equal(volume, expected)
    assert np.allclose(grid.affine_lps, affine, atol=1e-3)


@pytest.mark.parametrize("folder", STRAIGHT, ids=lambda path: path.name)
def test_straight_series_equal_dcm2niix(folder, tmp_path):
    command = [dcm2niix.bin, "-z", "n", "-f", "out", "-o", str(tmp_path), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.nii")
    theirs = nib.as_closest_canonical(nib.load(path))
    volume, grid, _, _ = read(folder)
    ours = nib.as_closest_canonical(nib.Nifti1Image(volume.T, np.diag([-1, -1, 1, 1]) @ grid.affine_lps))
    assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    assert np.allclose(ours.affine, theirs.affine, atol=1e-3)


def test_the_tilted_series_equals_pydicom_and_the_formula():
    slices = sorted(map(pydicom.dcmread, TILTED.iterdir()), key=lambda one: float(one.ImagePositionPatient[2]))
    volume, grid, _, warnings = read(TILTED)
    assert np.array_equal(volume, np.stack([apply_rescale(one.pixel_array, one) for one in slices]))
    orientation, spacing = np.array(slices[0].ImageOrientationPatient, float), slices[0].PixelSpacing
    first, last = (np.array(one.ImagePositionPatient, float) for one in (slices[0], slices[-1]))
    expected = np.eye(4)
    expected[:3, 0], expected[:3, 1] = orientation[:3] * spacing[1], orientation[3:] * spacing[0]
    expected[:3, 2], expected[:3, 3] = (last - first) / 3, first
    assert np.allclose(grid.affine_lps, expected, atol=1e-9)
    assert any("14.0 degrees" in warning for warning in warnings)


@pytest.fixture(scope="module")
def crlm():
    return [pydicom.dcmread(path) for path in sorted(CRLM.iterdir())], read(CRLM)[0]


@pytest.mark.slow
@pytest.mark.parametrize("syntax", list(LOSSLESS))
def test_the_liver_ct_in_every_syntax_has_the_same_voxels(syntax, crlm, tmp_path):
    slices, expected = crlm
    for number, one in enumerate(slices):
        save(pydicom.dcmread(one.filename), tmp_path / "case" / str(number), syntax)
    assert np.array_equal(read(tmp_path / "case")[0], expected)


def test_all_series_of_the_shared_data_are_found_and_all_other_objects_named():
    found = find_dicom(REAL)
    assert {one.location for one in found.series} == {*STRAIGHT, TILTED}
    assert {Path(path).name: why for path, why in found.left_out} == {
        "liver.dcm": "a DICOM segmentation (SEG), not a CT"
    }
