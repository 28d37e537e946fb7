"""DICOM files with a marker in every text, to search what is written for it."""

import pydicom

MARKER = "Zzyzx"
KEPT = {"ManufacturerModelName", "ConvolutionKernel", "RescaleType"}
"""Text elements whose values a store keeps, or that a CT must have."""


def mark(dataset):
    """Put the marker into every text element, and into private and nested ones."""
    for element in dataset.iterall():
        if element.VR in ("PN", "LO", "SH", "LT", "ST", "UT", "UC", "AE", "UR") and element.keyword not in KEPT:
            element.value = f"{MARKER}{element.tag:08x}"
    dataset.PatientName, dataset.PatientBirthDate, dataset.StudyDate = f"{MARKER}^Jane", "19010203", "19010203"
    for name in (
        "ReferringPhysicianName", "AccessionNumber", "InstitutionName", "StudyDescription", "SeriesDescription",
        "PatientComments", "ContrastBolusAgent", "ProtocolName", "OperatorsName", "StationName", "PatientID",
        "OtherPatientIDs", "PatientAddress",
    ):  # fmt: skip
        setattr(dataset, name, MARKER)
    dataset.private_block(0x0009, MARKER, create=True).add_new(1, "LO", MARKER)
    inner = pydicom.Dataset()
    inner.PatientName = MARKER
    dataset.RequestAttributesSequence = [inner]
    return dataset


TAGS = {
    "photometric": 0x00280004, "rescale": 0x00281054, "number": 0x00200011, "class": 0x00080016, "modality": 0x00080060,
    "type": 0x00080008,
}  # fmt: skip
"""A failure that names the element -> the element."""
