"""Which files of a folder tree are scans, and which are not read because a file that belongs to them is missing.

A NIfTI pair, a ``.mhd`` and a ``.nhdr`` are a header and files of voxels. The header is the scan. It is left out
without its voxels, and so are voxels without a header.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from slicemill.common.errors import InputError
from slicemill.common.files import Location
from slicemill.ct.formats.names import (
    DATA_SUFFIXES,
    NRRD_SUFFIXES,
    is_metaimage_name,
    is_nrrd_name,
    is_scan_name,
    is_slicer_segmentation,
    strip_suffix,
)
from slicemill.ct.formats.nifti.names import HEADER_SUFFIXES, is_header_name
from slicemill.ct.formats.open import list_data_files, scan_files

IMAGE_SUFFIXES = (".img.gz", ".img")
TWINS = {".mhd": (".mha",), ".nhdr": (".nrrd",)}
"""Header with a file of voxels -> the same format in one file, which is read instead if both have one name."""
PACKED_DICOM = (".dcm.gz", ".ima.gz")
OTHER_FORMATS = (*HEADER_SUFFIXES, *IMAGE_SUFFIXES, ".mhd", *NRRD_SUFFIXES, *DATA_SUFFIXES, *PACKED_DICOM)
"""Suffixes of files that look like scans or parts of scans. Those with a reason to leave them out are reported."""


class Companions:
    """The files of a folder tree, by the header that they belong to."""

    def __init__(self, paths: Iterable[Location]) -> None:
        self._present = set(paths)
        self._headers: dict[Location, list[Location]] = {}
        for path in self._present:
            if is_metaimage_name(path.name) or is_nrrd_name(path.name):
                self._headers.setdefault(path.parent, []).append(path)
        self._named: dict[Location, set[Location]] = {}

    def is_scan(self, path: Location) -> bool:
        """Return whether a file is read as a scan."""
        return is_scan_name(path.name) and not self.reason_left_out(path)

    def reason_left_out(self, path: Location) -> str:
        """Return the reason why a file is not read although it looks like a scan; empty if there is none."""
        name = path.name.lower()
        if name.startswith(".") or not name.endswith(OTHER_FORMATS):
            return ""
        if is_slicer_segmentation(name) and self._is_copy(path):
            return "a copy for 3D Slicer, which measure wrote beside its page; to use it, move it to another folder"
        if is_header_name(name):
            return _explain_header(path)
        if name.endswith(IMAGE_SUFFIXES):
            return "" if _has_header(path) else "an .img without a .hdr of its name; put the .hdr in the same folder"
        if name.endswith(PACKED_DICOM):
            return "DICOM in gzip; unpack it (gunzip)"
        if name.endswith(DATA_SUFFIXES):
            if path in self._voxels_named_in(path.parent):
                return ""
            return "voxels without a header that names them; put the .mhd or .nhdr in the same folder"
        return self._explain_detached(path)

    def _is_copy(self, path: Location) -> bool:
        """Return whether a segmentation lies beside the record and the page of the same name."""
        stem = strip_suffix(path.name)
        return all(path.with_name(stem + end) in self._present for end in (".json", ".html"))

    def _voxels_named_in(self, folder: Location) -> set[Location]:
        """Return the files of voxels that the headers of a folder name."""
        if folder not in self._named:
            self._named[folder] = {file for header in self._headers.get(folder, []) for file in _read_names(header)}
        return self._named[folder]

    def _explain_detached(self, path: Location) -> str:
        """Return why a header of MetaImage or NRRD is not read."""
        suffix = PurePosixPath(path.name).suffix
        for twin in TWINS.get(suffix.lower(), ()):
            single = path.with_name(path.name[: -len(suffix)] + twin)
            if single in self._present:
                return f"{single.name} has the same name and is read instead"
        missing = [file for file in _read_names(path) if file not in self._present and not _is_file(file)]
        return f"a header without its file {missing[0].name}; put it in the same folder" if missing else ""


def _read_names(header: Location) -> tuple[Location, ...]:
    """Return the files that a header names; none if it cannot be read, which is reported when it is opened."""
    try:
        return list_data_files(header)
    except InputError:
        return ()


def _is_file(path: Location) -> bool:
    """Return whether a file exists that was not listed: it may be a link to nowhere, or have appeared meanwhile."""
    return path.exists() if not isinstance(path, Path) else path.exists() or path.is_symlink()


def _explain_header(path: Location) -> str:
    """Return why the header of a NIfTI pair is not read."""
    stem = strip_suffix(path.name)
    single = next((file for end in (".nii", ".nii.gz") if (file := path.with_name(stem + end)).exists()), None)
    if single is not None:
        return f"a pair with the name of a single file; {single.name} is read instead"
    return "" if scan_files(path)[-1].exists() else "a header without its .img; put the .img in the same folder"


def _has_header(image: Location) -> bool:
    """Return whether an image file has a header file in the same folder."""
    stem = re.sub(r"\.img(\.gz)?$", "", image.name, flags=re.IGNORECASE)
    headers = [image.with_name(stem + end) for end in (".hdr", ".HDR", ".hdr.gz", ".HDR.GZ")]
    return any(header.exists() and scan_files(header)[-1] == image for header in headers)
