"""DICOM files made by pydicom, for tests."""

import secrets

import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from slicemill.ct.formats.dicom.uids import ENCAPSULATED_PLAIN, HTJ2K

LOSSLESS = {
    "1.2.840.10008.1.2.4.57": lambda pixels: imagecodecs.jpeg8_encode(
        pixels.view(np.uint16), lossless=True, predictor=1, bitspersample=16
    ),
    "1.2.840.10008.1.2.4.70": lambda pixels: imagecodecs.ljpeg_encode(pixels.view(np.uint16)),
    "1.2.840.10008.1.2.4.80": lambda pixels: imagecodecs.jpegls_encode(pixels.view(np.uint16)),
    "1.2.840.10008.1.2.4.90": lambda pixels: imagecodecs.jpeg2k_encode(
        pixels, codecformat="J2K", reversible=True, level=0
    ),
    "1.2.840.10008.1.2.4.201": lambda pixels: imagecodecs.htj2k_encode(pixels, reversible=True),
    "1.2.840.10008.1.2.5": None,
    ENCAPSULATED_PLAIN: lambda pixels: pixels.tobytes(),
    ExplicitVRLittleEndian: None,
    ImplicitVRLittleEndian: None,
    DeflatedExplicitVRLittleEndian: None,
    ExplicitVRBigEndian: None,
}
"""Transfer syntax -> encoder of int16[j, i] or uint16[j, i]; None for those that pydicom writes."""
assert "1.2.840.10008.1.2.4.201" in HTJ2K


def make_slice(pixels, position=(0, 0, 0), **tags):
    """Return a CT slice with stored numbers int16 or uint16[j, i]."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"2.25.{10**37 + secrets.randbelow(10**37)}"  # files of one kind have one size
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    dataset.Modality, dataset.PatientID, dataset.PatientName = "CT", "patient-7", "Doe^Jane"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SeriesNumber = 3
    dataset.ImagePositionPatient = [float(one) for one in position]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.8, 0.7]
    dataset.SliceThickness = 2.5
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = pixels.itemsize * 8
    dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.add_new(0x7FE00010, "OW", pixels.tobytes())
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def save(dataset, path, syntax=ExplicitVRLittleEndian, *, encoder=None):
    """Write a dataset in a transfer syntax, with its pixels encoded."""
    encoder = encoder or LOSSLESS.get(syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    if encoder is not None:
        pixels = np.frombuffer(dataset.PixelData, np.int16 if dataset.PixelRepresentation else np.uint16).reshape(
            -1, dataset.Rows, dataset.Columns
        )
        dataset.PixelData = encapsulate([encoder(one) for one in pixels])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    if syntax == "1.2.840.10008.1.2.5":
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        pydicom.dcmwrite(path, dataset, enforce_file_format=True, little_endian=False, implicit_vr=False)
    else:
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def make_volume(shape=(5, 6, 7), seed=1, kind=np.int16):
    """Return stored numbers any[k, j, i] between 0 and 3000."""
    return np.random.default_rng(seed).integers(0, 3000, shape).astype(kind)


def make_series(volume, step=(0, 0, 2.5), start=(-10, -20, -30), **tags):
    """Return the slices of stored numbers any[k, j, i], `step` mm apart."""
    return [
        make_slice(
            pixels, [begin + k * mm for begin, mm in zip(start, step, strict=True)], InstanceNumber=k + 1, **tags
        )
        for k, pixels in enumerate(volume)
    ]


def save_series(folder, slices, syntax=ExplicitVRLittleEndian, name="IM{:03d}"):
    """Write slices into a folder, and return it."""
    for number, one in enumerate(slices, 1):
        save(one, folder / name.format(number), syntax)
    return folder


def write_series(folder, volume=None, **tags):
    """Write a series of stored numbers, and return them."""
    volume = make_volume() if volume is None else volume
    save_series(folder, make_series(volume, **tags))
    return volume


def make_enhanced(volume, order, step=2.5, **tags):
    """Return an enhanced CT whose frames stand in `order`; frame f is plane order[f] of any[k, j, i]."""
    dataset = make_slice(volume[0], **tags)
    dataset.SOPClassUID = EnhancedCTImageStorage
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(dataset, name)
    dataset.NumberOfFrames = len(order)
    dataset.PixelData = b"".join(volume[k].tobytes() for k in order)
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([Dataset()])
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.8, 0.7]
    shared.PlaneOrientationSequence = Sequence([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    frames = []
    for k in order:
        frame = Dataset()
        frame.PlanePositionSequence = Sequence([Dataset()])
        frame.PlanePositionSequence[0].ImagePositionPatient = [-10.0, -20.0, -30.0 + step * k]
        frame.PixelValueTransformationSequence = Sequence([Dataset()])
        values = frame.PixelValueTransformationSequence[0]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1024 + k, "HU"
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return dataset
