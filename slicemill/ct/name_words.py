"""Words of file and folder names that tell images from masks.

A name is split into words at punctuation and at changes of case. `folder_role` reads a folder's name; the words of a
file's name are compared with MASK_WORDS and IMAGE_WORDS by `slicemill.ct.naming.parse_name`.
"""

import re
from dataclasses import dataclass
from typing import Literal

Role = Literal["image", "mask"]


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


MASK_WORDS = _listed(
    "mask masks msk msks seg segs dseg segmentation segmentations label labels labeled labelled gt truth truths "
    "groundtruth annotation annotations contour contours delineation delineations roi rois gtv gtvs"
)
IMAGE_WORDS = _listed("image images imaging img imgs ct cts volume volumes vol vols scan scans")
FILLER_WORDS = _listed("manual ground")
"""Words that only occur beside a word for masks: ``manualMask``, ``ground_truth``."""
STRUCTURE_WORDS = _listed(
    "liver tumor tumors tumour tumours lesion lesions cancer nodule nodules metastasis metastases cyst cysts kidney "
    "kidneys pancreas spleen lung lungs heart aorta esophagus trachea colon stomach bladder prostate bone bones "
    "left right"
)
"""Words that name a part of the body. A file ``p1_tumor`` beside ``p1`` is a mask of it."""
SUBSET = "(?:tr|ts|va|val|train|training|test|testing)"
COUNT = "[0-9]{0,5}"
"""A number after the subset: a second set of labels (``labelsTr2``), or the number of scans (``imagesTr2200``)."""
BIDS = re.compile(r"(sub-[A-Za-z0-9]+(?:_[A-Za-z0-9]+-[A-Za-z0-9]+)*)_([A-Za-z][A-Za-z0-9]*)")
"""A BIDS name: entities ``key-value``, of which the first is ``sub``, and a suffix."""
BIDS_MASK_ENTITIES = frozenset(["seg", "label"])
BIDS_OTHER_ENTITIES = frozenset(["seg", "label", "desc", "space", "res", "den", "atlas"])
"""Entities that describe a derivative, and are not part of the name that an image and its mask share."""
BIDS_MASK_SUFFIXES = MASK_WORDS | {"probseg"}
_KNOWN = {
    role: "|".join(sorted(known, key=len, reverse=True))
    for role, known in (("image", IMAGE_WORDS), ("mask", MASK_WORDS | {"ground(?:_?truths?)?"}))
}
_LUNA_LUNGS = "seg-lungs-luna16"
"""LUNA16's folder of lung masks, which have the names of the scans."""
_ROLE_FOLDER: tuple[tuple[Role, re.Pattern[str]], ...] = (
    ("image", re.compile(f"(?:{_KNOWN['image']})_?(?:{SUBSET}_?{COUNT}|[0-9]?)")),
    ("mask", re.compile(f"(?:{_KNOWN['mask']})_?(?:{SUBSET}_?{COUNT}|[0-9]?)|{_LUNA_LUNGS}")),
)
_SPLIT_FOLDER = re.compile(f"(?:images?|imgs?)_?{SUBSET}_?{COUNT}")
_LABEL_SPLIT_FOLDER = re.compile(f"(?:labels?)_?{SUBSET}_?{COUNT}")


@dataclass(frozen=True, slots=True)
class BidsName:
    """The parts of a BIDS name that matter here."""

    role: Role
    key: str
    """The entities that an image and its mask share: ``sub-01_ses-2``."""


def words(text: str) -> list[str]:
    """Split a name into lower-case words.

    >>> words("hepaticvessel_002_manualMask")
    ['hepaticvessel', '002', 'manual', 'mask']
    """
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+", text)]


def is_mask_word(word: str) -> bool:
    """Return whether a word of a name says that the file is a mask."""
    return word in MASK_WORDS


def key_words(text: str) -> list[str]:
    """Return the words of a name that identify the case: those that say nothing about the role.

    >>> key_words("p7_manualMask"), key_words("CT_image")
    (['p', '7'], [])
    """
    found = words(text)
    has_mask_word = any(map(is_mask_word, found))
    ignored = MASK_WORDS | IMAGE_WORDS | (FILLER_WORDS if has_mask_word else {"manual"})
    return [word for word in found if word not in ignored]


def folder_role(name: str) -> Role | None:
    """Return the role that a folder name gives to its files, or None.

    >>> folder_role("imagesTr2200"), folder_role("labelsTr2"), folder_role("Ground"), folder_role("liver_masks")
    ('image', 'mask', 'mask', None)
    """
    return next((role for role, pattern in _ROLE_FOLDER if pattern.fullmatch(name.lower())), None)


def is_split_folder(name: str) -> bool:
    """Return whether a folder has images only, as ``imagesTr`` of Decathlon and nnU-Net does."""
    return bool(_SPLIT_FOLDER.fullmatch(name.lower()))


def is_label_split_folder(name: str) -> bool:
    """Return whether a folder has masks only, as ``labelsTr`` of Decathlon and nnU-Net does.

    >>> is_label_split_folder("labelsTs"), is_label_split_folder("labels")
    (True, False)
    """
    return bool(_LABEL_SPLIT_FOLDER.fullmatch(name.lower()))


def names_masks(folder: str) -> bool:
    """Return whether a folder name has a word for masks beside others and no number, like ``liver_masks``.

    >>> names_masks("liver_masks"), names_masks("ct_masks"), names_masks("segmentation_12")
    (True, False, False)
    """
    found = words(folder)
    return (
        any(map(is_mask_word, found))
        and not any(word in IMAGE_WORDS for word in found)
        and not any(word.isdecimal() for word in found)
    )


def folder_set(name: str) -> str:
    """Return the part of a role folder's name that its images and masks share: ``tr`` of ``imagesTr``.

    >>> folder_set("imagesTr"), folder_set("labelsTr2"), folder_set("masks")
    ('tr', 'tr2', '')
    """
    if name.lower() == _LUNA_LUNGS:
        return ""
    return re.sub(f"^(?:{_KNOWN['mask']}|{_KNOWN['image']})_?", "", name.lower()).replace("_", "")


def parse_bids(stem: str) -> BidsName | None:
    """Return the parts of a BIDS name, or None if it is not one.

    >>> parse_bids("sub-01_seg-vert_msk")
    BidsName(role='mask', key='sub-01')
    """
    match = BIDS.fullmatch(stem)
    if not match:
        return None
    entities = [part.split("-") for part in match[1].split("_")]
    is_mask = match[2].lower() in BIDS_MASK_SUFFIXES or any(name in BIDS_MASK_ENTITIES for name, _ in entities)
    shared = [f"{name}-{value}" for name, value in entities if name not in BIDS_OTHER_ENTITIES]
    return BidsName(role="mask" if is_mask else "image", key="_".join(shared))
