"""NRRD files and 3D Slicer's segmentations: what is read as SimpleITK and pynrrd read it, and what is refused."""

import gzip
import hashlib
from pathlib import Path

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own documentation's name)

from slicemill.common.errors import InputError, LabelError, ScanError
from slicemill.ct.formats.nrrd.header import list_segments
from slicemill.ct.formats.nrrd.segments import Segment, check_names
from slicemill.ct.labels import Labels, make_labels
from slicemill.ct.scan import ScanReader
from slicemill.measure.lesions.measurements import Volume
from slicemill.measure.lesions.slicer3d import write_segmentation
from tests.conftest import REAL
from tests.ct.formats.test_metaimage import check_as_simpleitk
from tests.ct.formats.written import AFFINE, NRRD, RAMP, read, write_nrrd
from tests.ct.grids import ORIENTATIONS

SAME = {
    "as it is": {},
    "gzip": {"encoding": "gzip"},
    "big endian": {"endian": "big"},
    "RAS": {"space": "right-anterior-superior"},
    "LAS": {"space": "left-anterior-superior"},
    "a short name of the space": {"space": "RAS"},
    "a rotated grid": {"space_directions": "(0.56,0.42,0) (-0.48,0.64,0) (0,0,2.5)"},
    "a sheared grid": {"space_directions": "(0.7,0,0) (0,0.8,0) (0,0.5,2.5)"},
    "no origin": {"space_origin": None},
    "spacings alone": {"space": None, "space_directions": None, "space_origin": None, "spacings": "0.7 0.8 2.5"},
    "bytes before the voxels": {"byte_skip": "5"},
    "the last bytes": {"byte_skip": "-1"},
}


@pytest.mark.parametrize("name", SAME)
def test_is_read_as_simpleitk_reads_it(name, tmp_path):
    data = RAMP.byteswap().tobytes() if name == "big endian" else RAMP.tobytes()
    data = b"12345" + data if "bytes" in name else data
    data = gzip.compress(data) if name == "gzip" else data
    path = write_nrrd(tmp_path / "a.nrrd", data, **SAME[name])
    if "shear" in name:  # which SimpleITK refuses
        assert np.array_equal(read(path)[0], RAMP)
        return
    check_as_simpleitk(path)


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", "<u2", "<i4", ">i4", "<u4", "<i8", "<u8", "<f4", ">f8"])
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_what_pynrrd_writes(dtype, encoding, tmp_path):
    path = tmp_path / "a.nrrd"
    header = {"space": "left-posterior-superior", "space directions": np.diag([0.7, 0.8, 2.5]), "encoding": encoding,
              "space origin": [-10, -20, 30], "endian": "big" if dtype[0] == ">" else "little"}  # fmt: skip
    nrrd.write(str(path), RAMP.T.astype(dtype), header)
    volume, reader = read(path)
    assert np.array_equal(volume, nrrd.read(str(path))[0].T)
    assert np.allclose(reader.grid.affine, AFFINE)
    assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_pynrrd_writes_into_two_files(tmp_path):
    for encoding, suffix in (("raw", "raw"), ("gzip", "raw.gz")):
        path = tmp_path / f"{encoding}.nhdr"
        nrrd.write(str(path), RAMP.T, {"space directions": np.eye(3), "space": "RAS", "encoding": encoding})
        volume, reader = read(path)
        data = tmp_path / f"{encoding}.{suffix}"
        assert reader.sha256 == hashlib.sha256(path.read_bytes() + data.read_bytes()).hexdigest()
        assert np.array_equal(reader.grid.to_file(volume), RAMP)


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr"])
def test_all_axis_orders_that_simpleitk_writes(codes, suffix, tmp_path):
    image = sitk.GetImageFromArray(RAMP)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-10, -20, 30))
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.DICOMOrient(image, codes), str(path), useCompression=codes[0] in "LR")
    reader = check_as_simpleitk(path)
    assert np.array_equal(read(path)[0], RAMP)
    assert reader.grid.axcodes == codes


def test_slices_in_files_of_their_own(tmp_path):
    for k, plane in enumerate(RAMP):
        (tmp_path / f"s{k:02d}.raw").write_bytes(plane.tobytes())
    listed = write_nrrd(tmp_path / "a.nhdr", data_file="LIST\ns00.raw\n./s01.raw\ns02.raw")
    assert np.array_equal(read(listed)[0], RAMP)
    assert np.array_equal(read(write_nrrd(tmp_path / "b.nhdr", data_file="s%02d.raw 0 2 1 2"))[0], RAMP)


def test_one_slice_of_two_axes(tmp_path):
    changes = {"dimension": "2", "sizes": "5 4", "kinds": "domain domain"}
    path = write_nrrd(tmp_path / "a.nrrd", RAMP[0].tobytes(), **changes, space_directions="(0.7,0,0) (0,0,-0.8)")
    volume, reader = read(path)
    assert np.array_equal(reader.grid.to_file(volume), RAMP[:1])
    assert np.allclose(reader.grid.affine[:3, 2], [0, -1, 0]), "one mm along the normal, RAS"
    assert "the header has 2 axes; the slice was taken as 1 mm thick" in reader.warnings


def test_an_axis_of_one_value_is_dropped(tmp_path):
    first = write_nrrd(
        tmp_path / "a.nrrd", dimension="4", sizes="1 5 4 3", kinds="list domain domain domain",
        space_directions="none (0.7,0,0) (0,0.8,0) (0,0,2.5)")  # fmt: skip
    assert np.array_equal(read(first)[0], RAMP)
    last = write_nrrd(
        tmp_path / "b.nrrd", dimension="4", sizes="5 4 3 1", kinds="domain domain domain time",
        space_directions="(0.7,0,0) (0,0.8,0) (0,0,2.5) none")  # fmt: skip
    assert np.array_equal(read(last)[0], RAMP)


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"space": None, "space_directions": None, "space_origin": None, "spacings": "1 1 2"}, "no space"),
        ({"space": None, "space_directions": None, "space_origin": None}, "no spacing; 1 mm"),
        ({"space_origin": None}, "no space origin"),
        ({"space_units": '"cm" "cm" "cm"'}, "lengths in cm"),
        ({"type": "uchar"}, "60 bytes follow"),
    ],
)
def test_unusual_headers_have_warnings(changes, warning, tmp_path):
    with ScanReader(write_nrrd(tmp_path / "a.nrrd", **changes), "image") as reader:
        assert any(warning in text for text in reader.warnings), reader.warnings


def test_a_usual_header_has_no_warnings(tmp_path):
    with ScanReader(write_nrrd(tmp_path / "a.nrrd", space_units='"mm" "mm" "mm"'), "image") as reader:
        assert reader.warnings == ()


REFUSED = {
    "four axes": ({"dimension": "4", "sizes": "5 4 3 2", "kinds": None, "space_directions": None}, "3 spatial axes"),
    "a color picture": ({"dimension": "4", "sizes": "3 5 4 3", "kinds": "RGB-color domain domain domain",
                         "space_directions": "none (1,0,0) (0,1,0) (0,0,1)"}, "export a segmentation"),
    "several volumes": ({"dimension": "4", "sizes": "5 4 3 2", "kinds": "domain domain domain time",
                         "space_directions": "(1,0,0) (0,1,0) (0,0,1) none"}, "several volumes"),
    "five axes": ({"dimension": "5", "sizes": "1 1 5 4 3"}, "a CT has 3 axes"),
    "blocks": ({"type": "block"}, "integers or floats"),
    "text": ({"encoding": "ascii"}, "encoding must be raw or gzip"),
    "bzip2": ({"encoding": "bzip2"}, "encoding must be raw or gzip"),
    "no byte order": ({"endian": None}, "endian must be little or big"),
    "an unknown space": ({"space": "scanner-xyz"}, "space must be one of a patient"),
    "directions without a space": ({"space": None}, "space must be one of a patient"),
    "a size that lies": ({"sizes": "5 4 300"}, "claims 12,000 bytes"),
    "a huge size": ({"sizes": "999999999 999999999 999999999"}, "claims"),
    "no extent": ({"sizes": "5 4 0"}, "at least 1"),
    "two vectors": ({"space_directions": "(1,0,0) (0,1,0)"}, "must each have 3 entries"),
    "vectors of two numbers": ({"space_directions": "(1,0) (0,1) (1,1)"}, "vectors of 3 numbers"),
    "vectors of words": ({"space_directions": "(1,0,0) (0,1,0) up"}, "must be vectors"),
    "no position": ({"space_origin": "none"}, "must be one vector"),
    "a flat grid": ({"space_directions": "(1,0,0) (1,0,0) (0,0,1)"}, "affine must be invertible"),
    "no size": ({"sizes": None}, "has no sizes"),
    "lines before the voxels": ({"line_skip": "2"}, "line skip 2"),
    "an absolute path": ({"data_file": "/etc/passwd"}, "in the same folder"),
    "a path up": ({"data_file": "../a.raw"}, "in the same folder"),
    "a path down and up": ({"data_file": "./../a.raw"}, "in the same folder"),
    "a list that leads away": ({"data_file": "LIST\n/etc/passwd"}, "in the same folder"),
    "a pattern that leads away": ({"data_file": "/etc/s%d.raw 0 2 1"}, "in the same folder"),
    "missing": ({"data_file": "s%d.raw 0 2 1"}, "file of voxels s0.raw is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_with_one_line(name, tmp_path):
    changes, message = REFUSED[name]
    path = tmp_path / "a.nrrd"
    fields = NRRD | {key.replace("_", " "): value for key, value in changes.items()}
    lines = ["NRRD0005", *(f"{key}: {value}" for key, value in fields.items() if value is not None)]
    path.write_bytes(("\n".join(lines) + "\n\n").encode() + RAMP.tobytes())
    with pytest.raises(InputError, match=message) as error:
        ScanReader(path, "image")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_nrrd(tmp_path):
    path = tmp_path / "a.nrrd"
    for content in (b"", b"NRRD", b"NRRD0005\nno separator\n\n", b"\0" * 100, b"NRRD0004\ntype: short\ntype: int\n\n"):
        path.write_bytes(content)
        with pytest.raises(ScanError):
            ScanReader(path, "image")
    path.write_bytes(b"NRRD0005\n" + b"# long\n" * 200_000)
    with pytest.raises(ScanError, match="more than 1,048,576 bytes"):
        ScanReader(path, "image")


def test_damaged_gzip_is_refused(tmp_path):
    good = gzip.compress(RAMP.tobytes())
    cases = {
        good[:-9]: "ends early",
        good[:-5] + bytes([good[-5] ^ 1]) + good[-4:]: "damaged",
        b"PK" + good: "damaged",
        gzip.compress(RAMP.tobytes()[:-2]): "ends early",
        gzip.compress(RAMP.tobytes() + b"1"): "hold more than the 120 bytes",
        gzip.compress(bytes(50_000_000)): "hold more than",
    }
    for content, message in cases.items():
        with pytest.raises(ScanError, match=message):
            read(write_nrrd(tmp_path / "a.nrrd", content, encoding="gzip"))
    members = gzip.compress(RAMP.tobytes()[:50]) + gzip.compress(RAMP.tobytes()[50:])
    assert np.array_equal(read(write_nrrd(tmp_path / "a.nrrd", members, encoding="gzip"))[0], RAMP)


LAYERS = {"dimension": "4", "sizes": "2 5 4 3", "kinds": "list domain domain domain", "type": "uchar", "endian": None,
          "space_directions": "none (0.7,0,0) (0,0.8,0) (0,0,2.5)", "encoding": "gzip"}  # fmt: skip


def segments(*values):
    """Return the pairs of segments, each in a layer of its own."""
    return {
        f"Segment{number}_{key}": str(text)
        for number, value in enumerate(values)
        for key, text in (("Name", f"s{number}"), ("LabelValue", value), ("Layer", number))
    }


def write_layers(path, first, second, *values):
    content = np.stack([first, second], axis=-1).astype(np.uint8)
    return write_nrrd(path, gzip.compress(content.tobytes()), pairs=segments(*values), **LAYERS)


def test_layers_that_do_not_overlap_are_one_mask(tmp_path):
    first, second = np.zeros((2, 3, 4, 5), np.uint8)
    first[0, 1], second[2, 2] = 3, 7
    path = write_layers(tmp_path / "a.seg.nrrd", first, second, 3, 7)
    volume, reader = read(path, "mask")
    assert np.array_equal(volume, first + second)
    assert volume.dtype == np.uint8
    assert reader.grid.shape == (5, 4, 3)
    assert [(one.name, one.value, one.layer) for one in list_segments(path)] == [("s0", 3, 0), ("s1", 7, 1)]


def test_layers_that_cannot_be_one_mask_are_refused(tmp_path):
    first, second = np.zeros((2, 3, 4, 5), np.uint8)
    first[0, 1], second[0, 1, 2] = 3, 7
    with pytest.raises(ScanError, match=r"overlap \(at least 1 voxels\)"):
        read(write_layers(tmp_path / "a.seg.nrrd", first, second, 3, 7), "mask")
    with pytest.raises(ScanError, match="both have the label value 1"):
        read(write_layers(tmp_path / "b.seg.nrrd", first, second, 1, 1), "mask")
    with pytest.raises(ScanError, match="does not say which segments"):
        read(write_layers(tmp_path / "c.seg.nrrd", first, second), "mask")
    with pytest.raises(ScanError, match="layer 1 has the value 7"):
        read(write_layers(tmp_path / "d.seg.nrrd", first * 0, second, 3, 8), "mask")
    with pytest.raises(ScanError, match="must be numbers"):
        read(write_layers(tmp_path / "e.seg.nrrd", first, second, 3, "x"), "mask")


def test_our_own_segmentation_for_slicer_is_read_back(tmp_path):
    label = np.zeros((3, 4, 5), np.uint8)
    label[1, 2, 3] = 2
    volume = Volume(label=label, affine_lps=np.diag([0.7, 0.8, 2.5, 1]), labels=make_labels({"liver": 1, "tumor": 2}))
    write_segmentation(tmp_path / "a.seg.nrrd", volume)
    assert np.array_equal(read(tmp_path / "a.seg.nrrd", "mask")[0], label)
    assert [(one.name, one.value) for one in list_segments(tmp_path / "a.seg.nrrd")] == [("liver", 1), ("tumor", 2)]


@pytest.mark.real
def test_a_real_segmentation_is_read_as_simpleitk_and_pynrrd_read_it():
    path = REAL / "dcmqi-liver-3slice" / "liver_seg.nrrd"
    if not path.exists():
        pytest.skip("the real scans (../shared/data) are not here")
    reader = check_as_simpleitk(path, "mask")
    voxels, _ = nrrd.read(str(path))
    assert np.array_equal(reader.grid.to_file(read(path, "mask")[0]), voxels.T)


def test_a_segment_with_the_name_of_a_label_has_its_value():
    labels = Labels({"liver": 1, "tumor": 2}, organ="liver", tumor="tumor")
    path = Path("a.seg.nrrd")
    check_names((Segment(name="Liver", value=1, layer=0), Segment(name="other", value=9, layer=0)), labels, path)
    swapped = (Segment(name="Tumor", value=1, layer=0), Segment(name="liver", value=2, layer=0))
    with pytest.raises(LabelError, match="its segment 'Tumor' has the label value 1, but the labels say 2"):
        check_names(swapped, labels, path)
