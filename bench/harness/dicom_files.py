"""DICOM series written for benchmarks: a scan in a transfer syntax, with headers as long as a scanner's."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ConfigError
from slicemill.common.extras import describe_install, explain_import
from slicemill.ct.formats.dicom.uids import EXPLICIT, RLE

INTERCEPT = -1024
MOST_STORED = 4095
"""Largest stored number of 12 bits."""
PRIVATE_ELEMENTS = 75
"""Private elements of a file: with them it has about as many elements, and bytes before its pixels, as the real series
of `slicemill bench ingest --dicom` have (107 to 135 elements, 2 to 5 KB)."""
FILES_A_FOLDER = 500


@dataclass(frozen=True, kw_only=True)
class Syntax:
    """How the slices of a series are stored."""

    name: str
    uid: str
    encoder: str = ""
    """Name of the function of imagecodecs that encodes a slice; empty if pydicom does it."""
    decoder: str = ""
    """Name of the function of imagecodecs that decodes a slice; empty for uncompressed ones."""
    options: tuple[tuple[str, Any], ...] = ()
    """Options of the encoder."""
    signed: bool = False
    """Whether numbers are int16 of 16 bits, as GE stores them; else uint16 of 12 bits, as most others do."""


PLAIN = Syntax(name="uncompressed, 12 of 16 bits", uid=EXPLICIT)
JPEG_LOSSLESS = Syntax(
    name="JPEG lossless", uid="1.2.840.10008.1.2.4.70", encoder="ljpeg_encode", decoder="jpeg8_decode"
)
SYNTAXES = (
    PLAIN,
    Syntax(name="uncompressed, 16 bits, signed", uid=EXPLICIT, signed=True),
    Syntax(name="RLE", uid=RLE, decoder="dicomrle_decode"),
    JPEG_LOSSLESS,
    Syntax(name="JPEG-LS", uid="1.2.840.10008.1.2.4.80", encoder="jpegls_encode", decoder="jpegls_decode"),
    Syntax(
        name="JPEG 2000",
        uid="1.2.840.10008.1.2.4.90",
        encoder="jpeg2k_encode",
        decoder="jpeg2k_decode",
        options=(("codecformat", "J2K"), ("reversible", True), ("level", 0)),
    ),
    Syntax(
        name="HTJ2K",
        uid="1.2.840.10008.1.2.4.201",
        encoder="htj2k_encode",
        decoder="htj2k_decode",
        options=(("reversible", True),),
    ),
)


def import_dicom() -> tuple[Any, Any]:
    """Return the packages pydicom and imagecodecs.

    Raises
    ------
    ConfigError
        One is not installed.
    """
    missing = ConfigError(f"this benchmark writes DICOM files. {describe_install('dicom')}.")
    with explain_import("pydicom", missing):
        import pydicom
    with explain_import("imagecodecs", missing):
        import imagecodecs
    return pydicom, imagecodecs


def fit_stored(image: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """Return HU that 12 bits with the usual intercept can hold, int16[z, y, x]."""
    return image.clip(INTERCEPT, MOST_STORED + INTERCEPT)


def write_series(
    folder: Path,
    image: npt.NDArray[np.int16],
    spacing_mm: tuple[float, float, float],
    syntax: Syntax,
    *,
    tilt_degrees: float = 0.0,
) -> list[bytes]:
    """Write int16[z, y, x], HU, as a series of one file a slice, and return the pixels of each file as stored.

    `spacing_mm` is the distance of voxels along z, y, x. A tilted gantry turns each slice around its rows, while the
    table still moves along z.
    """
    folder.mkdir(parents=True)
    turn = math.radians(tilt_degrees)
    frames = []
    for k, section in enumerate(image):
        stored = (section - INTERCEPT).astype(np.int16 if syntax.signed else np.uint16)
        dataset = make_slice(stored, (0.0, 0.0, k * spacing_mm[0]), spacing_mm, signed=syntax.signed)
        dataset.InstanceNumber = k + 1
        dataset.ImageOrientationPatient = [1, 0, 0, 0, f"{math.cos(turn):.8f}", f"{-math.sin(turn):.8f}"]
        frames.append(_encode(dataset, stored, syntax))
        dataset.save_as(folder / f"IM{k:05d}.dcm", enforce_file_format=True)
    return frames


def _encode(dataset: Any, stored: npt.NDArray[Any], syntax: Syntax) -> bytes:
    """Encode the pixels of a file, and return them."""
    _, imagecodecs = import_dicom()
    from pydicom.encaps import encapsulate, generate_frames

    if not syntax.decoder:
        return stored.tobytes()
    if syntax.encoder:
        data: bytes = getattr(imagecodecs, syntax.encoder)(stored, **dict(syntax.options))
        dataset.PixelData = encapsulate([data])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    else:
        dataset.compress(syntax.uid, generate_instance_uid=False)
        data = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.file_meta.TransferSyntaxUID = syntax.uid
    return data


def make_slice(
    stored: npt.NDArray[Any],
    position: tuple[float, float, float],
    spacing_mm: tuple[float, float, float],
    *,
    signed: bool = False,
    series: int = 1,
) -> Any:
    """Return a CT slice with stored numbers uint16 or int16[y, x] as a dataset of pydicom."""
    pydicom, _ = import_dicom()
    one = pydicom.Dataset()
    one.file_meta = pydicom.dataset.FileMetaDataset()
    one.file_meta.TransferSyntaxUID = EXPLICIT
    one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    one.SOPInstanceUID = f"1.2.3.4.{series}.{round(1000 * position[2])}"
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2.3", f"1.2.3.4.{series}", "1.2.5"
    one.Modality, one.PatientID, one.SeriesNumber = "CT", "1", series
    one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    one.ImagePositionPatient = [f"{mm:.6f}" for mm in position]
    one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    one.PixelSpacing, one.SliceThickness = [spacing_mm[1], spacing_mm[2]], spacing_mm[0]
    one.RescaleSlope, one.RescaleIntercept, one.RescaleType = 1, INTERCEPT, "HU"
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.Rows, one.Columns = stored.shape
    one.BitsAllocated, one.PixelRepresentation = 16, int(signed)
    one.BitsStored, one.HighBit = (16, 15) if signed else (12, 11)
    block = one.private_block(0x0019, "SLICEMILL BENCH", create=True)
    for number in range(PRIVATE_ELEMENTS):
        block.add_new(number, "LO", "0123456789 012345678")
    one.add_new(0x7FE00010, "OW", stored.tobytes())
    return one


def write_many(folder: Path, count: int) -> None:
    """Write `count` slices of 16 x 16 pixels: series of FILES_A_FOLDER, each in a folder of its own."""
    pixels = np.zeros((16, 16), np.uint16)
    for series, first in enumerate(range(0, count, FILES_A_FOLDER), 1):
        own = folder / f"series-{series:04d}"
        own.mkdir(parents=True)
        buffer = io.BytesIO()
        make_slice(pixels, (0.0, 0.0, 1000.0), (1.0, 1.0, 1.0), series=series).save_as(buffer, enforce_file_format=True)
        data = buffer.getvalue()
        for k in range(min(FILES_A_FOLDER, count - first)):  # numbers of the same length: position and UIDs
            one = data.replace(b"1000.000000", f"{1000 + k:.6f}".encode())
            (own / f"IM{k:05d}.dcm").write_bytes(one.replace(b".1000000", f".{1000 * (1000 + k)}".encode()))
