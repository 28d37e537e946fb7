"""Finds the images and masks of a collection and pairs them.

1. `find_files` lists the NIfTI files below a folder. Links to folders are not followed; ``._*`` files are ignored.
2. `slicemill.ct.naming` derives from each name whether it is an image or a mask, and its key.
3. An image and a mask with the same folder and key are a pair. LiTS numbers also pair across folders, and so do keys if
   there is one folder of images and one of masks.
4. Files that do not pair are listed with the reason. Images without a mask are cases too; masks alone are not.

A CSV (``--pairs``) or two patterns (``--images``, ``--masks``) replace steps 2 and 3.
"""

import csv
import glob
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from slicemill.common.csv_cells import unguard_row
from slicemill.common.errors import PairingError, UsageError
from slicemill.common.files import Location, parse_location, relative_path
from slicemill.common.left_out import LeftOut
from slicemill.common.remote import RemotePath
from slicemill.ct.formats.nifti.names import is_nifti_name, strip_suffix
from slicemill.ct.labels import LITS_LABELS, Labels, read_dataset_json
from slicemill.ct.naming import (
    FIRST_CHANNEL,
    LITS,
    NOT_UTF8,
    Name,
    derive_case_id,
    find_files,
    find_result_folders,
    find_undecodable_names,
    find_unread_scans,
    find_unsearched_folders,
    is_below,
    is_text,
    parse_name,
    reason_left_out,
)
from slicemill.store.layout import check_case_id

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """The files of one case."""

    case_id: str
    patient_id: str
    image: Location
    mask: Location | None
    root: Location
    """Folder of the collection; names in the store are relative to it."""

    def name(self, path: Location) -> str:
        """Return a file's path relative to the collection, with forward slashes."""
        if isinstance(path, RemotePath) and not isinstance(self.root, RemotePath):
            return path.key
        return relative_path(path, self.root)


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The cases, and the files that belong to none."""

    cases: tuple[CaseFiles, ...]
    left_out: tuple[LeftOut, ...]
    """Files and folders that belong to no case."""
    labels: Labels | None
    """Labels that the collection declares (``dataset.json``, LiTS names)."""


def discover(source: Location) -> Collection:
    """Find and pair the files below a folder, in any of the usual layouts.

    Raises
    ------
    PairingError
        There is nothing to ingest, or two images would have the same case id.
    """
    if not source.exists():
        raise PairingError(f"{source}: there is no such folder.")
    is_folder = source.is_dir()
    root, files = (source, find_files(source)) if is_folder else (source.parent, [source])
    others = find_unread_scans(source) if is_folder else []
    names = {path: parse_name(relative_path(path, root)) for path in files}
    named_images = [path for path in files if names[path].role == "image"]
    masks = [path for path in files if names[path].role == "mask"]
    if not named_images:
        raise PairingError(
            f"{source}: no CT image among {len(files)} NIfTI files ({len(masks)} of them look like masks) "
            f"and {len(others)} files of other formats. Name them with --images and --masks patterns, or list them "
            "with --pairs CSV."
        )
    results = find_result_folders(source) if is_folder else []
    made = {path for path in named_images if is_below(path, results)}
    images = [path for path in named_images if path not in made and not _is_extra_channel(path, named_images)]
    paired = _pair(images, masks, names)
    used, kept = set(paired.values()), {*images, *made}
    undecodable = find_undecodable_names(source) if is_folder else []
    reasons = [
        *((path, "a result of infer, not an input scan") for path in named_images if path in made),
        *((path, "an extra channel of a scan; CT scans have one channel") for path in named_images if path not in kept),
        *((path, reason_left_out(path)) for path in others),
        *(find_unsearched_folders(source) if is_folder else []),
        *((path, NOT_UTF8) for path in undecodable),
        *((path, _explain_unpaired(path, images)) for path in masks if path not in used),
    ]
    cases = [_make_case(path, paired.get(path), root) for path in images]
    return _make_collection(cases, root, [LeftOut(path, reason) for path, reason in reasons])


def _make_collection(cases: list[CaseFiles], root: Location, left_out: Iterable[LeftOut] = ()) -> Collection:
    """Return a collection with the labels that it declares, after a check of its case ids."""
    labels = find_declared_labels(root, [case.image for case in cases])
    collection = Collection(cases=tuple(cases), left_out=tuple(left_out), labels=labels)
    check_case_ids(collection)
    return collection


def _make_case(image: Location, mask: Location | None, root: Location) -> CaseFiles:
    """Return a case named by its image, or by the collection's folder if the image's name alone identifies nothing."""
    folder = root.resolve() if isinstance(root, Path) else root
    case_id = derive_case_id(relative_path(image, root) if image.parent != root else f"{folder.name}/{image.name}")
    return CaseFiles(case_id=case_id, patient_id=case_id, image=image, mask=mask, root=root)


def find_declared_labels(source: Location, images: list[Location]) -> Labels | None:
    """Return the labels of the only ``dataset.json`` next to the images or above them, or LiTS's for LiTS names."""
    near = {folder for image in images for folder in (image.parent, image.parent.parent)}
    folders = {folder for folder in near if _is_inside(folder, source)}
    documents = sorted(path for folder in folders if (path := folder / "dataset.json").is_file())
    if len(documents) == 1:
        return read_dataset_json(documents[0])
    if all(re.fullmatch(r"volume-\d+", strip_suffix(image.name), re.IGNORECASE) for image in images):
        return LITS_LABELS
    return None


def _is_inside(folder: Location, source: Location) -> bool:
    try:
        return not relative_path(folder, source).startswith("..")
    except ValueError:
        return False


def from_csv(table: Location) -> Collection:
    """Read cases from a CSV with the columns image, mask (may be empty), and optionally case_id and patient_id.

    Paths are relative to the CSV's folder; URLs of an object store are used unchanged.

    Raises
    ------
    PairingError
        The CSV cannot be read or lacks a column, a row has no image, or two rows have the same case id.
    """
    try:
        text = table.read_bytes().decode("utf-8-sig")
        rows = [unguard_row(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PairingError(f"{table}: cannot be read as CSV ({error}).") from error
    if not rows or "image" not in rows[0]:
        raise PairingError(
            f"{table}: needs a header line with the columns image and mask (optionally case_id, patient_id), and rows."
        )
    root = table.parent
    cases = []
    for line, row in enumerate(rows, start=2):
        if not row["image"] or not all(is_text(Path(row.get(column) or "")) for column in ("image", "mask")):
            raise PairingError(f"{table}, line {line}: the column image is empty, or a path is not valid text.")
        image, mask = _resolve(root, row["image"]), row.get("mask")
        case_id = row.get("case_id") or derive_case_id(row["image"])
        cases.append(
            CaseFiles(
                case_id=case_id,
                patient_id=row.get("patient_id") or case_id,
                image=image,
                mask=_resolve(root, mask) if mask else None,
                root=root,
            )
        )
    return _make_collection(cases, root)


def _resolve(root: Location, text: str) -> Location:
    return parse_location(text) if "://" in text else root / text


def from_patterns(images: str, masks: str | None) -> Collection:
    """Pair the files of two patterns by the text that the wildcards match: ``ct/*_ct.nii.gz``, ``seg/*_liver.nii.gz``.

    Raises
    ------
    UsageError
        A pattern has no ``*``, or is a URL.
    PairingError
        A pattern matches nothing, or two files match with the same text.
    """
    image_of, mask_of = _match_pattern(images), _match_pattern(masks) if masks else {}
    root = Path(os.path.commonpath([path.parent.absolute() for path in (*image_of.values(), *mask_of.values())]))
    cases = []
    for key, image in image_of.items():
        case_id = derive_case_id(image.absolute().relative_to(root).as_posix())
        mask = mask_of.get(key)
        cases.append(
            CaseFiles(
                case_id=case_id, patient_id=case_id, image=image.absolute(), mask=mask and mask.absolute(), root=root
            )
        )
    left_out = [
        LeftOut(path, f"no image of the pattern {images} matches with {'/'.join(key)!r}")
        for key, path in mask_of.items()
        if key not in image_of
    ]
    return _make_collection(cases, root, left_out)


def set_patients(collection: Collection, pattern: str) -> Collection:
    """Set each case's patient to the match of a regular expression's first group in the image's path.

    Raises
    ------
    UsageError
        The pattern is not a regular expression, or has no group.
    PairingError
        Its group does not match the path of every image.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--patient {pattern}: is not a regular expression ({error}).") from error
    if compiled.groups < 1:
        raise UsageError(f"--patient {pattern}: needs a group in parentheses around the patient's id.")
    cases = []
    for case in collection.cases:
        match = compiled.search(case.name(case.image))
        if not match or not match[1]:
            raise PairingError(f"--patient {pattern}: its group does not match {case.name(case.image)}.")
        cases.append(replace(case, patient_id=match[1]))
    return replace(collection, cases=tuple(cases))


def check_case_ids(collection: Collection) -> None:
    """Check that the case ids are valid and unique.

    Raises
    ------
    StoreError
        A case id cannot be a folder.
    PairingError
        Two images would have the same case id.
    """
    seen: dict[str, CaseFiles] = {}
    for case in collection.cases:
        check_case_id(case.case_id)
        if case.case_id in seen:
            raise PairingError(
                f"{seen[case.case_id].image} and {case.image} would both become case {case.case_id!r}; "
                "rename one, or set the ids in a CSV (--pairs, column case_id)."
            )
        seen[case.case_id] = case


def _pair(images: list[Location], masks: list[Location], names: Mapping[Location, Name]) -> dict[Location, Location]:
    """Return image -> mask: first by folder and key, then by key alone; each round only where exactly two files match.

    The second round is for LiTS numbers, which are unique in their collection, and for collections with one folder of
    images and one of masks. Elsewhere a key such as ``arterial`` may occur in the folders of several patients.
    """
    parallel = len({names[path].folder for path in images}) == 1 == len({names[path].folder for path in masks})
    paired: dict[Location, Location] = {}
    rounds: tuple[Callable[[Location], object], ...] = (
        lambda path: (names[path].folder, names[path].key),
        lambda path: names[path].key if parallel or names[path].key.startswith(LITS) else path,
    )
    for identity in rounds:
        used = set(paired.values())
        images_of: defaultdict[object, list[Location]] = defaultdict(list)
        masks_of: defaultdict[object, list[Location]] = defaultdict(list)
        for path in images:
            if path not in paired:
                images_of[identity(path)].append(path)
        for path in masks:
            if path not in used:
                masks_of[identity(path)].append(path)
        paired |= {
            alike[0]: masks_of[key][0]
            for key, alike in images_of.items()
            if len(alike) == 1 and len(masks_of[key]) == 1
        }
    return paired


def _explain_unpaired(mask: Location, images: list[Location]) -> str:
    key = parse_name(mask.name).key
    same = [image.name for image in images if key and parse_name(image.name).key == key]
    if len(same) > 1:
        return f"a mask that could belong to {len(same)} images: {', '.join(same[:3])}"
    if same:
        return f"a mask, but {same[0]} has more than one; choose one with --pairs or --masks"
    return "a mask without a matching image"


def _is_extra_channel(path: Location, images: list[Location]) -> bool:
    match = re.search(r"_\d{4}$", strip_suffix(path.name))
    if not match or match[0] == FIRST_CHANNEL:
        return False
    first = strip_suffix(path.name)[: match.start()] + FIRST_CHANNEL
    return any(strip_suffix(image.name) == first and image.parent == path.parent for image in images)


def _match_pattern(pattern: str) -> dict[tuple[str, ...], Path]:
    """Return the files that a pattern matches, by the texts that its wildcards match.

    The regular expression is made by hand because the texts are needed: `glob.translate` and pathspec have no groups.
    """
    if "://" in pattern:
        raise UsageError(
            f"{pattern}: patterns are for local files; pass the folder of the bucket, "
            "or list its files in a CSV (--pairs)."
        )
    if "*" not in pattern:
        raise UsageError(f"{pattern}: a pattern needs at least one *; its match pairs images with masks.")
    compiled = re.compile(
        "".join(
            {"**/": r"(?:(.*)/)?", "*": r"([^/]*)"}.get(part, re.escape(part))
            for part in re.split(r"(\*\*/|\*)", pattern)
        )
    )
    matches: dict[tuple[str, ...], Path] = {}
    for name in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 (patterns may be absolute)
        match = compiled.fullmatch(name)
        if match and is_nifti_name(Path(name).name):
            key = tuple(group or "" for group in match.groups())
            if key in matches:
                raise PairingError(f"{matches[key]} and {name} match {pattern} with the same text {'/'.join(key)!r}.")
            matches[key] = Path(name)
    if not matches:
        raise PairingError(
            f"{pattern}: matches no .nii, .nii.gz or .hdr file; quote the pattern so that the shell does not expand it."
        )
    return matches
