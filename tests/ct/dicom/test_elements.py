"""The reader of elements, with pydicom as oracle, and hostile streams."""

import contextlib
import struct
import tempfile
import time
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicemill.common.errors import InputError, ScanError
from slicemill.ct.formats.dicom.elements import MAX_DEPTH, TooShortError, UnwalkableError, walk
from slicemill.ct.formats.dicom.files import stat_file
from slicemill.ct.formats.dicom.header import TAGS, read_file_header
from tests.conftest import REAL
from tests.ct.dicom.made import make_series, make_slice, make_volume, save, save_series
from tests.ct.dicom.test_orders import read

START = bytes(128) + b"DICM" + b"\2\0\x10\0UI\x14\x00" + b"1.2.840.10008.1.2.1\0"


def element(tag, vr, value, length=None):
    """Return an explicit element."""
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    size = len(value) if length is None else length
    if vr in (b"SQ", b"UN", b"OW"):
        return head + b"\0\0" + struct.pack("<I", size) + value
    return head + struct.pack("<H", size) + value


def item(value, length=None):
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(value) if length is None else length) + value


END_ITEM, END = b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
PIXELS = element(0x7FE00010, b"OW", b"\1\2")
ROWS = element(0x00280010, b"US", b"\5\0")


def rows_after(*elements):
    """Return the value of Rows after some elements, and the offset of the pixels."""
    data = START + b"".join(elements) + ROWS + PIXELS
    found = walk(data, len(data), TAGS)
    assert data[found.pixel_offset :] == b"\1\2"
    return found.values[0x00280010]


def test_sequences_are_skipped_however_they_are_nested():
    inner = element(0x00081155, b"UI", b"1.2\0")
    closed = element(0x00081140, b"SQ", item(inner))
    open_item = element(0x00081140, b"SQ", item(inner, 0xFFFFFFFF) + END_ITEM + END, 0xFFFFFFFF)
    deeper = element(0x00081140, b"SQ", item(open_item + inner, 0xFFFFFFFF) + END_ITEM + item(inner) + END, 0xFFFFFFFF)
    implicit = struct.pack("<HHI", 0x0008, 0x1155, 4) + b"1.2\0"
    unknown = element(0x00091010, b"UN", item(implicit, 0xFFFFFFFF) + END_ITEM + END, 0xFFFFFFFF)
    for elements in ((), (closed,), (open_item,), (deeper,), (unknown,), (closed, open_item, deeper, unknown)):
        assert rows_after(*elements) == b"\5\0"


def test_values_within_sequences_are_not_those_of_the_file():
    inner = element(0x00280010, b"US", b"\7\0")
    assert rows_after(element(0x00081140, b"SQ", item(inner, 0xFFFFFFFF) + END_ITEM + END, 0xFFFFFFFF)) == b"\5\0"


@pytest.mark.parametrize("depth", [MAX_DEPTH // 2 - 1, 10_000])
def test_nesting_is_bounded(depth):
    opening = element(0x00081140, b"SQ", b"", 0xFFFFFFFF) + item(b"", 0xFFFFFFFF)
    nested = opening * depth + (END_ITEM + END) * depth
    if depth < MAX_DEPTH:
        assert rows_after(nested) == b"\5\0"
    else:
        with pytest.raises(ScanError, match="nested more than 64 levels deep"):
            rows_after(nested)


@pytest.mark.parametrize(
    "bad",
    [
        element(0x00100020, b"LO", b"x", 0xFFFE),
        element(0x00081140, b"SQ", b"", 0x7FFFFFFF),
        element(0x00081140, b"SQ", item(b"", 0x7FFFFFFF), 0xFFFFFFFF),
        element(0x00081140, b"SQ", b"", 0xFFFFFFFF),
        element(0x00081140, b"SQ", b"garbage.garbage.", 0xFFFFFFFF),
    ],
)
def test_lengths_beyond_the_file_are_errors(bad):
    data = START + bad
    with pytest.raises((ScanError, UnwalkableError)):
        walk(data, len(data), TAGS)


def test_a_part_of_a_file_asks_for_more():
    data = START + element(0x00100020, b"LO", bytes(5000)) + ROWS + PIXELS
    with pytest.raises(TooShortError) as error:
        walk(data[:400], len(data), TAGS)
    assert 400 < error.value.needed <= len(data)


def test_a_long_private_header_is_read_in_steps(tmp_path):
    one = make_slice(make_volume()[0])
    one.private_block(0x0009, "maker", create=True).add_new(1, "OB", bytes(300_000))
    path = save(one, tmp_path / "x")
    assert read_file_header(stat_file(path)).format.rows == 6


@pytest.mark.real
@pytest.mark.usefixtures("real_data")
@pytest.mark.parametrize("implicit", [False, True])
def test_pydicom_finds_the_same_values(implicit, tmp_path):
    files = [
        path for path in REAL.rglob("*") if path.is_file() and (path.suffix == ".dcm" or path.name.startswith("CT."))
    ]
    assert len(files) > 60
    for source in files[::5]:
        path, dataset = source, pydicom.dcmread(source, force=True)
        if implicit and not dataset.file_meta.TransferSyntaxUID.is_compressed:
            path = tmp_path / "x"
            dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
            pydicom.dcmwrite(path, dataset, enforce_file_format=True)
            dataset = pydicom.dcmread(path)
        data = path.read_bytes()
        found = walk(data, len(data), TAGS)
        assert set(found.values) == {tag for tag in TAGS if tag in dataset}
        for tag, value in found.values.items():
            raw = pydicom.dcmread(path, force=True).get_item(tag).value
            assert dataset[tag].VR == "SQ" or value == (raw or b"")
        assert found.pixel_length in (len(dataset.PixelData), 0xFFFFFFFF)


@given(
    syntax=st.sampled_from(["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"]),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    length=st.floats(0.2, 1),
)
def test_damaged_files_end_in_voxels_or_in_one_error(syntax, flips, length):
    """Flipped bytes and a cut end: the scan, or an InputError that names it; never another exception."""
    one = make_slice(make_volume((1, 4, 4))[0], SOPInstanceUID="1.2.3.6")
    with tempfile.TemporaryDirectory() as folder:
        path = save(one, Path(folder) / "x", syntax)
        content = bytearray(path.read_bytes())
        for place, value in flips:
            content[128 + int(place * (len(content) - 129))] = value
        path.write_bytes(content[: int(length * len(content))])
        with contextlib.suppress(InputError):
            assert read(path)[0].shape[0] == 1


@pytest.mark.slow
def test_hostile_streams_are_bounded_in_time(tmp_path):
    opening = element(0x00081140, b"SQ", b"", 0xFFFFFFFF) + item(b"", 0xFFFFFFFF)
    many = element(0x00091010, b"LO", b"") * 400_000
    for number, content in enumerate(
        (opening * 200_000, many, b"\xfe\xff\x00\xe0\0\0\0\0" * 400_000, bytes(4_000_000))
    ):
        path = tmp_path / str(number)
        path.write_bytes(START + content)
        start = time.process_time()
        with contextlib.suppress(ScanError):
            read_file_header(stat_file(path))
        assert time.process_time() - start < 5


def test_deflated_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("slicemill.ct.formats.dicom.header.MAX_INFLATED_BYTES", 1 << 20)
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = (
        stream.compress(element(0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0") + bytes(64 << 20)) + stream.flush()
    )
    syntax = b"1.2.840.10008.1.2.1.99"
    path = tmp_path / "x"
    path.write_bytes(bytes(128) + b"DICM" + element(0x00020010, b"UI", syntax) + content)
    with pytest.raises(ScanError, match="inflates to more than"):
        read_file_header(stat_file(path))


def test_a_header_that_claims_more_pixels_than_the_file_allocates_nothing(tmp_path):
    import tracemalloc

    slices = make_series(make_volume((2, 4, 4)), Rows=16384, Columns=16384)
    for one in slices:
        one.PixelData = bytes(32)
    save_series(tmp_path / "p", slices)
    tracemalloc.start()
    with pytest.raises(ScanError, match="but the header claims"):
        read(tmp_path / "p")
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()
