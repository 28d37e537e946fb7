"""Orders and positions: which voxel lies where."""

import itertools

import numpy as np
import pytest

from slicemill.common.errors import ScanError
from slicemill.ct.scan import ScanReader
from tests.ct.dicom.made import make_enhanced, make_series, make_slice, make_volume, save, save_series, write_series

AXES = np.eye(3)
DIRECTIONS = [
    (row * first, column * second)
    for row, column in itertools.permutations(AXES, 2)
    for first, second in itertools.product((1, -1), repeat=2)
]


def read(path, **options):
    with ScanReader(path, "image", **options) as reader:
        return reader.read(), reader.grid, reader.finish(), reader.warnings


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("directions", DIRECTIONS, ids=lambda pair: "".join(str(int(one)) for one in np.ravel(pair)))
def test_each_of_48_orders_gives_the_same_volume(directions, backwards, tmp_path):
    """The volume is known in [z, y, x]; slices are cut from it along any axes, and written in any order of files."""
    truth = make_volume((4, 5, 6))  # [z, y, x], LPS
    spacing, origin = np.array([0.7, 0.8, 2.5]), np.array([-10.0, -20.0, -30.0])  # x, y, z
    row, column = directions
    normal = np.cross(row, column)
    slices = []
    shape = np.array(truth.shape[::-1])
    lengths = [int(shape @ np.abs(axis)) for axis in (row, column, normal)]
    corner = np.where(row + column + normal < 0, shape - 1, 0)
    for k in range(lengths[2]):
        pixels = np.empty((lengths[1], lengths[0]), np.int16)
        for j, i in np.ndindex(pixels.shape):
            x, y, z = (corner + i * row + j * column + k * normal).astype(int)
            pixels[j, i] = truth[z, y, x]
        slices.append(
            make_slice(
                pixels,
                origin + (corner + k * normal) * spacing,
                ImageOrientationPatient=[*row, *column],
                PixelSpacing=[float(spacing @ np.abs(column)), float(spacing @ np.abs(row))],
            )
        )
    save_series(tmp_path / "case", slices[::-1] if backwards else slices)
    volume, grid, _, _ = read(tmp_path / "case")
    assert np.array_equal(volume, truth - 1024)
    assert np.allclose(grid.affine_lps, np.block([[np.diag(spacing), origin[:, None]], [np.zeros(3), 1]]), atol=1e-9)


def test_hash_and_grid_do_not_depend_on_names_and_order_of_files(tmp_path):
    slices = make_series(make_volume())
    save_series(tmp_path / "a", slices)
    save_series(tmp_path / "b", slices[::-1], name="scan-{}.IMA")
    (volume, grid, sha256, _), (other, again, same, _) = read(tmp_path / "a"), read(tmp_path / "b")
    assert np.array_equal(volume, other)
    assert np.array_equal(grid.affine, again.affine)
    assert sha256 == same


def test_a_tilted_series_has_a_sheared_affine_by_the_formula(tmp_path):
    angle = np.radians(14)
    column = [0, np.cos(angle), -np.sin(angle)]
    volume = write_series(tmp_path / "case", step=(0, 0, 5), ImageOrientationPatient=[1, 0, 0, *column])
    read_volume, grid, _, warnings = read(tmp_path / "case")
    expected = np.eye(4)
    expected[:3, 0], expected[:3, 1], expected[:3, 2] = [0.7, 0, 0], 0.8 * np.array(column), [0, 0, 5]
    expected[:3, 3] = [-10, -20, -30]
    assert np.allclose(grid.affine, np.diag([-1, -1, 1, 1]) @ expected, atol=1e-9)
    stored = grid.to_stored(volume.astype(np.int16) - 1024)
    assert np.array_equal(read_volume, stored)
    assert any("14.0 degrees off the right angle" in warning for warning in warnings)


def test_enhanced_frames_are_ordered_by_position_and_scaled_one_by_one(tmp_path):
    volume = make_volume((5, 6, 7))
    save(make_enhanced(volume, [3, 0, 4, 1, 2]), tmp_path / "case" / "one")
    read_volume, grid, _, _ = read(tmp_path / "case")
    expected = volume + (np.arange(5) - 1024)[:, None, None]
    assert np.array_equal(read_volume, expected)
    assert np.allclose(grid.spacing_mm, (2.5, 0.8, 0.7))


def test_enhanced_jpeg_frames_are_found_by_their_fragments(tmp_path):
    volume = make_volume((5, 16, 16))
    save(make_enhanced(volume, [3, 0, 4, 1, 2]), tmp_path / "case" / "one", "1.2.840.10008.1.2.4.80")
    assert np.array_equal(read(tmp_path / "case")[0], volume + (np.arange(5) - 1024)[:, None, None])


class TestSteps:
    def test_missing_slices_are_counted_between_their_neighbors(self, tmp_path):
        slices = make_series(make_volume((10, 4, 4)))
        save_series(tmp_path / "case", [one for k, one in enumerate(slices) if k not in (4, 5)])
        with pytest.raises(
            ScanError, match=r"2 slices are missing in a series of 8 .* 2 between IM004 and IM005 \(7.5 mm"
        ):
            read(tmp_path / "case")

    def test_longest_takes_the_longest_even_part(self, tmp_path):
        volume = make_volume((10, 4, 4))
        save_series(tmp_path / "case", [one for k, one in enumerate(make_series(volume)) if k != 3])
        read_volume, grid, _, warnings = read(tmp_path / "case", uneven="longest")
        assert np.array_equal(read_volume, volume[4:] - 1024)
        assert np.allclose(grid.affine[:3, 3], [10, 20, -20])
        assert any("only 6 of 9 slices" in warning for warning in warnings)

    def test_uneven_steps_are_refused_with_their_range(self, tmp_path):
        slices = make_series(make_volume((6, 4, 4)))
        for one, z in zip(slices, (0, 2.5, 5, 8.1, 10.6, 13.1), strict=True):
            one.ImagePositionPatient = [0, 0, z]
        save_series(tmp_path / "case", slices)
        with pytest.raises(
            ScanError, match=r"steps between its 6 slices must be equal; they are 2.5 to 3.1 mm .*longest"
        ):
            read(tmp_path / "case")

    @pytest.mark.parametrize(("jitter", "is_read"), [(0.04, True), (0.2, False)])
    def test_rounded_positions_are_even(self, jitter, is_read, tmp_path):
        slices = make_series(make_volume((6, 4, 4)))
        slices[3].ImagePositionPatient = [-10, -20, -30 + 7.5 + jitter]
        save_series(tmp_path / "case", slices)
        if is_read:
            assert read(tmp_path / "case")[0].shape == (6, 4, 4)
        else:
            with pytest.raises(ScanError, match="must be equal"):
                read(tmp_path / "case")

    def test_a_slice_shifted_within_its_plane_is_refused(self, tmp_path):
        slices = make_series(make_volume((6, 4, 4)))
        slices[3].ImagePositionPatient = [-10, -25, -22.5]
        save_series(tmp_path / "case", slices)
        with pytest.raises(ScanError, match="off its place"):
            read(tmp_path / "case")

    def test_a_single_slice_takes_its_thickness_or_is_refused(self, tmp_path):
        save_series(tmp_path / "thick", make_series(make_volume((1, 4, 4))))
        assert read(tmp_path / "thick")[1].spacing_mm[0] == 2.5
        save_series(tmp_path / "thin", make_series(make_volume((1, 4, 4)), SliceThickness=None))
        with pytest.raises(ScanError, match=r"SliceThickness \(0018,0050\)"):
            read(tmp_path / "thin")
