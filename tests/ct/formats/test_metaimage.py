"""MetaImage files: what is read as SimpleITK reads it, what is refused, and which files are never opened."""

import hashlib
import os
import zlib

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own documentation's name)

from slicemill.common.errors import InputError, ScanError
from slicemill.ct.formats.open import scan_files
from slicemill.ct.geometry import RAS_TO_LPS
from slicemill.ct.scan import ScanReader
from tests.conftest import REAL
from tests.ct.formats.written import AFFINE, META, RAMP, read, write_meta
from tests.ct.grids import ORIENTATIONS, rotate


def simpleitk(path):
    """Return voxels any[k, j, i] and the affine, RAS mm, by SimpleITK."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), RAS_TO_LPS @ affine


def check_as_simpleitk(path, kind="image"):
    """Check that a file's voxels and affine equal SimpleITK's."""
    voxels, affine = simpleitk(path)
    volume, reader = read(path, kind)
    assert np.allclose(reader.grid.affine, affine, atol=1e-9)
    assert np.array_equal(reader.grid.to_file(volume), np.rint(voxels))
    return reader


SAME = {
    "as it is": {},
    "one zlib stream": {"CompressedData": "True", "CompressedDataSize": str(len(zlib.compress(RAMP.tobytes())))},
    "big endian": {"BinaryDataByteOrderMSB": "True"},
    "a synonym of big endian": {"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True"},
    "lines that end as on Windows": {"end": "\r\n"},
    "Position and Orientation": {
        "Offset": None, "TransformMatrix": None, "Position": "1 2 3", "Orientation": "0 1 0 1 0 0 0 0 1"},
    "Origin and Rotation": {
        "Offset": None, "TransformMatrix": None, "Origin": "1 2 3", "Rotation": "0 0 1 1 0 0 0 1 0"},
    "a flipped axis, as some of LUNA16": {"TransformMatrix": "-1 0 0 0 -1 0 0 0 1"},
    "a rotated grid": {"TransformMatrix": "0.8 0.6 0 -0.6 0.8 0 0 0 1"},
    "ElementSize alone": {"ElementSpacing": None, "ElementSize": "2 3 4"},
    "ElementSpacing before ElementSize": {"ElementSize": "2 3 4"},
    "no spacing": {"ElementSpacing": None},
    "negative spacing": {"ElementSpacing": "1 1 -2"},
    "no BinaryData": {"BinaryData": None},
    "AnatomicalOrientation, which says nothing": {"AnatomicalOrientation": "LPI", "CenterOfRotation": "5 5 5"},
    "other fields": {"Modality": "MET_MOD_CT", "Comment": "J\u00fcrgen", "dim[0]": "3", "0008|0060": "CT", "a b": "="},
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_is_read_as_simpleitk_reads_it(name, tmp_path):
    changes = dict(SAME[name])
    data = RAMP.byteswap().tobytes() if "endian" in name else None
    check_as_simpleitk(write_meta(tmp_path / "a.mha", data, **changes))


@pytest.mark.parametrize("size", [None, "7", "999999999", "-1"])
def test_the_size_of_a_stream_may_lack_or_lie(size, tmp_path):
    path = write_meta(tmp_path / "a.mha", CompressedData="True", CompressedDataSize=size)
    assert np.array_equal(read(path)[0], RAMP)


@pytest.mark.parametrize(
    ("kind", "code"),
    [("CHAR", "i1"), ("UCHAR", "u1"), ("SHORT", "i2"), ("USHORT", "u2"), ("INT", "i4"), ("UINT", "u4"), ("LONG", "i4"),
     ("ULONG", "u4"), ("LONG_LONG", "i8"), ("FLOAT", "f4"), ("DOUBLE", "f8")],
)  # fmt: skip
@pytest.mark.parametrize("order", "<>")
def test_every_type_in_both_byte_orders(kind, code, order, tmp_path):
    data = RAMP.astype(order + code).tobytes()
    path = write_meta(tmp_path / "a.mha", data, ElementType=f"MET_{kind}", BinaryDataByteOrderMSB=str(order == ">"))
    check_as_simpleitk(path)


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_all_axis_orders_that_simpleitk_writes(codes, suffix, tmp_path):
    image = sitk.GetImageFromArray(RAMP)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-10, -20, 30))
    turned = sitk.DICOMOrient(image, codes)
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(turned, str(path), useCompression=codes[0] in "LR")
    reader = check_as_simpleitk(path)
    assert np.array_equal(read(path)[0], RAMP), "one volume in every order"
    assert reader.grid.axcodes == codes


def test_an_oblique_grid_written_by_simpleitk(tmp_path):
    matrix = rotate(np.diag([0.7, 0.8, 2.5, 1]), 0.1, -0.2, 0.3)[:3, :3]
    image = sitk.GetImageFromArray(RAMP)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetDirection((matrix / [0.7, 0.8, 2.5]).ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    assert "oblique" in " ".join(check_as_simpleitk(tmp_path / "a.mha").warnings)


def test_two_axes_are_one_slice(tmp_path):
    path = write_meta(
        tmp_path / "a.mha", RAMP[0].tobytes(), NDims="2", DimSize="5 4", ElementSpacing="0.7 0.8", Offset="1 2",
        TransformMatrix="0 1 1 0")  # fmt: skip
    volume, reader = read(path)
    assert np.array_equal(reader.grid.to_file(volume), RAMP[:1])
    assert reader.grid.affine[:3, 0].tolist() == [0, -0.7, 0]
    assert reader.grid.affine[:3, 1].tolist() == [-0.8, 0, 0]
    assert {"a single slice", "the header has 2 axes; the slice was taken as 1 mm thick"} <= set(reader.warnings)


def split_into_slices(folder, skip=b""):
    for k, plane in enumerate(RAMP):
        (folder / f"s{k:02d}.raw").write_bytes(skip + plane.tobytes())


@pytest.mark.parametrize("names", ["LIST\ns00.raw\ns01.raw\ns02.raw", "LIST 2\ns00.raw\ns01.raw\ns02.raw\n\n"])
def test_a_list_of_slices(names, tmp_path):
    split_into_slices(tmp_path)
    path = write_meta(tmp_path / "a.mhd", ElementDataFile=names)
    check_as_simpleitk(path)
    assert [file.name for file in scan_files(path)] == ["a.mhd", "s00.raw", "s01.raw", "s02.raw"]


def test_a_pattern_of_slices_each_with_bytes_before_its_voxels(tmp_path):
    split_into_slices(tmp_path, b"abc")
    check_as_simpleitk(write_meta(tmp_path / "a.mhd", ElementDataFile="s%02d.raw 0 2 1", HeaderSize="3"))
    backwards = write_meta(tmp_path / "b.mhd", ElementDataFile="s%02d.raw 2 0 -1", HeaderSize="3")
    assert np.array_equal(read(backwards)[0], RAMP[::-1])
    assert np.array_equal(
        read(write_meta(tmp_path / "c.mhd", ElementDataFile="s%02d.raw 0 2 1", HeaderSize="-1"))[0], RAMP
    )


def test_one_file_with_all_slices_and_bytes_before_them(tmp_path):
    path = write_meta(tmp_path / "a.mhd", b"1234567" + RAMP.tobytes(), ElementDataFile="a.raw", HeaderSize="7")
    check_as_simpleitk(path)
    path = write_meta(tmp_path / "a.mhd", b"1234567" + RAMP.tobytes(), ElementDataFile="a.raw", HeaderSize="-1")
    check_as_simpleitk(path)
    packed = b"1234567" + zlib.compress(RAMP.tobytes())
    path = write_meta(tmp_path / "b.mhd", packed, ElementDataFile="b.zraw", HeaderSize="7", CompressedData="True")
    assert np.array_equal(read(path)[0], RAMP)


def test_header_and_voxels_are_one_scan_with_one_hash(tmp_path):
    path = write_meta(tmp_path / "a.mhd", ElementDataFile="a b.raw")
    _, reader = read(path)
    whole = path.read_bytes() + (tmp_path / "a b.raw").read_bytes()
    assert reader.sha256 == hashlib.sha256(whole).hexdigest()
    assert reader.bytes_read == len(whole)
    local = write_meta(tmp_path / "b.mha", CompressedData="True")
    local.write_bytes(local.read_bytes() + b"bytes after the stream")
    _, reader = read(local)
    assert reader.sha256 == hashlib.sha256(local.read_bytes()).hexdigest()


def test_two_headers_may_share_one_file_of_voxels(tmp_path):
    first = write_meta(tmp_path / "a.mhd", ElementDataFile="x.raw")
    second = write_meta(tmp_path / "b.mhd", ElementDataFile="x.raw", ElementSpacing="1 2 3")
    assert np.array_equal(read(first)[0], read(second)[0])
    assert read(second)[1].grid.spacing_mm == (3, 2, 1)


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"ElementSpacing": None}, "no ElementSpacing; 1 mm was taken"),
        ({"ElementSpacing": None}, "the header may be lost"),
        ({"TransformMatrix": None}, "no TransformMatrix"),
        ({"Offset": None}, "no Offset"),
        ({"DistanceUnits": "cm"}, "lengths in cm"),
        ({"ElementType": "MET_UCHAR"}, "60 bytes follow the voxels"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0.3 1"}, "sheared"),
    ],
)
def test_unusual_headers_have_warnings(changes, warning, tmp_path):
    path = write_meta(tmp_path / "a.mha", **changes)
    with ScanReader(path, "image") as reader:
        assert any(warning in text for text in reader.warnings), reader.warnings


def test_the_metadata_of_an_image_that_simpleitk_converts_are_ignored(tmp_path):
    image = sitk.GetImageFromArray(RAMP)
    image.SetSpacing((0.7, 0.8, 2.5))
    for key, text in {"dim[0]": "3", "0010|0010": "Doe^J = x", "Offsets": "1 2 3", "x": "one\ntwo\nDimSize 1"}.items():
        image.SetMetaData(key, text)
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    sitk.WriteImage(image, str(tmp_path / "b.nrrd"))
    assert np.array_equal(read(tmp_path / "a.mha")[0], RAMP)
    assert np.array_equal(read(tmp_path / "b.nrrd")[0], RAMP)
    with ScanReader(tmp_path / "a.mha", "image") as reader:
        assert b"Doe" not in reader.stored_header(keep_text=True)


def test_a_usual_header_has_no_warnings(tmp_path):
    with ScanReader(write_meta(tmp_path / "a.mha"), "image") as reader:
        assert reader.warnings == ()
        assert np.allclose(reader.grid.affine, AFFINE)


REFUSED = {
    "text": ({"BinaryData": "False"}, "voxels are text"),
    "channels": ({"ElementNumberOfChannels": "3"}, "one number a voxel"),
    "four axes": ({"NDims": "4", "DimSize": "5 4 3 1"}, "NDims is 4"),
    "a mesh": ({"ObjectType": "Mesh"}, "ObjectType must be Image"),
    "an unknown type": ({"ElementType": "MET_STRING"}, "unknown ElementType"),
    "scaled": ({"ElementToIntensityFunctionSlope": "2"}, "scales the voxels"),
    "no size": ({"DimSize": None}, "no dimsize"),
    "no extent": ({"DimSize": "5 4 0"}, "at least 1"),
    "a size that lies": ({"DimSize": "5 4 300"}, "claims 12,000 bytes"),
    "a huge size": ({"DimSize": "999999999 999999999 999999999"}, "claims"),
    "a size beyond numbers": ({"DimSize": f"5 4 {'9' * 30}"}, "DimSize must be 3 integers"),
    "a size in another notation": ({"DimSize": "5 4 3_0"}, "DimSize must be 3 integers"),
    "a flat grid": ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "affine must be invertible"),
    "no numbers": ({"ElementSpacing": "nan 1 1"}, "ElementSpacing must be 3 numbers"),
    "too few numbers": ({"Offset": "1 2"}, "Offset must be 3 numbers"),
    "a zero spacing": ({"ElementSpacing": "1 1 0"}, "affine must be invertible"),
    "stated twice": ({"Position": "1 2 3"}, "stated twice"),
    "skip of LOCAL": ({"HeaderSize": "10"}, "HeaderSize is 10"),
    "skip from the end of zlib": ({"HeaderSize": "-1", "CompressedData": "True"}, "HeaderSize is -1"),
    "no flag": ({"CompressedData": "maybe"}, "must be True or False"),
    "an absolute path": ({"ElementDataFile": "/etc/passwd"}, "in the same folder"),
    "a path up": ({"ElementDataFile": "../a.raw"}, "in the same folder"),
    "a path down": ({"ElementDataFile": "sub/a.raw"}, "in the same folder"),
    "a path of Windows": ({"ElementDataFile": "..\\a.raw"}, "in the same folder"),
    "a drive": ({"ElementDataFile": "C:a.raw"}, "in the same folder"),
    "a URL": ({"ElementDataFile": "http://host/a.raw"}, "in the same folder"),
    "the folder above": ({"ElementDataFile": ".."}, "in the same folder"),
    "no name": ({"ElementDataFile": ""}, "in the same folder"),
    "a list that leads away": ({"ElementDataFile": "LIST\n/etc/passwd"}, "in the same folder"),
    "an empty list": ({"ElementDataFile": "LIST\n\n"}, "empty LIST"),
    "a pattern that leads away": ({"ElementDataFile": "../s%d.raw 0 2 1"}, "in the same folder"),
    "a pattern of strings": ({"ElementDataFile": "s%s.raw 0 2 1"}, "must be a pattern"),
    "two numbers in a pattern": ({"ElementDataFile": "s%d%d.raw 0 2 1"}, "must be a pattern"),
    "a pattern without end": ({"ElementDataFile": "s%d.raw 0 999999999 1"}, "must name files"),
    "a pattern without step": ({"ElementDataFile": "s%d.raw 0 2 0"}, "must name files"),
    "itself": ({"ElementDataFile": "a.mhd"}, "the header itself"),
    "missing": ({"ElementDataFile": "s%d.raw 0 2 1"}, "file of voxels s0.raw is missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_with_one_line(name, tmp_path):
    changes, message = REFUSED[name]
    suffix = ".mhd" if "ElementDataFile" in changes else ".mha"
    fields = META | changes
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # the last one
    path = tmp_path / f"a{suffix}"
    lines = [f"{key} = {value}" for key, value in fields.items() if value is not None]
    path.write_bytes(("\n".join(lines) + "\n").encode() + RAMP.tobytes() * (suffix == ".mha"))
    with pytest.raises(InputError, match=message) as error:
        ScanReader(path, "image")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_metaimage(tmp_path):
    path = tmp_path / "a.mha"
    for content in (b"", b"\x89PNG\r\n\x1a\n", b"\0" * 100_000, b"NDims = 3\n" * 10_000):
        path.write_bytes(content)
        with pytest.raises(ScanError, match="is not a MetaImage file"):
            ScanReader(path, "image")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.raw").write_bytes(RAMP.tobytes())
    folder = tmp_path / "in"
    folder.mkdir()
    header = write_meta(folder / "a.mhd", ElementDataFile="a.raw")
    (folder / "a.raw").unlink()
    (folder / "a.raw").symlink_to(outside / "a.raw")
    with pytest.raises(ScanError, match="a link to a file in another folder"):
        ScanReader(header, "image")
    # both files linked, as people make a part of a collection
    (outside / "a.mhd").write_bytes(header.read_bytes())
    header.unlink()
    header.symlink_to(outside / "a.mhd")
    assert np.array_equal(read(header)[0], RAMP)


def test_a_pipe_is_not_opened(tmp_path):
    header = write_meta(tmp_path / "a.mhd", ElementDataFile="a.raw")
    (tmp_path / "a.raw").unlink()
    os.mkfifo(tmp_path / "a.raw")
    with pytest.raises(InputError, match="a folder, a pipe or a device"):
        ScanReader(header, "image")


def packed(tmp_path, content):
    return write_meta(tmp_path / "a.mha", content, CompressedData="True")


def test_damaged_streams_are_refused(tmp_path):
    good = zlib.compress(RAMP.tobytes())
    cases = {
        good[:-6]: "ends early",
        good[:-1] + bytes([good[-1] ^ 1]): "damaged",
        b"PK" + good: "damaged",
        zlib.compress(RAMP.tobytes()[:-2]): "ends early",
        zlib.compress(RAMP.tobytes() + b"1"): "hold more than the 120 bytes",
        zlib.compress(bytes(50_000_000)): "hold more than",
    }
    for content, message in cases.items():
        with pytest.raises(ScanError, match=message):
            read(packed(tmp_path, content))


def test_a_header_larger_than_its_stream_can_be_takes_no_memory(tmp_path):
    path = write_meta(tmp_path / "a.mha", zlib.compress(bytes(1000)), CompressedData="True", DimSize="99999 99999 9999")
    with pytest.raises(ScanError, match="compressed. It is truncated"):
        ScanReader(path, "image")


FOLDERS = ["elastix-lung-ct", "luna16-style-nodule", "metaio-edge-cases"]


@pytest.mark.real
@pytest.mark.parametrize("folder", FOLDERS)
def test_real_files_are_read_as_simpleitk_reads_them(folder):
    if not (REAL / folder).is_dir():
        pytest.skip("the real scans (../shared/data) are not here")
    paths = sorted(path for path in (REAL / folder).iterdir() if path.suffix in (".mha", ".mhd"))
    assert paths
    for path in paths:
        if "RGB" in path.name:
            with pytest.raises(ScanError, match="one number a voxel"):
                ScanReader(path, "image")
        else:
            check_as_simpleitk(path, "mask" if "mask" in path.name else "image")
