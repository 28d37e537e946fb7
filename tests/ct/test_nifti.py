"""NIfTI files: what is read, what is refused and with which message, and masks on the grid of a scan."""

import contextlib
import gzip
import math
import os
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own documentation's name)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slicemill.common.errors import GeometryError, InputError, LabelError, ScanError
from slicemill.ct.formats.nifti.header import blank_text, parse_grid, read_header
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.geometry import Grid
from slicemill.ct.phantom import write_nifti
from slicemill.ct.scan import ScanReader, to_hu, to_labels

RAMP = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def read(path, kind="image"):
    with ScanReader(path, kind) as reader:
        volume = reader.read()
        reader.finish()
        return volume


def save(path, data):
    nib.save(nib.Nifti1Image(data, np.diag([-1.0, -1, 1, 1]), dtype=data.dtype), path)
    return path


def patched(path, offset, form, *values):
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, offset, *values)
    path.write_bytes(content)
    return path


def test_slabs_arrive_in_file_order_and_cover_every_slice_once(tmp_path):
    path = save(tmp_path / "a.nii.gz", RAMP.transpose(2, 1, 0))
    with ScanReader(path, "image") as reader:
        slabs = [(slab.z, len(slab.voxels)) for slab in reader.slabs(2)]
    assert slabs == [(0, 2), (2, 1)]


def test_a_file_that_runs_head_first_yields_its_last_slices_first(tmp_path):
    path = tmp_path / "a.nii"
    write_nifti(path, RAMP, (1.0, 1.0, 1.0), "LPI")
    with ScanReader(path, "image") as reader:
        assert [slab.z for slab in reader.slabs(2)] == [1, 0]
    assert np.array_equal(read(path), RAMP)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "int64", "float32", "float64"])
def test_integers_of_any_type_come_through_unchanged(dtype, tmp_path):
    path = save(tmp_path / "a.nii.gz", RAMP.transpose(2, 1, 0).astype(dtype))
    assert np.array_equal(read(path), RAMP)


def test_big_endian_and_nifti2_read_as_any_other(tmp_path):
    big = nib.Nifti1Image(RAMP.transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]), nib.Nifti1Header(endianness=">"))
    nib.save(big, tmp_path / "big.nii")
    nib.save(nib.Nifti2Image(RAMP.transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1])), tmp_path / "two.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == b"\x00\x00\x01\x5c"
    assert np.array_equal(read(tmp_path / "big.nii"), RAMP)
    assert np.array_equal(read(tmp_path / "two.nii"), RAMP)


def test_scaled_voxels_are_scaled_and_rounding_is_measured():
    raw = np.array([0, 1, 2], dtype=np.int16)
    hu, error = to_hu(raw, 0.5, -1024.0, "x")
    assert hu.tolist() == [-1024, -1024, -1023]
    assert error == 0.5


def test_a_compressed_file_without_its_suffix_is_recognized_by_its_bytes(tmp_path):
    save(tmp_path / "a.nii.gz", RAMP.transpose(2, 1, 0))
    (tmp_path / "b.nii").write_bytes((tmp_path / "a.nii.gz").read_bytes())
    assert np.array_equal(read(tmp_path / "b.nii"), RAMP)


def test_all_members_of_a_gzip_file_are_read(tmp_path):
    plain = save(tmp_path / "a.nii", RAMP.transpose(2, 1, 0)).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain[:400]) + gzip.compress(plain[400:]))
    assert np.array_equal(read(tmp_path / "b.nii.gz"), RAMP)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("tail", [b"x", b"\x1f", b"<html>", b"tail" * 9, b"\0" * 700 + b"tail", b"x" * (1 << 21)])
def test_bytes_after_the_end_of_a_gzip_are_named_as_such(tail, members, tmp_path):
    plain = save(tmp_path / "a.nii", RAMP.transpose(2, 1, 0)).read_bytes()
    parts = [plain] if members == 1 else [plain[:390], plain[390:]]
    (tmp_path / "b.nii.gz").write_bytes(b"".join(map(gzip.compress, parts)) + tail)
    size = len(tail.lstrip(b"\0"))
    with pytest.raises(
        ScanError, match=rf"b\.nii\.gz: {size:,} bytes after the end of the gzip data are not gzip\. Copy"
    ):
        read(tmp_path / "b.nii.gz")


def test_a_plain_file_that_is_cut_while_it_is_read_is_an_early_end(tmp_path):
    path = save(tmp_path / "a.nii", np.zeros((64, 64, 300), np.int16))
    with ScanReader(path, "image") as reader:
        os.truncate(path, 5000)
        with pytest.raises(ScanError, match=r"a\.nii: ends early"):
            reader.read()


def test_zeros_after_the_end_of_a_gzip_are_padding(tmp_path):
    plain = save(tmp_path / "a.nii", RAMP.transpose(2, 1, 0)).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain) + b"\0" * 700)
    assert np.array_equal(read(tmp_path / "b.nii.gz"), RAMP)


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_a_second_gzip_member_that_is_cut_is_an_early_end(cut, tmp_path):
    plain = save(tmp_path / "a.nii", RAMP.transpose(2, 1, 0)).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain[:390]) + gzip.compress(plain[390:])[:-cut])
    with pytest.raises(ScanError, match=r"b\.nii\.gz: ends early or is damaged"):
        read(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_truncated_gzip_is_named(keep, tmp_path, rng):
    volume = rng.integers(-1000, 1000, (30, 30, 30), dtype=np.int16)
    content = save(tmp_path / "a.nii.gz", volume).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ScanError, match=r"b\.nii\.gz: (ends early or is damaged|the header claims)"):
        read(tmp_path / "b.nii.gz")


def test_a_flipped_bit_in_a_gzip_is_found(tmp_path, rng):
    content = bytearray(
        save(tmp_path / "a.nii.gz", rng.integers(-1000, 1000, (30, 30, 30), dtype=np.int16)).read_bytes()
    )
    content[-5] ^= 1
    (tmp_path / "b.nii.gz").write_bytes(content)
    with pytest.raises(ScanError, match="damaged"):
        read(tmp_path / "b.nii.gz")


def test_a_header_that_claims_100_gigabytes_costs_no_memory(tmp_path):
    path = patched(save(tmp_path / "a.nii", RAMP), 40, "<8h", 3, 4000, 4000, 4000, 1, 1, 1, 1)
    with pytest.raises(ScanError, match="claims 128,000,000,352 bytes"):
        read(path)


@pytest.mark.parametrize(
    ("offset", "form", "values", "message"),
    [
        (0, "<i", (17,), "is not a NIfTI file"),
        (344, "4s", (b"ni1\0",), r"\.hdr/\.img pair"),
        (344, "4s", (b"\0\0\0\0",), "is not a NIfTI file"),
        (40, "<8h", (3, 5, -4, 3, 1, 1, 1, 1), "every extent must be at least 1"),
        (40, "<h", (9,), "2 to 7 dimensions"),
        (70, "<h", (128,), "voxels must be integers or floats"),
        (70, "<h", (32,), "voxels must be integers or floats"),
        (70, "<h", (777,), "unknown voxel type"),
        (108, "<f", (float("nan"),), "cannot start at byte"),
        (108, "<f", (1e30,), "cannot start at byte"),
        (280, "<4f", (0, 0, 0, 0), "must be invertible"),
    ],
)
def test_a_damaged_header_is_one_clear_error(offset, form, values, message, tmp_path):
    path = patched(save(tmp_path / "a.nii", RAMP), offset, form, *values)
    with pytest.raises(ScanError, match=message):
        read_header(path)


def test_several_volumes_are_refused_with_the_way_out(tmp_path):
    path = save(tmp_path / "a.nii", np.zeros((3, 3, 3, 2), np.int16))
    with pytest.raises(ScanError, match=r"several volumes.*time points, split them"):
        read_header(path)


def test_one_volume_in_four_dimensions_and_one_slice_in_two_are_scans(tmp_path):
    assert read(save(tmp_path / "a.nii", np.ones((3, 4, 5, 1), np.int16))).shape == (5, 4, 3)
    assert read(save(tmp_path / "b.nii", np.ones((3, 4), np.int16))).shape == (1, 4, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_hu_that_are_not_finite_are_refused(bad):
    with pytest.raises(ScanError, match="must be finite"):
        to_hu(np.array([0.0, bad]), 1.0, 0.0, "x")


@pytest.mark.parametrize("raw", [np.array([40000], np.uint16), np.array([-40000], np.int32), np.array([1e9])])
def test_hu_that_do_not_fit_are_refused(raw):
    with pytest.raises(ScanError, match="must fit in -32768..32767"):
        to_hu(raw, 1.0, 0.0, "x")


@pytest.mark.parametrize(
    "raw", [np.array([0.5]), np.array([-1], np.int16), np.array([256], np.int16), np.array([np.nan])]
)
def test_labels_are_integers_from_0_to_255(raw):
    with pytest.raises(LabelError, match="integers from 0 to 255"):
        to_labels(raw, 1.0, 0.0, "x")


def test_a_slope_that_overflows_is_refused_without_a_warning():
    with pytest.raises(ScanError, match="must be finite"):
        to_hu(np.array([1000], np.int16), 1e308, 0.0, "x")
    with pytest.raises(LabelError, match="found inf"):
        to_labels(np.array([1000], np.int16), 1e308, 0.0, "x")


def test_float_labels_with_integer_values_are_accepted():
    labels, error = to_labels(np.array([0.0, 2.0]), 1.0, 0.0, "x")
    assert (labels.tolist(), error) == ([0, 2], 0.0)


@pytest.mark.parametrize(
    ("raw", "slope", "error"),
    [
        (np.array([0, 0.9999999, 2.0005], np.float32), 1.0, 0.0005),
        (np.array([0, 255, 510], np.int16), float(np.float32(1 / 255)), 1.2e-7),
        (np.array([-0.0009, 1.0009, 2]), 1.0, 0.0009),
    ],
)
def test_labels_that_are_integers_but_for_rounding_are_rounded_and_the_error_is_known(raw, slope, error):
    labels, found = to_labels(raw, slope, 0.0, "x")
    assert (labels.tolist(), labels.dtype) == ([0, 1, 2], np.uint8)
    assert 0 < found <= error * 1.001


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (np.array([0, 0.998, 2]), r"found 0\.998\."),
        (np.array([1.0000000001, 1.0011]), r"found 1\.0011\."),
        (np.array([255.0009, 255.01]), r"found 255\.01\."),
        (np.array([-0.002, 3]), r"found -0\.002\."),
        (np.arange(7) + 0.5, r"found 0\.5, 1\.5, 2\.5, 3\.5, 4\.5 and others\."),
    ],
)
def test_labels_that_are_no_integers_are_refused_with_all_digits(raw, found):
    with pytest.raises(LabelError, match=found):
        to_labels(raw, 1.0, 0.0, "x")


def test_a_mask_with_rounded_labels_has_a_warning(tmp_path):
    path = save(tmp_path / "a.nii", np.full((3, 4, 5), 0.9999999, np.float32))
    with ScanReader(path, "mask") as reader:
        assert reader.value_warnings() == []
        assert (reader.read() == 1).all()
        assert reader.value_warnings() == ["segmentation: label values were rounded to integers, by at most 1.19e-07"]


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("sform_code", [0, 1])
def test_a_qfac_of_0_counts_as_1(kind, sform_code, tmp_path):
    affine = np.array([[0, -2.0, 0, 3], [2.0, 0, 0, 4], [0, 0, 5.0, 5], [0, 0, 0, 1]])
    picture = kind(np.ones((3, 4, 5), np.int16), affine)
    picture.set_qform(affine, code=1)
    picture.set_sform(affine, code=sform_code)
    assert picture.header["pixdim"][0] == 1
    nib.save(picture, tmp_path / "a.nii")
    patched(tmp_path / "a.nii", *((76, "<f", 0.0) if kind is nib.Nifti1Image else (104, "<d", 0.0)))
    header = read_header(tmp_path / "a.nii")
    assert np.allclose(header.grid.affine, affine, atol=1e-6)
    assert header.warnings == ()
    assert np.allclose(parse_grid(header.raw).affine, affine, atol=1e-6)
    write_volume(tmp_path / "mask.nii", blank_text(header.raw), np.uint8, np.zeros((5, 4, 3), np.uint8))
    assert np.allclose(nib.load(tmp_path / "mask.nii").affine, affine, atol=1e-6), "nibabel does not read a qfac of 0"
    if kind is nib.Nifti1Image:
        simpleitk = sitk.ReadImage(str(tmp_path / "a.nii"))
        assert np.allclose(header.grid.affine_lps @ [0, 0, 0, 1], [*corner_of(simpleitk, header.grid), 1], atol=1e-5)


def corner_of(simpleitk, grid):
    """The position in LPS mm of the first stored voxel, by SimpleITK."""
    stored = grid.to_stored(np.arange(math.prod(grid.shape)).reshape(grid.shape[::-1]))
    k, j, i = np.unravel_index(int(stored[0, 0, 0]), grid.shape[::-1])
    return simpleitk.TransformIndexToPhysicalPoint((int(i), int(j), int(k)))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 6, 5, 4), np.int16, r"extents \[1, 6, 5, 4\] begin with an axis of 1: a channel axis"),
        ((1, 1, 6, 5, 4), np.int16, "begin with an axis of 1: a channel axis"),
        ((6, 5, 4, 2), np.int16, "If the last axis counts channels, save the one with HU"),
        ((6, 5, 4, 3), np.uint8, "its last axis has 3 values of 8 bits.*the channels of a color picture"),
        ((6, 5, 4, 1, 3), np.uint8, "the channels of a color picture"),
    ],
)
def test_a_channel_axis_is_named_as_one(shape, dtype, message, tmp_path):
    path = save(tmp_path / "a.nii", np.zeros(shape, dtype))
    with pytest.raises(ScanError, match=message):
        read_header(path)


@pytest.mark.parametrize("shape", [(4, 4, 2), (4, 4, 2, 3)])
def test_colors_are_refused_at_once_and_not_told_to_be_split(shape, tmp_path):
    colors = np.zeros(shape, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    path = save(tmp_path / "a.nii", colors)
    with pytest.raises(ScanError, match="A color or complex picture is not a CT") as caught:
        read_header(path)
    assert "plit" not in str(caught.value)


def test_a_header_without_orientation_is_read_with_a_warning(tmp_path):
    path = patched(save(tmp_path / "a.nii", RAMP), 252, "<2h", 0, 0)
    assert "has no orientation" in read_header(path).warnings[0]


def test_sform_against_qform_is_a_warning(tmp_path):
    picture = nib.Nifti1Image(RAMP, np.eye(4))
    picture.set_sform(np.diag([2.0, 1, 1, 1]), code=1)
    picture.set_qform(np.eye(4), code=1)
    nib.save(picture, tmp_path / "a.nii")
    assert "sform and qform differ by up to 2 mm" in read_header(tmp_path / "a.nii").warnings[0]


def test_an_unreadable_orientation_is_a_geometry_error(tmp_path):
    path = patched(save(tmp_path / "a.nii", RAMP), 252, "<2h", 1, 0)
    patched(path, 256, "<3f", 5.0, 5.0, 5.0)
    with pytest.raises(GeometryError, match="orientation cannot be read"):
        read_header(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_mask_has_the_geometry_of_its_scan_bit_for_bit(kind, suffix, tmp_path, rng):
    affine = np.array([[0.0, 0, 2, 5], [-1.5, 0.1, 0, 7], [0, 1, 0, -9], [0, 0, 0, 1]])
    scan = kind(rng.integers(0, 9, (3, 4, 5), dtype=np.int16), affine)
    scan.header["descrip"] = b"Jane Doe"
    scan.header.set_xyzt_units("mm", "sec")
    nib.save(scan, tmp_path / f"scan{suffix}")
    header = read_header(tmp_path / f"scan{suffix}")
    stored = rng.integers(0, 3, header.grid.stored_shape, dtype=np.uint8)
    write_volume(tmp_path / f"mask{suffix}", blank_text(header.raw), np.uint8, header.grid.to_file(stored))
    mask = nib.load(tmp_path / f"mask{suffix}")
    for field in (
        "dim",
        "pixdim",
        "qform_code",
        "sform_code",
        "quatern_b",
        "qoffset_x",
        "srow_x",
        "srow_y",
        "srow_z",
        "xyzt_units",
    ):
        assert mask.header[field].tobytes() == nib.load(tmp_path / f"scan{suffix}").header[field].tobytes(), field
    assert mask.get_data_dtype() == np.uint8
    assert b"Jane" not in mask.header["descrip"].tobytes()
    assert np.array_equal(read(tmp_path / f"mask{suffix}", "mask"), stored)
    assert np.array_equal(np.asarray(mask.dataobj), header.grid.to_file(stored).T)


def test_a_grid_needs_voxels():
    with pytest.raises(GeometryError, match="must have voxels"):
        Grid(shape=(0, 1, 1), affine=np.eye(4))


@given(st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=12))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_in_a_header_end_in_a_scan_or_in_one_input_error(tmp_path, patches):
    content = bytearray(save(tmp_path / "a.nii", RAMP).read_bytes())
    for place, value in patches:
        content[place] = value
    (tmp_path / "b.nii").write_bytes(content)
    with contextlib.suppress(InputError):
        assert read(tmp_path / "b.nii").dtype == np.int16


def test_a_plain_file_that_ends_early_is_not_told_to_be_gzip(tmp_path):
    path = save(tmp_path / "a.nii", RAMP.transpose(2, 1, 0))
    with ScanReader(path, "image") as reader:
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(ScanError, match=r"ends early or is damaged \(10 bytes of voxels are missing\)"):
            reader.read()
