"""Pixels: transfer syntaxes, bits, rescaling and padding, with pydicom and SimpleITK as oracles."""

import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_rescale

from slicemill.common.errors import ScanError
from slicemill.ct.formats.dicom import codecs
from slicemill.ct.scan import ScanReader
from tests.ct.dicom.made import LOSSLESS, make_series, make_slice, make_volume, save, save_series, write_series
from tests.ct.dicom.test_orders import read


def oracle(folder):
    """Return HU by pydicom, in order of position."""
    slices = sorted(map(pydicom.dcmread, folder.iterdir()), key=lambda one: one.ImagePositionPatient[2])
    return np.stack([apply_rescale(one.pixel_array, one) for one in slices])


@pytest.mark.parametrize("kind", [np.int16, np.uint16])
@pytest.mark.parametrize("syntax", list(LOSSLESS))
def test_every_syntax_gives_the_same_voxels(syntax, kind, tmp_path):
    volume = make_volume((3, 32, 24), kind=kind)
    if kind == np.int16:
        volume -= 1000
    save_series(tmp_path / "case", make_series(volume), syntax)
    read_volume, _, _, warnings = read(tmp_path / "case")
    assert np.array_equal(read_volume, volume.astype(int) - 1024)
    assert not any("lossy" in warning for warning in warnings)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"])
def test_signed_12_bit_pixels_in_an_unsigned_stream_get_their_sign(syntax, tmp_path):
    """pydicom's rule for JPEG 2000 (its `apply_j2k_sign_correction`); JPEG-LS has no sign at all."""
    volume = (make_volume((3, 32, 32)) - 1500).clip(-2048, 2047).astype(np.int16)

    def encode(pixels):
        bits = pixels.view(np.uint16) & 0xFFF
        if syntax.endswith("80"):
            return imagecodecs.jpegls_encode(bits)
        return imagecodecs.jpeg2k_encode(bits, codecformat="J2K", reversible=True, level=0, bitspersample=12)

    for number, one in enumerate(make_series(volume, BitsStored=12, HighBit=11)):
        save(one, tmp_path / "case" / str(number), syntax, encoder=encode)
    assert np.array_equal(read(tmp_path / "case")[0], volume - 1024)


@pytest.mark.parametrize(("stored", "high"), [(12, 11), (12, 15), (16, 15), (13, 13)])
@pytest.mark.parametrize("kind", [np.int16, np.uint16])
def test_bits_outside_bits_stored_are_not_values(kind, stored, high, tmp_path):
    """12 bits at any place of 16, with overlays in the others: the value is what the 12 bits say."""
    low, half = (-(1 << stored - 1), 1 << stored - 1) if kind == np.int16 else (0, 1 << stored)
    truth = np.random.default_rng(3).integers(max(low, -20000), min(half, 20000), (3, 8, 9))
    shift = high + 1 - stored
    bits = (truth & ((1 << stored) - 1)) << shift
    noise = np.random.default_rng(4).integers(0, 1 << 16, truth.shape) & ~(((1 << stored) - 1) << shift)
    raw = ((bits | noise) & 0xFFFF).astype(np.uint16).view(kind)
    write_series(tmp_path / "case", raw, BitsStored=stored, HighBit=high)
    assert np.array_equal(read(tmp_path / "case")[0], truth - 1024)


def test_8_bit_pixels_are_read(tmp_path):
    volume = write_series(tmp_path / "case", make_volume((3, 6, 8)).astype(np.uint8))
    assert np.array_equal(read(tmp_path / "case")[0], volume.astype(int) - 1024)


def test_slope_and_intercept_are_those_of_each_slice(tmp_path):
    volume = make_volume((6, 5, 4))
    slices = make_series(volume)
    for k, one in enumerate(slices):
        one.RescaleSlope, one.RescaleIntercept = (1, -1024) if k < 3 else (2, -1000 - k)
    save_series(tmp_path / "case", slices)
    assert np.array_equal(read(tmp_path / "case")[0], oracle(tmp_path / "case"))


def test_a_fractional_slope_is_rounded_once(tmp_path):
    write_series(tmp_path / "case", RescaleSlope="0.48828125", RescaleIntercept="-1023.5")
    assert np.array_equal(read(tmp_path / "case")[0], np.rint(oracle(tmp_path / "case")))


class TestPadding:
    def test_it_is_rescaled_and_stays(self, tmp_path):
        volume = make_volume()
        volume[:, 0] = -2000
        write_series(tmp_path / "case", volume, PixelPaddingValue=-2000)
        assert np.array_equal(read(tmp_path / "case")[0], volume - 1024)

    @pytest.mark.parametrize(("kind", "padding", "hu"), [(np.int16, -32768, -32768), (np.uint16, 63536, -1024)])
    def test_padding_that_is_no_int16_as_hu_becomes_the_lowest_hu(self, kind, padding, hu, tmp_path):
        volume = make_volume(kind=kind)
        volume[:, 0] = padding
        write_series(tmp_path / "case", volume, PixelPaddingValue=padding)
        read_volume, _, _, warnings = read(tmp_path / "case")
        expected = volume.astype(int) - 1024
        expected[:, 0] = hu
        assert np.array_equal(read_volume, expected)
        assert any("PixelPaddingValue (0028,0120)" in warning for warning in warnings)

    def test_a_range_of_padding_is_replaced(self, tmp_path):
        volume = make_volume()
        volume[:, 0], volume[:, 1] = -32768, -32000
        write_series(tmp_path / "case", volume, PixelPaddingValue=-32768, PixelPaddingRangeLimit=-32000)
        assert (read(tmp_path / "case")[0][:, :2] == -32768).all()

    def test_padding_outside_bits_stored_is_no_tissue(self, tmp_path):
        """63536 is 0xF830: its lower 12 bits alone would be soft tissue."""
        volume = make_volume(kind=np.uint16)
        volume[:, 0] = 63536
        write_series(tmp_path / "case", volume, PixelPaddingValue=63536, BitsStored=12, HighBit=11)
        assert (read(tmp_path / "case")[0][:, 0] == -1024).all()

    def test_values_that_are_no_padding_and_do_not_fit_are_refused(self, tmp_path):
        write_series(tmp_path / "case", np.full((3, 4, 4), -32768, np.int16))
        with pytest.raises(ScanError, match="HU must fit"):
            read(tmp_path / "case")


REFUSED = {
    "PhotometricInterpretation .0028,0004. must be MONOCHROME2": {"PhotometricInterpretation": "MONOCHROME1"},
    "RescaleType .0028,1054. must be HU; it is Z_EFF": {"RescaleType": "Z_EFF"},
    "RescaleSlope .0028,1053.": {"RescaleSlope": 0},
    "ImagePositionPatient .0020,0032. is missing": {"ImagePositionPatient": None},
    "PixelSpacing .0028,0030. is missing": {"PixelSpacing": None},
    "ImageOrientationPatient .0020,0037. must be two directions": {"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]},
    "PixelSpacing .0028,0030. must be above 0": {"PixelSpacing": [0, 1]},
    "NumberOfFrames .0028,0008. must be 1": {"NumberOfFrames": 2},
    "BitsAllocated .0028,0100. must be 8 or 16": {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31},
    "BitsStored .0028,0101. 17 and HighBit": {"BitsStored": 17, "HighBit": 16},
    "has 84 bytes, but the header claims": {"Rows": 60},
    "Rows and Columns": {"Rows": 0},
    "with 3, which is no CT": {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0},
    "PixelData .7FE0,0010. is missing": {"PixelData": None},
}


@pytest.mark.parametrize(("message", "tags"), REFUSED.items(), ids=REFUSED)
def test_what_is_no_ct_is_refused_by_its_tag(message, tags, tmp_path):
    slices = make_series(make_volume())
    for name, value in tags.items():
        if value is None:
            delattr(slices[2], name)
        else:
            setattr(slices[2], name, value)
    for number, one in enumerate(slices):
        pydicom.dcmwrite(
            (folder := tmp_path / "case").mkdir(exist_ok=True) or folder / str(number), one, enforce_file_format=True
        )
    with pytest.raises(ScanError, match=message):
        read(tmp_path / "case")


def test_a_modality_lut_and_float_pixels_are_refused(tmp_path):
    slices = make_series(make_volume())
    lut = pydicom.Dataset()
    lut.LUTDescriptor, lut.LUTData, lut.ModalityLUTType = [2, 0, 16], b"\0\0\1\0", "HU"
    slices[1].ModalityLUTSequence = pydicom.Sequence([lut])
    save_series(tmp_path / "lut", slices)
    with pytest.raises(ScanError, match=r"ModalityLUTSequence \(0028,3000\)"):
        read(tmp_path / "lut")
    slices = make_series(make_volume())
    for one in slices:
        del one.PixelData
        one.FloatPixelData = np.zeros(42, np.float32).tobytes()
        one.BitsAllocated = 32
    for number, one in enumerate(slices):
        (tmp_path / "float").mkdir(exist_ok=True)
        pydicom.dcmwrite(tmp_path / "float" / str(number), one, enforce_file_format=True)
    with pytest.raises(ScanError, match="floating-point"):
        read(tmp_path / "float")


def test_lossy_pixels_are_read_with_a_warning(tmp_path):
    write_series(tmp_path / "flag", LossyImageCompression="01")
    assert any("lossy" in warning for warning in read(tmp_path / "flag")[3])
    volume = make_volume((2, 32, 32)) + 100
    for number, one in enumerate(make_series(volume)):
        save(
            one, tmp_path / "near" / str(number), "1.2.840.10008.1.2.4.81",
            encoder=lambda pixels: imagecodecs.jpegls_encode(pixels.view(np.uint16), level=3),
        )  # fmt: skip
    read_volume, _, _, warnings = read(tmp_path / "near")
    assert 0 < np.abs(read_volume - (volume - 1024)).max() <= 3
    assert any("lossy" in warning for warning in warnings)


def test_a_compressed_picture_of_another_size_is_refused_before_it_is_decoded(tmp_path):
    for syntax in ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70"):
        folder = tmp_path / syntax
        for number, one in enumerate(make_series(make_volume((2, 16, 16)))):
            large = np.zeros((64, 16), np.uint16)
            encode = {"80": imagecodecs.jpegls_encode, "70": imagecodecs.ljpeg_encode}.get(
                syntax[-2:], lambda pixels: imagecodecs.jpeg2k_encode(pixels, codecformat="J2K", level=0)
            )
            save(one, folder / str(number), syntax, encoder=lambda _, encode=encode, large=large: encode(large))
        with pytest.raises(ScanError, match="64 x 16 pixels .* Rows and Columns say 16 x 16"):
            read(folder)


@pytest.mark.parametrize("syntax", [one for one in LOSSLESS if ".4." in one or one.endswith(".5")])
def test_damaged_compressed_pixels_are_an_error_of_the_file(syntax, tmp_path):
    save_series(tmp_path / "case", make_series(make_volume((2, 32, 32))), syntax)
    path = tmp_path / "case" / "IM001"
    data = bytearray(path.read_bytes())
    start = data.rindex(b"\xe0\x7f\x10\x00") + 28
    data[start : start + 60] = bytes(60)
    path.write_bytes(data)
    with pytest.raises(ScanError, match="IM001"):
        read(tmp_path / "case")


@pytest.mark.parametrize("cut", [4, 200, 0.5])
@pytest.mark.parametrize("syntax", [one for one in LOSSLESS if ".4." in one or one.endswith(".5")])
def test_a_stream_that_ends_early_is_refused_and_not_made_up(syntax, cut, tmp_path):
    """libjpeg and OpenJPH return pixels for what lacks, and the RLE decoder leaves them as they were."""
    save_series(tmp_path / "case", make_series(make_volume((2, 32, 32))), syntax)
    path = tmp_path / "case" / "IM001"
    dataset = pydicom.dcmread(path)
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([stream[: -(cut if cut > 1 else len(stream) // 2)]])
    dataset.save_as(path)
    with pytest.raises(ScanError, match="IM001.*(damaged|end marker)"):
        read(tmp_path / "case")


def test_runs_that_end_early_are_refused(tmp_path):
    """Each segment of RLE is whole, and one has half of the bytes: nothing says so but their number."""
    save_series(tmp_path / "case", make_series(np.full((2, 16, 16), 0x0102, np.int16)), "1.2.840.10008.1.2.5")
    path = tmp_path / "case" / "IM002"
    dataset = pydicom.dcmread(path)
    runs = [bytes([129, 1]) * 2, bytes([129, 2])]  # 256 and 128 equal bytes
    head = np.array([2, 64, 64 + len(runs[0]), *[0] * 13], "<u4").tobytes()
    dataset.PixelData = encapsulate([head + b"".join(runs)])
    dataset.save_as(path)
    with pytest.raises(ScanError, match="384 bytes of pixels in place of 512"):
        read(tmp_path / "case")


def test_zeros_after_the_end_of_a_stream_are_padding(tmp_path):
    volume = make_volume((2, 32, 32))
    for number, one in enumerate(make_series(volume)):
        save(
            one,
            tmp_path / "case" / str(number),
            "1.2.840.10008.1.2.4.70",
            encoder=lambda pixels: LOSSLESS["1.2.840.10008.1.2.4.70"](pixels) + bytes(8),
        )
    assert np.array_equal(read(tmp_path / "case")[0], volume - 1024)


class TestMemory:
    """A decoder takes memory by the size that the stream claims, whatever its bytes."""

    BLANK = np.zeros((4096, 4100), np.uint16)

    def test_a_large_picture_in_a_few_bytes_is_refused_before_it_is_decoded(self, tmp_path, monkeypatch):
        write_j2k(tmp_path / "case", self.BLANK)
        monkeypatch.setattr(codecs, "import_imagecodecs", None)
        with pytest.raises(ScanError, match=r"4096 x 4100 pixels, 33,587,200 bytes, in a compressed file of [\d,]+;"):
            read(tmp_path / "case")

    def test_a_blank_slice_of_usual_size_is_read(self, tmp_path):
        write_j2k(tmp_path / "case", self.BLANK[:1024, :1024])
        assert (tmp_path / "case" / "0").stat().st_size < 2048
        assert (read(tmp_path / "case")[0] == -1024).all()


def write_j2k(folder, pixels):
    """Write two slices in JPEG 2000."""
    for number, one in enumerate(make_series(np.stack([pixels, pixels]))):
        save(one, folder / str(number), "1.2.840.10008.1.2.4.90")


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70"])
def test_streams_of_any_precision_equal_pydicom(syntax, bits, tmp_path):
    """Streams of up to 8 bits have pixels of one byte, in files of 16 bits too."""
    if syntax.endswith("70"):
        pytest.importorskip("gdcm")  # pydicom's decoder of JPEG lossless
    volume = make_volume((3, 16, 20), kind=np.uint16) % (1 << min(bits, 14))

    def encode(pixels):
        narrow = pixels.astype(np.uint8) if bits == 8 else pixels
        if syntax.endswith("90"):
            return imagecodecs.jpeg2k_encode(narrow, codecformat="J2K", reversible=True, level=0, bitspersample=bits)
        if syntax.endswith("80"):
            return imagecodecs.jpegls_encode(narrow)
        return imagecodecs.ljpeg_encode(narrow, bitspersample=bits)

    for number, one in enumerate(make_series(volume, BitsStored=bits, HighBit=bits - 1)):
        save(one, tmp_path / "case" / str(number), syntax, encoder=encode)
    assert np.array_equal(read(tmp_path / "case")[0], volume.astype(int) - 1024)
    assert np.array_equal(read(tmp_path / "case")[0], oracle(tmp_path / "case"))


def test_simpleitk_reads_the_same_voxels_and_grid(tmp_path):
    write_series(tmp_path / "case")
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "case")))
    image = reader.Execute()
    volume, grid, _, _ = read(tmp_path / "case")
    assert np.array_equal(volume, SimpleITK.GetArrayFromImage(image))
    assert np.allclose(grid.affine_lps[:3, 3], image.GetOrigin())
    assert np.allclose(grid.spacing_mm[::-1], image.GetSpacing())


def test_buffers_stay_valid_while_others_are_filled(tmp_path):
    volume = write_series(tmp_path / "case")
    with ScanReader(tmp_path / "case", "image") as reader:
        slabs = list(reader.slabs(2, buffers=8))
    assert np.array_equal(np.concatenate([slab.voxels for slab in slabs]), volume - 1024)
    assert make_slice(volume[0]).Rows == volume.shape[1]
