"""Files with the same voxels in other axis orders, and files on other grids; nibabel and SimpleITK are the oracles."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own documentation's name)
from hypothesis import given
from hypothesis import strategies as st

from slicemill.common.errors import GeometryError
from slicemill.ct.geometry import Grid
from slicemill.ct.placed_mask import PlacedMask
from slicemill.ct.same_grid import match_grid, place_mask, require_same_grid, states_axes
from slicemill.ct.scan import ScanReader
from tests.ct.grids import AFFINE, ORIENTATIONS, reorient, rotate, save

SHAPE = (5, 4, 3)


def grid_of(image):
    return Grid(shape=image.shape, affine=image.affine)


def read_placed(mask, image, geometry="error", folder=None):
    """The mask on the image's grid, uint8[z, y, x], and the warnings."""
    with ScanReader(image, "image") as reader:
        grid = reader.grid
    with ScanReader(mask, "mask") as reader:
        placed = PlacedMask(reader, grid, geometry)
        voxels = np.zeros(grid.stored_shape, np.uint8)
        starts = []
        for slab in placed.slabs(2, temp_folder=folder):
            voxels[slab.z : slab.z + len(slab.voxels)] = slab.voxels
            starts.append(slab.z)
        assert starts == sorted(starts, reverse=placed.downwards)
        return voxels, placed.warnings()


def itk_labels(mask, image):
    """The mask on the image's grid by SimpleITK, uint8[z, y, x] in LPS+ order."""
    fixed, moving = sitk.ReadImage(str(image)), sitk.ReadImage(str(mask))
    voxels = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, sitk.Transform(), sitk.sitkNearestNeighbor, 0))
    with ScanReader(image, "image") as reader:
        return reader.grid.to_stored(voxels)


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("of_image", ["LPS", "SAR"])
def test_a_mask_in_any_of_48_orientations_lies_where_its_header_says(codes, of_image, tmp_path, rng):
    affine = rotate(AFFINE, 0.1, 0.05, -0.08)
    labels = nib.Nifti1Image(rng.integers(0, 4, SHAPE, dtype=np.uint8), affine)
    image = reorient(nib.Nifti1Image(np.zeros(SHAPE, np.int16), affine), of_image)
    nib.save(image, tmp_path / "ct.nii")
    nib.save(reorient(labels, codes), tmp_path / "seg.nii")
    voxels, warnings = read_placed(tmp_path / "seg.nii", tmp_path / "ct.nii")
    assert np.array_equal(voxels, itk_labels(tmp_path / "seg.nii", tmp_path / "ct.nii"))
    assert sorted(voxels.ravel()) == sorted(np.asarray(labels.dataobj).ravel())
    assert warnings == [], "a turn changes nothing"


@given(
    st.sampled_from(ORIENTATIONS),
    st.sampled_from(ORIENTATIONS),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.tuples(*[st.floats(-0.7, 0.7)] * 3),
    st.floats(-0.02, 0.02),
)
def test_a_turned_grid_has_the_positions_of_the_other_and_the_same_stored_order(codes, others, shape, angles, off):
    base = nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), rotate(AFFINE, *angles))
    one, other = reorient(base, codes), reorient(base, others)
    moved = one.affine.copy()
    moved[:3, 3] += off
    grid, onto = Grid(shape=one.shape, affine=moved), grid_of(other)
    turned = match_grid(grid, onto)
    assert turned is not None
    assert np.allclose(turned.affine, one.affine)
    voxels = [np.asarray(picture.dataobj).T for picture in (one, other)]
    assert np.array_equal(turned.to_stored(voxels[0]), onto.to_stored(voxels[1]))
    assert np.array_equal(turned.to_file(onto.to_stored(voxels[1])), voxels[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: nib.Nifti1Image(image.dataobj, image.affine @ np.diag([-1.0, 1, 1, 1])), "affines differ by"),
        (lambda image: image.slicer[:, :, :2], r"shapes \(z, y, x\) are 2x4x5 and 3x4x5"),
        (
            lambda image: nib.Nifti1Image(image.dataobj, rotate(AFFINE, 0, 0, np.pi / 2)),
            "axes point in other|shapes",
        ),
    ],
)
def test_another_grid_is_refused_with_the_difference(change, message):
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE)
    with pytest.raises(
        GeometryError, match=rf"a\.nii: must have the same grid as b\.nii, in any axis order; .*{message}"
    ):
        require_same_grid(grid_of(change(image)), grid_of(image), "a.nii", "b.nii")


def shifted(image, mm):
    affine = image.affine.copy()
    affine[:3, 3] += mm
    return nib.Nifti1Image(image.dataobj, affine)


@pytest.mark.parametrize("shape", [(4, 4, 4), (5, 4, 3)])
@pytest.mark.parametrize("codes", ["RPS", "LAS", "LSP", "ASL"])
def test_trust_image_never_mirrors_a_mask(codes, shape, tmp_path):
    cube = nib.Nifti1Image(np.zeros(shape, np.uint8), AFFINE)
    mask = shifted(reorient(cube, codes), 3)
    with pytest.raises(GeometryError, match=rf"needs files of one axis order; the segmentation's is {codes}, the.*LPS"):
        place_mask(grid_of(mask), grid_of(cube), "trust-image", tmp_path / "seg.nii")
    same = place_mask(grid_of(shifted(cube, 3)), grid_of(cube), "trust-image", tmp_path / "seg.nii")
    assert "5.2 mm apart by their headers; the image's was trusted" in same.warnings[0]


@pytest.mark.parametrize("default", [np.eye(4), np.diag([-1.0, -1, 1, 1])])
def test_a_header_that_states_no_axes_takes_those_of_a_trusted_image_and_is_never_resampled_by(default, tmp_path):
    image, lost = Grid(shape=SHAPE, affine=AFFINE), Grid(shape=SHAPE, affine=default)
    assert states_axes(image)
    assert not states_axes(lost)
    placement = place_mask(lost, image, "trust-image", tmp_path / "seg.nii")
    assert placement.grid is image
    assert "in the order of the image's file" in placement.warnings[0]
    for mask, scan, name in ((lost, image, "segmentation"), (image, lost, "image")):
        with pytest.raises(GeometryError, match=f"but the {name}'s states no axes"):
            place_mask(mask, scan, "resample", tmp_path / "seg.nii")


def test_a_header_without_codes_is_never_resampled_by(tmp_path):
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), None)
    image.header.set_zooms((2, 2, 5))
    nib.save(image, tmp_path / "ct.nii")
    save(tmp_path / "seg.nii", np.zeros((5, 4, 2), np.uint8), AFFINE)
    with pytest.raises(GeometryError, match="the image's states no axes"):
        read_placed(tmp_path / "seg.nii", tmp_path / "ct.nii", "resample")


@pytest.mark.parametrize("codes", ["LPS", "RIA"])
@pytest.mark.parametrize(
    ("shape", "scale", "angles", "offset"),
    [
        ((9, 8, 7), (1.3, 0.9, 2.1), (0, 0, 0), (0.37, -0.61, 1.13)),
        ((20, 18, 9), (0.7, 0.6, 1.7), (0.3, -0.2, 0.15), (-4.1, 2.3, 1.9)),
        ((3, 3, 3), (5.1, 4.3, 9.7), (0.0, 0.5, 0.0), (1.7, 1.3, 0.9)),
        ((12, 12, 4), (1.9, 1.9, 4.9), (0, 0, 0.02), (-10.0, 0.3, 0.0)),
    ],
)
def test_a_resampled_mask_is_simpleitks(shape, scale, angles, offset, codes, tmp_path, rng):
    image = nib.Nifti1Image(np.zeros((14, 12, 6), np.int16), AFFINE)
    affine = rotate(AFFINE, *angles) @ np.diag([*(np.array(scale) / (2, 2, 5)), 1])
    affine[:3, 3] += offset
    nib.save(reorient(image, codes), tmp_path / "ct.nii")
    save(tmp_path / "seg.nii", rng.integers(0, 3, shape, dtype=np.uint8), affine)
    voxels, warnings = read_placed(tmp_path / "seg.nii", tmp_path / "ct.nii", "resample", tmp_path)
    expected = itk_labels(tmp_path / "seg.nii", tmp_path / "ct.nii")
    assert expected.any()
    assert np.array_equal(voxels, expected)
    assert warnings[0].startswith("segmentation resampled to the image's grid by nearest neighbor")


def test_the_share_of_changed_voxels_is_the_one_counted_by_hand(tmp_path):
    """The image has voxels at 0, 2 and 4 of the mask. Of the labeled ones, that at 3 becomes 0, and 7 is outside."""
    mask = np.array([1, 1, 1, 2, 0, 0, 0, 1], np.uint8).reshape(8, 1, 1)
    save(tmp_path / "seg.nii", mask, np.diag([1.0, 1.0, 2.0, 1.0]))
    affine = np.diag([2.0, 1.0, 2.0, 1.0])
    affine[0, 3] = -0.1  # no center is halfway between two
    save(tmp_path / "ct.nii", np.zeros((3, 1, 1), np.int16), affine)
    voxels, (warning,) = read_placed(tmp_path / "seg.nii", tmp_path / "ct.nii", "resample")
    assert voxels[..., ::-1].ravel().tolist() == [1, 1, 0], "x runs to the left, i runs to the right"
    assert "40.00% of its labeled voxels changed (2 of 5, 1 of them outside the image)" in warning
    assert warning.endswith("labeled volume 0.01 ml before, 0.008 ml after")


def test_the_share_of_the_image_that_a_mask_does_not_cover_is_told(tmp_path):
    save(tmp_path / "ct.nii", np.zeros((8, 4, 4), np.int16), AFFINE)
    save(tmp_path / "seg.nii", np.ones((6, 4, 4), np.uint8), AFFINE)
    voxels, (warning,) = read_placed(tmp_path / "seg.nii", tmp_path / "ct.nii", "resample")
    assert voxels.sum() == 96
    assert warning.endswith("; it does not cover 25.00% of the image, which is background")


def test_a_mask_without_a_labeled_voxel_in_the_image_is_refused_and_an_empty_one_is_not(tmp_path):
    save(tmp_path / "ct.nii", np.zeros((4, 4, 4), np.int16), AFFINE)
    far = AFFINE.copy()
    far[0, 3] += 100
    labels = np.ones((4, 4, 4), np.uint8)
    save(tmp_path / "far.nii", labels, far)
    with pytest.raises(GeometryError, match="none of its 64 labeled voxels lies in the image"):
        read_placed(tmp_path / "far.nii", tmp_path / "ct.nii", "resample")
    save(tmp_path / "empty.nii", 0 * labels, far)
    voxels, warnings = read_placed(tmp_path / "empty.nii", tmp_path / "ct.nii", "resample")
    assert not voxels.any()
    assert "0.00% of its labeled voxels changed (0 of 0" in warnings[0]


@pytest.mark.slow
@pytest.mark.parametrize("codes", ["LPS", "PSR"])
def test_a_resampled_mask_takes_disk_and_not_memory(codes, tmp_path):
    """192 MiB of labels in a process of its own: its peak grows by a few slabs and batches."""
    import subprocess
    import sys
    from pathlib import Path

    labels = np.zeros((512, 512, 768), np.uint8)
    labels[100:200, 100:200, ::7] = 1
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = 0.3
    nib.save(reorient(nib.Nifti1Image(labels, affine), codes), tmp_path / "seg.nii")
    code = (
        "import sys\nimport numpy as np\nfrom pathlib import Path\n"
        "from slicemill.common.terminal import peak_mib\nfrom slicemill.ct.geometry import Grid\n"
        "from slicemill.ct.placed_mask import PlacedMask\nfrom slicemill.ct.scan import ScanReader\n"
        "image = Grid(shape=(512, 512, 384), affine=np.diag([-1.0, -1.0, 2.0, 1.0]))\n"
        "before = peak_mib()\n"
        "with ScanReader(Path(sys.argv[1]), 'mask') as reader:\n"
        "    placed = PlacedMask(reader, image, 'resample')\n"
        "    total = sum(int(slab.voxels.sum()) for slab in placed.slabs(4, temp_folder=Path(sys.argv[2])))\n"
        "print(total, peak_mib() - before)\n"
    )
    here = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "seg.nii"), str(tmp_path)],
        cwd=here,
        capture_output=True,
        text=True,
        check=True,
    )
    total, grown = done.stdout.split()
    assert int(total) == 100 * 100 * len([z for z in range(0, 768, 2) if z % 7 == 0])
    assert float(grown) < 80
