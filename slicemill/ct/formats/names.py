"""Names of scans and segmentations of all formats: suffixes and stems. A format's own rules are in its package."""

from slicemill.ct.formats.nifti.names import SUFFIXES as NIFTI_SUFFIXES

METAIMAGE_SUFFIXES = (".mha", ".mhd")
SLICER_SUFFIX = ".seg.nrrd"
"""Suffix of 3D Slicer's segmentations."""
NRRD_SUFFIXES = (SLICER_SUFFIX, ".nrrd", ".nhdr")
SUFFIXES = (*NIFTI_SUFFIXES, *METAIMAGE_SUFFIXES, *NRRD_SUFFIXES)
SHOWN_SUFFIXES = ".nii, .nii.gz, .hdr, .mha, .mhd, .nrrd or .nhdr"
"""The suffixes, for messages."""
DETACHED_SUFFIXES = (".mhd", ".nhdr")
"""Suffixes of headers whose voxels are usually in another file."""
DATA_SUFFIXES = (".raw.gz", ".raw", ".zraw")
"""Suffixes of files that hold only voxels."""


def is_scan_name(name: str) -> bool:
    """Return whether a file name has the suffix of a format and is not hidden (as macOS resource forks are).

    A scan of several files is named by its header file.

    >>> is_scan_name("a.nii.gz"), is_scan_name("1.3.6.1.mhd"), is_scan_name("a.raw"), is_scan_name("._a.nrrd")
    (True, True, False, False)
    """
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def is_metaimage_name(name: str) -> bool:
    """Return whether a file name is that of a MetaImage header."""
    return name.lower().endswith(METAIMAGE_SUFFIXES)


def is_nrrd_name(name: str) -> bool:
    """Return whether a file name is that of an NRRD header."""
    return name.lower().endswith(NRRD_SUFFIXES)


def is_slicer_segmentation(name: str) -> bool:
    """Return whether a file name is that of a segmentation of 3D Slicer."""
    return name.lower().endswith(SLICER_SUFFIX)


def strip_suffix(name: str) -> str:
    """Return a file name without the suffix of its format. Other dots belong to the name.

    >>> [strip_suffix(name) for name in ("volume-17.nii.gz", "1.3.6.1.mhd", "p1.seg.nrrd", "p.1")]
    ['volume-17', '1.3.6.1', 'p1', 'p.1']
    """
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def list_path_names(path: str) -> list[str]:
    """Return what a scan may be called by its path: without suffix, with none, some or all of its folders.

    >>> list_path_names("trial/p1/ct.nii.gz")
    ['ct', 'p1/ct', 'trial/p1/ct']
    """
    parts = path.strip("/").split("/")
    parts[-1] = strip_suffix(parts[-1])
    return ["/".join(parts[start:]) for start in reversed(range(len(parts)))]
