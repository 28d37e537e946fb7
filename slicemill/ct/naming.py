"""File names: whether a file is an image or a mask, which image a mask belongs to, and which files are read.

Words like ``seg`` or ``CT`` give the role of the file; the other words are the key that an image and its mask share.
Folders named ``imagesTr``, ``labels`` or ``masks`` give the role of the files in them (`slicemill.ct.name_words`).

>>> parse_name("lits/batch1/volume-17.nii").key, parse_name("lits/batch2/segmentation-17.nii").role
('lits-17', 'mask')
>>> parse_name("STS_004/CT_mask.nii.gz")
Name(role='mask', folder='STS_004', key='')
>>> parse_name("imagesTr/liver_3_0000.nii.gz") == Name(role='image', folder='', key='liver_3')
True
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from slicemill.common.files import Location
from slicemill.common.ledger import LEDGER
from slicemill.common.names import is_text, natural_key
from slicemill.common.remote import RemotePath
from slicemill.ct.formats.companions import Companions
from slicemill.ct.formats.names import is_slicer_segmentation, strip_suffix
from slicemill.ct.name_words import (
    IMAGE_WORDS,
    Role,
    folder_role,
    is_label_split_folder,
    is_mask_word,
    is_split_folder,
    key_words,
    names_masks,
    parse_bids,
    words,
)

AnyPlace = TypeVar("AnyPlace", bound=Location)

LITS_NAME = re.compile(r"(volume|segmentation|labels?)-(\d+)", re.IGNORECASE)
"""Names of LiTS, and of CT-ORG (``labels-0``)."""
LITS, UID = "lits-", "uid-"
"""Prefixes of the keys of names that are unique in a complete collection: LiTS's numbers, and UIDs of DICOM."""
UID_NAME = re.compile(r"[0-2](?:\.\d+){4,}")
"""A UID of DICOM, as the names of LUNA16 are."""
NOT_UTF8 = "its name is not valid UTF-8; rename it"
"""The reason to leave out what `find_undecodable_names` returns."""
FIRST_CHANNEL = "_0000"
"""nnU-Net's suffix of the first channel, which is the only one of a CT."""


@dataclass(frozen=True, slots=True)
class Name:
    """Role, folder and key of a file, from its relative path."""

    role: Role
    folder: str
    """The folders above the file, without those that only give the role."""
    key: str
    """The words that the names of an image and its mask share; empty if only the folder identifies the case."""


def parse_name(path: str) -> Name:
    """Parse the path of a file relative to its collection.

    The first of these that says something gives the role: a folder ``labelsTr``, for a LiTS name; a LiTS, CT-ORG or
    BIDS name; a folder ``imagesTr``; a word of the file's name for masks; the nearest folder named for images or masks;
    a folder like ``liver_masks``. A segmentation of 3D Slicer (``.seg.nrrd``) is a mask whatever its name.
    """
    name = _parse_name(path)
    return replace(name, role="mask") if is_slicer_segmentation(path) else name


def _parse_name(path: str) -> Name:
    parts = PurePosixPath(path)
    stem = strip_suffix(parts.name)
    parents = parts.parent.parts
    folder = "/".join(part for part in parents if folder_role(part) is None)
    if lits := LITS_NAME.fullmatch(stem):
        is_scan = lits[1].lower() == "volume" and not (parents and is_label_split_folder(parents[-1]))
        return Name(role="image" if is_scan else "mask", folder=folder, key=f"{LITS}{lits[2]}")
    by_folder = next((found for part in reversed(parents) if (found := folder_role(part))), None)
    if UID_NAME.fullmatch(stem):
        return Name(role=by_folder or "image", folder=folder, key=f"{UID}{stem}")
    if bids := parse_bids(stem):
        return Name(role="mask" if "mask" in (bids.role, by_folder) else "image", folder=folder, key=bids.key)
    role: Role
    if parents and is_split_folder(parents[-1]):
        role = "image"
    elif any(map(is_mask_word, words(stem))):
        role = "mask"
    else:
        role = by_folder or "image"
        if by_folder is None and parents and names_masks(parents[-1]) and not IMAGE_WORDS & set(words(stem)):
            role, folder = "mask", "/".join(part for part in parents[:-1] if folder_role(part) is None)
    if role == "image" and stem.endswith(FIRST_CHANNEL):
        stem = stem.removesuffix(FIRST_CHANNEL)
    return Name(role=role, folder=folder, key="_".join(key_words(stem)))


def derive_case_id(path: str) -> str:
    """Return the case id of an image: its stem without ``_0000``, or its folder if the name has no key.

    >>> derive_case_id("lits/volume-17.nii"), derive_case_id("imagesTr/liver_3_0000.nii.gz")
    ('volume-17', 'liver_3')
    >>> derive_case_id("STS_004/CT_image.nii.gz"), derive_case_id("P1/images/CT.nii")
    ('STS_004', 'P1')
    """
    parts = PurePosixPath(path)
    if not parse_name(path).key and parts.parent.name:
        own = [part for part in parts.parent.parts if folder_role(part) is None]
        return own[-1] if own else parts.parent.name
    return strip_suffix(parts.name).removesuffix(FIRST_CHANNEL)


def find_files(folder: AnyPlace) -> list[AnyPlace]:
    """Return the scans and masks below a folder in natural order; hidden files and linked folders are left out.

    A scan of several files is represented by its header.
    """
    paths = _walk(folder)
    companions = Companions(paths)
    return [path for path in paths if companions.is_scan(path)]


def find_unread_scans(folder: AnyPlace) -> dict[AnyPlace, str]:
    """Return the files below a folder that look like scans but are not read, with the reasons.

    They are incomplete: headers without voxels, and voxels without a header; or they have another format.
    """
    paths = _walk(folder)
    companions = Companions(paths)
    return {path: reason for path in paths if (reason := companions.reason_left_out(path))}


def find_unsearched_folders(folder: Location) -> list[tuple[Path, str]]:
    """Return the folders below a folder that were not searched, with the reason.

    They are links, which may form cycles, and folders that cannot be listed.
    """
    if isinstance(folder, RemotePath):
        return []
    unsearched: list[tuple[Path, str]] = []

    def unreadable(error: OSError) -> None:
        unsearched.append((Path(os.fsdecode(error.filename)), f"a folder that cannot be listed: {error.strerror}"))

    for directory, folders, _ in os.walk(folder, onerror=unreadable, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [Path(directory) / name for name in folders if (Path(directory) / name).is_symlink()]
        unsearched += [(link, "a link to a folder is not followed; name the folder itself") for link in links]
    return [(path, why) for path, why in sorted(unsearched) if is_text(path)]


def find_result_folders(folder: Location) -> list[Path]:
    """Return the folders below a folder that contain results of a run, which are recognized by its ledger."""
    if isinstance(folder, RemotePath):
        return []
    return [path.parent for path in _all(folder) if path.name == LEDGER and path.parent != folder]


def is_below(path: Location, folders: list[Path]) -> bool:
    """Return whether a file is below one of several folders."""
    return isinstance(path, Path) and any(folder in path.parents for folder in folders)


def is_within(path: Location, folder: Location) -> bool:
    """Return whether a file is below a folder, by whatever paths the two are named."""
    if isinstance(path, RemotePath) or isinstance(folder, RemotePath):
        return str(path).startswith(f"{folder}/")
    return folder.resolve() in path.resolve().parents


def find_undecodable_names(folder: Location) -> list[Path]:
    """Return the files below a folder whose names are not UTF-8, with replacement characters for messages."""
    undecodable = [path for path in _all(folder) if isinstance(path, Path) and not is_text(path)]
    return [Path(os.fsencode(path).decode(errors="replace")) for path in undecodable]


def _walk(folder: AnyPlace) -> list[AnyPlace]:
    return sorted(filter(is_text, _all(folder)), key=lambda path: natural_key(path.as_posix()))


def _all(folder: AnyPlace) -> list[AnyPlace]:
    if isinstance(folder, RemotePath):
        objects = [path for path, _ in folder.files()]
        hidden = [any(part.startswith(".") for part in path.relative_to(folder).parts) for path in objects]
        return [path for path, skip in zip(objects, hidden, strict=True) if not skip]  # type: ignore[misc]
    files: list[Any] = []
    for directory, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(directory) / name for name in names]
    return files
