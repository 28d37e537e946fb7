"""What file names say: whether a file is an image or a mask, and which image a mask belongs to.

A name is split into words at punctuation and at changes of case. Words like ``seg`` or ``CT`` say what the file is;
what remains is the key that an image and its mask share. Folders named ``imagesTr``, ``labels``, ``masks`` say it for
the files in them.

>>> name_of("lits/batch1/volume-17.nii").key, name_of("lits/batch2/segmentation-17.nii").role
('lits-17', 'mask')
>>> name_of("STS_004/CT_mask.nii.gz")
Name(role='mask', folder='STS_004', key='')
>>> name_of("imagesTr/liver_3_0000.nii.gz") == Name(role='image', folder='', key='liver_3')
True
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from slicemill.common.files import Location
from slicemill.common.ledger import LEDGER
from slicemill.common.remote import RemotePath
from slicemill.ct.formats.nifti.names import HEADER_SUFFIXES, files_of, is_header_name, is_nifti_name, stem_of

AnyPlace = TypeVar("AnyPlace", bound=Location)
Role = Literal["image", "mask"]

MASK_WORDS = frozenset(
    [
        "mask",
        "masks",
        "seg",
        "segs",
        "segmentation",
        "segmentations",
        "label",
        "labels",
        "gt",
        "annotation",
        "annotations",
    ]
)
IMAGE_WORDS = frozenset(["image", "images", "img", "imgs", "ct", "cts", "volume", "volumes", "vol", "scan", "scans"])
SUBSET = r"(?:tr|ts|va|val|train|training|test|testing)?"
IMAGE_SUFFIXES = (".img.gz", ".img")
OTHER_FORMATS = (*HEADER_SUFFIXES, *IMAGE_SUFFIXES, ".mha", ".mhd", ".nrrd", ".dcm")
"""Scans that this version does not read, unless a .hdr and its .img make a NIfTI pair; they are named, so that nobody thinks they were."""
WHY_OTHER = "a format that this version does not read; convert it to .nii.gz"
LITS = "lits-"
"""Start of the keys of LiTS names; their numbers are unique in the whole collection."""
FIRST_CHANNEL = "_0000"
"""nnU-Net's suffix of the first (for CT: the only) channel."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a file's relative path says about it."""

    role: Role
    folder: str
    """The folders above it, without those that only say image or mask."""
    key: str
    """What an image and its mask share; empty when the folder alone tells."""


def words(text: str) -> list[str]:
    """Split a name into lower-case words.

    >>> words("hepaticvessel_002_manualMask")
    ['hepaticvessel', '002', 'manual', 'mask']
    """
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+", text)]


def folder_role(name: str) -> Role | None:
    """Return what a folder's name says of the files in it, like ``imagesTr`` or ``labels``."""
    for role, known in (("image", IMAGE_WORDS), ("mask", MASK_WORDS)):
        if re.fullmatch(f"(?:{'|'.join(known)})_?{SUBSET}", name.lower()):
            return "image" if role == "image" else "mask"
    return None


def name_of(path: str) -> Name:
    """Return what a path relative to the collection says of a file."""
    parts = PurePosixPath(path)
    stem = stem_of(parts.name)
    folders = [part for part in parts.parent.parts if folder_role(part) is None]
    if lits := re.fullmatch(r"(volume|segmentation)-(\d+)", stem, re.IGNORECASE):
        return Name(
            role="image" if lits[1].lower() == "volume" else "mask", folder="/".join(folders), key=f"{LITS}{lits[2]}"
        )
    by_folder = next((role for part in reversed(parts.parent.parts) if (role := folder_role(part))), None)
    spoken = words(stem)
    said: Role = "mask" if MASK_WORDS & set(spoken) else (by_folder or "image")
    if said == "image" and stem.endswith(FIRST_CHANNEL):
        spoken = words(stem.removesuffix(FIRST_CHANNEL))
    key = "_".join(word for word in spoken if word not in MASK_WORDS | IMAGE_WORDS | {"manual"})
    return Name(role=said, folder="/".join(folders), key=key)


def case_id_of(path: str) -> str:
    """Return the case id of an image: its stem without ``_0000``; for one folder per patient, the folder.

    >>> case_id_of("lits/volume-17.nii"), case_id_of("imagesTr/liver_3_0000.nii.gz"), case_id_of("STS_004/CT_image.nii.gz")
    ('volume-17', 'liver_3', 'STS_004')
    """
    parts = PurePosixPath(path)
    if not name_of(path).key and parts.parent.name:
        return parts.parent.name
    return stem_of(parts.name).removesuffix(FIRST_CHANNEL)


def natural_key(text: str) -> list[tuple[int, str]]:
    """Return a sort key in which numbers count as numbers.

    >>> sorted(["volume-10", "volume-9"], key=natural_key)
    ['volume-9', 'volume-10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def find_files(folder: AnyPlace) -> list[AnyPlace]:
    """Return the NIfTI files below a folder in natural order, without hidden ones and without following links to folders.

    A .hdr stands for itself and the .img beside it.
    """
    return [
        path
        for path in _walk(folder)
        if is_nifti_name(path.name) and not (is_header_name(path.name) and why_no_scan(path))
    ]


def other_scans(folder: AnyPlace) -> list[AnyPlace]:
    """Return the files below a folder that look like scans and are not read: of another format, or half a pair."""
    return [
        path
        for path in _walk(folder)
        if path.name.lower().endswith(OTHER_FORMATS) and not path.name.startswith(".") and why_no_scan(path)
    ]


def why_no_scan(path: Location) -> str:
    """Return why a file of OTHER_FORMATS is left out; empty when it is a pair's header, or the image file of one."""
    name = path.name.lower()
    if name.endswith(HEADER_SUFFIXES):
        stem = stem_of(path.name)
        single = next((file for end in (".nii", ".nii.gz") if (file := path.with_name(stem + end)).exists()), None)
        if single is not None:
            return f"a pair beside a single file of its name; {single.name} is taken"
        return "" if files_of(path)[-1].exists() else "a header without its .img; put the .img beside it"
    if name.endswith(IMAGE_SUFFIXES):
        return "" if _has_header(path) else "an .img without a .hdr of its name; put the .hdr beside it"
    return WHY_OTHER


def _has_header(image: Location) -> bool:
    """Return whether a file is the image file of a header beside it."""
    stem = re.sub(r"\.img(\.gz)?$", "", image.name, flags=re.IGNORECASE)
    headers = [image.with_name(stem + end) for end in (".hdr", ".HDR", ".hdr.gz", ".HDR.GZ")]
    return any(header.exists() and files_of(header)[-1] == image for header in headers)


def not_entered(folder: Location) -> list[tuple[Path, str]]:
    """Return the folders below a folder that were not searched, with the reason: links, which may lead in circles, and unreadable ones."""
    if isinstance(folder, RemotePath):
        return []
    found: list[tuple[Path, str]] = []

    def unreadable(error: OSError) -> None:
        found.append((Path(os.fsdecode(error.filename)), f"a folder that cannot be listed: {error.strerror}"))

    for directory, folders, _ in os.walk(folder, onerror=unreadable, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [Path(directory) / name for name in folders if (Path(directory) / name).is_symlink()]
        found += [(link, "a link to a folder is not followed; name the folder itself") for link in links]
    return [(path, why) for path, why in sorted(found) if is_text(path)]


def result_folders(folder: Location) -> list[Path]:
    """Return the folders below a folder that hold what a run made: its ledger lies there."""
    if isinstance(folder, RemotePath):
        return []
    return [path.parent for path in _all(folder) if path.name == LEDGER and path.parent != folder]


def is_below(path: Location, folders: list[Path]) -> bool:
    """Return whether a file lies below one of several folders."""
    return isinstance(path, Path) and any(folder in path.parents for folder in folders)


def undecodable_names(folder: Location) -> list[Path]:
    """Return the files below a folder whose names are no valid UTF-8, with what is not replaced: tables cannot hold them."""
    found = [path for path in _all(folder) if isinstance(path, Path) and not is_text(path)]
    return [Path(os.fsencode(path).decode(errors="replace")) for path in found]


def is_text(path: Location) -> bool:
    """Return whether a path can be written into tables: valid UTF-8, no NUL."""
    try:
        return b"\0" not in str(path).encode()
    except UnicodeEncodeError:
        return False


def _walk(folder: AnyPlace) -> list[AnyPlace]:
    return sorted(filter(is_text, _all(folder)), key=lambda path: natural_key(path.as_posix()))


def _all(folder: AnyPlace) -> list[AnyPlace]:
    if isinstance(folder, RemotePath):
        objects = [path for path, _ in folder.files()]
        hidden = [any(part.startswith(".") for part in path.relative_to(folder).parts) for path in objects]
        return [path for path, skip in zip(objects, hidden, strict=True) if not skip]  # type: ignore[misc]
    found: list[Any] = []
    for directory, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(directory) / name for name in names]
    return found
