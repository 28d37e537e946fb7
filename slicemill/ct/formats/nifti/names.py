"""Names of NIfTI files: suffixes, stems, and the two files of a pair."""

from slicemill.common.files import Location

HEADER_SUFFIXES = (".hdr.gz", ".hdr")
SUFFIXES = (".nii.gz", ".nii", *HEADER_SUFFIXES)


def is_nifti_name(name: str) -> bool:
    """Return whether a file name has a NIfTI suffix and is not hidden (as macOS resource forks are).

    A pair is named by its header file; the image file does not count.

    >>> is_nifti_name("a.nii.gz"), is_nifti_name("a.hdr"), is_nifti_name("a.img"), is_nifti_name("._a.nii")
    (True, True, False, False)
    """
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def is_header_name(name: str) -> bool:
    """Return whether a file name is that of the header file of a pair."""
    return name.lower().endswith(HEADER_SUFFIXES)


def strip_suffix(name: str) -> str:
    """Return a file name without its NIfTI suffix.

    >>> strip_suffix("volume-17.nii.gz"), strip_suffix("volume-17.hdr")
    ('volume-17', 'volume-17')
    """
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def scan_files(path: Location) -> tuple[Location, ...]:
    """Return the files of a scan: the path itself, or the header and image files of a pair.

    The image file of ``x.hdr`` is ``x.img``, else ``x.img.gz``; that of ``x.hdr.gz`` is ``x.img.gz``, else ``x.img``.
    If neither exists, the first is returned.

    >>> from pathlib import Path
    >>> [file.name for file in scan_files(Path("volume-17.nii"))], [file.name for file in scan_files(Path("x.HDR"))]
    (['volume-17.nii'], ['x.HDR', 'x.IMG'])
    """
    if not is_header_name(path.name):
        return (path,)
    stem = strip_suffix(path.name)
    ending = path.name[len(stem) :]
    bare = ".IMG" if ending[1:4].isupper() else ".img"
    suffix, other = (bare + ending[4:], bare) if len(ending) > 4 else (bare, f"{bare}.gz")
    candidates = [path.with_name(stem + ending) for ending in (suffix, other)]
    return path, next((file for file in candidates if file.exists()), candidates[0])
