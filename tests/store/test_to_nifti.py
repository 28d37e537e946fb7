"""Exported cases equal their source files, as nibabel reads them."""

import base64
import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from typer.testing import CliRunner

from slicemill.common.errors import ConfigError, InputError, ScanError, StoreError
from slicemill.ct.formats.nifti.header import read_header
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.labels import LITS_LABELS
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.store import to_nifti as export
from slicemill.store.cli import store as cli
from slicemill.store.reader import open_store
from slicemill.store.to_nifti import export_case
from slicemill.store.writer import prepare_store
from tests.ct.grids import reorient

ORIENTATIONS = [
    "".join(codes)
    for codes in itertools.product("RLAPSI", repeat=3)
    if len({"RLAPSI".index(code) // 2 for code in codes}) == 3
]
GEOMETRY = ("dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
            "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units", "dim_info", "slice_code",
            "toffset")  # fmt: skip


def oriented(axcodes):
    """An affine with uneven spacing, slightly oblique, whose axes grow to `axcodes`."""
    turn = ornt_transform(axcodes2ornt(tuple("RAS")), axcodes2ornt(tuple(axcodes)))
    affine = np.array([[0.7, 0.02, 0, -31], [-0.02, 0.8, 0.03, 17], [0, -0.03, 2.5, 400], [0, 0, 0, 1]])
    return affine @ inv_ornt_aff(turn, (5, 6, 7))


def stored_case(folder, image, mask=None, geometry="error"):
    """Ingest one file, and its mask, and return the stored case."""
    case = CaseFiles(case_id="a", patient_id="a", image=image, mask=mask, root=folder)
    store = prepare_store(folder / "store")
    convert_case(case, Params(labels=LITS_LABELS, geometry=geometry), store)
    return open_store(store)["a"]


def exported(folder, image, suffix=".nii.gz"):
    """Ingest a file, export it, and return what nibabel reads before and after."""
    out = folder / f"out{suffix}"
    export_case(stored_case(folder, image), out, overwrite=True)
    return nib.load(image), nib.load(out)


def same(before, after):
    """Check voxels, affine and the bytes of every geometry field."""
    assert np.array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))
    assert np.array_equal(after.affine, before.affine)
    for field in GEOMETRY:
        assert after.header[field].tobytes() == before.header[field].tobytes(), field


def save(path, voxels, affine, header=None, kind=nib.Nifti1Image):
    picture = kind(voxels, affine, header)
    picture.header.set_data_dtype(voxels.dtype)
    picture.set_sform(affine, code=2)
    picture.set_qform(affine, code=1)
    picture.header.set_xyzt_units("mm", "sec")
    nib.save(picture, path)
    return path


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_voxels_and_geometry_of_all_48_orientations_come_back_bit_for_bit(axcodes, tmp_path, rng):
    voxels = rng.integers(-1024, 3000, (5, 6, 7), dtype=np.int16)
    before, after = exported(tmp_path, save(tmp_path / "a.nii", voxels, oriented(axcodes)))
    assert after.get_data_dtype() == np.int16
    assert (after.dataobj.slope, after.dataobj.inter) == (1, 0)
    same(before, after)


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    axcodes=st.sampled_from(ORIENTATIONS),
    depth=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_comes_back_however_it_is_cut_into_slabs(tmp_path, monkeypatch, shape, axcodes, depth, seed):
    voxels = np.random.default_rng(seed).integers(-1024, 3000, shape, dtype=np.int16)
    before = save(tmp_path / "a.nii", voxels, oriented(axcodes))
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    with monkeypatch.context() as patch:
        patch.setattr(export, "SLAB_BYTES", depth * 2 * shape[0] * shape[1])
        same(*exported(tmp_path, before, ".nii"))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
def test_integers_of_any_type_come_back_as_int16_of_the_same_value(dtype, tmp_path, rng):
    voxels = rng.integers(0, 200, (4, 5, 6)).astype(dtype)
    before, after = exported(tmp_path, save(tmp_path / "a.nii.gz", voxels, oriented("LPS")))
    assert after.get_data_dtype() == np.int16
    same(before, after)


def test_scaled_voxels_come_back_as_hu_with_slope_1(tmp_path, rng):
    path = save(tmp_path / "a.nii", rng.integers(0, 4000, (4, 5, 6), dtype=np.int16), oriented("RAS"))
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([1, -1024], "<f4").tobytes()
    path.write_bytes(content)
    before, after = exported(tmp_path, path)
    assert np.asarray(after.dataobj).min() < -500
    assert (after.dataobj.slope, after.dataobj.inter) == (1, 0)
    same(before, after)


def test_a_big_endian_file_comes_back_big_endian(tmp_path, rng):
    voxels = rng.integers(-1024, 3000, (4, 5, 6), dtype=np.int16)
    header = nib.Nifti1Header(endianness=">")
    before, after = exported(tmp_path, save(tmp_path / "a.nii", voxels, oriented("LAS"), header), ".nii")
    assert after.header.endianness == before.header.endianness == ">"
    same(before, after)


def test_a_nifti2_file_comes_back_as_nifti2(tmp_path, rng):
    voxels = rng.integers(-1024, 3000, (4, 5, 6), dtype=np.int16)
    before, after = exported(tmp_path, save(tmp_path / "a.nii", voxels, oriented("LPI"), kind=nib.Nifti2Image))
    assert isinstance(after, nib.Nifti2Image)
    same(before, after)


def test_an_exported_image_ingests_to_the_same_voxels_and_affine(tmp_path, rng):
    voxels = rng.integers(-1024, 3000, (4, 5, 6), dtype=np.int16)
    first = stored_case(tmp_path, save(tmp_path / "a.nii", voxels, oriented("PSR")))
    export_case(first, tmp_path / "again" / "a.nii.gz")
    second = stored_case(tmp_path / "again", tmp_path / "again" / "a.nii.gz")
    assert np.array_equal(first.image[:], second.image[:])
    assert np.array_equal(first.info.affine_lps, second.info.affine_lps)


def test_a_mask_comes_back_under_its_own_header_even_where_the_images_was_trusted(tmp_path, rng):
    voxels = rng.integers(-1024, 3000, (5, 5, 5), dtype=np.int16)
    label = rng.integers(0, 3, (5, 5, 5), dtype=np.uint8)
    image = save(tmp_path / "a.nii", voxels, oriented("SPL"))
    moved = oriented("SPL")
    moved[:3, 3] += 3
    mask = save(tmp_path / "b.nii", label, moved)
    case = stored_case(tmp_path, image, mask, geometry="trust-image")
    export_case(case, tmp_path / "out.nii", array="label")
    after = nib.load(tmp_path / "out.nii")
    assert after.get_data_dtype() == np.uint8
    same(nib.load(mask), after)


@pytest.mark.parametrize("codes", ["SPL", "RAS", "ILA"])
def test_a_mask_in_another_axis_order_comes_back_in_its_own(codes, tmp_path, rng):
    voxels = rng.integers(-1024, 3000, (4, 5, 6), dtype=np.int16)
    picture = nib.Nifti1Image(rng.integers(0, 3, (4, 5, 6), dtype=np.uint8), oriented("RAS"))
    image = save(tmp_path / "a.nii", voxels, oriented("RAS"))
    nib.save(reorient(picture, codes), tmp_path / "b.nii")
    case = stored_case(tmp_path, image, tmp_path / "b.nii")
    export_case(case, tmp_path / "out.nii", array="label")
    same(nib.load(tmp_path / "b.nii"), nib.load(tmp_path / "out.nii"))


def test_a_resampled_mask_is_exported_on_the_grid_on_which_it_is_stored(tmp_path, rng):
    image = save(tmp_path / "a.nii", np.zeros((4, 5, 6), np.int16), oriented("RAS"))
    moved = oriented("RAS")
    moved[:3, 3] += moved[:3, :3] @ [1, 0, 0]
    mask = save(tmp_path / "b.nii", rng.integers(0, 3, (4, 5, 6), dtype=np.uint8), moved)
    case = stored_case(tmp_path, image, mask, geometry="resample")
    export_case(case, tmp_path / "out.nii", array="label")
    after, before = nib.load(tmp_path / "out.nii"), nib.load(mask)
    assert np.allclose(after.affine, oriented("RAS"))
    assert np.array_equal(np.asarray(after.dataobj)[1:], np.asarray(before.dataobj)[:-1])


def test_extensions_behind_a_stored_header_are_written_back(tmp_path, rng):
    picture = nib.Nifti1Image(rng.integers(-1024, 3000, (3, 4, 5), dtype=np.int16), oriented("LPS"))
    picture.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept"))
    nib.save(picture, tmp_path / "a.nii")
    header = read_header(tmp_path / "a.nii")
    start = (tmp_path / "a.nii").read_bytes()[: header.data_offset]
    voxels = np.asarray(picture.dataobj).T
    for kept in (start, start[:348] + start[352:]):
        write_volume(tmp_path / "b.nii", kept, np.int16, voxels)
        again = nib.load(tmp_path / "b.nii")
        (extension,) = again.header.extensions
        assert extension.get_content() in ("kept", b"kept")  # str or bytes, by the version of nibabel
        assert np.array_equal(np.asarray(again.dataobj), np.asarray(picture.dataobj))
    case = stored_case(tmp_path, tmp_path / "a.nii")
    longer = replace(case.info.image, header_b64=base64.b64encode(start).decode())
    case.info = replace(case.info, image=longer)
    export_case(case, tmp_path / "c.nii.gz")
    assert len(nib.load(tmp_path / "c.nii.gz").header.extensions) == 1


def test_voxels_that_the_header_does_not_describe_leave_no_file(tmp_path, rng):
    path = save(tmp_path / "a.nii", rng.integers(-1024, 3000, (3, 4, 5), dtype=np.int16), oriented("LPS"))
    with pytest.raises(ScanError, match=r"it has 60 voxels, the volume has 20"):
        write_volume(tmp_path / "b.nii", read_header(path).raw, np.int16, np.zeros((1, 4, 5), np.int16))
    assert not (tmp_path / "b.nii").exists()


def test_a_damaged_stored_header_is_one_clear_error(tmp_path, rng):
    case = stored_case(
        tmp_path, save(tmp_path / "a.nii", rng.integers(-1024, 3000, (3, 4, 5), dtype=np.int16), oriented("LPS"))
    )
    other = read_header(save(tmp_path / "b.nii", np.zeros((3, 4, 6), np.int16), oriented("LPS"))).raw
    whole = case.info.image
    for damaged, message in (
        ("!", "is damaged"),
        ("", "0 bytes"),
        (base64.b64encode(other).decode(), "the same shape"),
    ):
        case.info = replace(case.info, image=replace(whole, header_b64=damaged))
        with pytest.raises(StoreError, match=message):
            export_case(case, tmp_path / "out.nii")


def test_a_file_of_another_suffix_or_that_is_there_is_refused(stored, tmp_path):
    case = open_store(stored)["volume-0"]
    with pytest.raises(ConfigError, match=r"out\.mha: cases are exported as NIfTI"):
        export_case(case, tmp_path / "out.mha")
    (tmp_path / "out.nii").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="--overwrite"):
        export_case(case, tmp_path / "out.nii")
    assert (tmp_path / "out.nii").read_bytes() == b"mine"
    export_case(case, tmp_path / "out.nii", overwrite=True)
    assert nib.load(tmp_path / "out.nii").shape


def test_a_case_without_mask_has_no_segmentation_to_export(tmp_path, rng):
    case = stored_case(
        tmp_path, save(tmp_path / "a.nii", rng.integers(-1024, 3000, (3, 4, 5), dtype=np.int16), oriented("LPS"))
    )
    with pytest.raises(InputError, match="has no mask"):
        export_case(case, tmp_path / "out.nii", array="label")


def test_the_command_writes_every_phantom_back_as_it_was(collection, stored, tmp_path):
    for number in range(6):
        for option, name in (((), "volume"), (("--mask",), "segmentation")):
            out = tmp_path / f"{name}-{number}.nii"
            done = CliRunner().invoke(cli, ["export", str(stored), f"volume-{number}", str(out), *option])
            assert done.exit_code == 0, done.output
            (source,) = Path(collection).glob(f"{name}-{number}.nii*")
            same(nib.load(source), nib.load(out))
