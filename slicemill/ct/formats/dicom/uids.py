"""SOP classes and transfer syntaxes: which hold a CT, what the others are, and who decodes which compression."""

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_CT = "1.2.840.10008.5.1.4.1.1.2.2"
"""Legacy converted enhanced CT: a classic series in one file."""
CT_CLASSES = frozenset((CT_CLASS, ENHANCED_CT, LEGACY_CT))
MULTI_FRAME = frozenset((ENHANCED_CT, LEGACY_CT))
STORAGE = "1.2.840.10008.5.1.4.1.1."
OTHERS = {
    "66.4": "a DICOM segmentation (SEG)",
    "66.7": "a DICOM label map segmentation",
    "66.5": "a surface segmentation",
    "481.3": "an RT structure set (RTSTRUCT)",
    "481.2": "an RT dose",
    "481.5": "an RT plan",
    "481.1": "an RT image",
    "88": "a structured report (SR)",
    "104.1": "an encapsulated PDF",
    "7": "a secondary capture (a picture, not a scan)",
    "11": "a presentation state",
    "66": "raw data or a registration",
    "67": "a real world value mapping",
    "128": "a PET image",
    "130": "an enhanced PET image",
    "4": "an MR image",
    "20": "a nuclear medicine image",
    "6": "an ultrasound image",
    "1": "an X-ray image",
    "12": "an X-ray angiography or fluoroscopy",
    "13": "an X-ray 3D or breast tomosynthesis image",
}
"""End of a SOP class UID after STORAGE -> what it is; the longest that fits counts."""

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
ENCAPSULATED_PLAIN = "1.2.840.10008.1.2.1.98"
RLE = "1.2.840.10008.1.2.5"
JPEG_LOSSLESS = frozenset(("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"))
JPEG_LOSSY = frozenset(("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"))
JPEG_LS = frozenset(("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"))
JPEG_2000 = frozenset(("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"))
HTJ2K = frozenset(("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"))
SYNTAX_NAMES = {
    IMPLICIT: "implicit VR little endian",
    EXPLICIT: "explicit VR little endian",
    BIG_ENDIAN: "explicit VR big endian",
    DEFLATED: "deflated explicit VR little endian",
    ENCAPSULATED_PLAIN: "encapsulated uncompressed",
    RLE: "RLE lossless",
    **dict.fromkeys(JPEG_LOSSLESS, "JPEG lossless"),
    **dict.fromkeys(JPEG_LOSSY, "JPEG lossy"),
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    **dict.fromkeys(HTJ2K, "high-throughput JPEG 2000"),
}
"""The transfer syntaxes that are read. Any other is refused by its UID."""
ALWAYS_LOSSY = frozenset((*JPEG_LOSSY, "1.2.840.10008.1.2.4.81"))
UNCOMPRESSED = frozenset((IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED))


def describe_class(sop_class: str, modality: str) -> str:
    """Return what an object of a SOP class is that is no CT.

    >>> describe_class("1.2.840.10008.5.1.4.1.1.66.4", "SEG"), describe_class("1.2.840.10008.5.1.4.1.1.7.3", "OT")
    ('a DICOM segmentation (SEG)', 'a secondary capture (a picture, not a scan)')
    >>> describe_class("1.2.3", "XC"), describe_class("", "")
    ('a DICOM object of the class 1.2.3 (modality XC)', 'a DICOM object without SOP class')
    """
    rest = sop_class.removeprefix(STORAGE)
    if rest != sop_class:
        parts = rest.split(".")
        for count in range(len(parts), 0, -1):
            if known := OTHERS.get(".".join(parts[:count])):
                return known
    if not sop_class:
        return f"a DICOM object without SOP class{modality and f' (modality {modality})'}"
    return f"a DICOM object of the class {sop_class}{modality and f' (modality {modality})'}"
