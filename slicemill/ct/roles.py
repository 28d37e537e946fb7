"""Roles of the files of a whole collection: what one name alone does not tell, the names beside it do.

1. `parse_name` reads each name.
2. A name with a word for masks is an image in a folder named for images if no image there has the same key, and either
   a folder of masks has a file of exactly this name, or every file of such folders has the word and none ends with it
   (``images/SegTHOR_01``).
3. A file named like an image beside it with a part of the body at its end is a mask: ``p1_tumor`` beside ``p1``.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from slicemill.ct.formats.names import strip_suffix
from slicemill.ct.name_words import STRUCTURE_WORDS, folder_role, is_mask_word, is_split_folder, words
from slicemill.ct.naming import LITS_NAME, Name, parse_name

Names = dict[str, Name]


def parse_names(paths: Sequence[str]) -> Names:
    """Parse the paths of all files of a collection, relative to it.

    >>> {path: name.role for path, name in parse_names(["images/seg_1.nii", "masks/seg_1.nii"]).items()}
    {'images/seg_1.nii': 'image', 'masks/seg_1.nii': 'mask'}
    """
    names = {path: parse_name(path) for path in paths}
    names |= _find_images_with_mask_words(names)
    names |= _find_structures_beside_images(names)
    return names


def _stem(path: str) -> str:
    return strip_suffix(PurePosixPath(path).name)


def _find_images_with_mask_words(names: Names) -> Names:
    """Return the images of folders named for images whose names have a word for masks."""
    doubtful: list[str] = []
    of_masks: set[str] = set()
    contrast: set[str] = set()
    keys_of_images: set[tuple[str, str]] = set()
    for path, name in names.items():
        parent = PurePosixPath(path).parent
        role = folder_role(parent.name)
        if role == "mask":
            of_masks.add(_stem(path))
        elif role == "image" and not is_split_folder(parent.name) and name.role == "mask":
            doubtful.append(path)
        if name.role == "image":
            contrast.add(parent.name.lower())
            keys_of_images.add((str(parent), name.key))
    found = {}
    for path in doubtful:
        stem, parent = _stem(path), PurePosixPath(path).parent
        last_word = (words(stem) or [""])[-1]
        alone = parent.name.lower() not in contrast and not is_mask_word(last_word)
        if (str(parent), names[path].key) in keys_of_images or LITS_NAME.fullmatch(stem):
            continue
        if names[path].key and (stem in of_masks or alone):
            found[path] = replace(names[path], role="image")
    return found


def _find_structures_beside_images(names: Names) -> Names:
    """Return the masks that are named like an image of their folder, with a part of the body at the end."""
    keys_of: dict[str, set[str]] = defaultdict(set)
    for path, name in names.items():
        if name.role == "image":
            keys_of[str(PurePosixPath(path).parent)].add(name.key)
    found = {}
    for path, name in names.items():
        if name.role != "image":
            continue
        parts = name.key.split("_")
        while parts and parts[-1] in STRUCTURE_WORDS:
            parts.pop()
        base = "_".join(parts)
        if base != name.key and base in keys_of[str(PurePosixPath(path).parent)]:
            found[path] = replace(name, role="mask", key=base)
    return found
