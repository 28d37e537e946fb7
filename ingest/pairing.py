"""Pairs masks with images by their names.

Rounds from exact to folded names; an image and a mask pair where exactly one of each has a round's identity:

1. folder, set (``Tr``) and full name; then without nnU-Net's ``_0000``
2. folder, set and words or key; then without the set
3. key or words alone, if they are unique in a collection (LiTS numbers, BIDS entities), or if there is one folder of
   images and one of masks
4. the words that are left without those of all images, or of all masks: ``PANCREAS_0001`` and ``label0001``
5. the only image and the only mask of a folder, if one of the names says nothing: ``Patient_01`` and ``GT``

No pair is found by elimination: identities count files that are paired already.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from slicemill.common.errors import PairingError
from slicemill.common.files import Location
from slicemill.common.terminal import count_noun
from slicemill.ct.formats.names import strip_suffix
from slicemill.ct.name_words import folder_role, folder_set, key_words
from slicemill.ct.naming import FIRST_CHANNEL, LITS, UID, Name

SHOWN = 3
"""Number of names that a message lists."""
UNIQUE_KEYS = (LITS, UID, "sub-")
"""Prefixes of keys that are unique in a collection."""
WAYS_OUT = (
    "List the pairs in a CSV (--pairs), name the masks with a pattern (--mask), "
    "or pass --no-masks to store the scans without masks."
)

STRUCTURES = " If each mask is a file of one structure, name those to read: --labels liver=1,spleen=2."


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a collection, and the parts of its name."""

    path: Location
    relative: str
    """Its path below the collection."""
    name: Name
    parent: str
    """The folder of the file, relative to the collection."""
    stem: str
    """The file name without suffix."""
    subset: str
    """``tr`` if the nearest folder with a role is called ``imagesTr`` or ``labelsTr``."""
    words: tuple[str, ...]
    """The words that identify the case."""

    @property
    def is_image(self) -> bool:
        """Return whether the file is an image."""
        return self.name.role == "image"


def make_entry(path: Location, relative: str, name: Name) -> Entry:
    """Return the parts of a name."""
    parts = PurePosixPath(relative)
    stem = strip_suffix(parts.name)
    subset = next((folder_set(part) for part in reversed(parts.parent.parts) if folder_role(part)), "")
    return Entry(path, relative, name, parts.parent.as_posix(), stem, subset, tuple(key_words(stem)))


Identity = Callable[[Entry], Hashable | None]
Pairs = dict[Location, Location]


def pair(images: Sequence[Entry], masks: Sequence[Entry]) -> Pairs:
    """Return image -> mask."""
    pairs: Pairs = {}
    parallel = _are_parallel({one.name.folder for one in images}, {one.name.folder for one in masks})
    for identity in (*_rounds(parallel=parallel), _make_residual(images, masks, parallel=parallel)):
        if identity is not None:
            _match(images, masks, identity, pairs)
    _match_alone(images, masks, pairs)
    return pairs


def _are_parallel(of_images: set[str], of_masks: set[str]) -> bool:
    """Return whether there is one folder of images and one of masks; ``P1`` and ``P2`` are rather two patients."""
    if len(of_images) != 1 or len(of_masks) != 1:
        return False
    return of_images == of_masks or not all(re.search(r"\d", folder) for folder in of_images | of_masks)


def _rounds(*, parallel: bool) -> tuple[Identity, ...]:
    def stem(one: Entry) -> str:
        return one.stem.removesuffix(FIRST_CHANNEL) if one.is_image else one.stem

    return (
        lambda one: (one.name.folder, one.subset, one.stem),
        lambda one: (one.name.folder, one.subset, stem(one)),
        lambda one: (one.name.folder, one.subset, one.words),
        lambda one: (one.name.folder, one.subset, one.name.key),
        lambda one: (one.name.folder, one.words),
        lambda one: (one.name.folder, one.name.key),
        lambda one: (one.name.key or None) if parallel or one.name.key.startswith(UNIQUE_KEYS) else None,
        lambda one: (one.words or None) if parallel else None,
    )


def _make_residual(images: Sequence[Entry], masks: Sequence[Entry], *, parallel: bool) -> Identity | None:
    """Return the identity of round 4; None if images and masks would both lose words."""
    common_images, common_masks = (_common_words(files) for files in (images, masks))
    lost_images, lost_masks = common_images - common_masks, common_masks - common_images
    if bool(lost_images) == bool(lost_masks):
        return None

    def residual(one: Entry) -> Hashable | None:
        lost = lost_images if one.is_image else lost_masks
        rest = tuple(word for word in one.words if word not in lost)
        return ("" if parallel else one.name.folder, rest) if rest else None

    return residual


def _common_words(files: Sequence[Entry]) -> set[str]:
    """Return the words that all files share, except numbers."""
    sets = [set(one.words) for one in files]
    return {word for word in set.intersection(*sets) if not word.isdecimal()} if sets else set()


def _group(files: Sequence[Entry], identity: Identity) -> dict[Hashable, list[Entry]]:
    groups: dict[Hashable, list[Entry]] = defaultdict(list)
    for one in files:
        if (key := identity(one)) is not None:
            groups[key].append(one)
    return groups


def _match(images: Sequence[Entry], masks: Sequence[Entry], identity: Identity, pairs: Pairs) -> None:
    """Add the pairs of a round."""
    used = set(pairs.values())
    masks_of = _group(masks, identity)
    for key, alike in _group(images, identity).items():
        candidates = masks_of.get(key, [])
        if len(alike) == 1 == len(candidates):
            image, mask = alike[0], candidates[0]
            if image.path not in pairs and mask.path not in used and _same_subset(image, mask):
                pairs[image.path] = mask.path


def _same_subset(image: Entry, mask: Entry) -> bool:
    """Return whether both belong to training or both to test, as far as their folders tell."""
    subsets = {one.subset.rstrip("0123456789") for one in (image, mask)} - {""}
    return len(subsets) < 2


def _match_alone(images: Sequence[Entry], masks: Sequence[Entry], pairs: Pairs) -> None:
    """Add the pairs of folders with one image and one mask; a mask beside the image goes before one further below."""
    used = set(pairs.values())
    masks_of = _group(masks, lambda one: one.name.folder)
    for folder, alike in _group(images, lambda one: one.name.folder).items():
        image, candidates = alike[0], masks_of.get(folder, [])
        beside = [mask for mask in candidates if mask.parent == image.parent] or candidates
        if len(alike) > 1 or len(beside) != 1 or image.path in pairs or beside[0].path in used:
            continue
        of_folder = tuple(key_words(PurePosixPath(str(folder)).name))
        if not image.words or not beside[0].words or (folder and image.words == of_folder):
            pairs[image.path] = beside[0].path


def explain_unpaired(images: Sequence[Entry], masks: Sequence[Entry], pairs: Pairs) -> dict[Location, str]:
    """Return the reason for each mask that has no image."""
    by_key = _group(images, lambda one: one.name.key or None)
    by_folder = _group(images, lambda one: one.name.folder)
    used = set(pairs.values())
    reasons: dict[Location, str] = {}
    for mask in masks:
        if mask.path in used:
            continue
        same = by_key.get(mask.name.key, []) if mask.name.key else []
        local = [image for image in same if image.name.folder == mask.name.folder]
        near = by_folder.get(mask.name.folder, [])
        owner = next((some[0] for some in (local, same, near) if len(some) == 1), None)
        if len(same) > 1 and owner is None:
            shown = ", ".join(image.relative for image in same[:SHOWN])
            reasons[mask.path] = f"a mask that could belong to {len(same)} images: {shown}"
        elif owner is not None and owner.path in pairs:
            reasons[mask.path] = f"another mask of {owner.relative}, which is paired with {pairs[owner.path].name}"
        elif same and owner is not None:
            reasons[mask.path] = f"a mask, but {owner.path.name} has more than one; choose one with --pairs or --mask"
        else:
            reasons[mask.path] = "a mask without a matching image"
    return reasons


def check_pairing(source: Location, images: Sequence[Entry], masks: Sequence[Entry], pairs: Pairs) -> None:
    """Check that the names fit: pairs outnumber the files of the smaller side that found no partner.

    Raises
    ------
    PairingError
        There are masks, but none or few of them have an image.
    """
    reasons = explain_unpaired(images, masks, pairs)
    orphans = [mask for mask in masks if mask.path in reasons and not reasons[mask.path].startswith("another mask")]
    bare = [image for image in images if image.path not in pairs]
    if len(pairs) >= min(len(orphans), len(bare)):
        return
    tried = "; ".join(f"{mask.relative} ({reasons[mask.path]})" for mask in orphans[:SHOWN])
    scans = ", ".join(image.relative for image in bare[:SHOWN])
    raise PairingError(
        f"{count_noun(len(masks), 'mask')} and {count_noun(len(images), 'image')}, but only "
        f"{count_noun(len(pairs), 'pair')} by name. Masks: {tried}. Images: {scans}. {WAYS_OUT}"
        f"{STRUCTURES if _have_structures(bare, orphans) else ''}",
        where=source,
    )


def _have_structures(images: Sequence[Entry], masks: Sequence[Entry]) -> bool:
    """Return whether a folder has one image and several masks, as with a file for each structure."""
    of_images, of_masks = (Counter(one.name.folder for one in files) for files in (images, masks))
    return any(number > 1 and of_images[folder] == 1 for folder, number in of_masks.items())


def check_namesakes(source: Location, images: Sequence[Entry], *, may_be_masks: bool) -> None:
    """Check that no folder beside one that is named for images repeats the names of its files.

    Parameters
    ----------
    may_be_masks
        Whether the caller may say which files are masks (`--mask`).

    Raises
    ------
    PairingError
        ``ct/001`` and ``liver/001`` would both become scans; the second one is rather a mask, or no CT.
    """
    of_images = {(PurePosixPath(one.parent).parent, one.stem): one for one in images if _role_of_parent(one) == "image"}
    for one in images:
        twin = of_images.get((PurePosixPath(one.parent).parent, one.stem))
        if twin is not None and one.parent != twin.parent and _role_of_parent(one) is None:
            name_scans = f"name the scans with --image '{source}/{twin.parent}/*'."
            if_mask = f" Pass --mask '{one.parent}/*' if it is one; else {name_scans}"
            raise PairingError(
                f"{one.relative} has the name of the scan {twin.relative}, but its folder does not tell whether it is "
                f"a mask.{if_mask if may_be_masks else f' Instead of the folder, {name_scans}'}",
                where=source,
            )


def _role_of_parent(one: Entry) -> str | None:
    return folder_role(PurePosixPath(one.parent).name)
