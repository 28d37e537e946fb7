"""Finds the images and masks of a collection and pairs them.

1. `find_files` lists the scans and masks below a folder, of all formats. Links to folders are not followed; ``._*``
   files are ignored.
2. `parse_names` derives from the names which files are images and which are masks, and their keys.
3. `find_channels` separates scans from other channels of a scan.
4. `pair` pairs images and masks by name; `find_structures` finds masks with a file for each structure.
5. If none or few of the masks pair, the collection is refused. Other files without a partner are listed with the
   reason. Images without a mask are cases too; masks alone are not.

A CSV (`slicemill.ingest.pair_table`) or two patterns (`slicemill.ingest.patterns`) replace all this.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from slicemill.common.errors import PairingError, UsageError
from slicemill.common.files import Location, relative_path
from slicemill.common.left_out import LeftOut
from slicemill.common.progress import progress
from slicemill.common.remote import RemotePath
from slicemill.common.terminal import count_noun
from slicemill.ct.dataset_json import NAME, DatasetDescription, read_dataset_description
from slicemill.ct.formats.dicom.discover import FoundSeries
from slicemill.ct.formats.dicom.series import SeriesIdentity, identify
from slicemill.ct.formats.names import strip_suffix
from slicemill.ct.labels import LITS_LABELS, Labels
from slicemill.ct.naming import (
    NOT_UTF8,
    find_files,
    find_result_folders,
    find_undecodable_names,
    find_unread_scans,
    find_unsearched_folders,
    is_below,
    is_within,
)
from slicemill.ct.roles import parse_names
from slicemill.ingest.case_ids import choose_case_ids
from slicemill.ingest.channels import Channels, find_channels
from slicemill.ingest.dicom_masks import MaskUse, find_dicom_masks, find_scans_and_others, first_reason
from slicemill.ingest.globs import fits_below
from slicemill.ingest.pairing import Entry, Pairs, check_namesakes, check_pairing, explain_unpaired, make_entry, pair
from slicemill.ingest.point_tables import CasePoints, UnmatchedPoint
from slicemill.ingest.structures import Structure, StructureFiles, find_structures
from slicemill.store.layout import check_case_id

STEP = 1000
"""Number of files between two updates of the progress bar."""


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """The files of one case."""

    case_id: str
    patient_id: str
    image: Location
    mask: Location | None
    """The file of the mask; the folder of the first file if there is a file for each structure."""
    structures: tuple[Structure, ...] = ()
    """The files of the structures, if there is a file for each."""
    root: Location
    """Folder of the collection; names in the store are relative to it."""
    points: CasePoints | None = None
    """What tables of points say about it (--points); its mask, if any, is then one of the lungs."""
    dicom: SeriesIdentity | None = None
    """What a DICOM series is called in its hospital; never written. None for other formats."""

    @property
    def mask_files(self) -> tuple[Location, ...]:
        """Return the files of the mask; empty without a mask."""
        if self.structures:
            return tuple(structure.path for structure in self.structures)
        return () if self.mask is None else (self.mask,)

    def name(self, path: Location) -> str:
        """Return a file's path relative to the collection, with forward slashes."""
        if isinstance(path, RemotePath) and not isinstance(self.root, RemotePath):
            return path.key
        name = relative_path(path, self.root)
        if name == ".":  # the collection is one DICOM series
            return (path.resolve() if isinstance(path, Path) else path).name
        return name


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The cases, and the files that belong to none."""

    cases: tuple[CaseFiles, ...]
    left_out: tuple[LeftOut, ...]
    """Files and folders that belong to no case."""
    labels: Labels | None
    """Labels that the collection declares (``dataset.json``, LiTS names)."""
    notes: tuple[str, ...] = ()
    """What was decided about names, labels and points."""
    unmatched_points: tuple[UnmatchedPoint, ...] = ()
    """Rows of tables of points that belong to none of the cases."""


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """Options that change which masks `discover` uses."""

    pattern: str | None = None
    """Pattern of the masks' paths below the folder; None: all files that are named like masks."""
    none: bool = False
    """Whether no mask is used."""
    lungs: Location | None = None
    """Folder whose files are segmentations of lungs, and no scans."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Name of a structure's file without suffix -> value of its label, from the user's labels; empty without them. With
    them, those of ``dataset.json`` are not read."""


def discover(source: Location, options: MaskOptions | None = None) -> Collection:
    """Find and pair the files below a folder, in any of the usual layouts (docs/inputs.md).

    Raises
    ------
    PairingError
        There is nothing to ingest, or none or few of the masks pair with an image.
    """
    options = options or MaskOptions()
    if not source.exists():
        raise PairingError("there is no such folder.", where=source)
    is_folder = source.is_dir()
    root, files = (source, find_files(source)) if is_folder else (source.parent, [source])
    files = [path for path in files if options.lungs is None or not is_within(path, options.lungs)]
    results = find_result_folders(source) if is_folder else []
    made = [path for path in files if is_below(path, results)] if results else []
    dicom = find_scans_and_others(source, is_folder=is_folder)
    series = {one.location: one for one in dicom.series if not is_below(one.location, results)}
    names = {path: relative_path(path, root) for path in files if path not in set(made) | series.keys()}
    entries = _read_names(names | {path: one.relative for path, one in series.items()})
    others = find_unread_scans(source) if is_folder else {}
    images, masks, passed = _choose_masks(entries, options, source, [path for path, _ in dicom.left_out])
    if not images:
        unread = f"{count_noun(len(others) + len(dicom.left_out), 'file')} that cannot be read{first_reason(dicom)}"
        raise _make_no_image_error(source, len(entries), len(masks), unread)
    description = _read_description(root, [one.path for one in images], with_labels=not options.files)
    channels = find_channels([one.relative for one in images], [one.relative for one in masks], description.channels)
    scans = [one for one in images if one.relative not in channels.extra]
    use = MaskUse(pattern=options.pattern, none=options.none, root=root, results=results)
    objects = find_dicom_masks(dicom.left_out, series, use)
    match = _pair_files(scans, masks, options, source, objects.pairs)
    reasons: list[tuple[Location, str]] = [
        *((path, "a result of infer, not an input scan") for path in made),
        *((one.path, "another channel of a scan, which is no CT") for one in images if one.relative in channels.extra),
        *others.items(),
        *(find_unsearched_folders(source) if is_folder else []),
        *((path, NOT_UTF8) for path in (find_undecodable_names(source) if is_folder else [])),
        *objects.left_out,
        *passed,
        *match.reasons,
    ]
    left_out = [LeftOut(path, reason) for path, reason in reasons]
    scans = [one for one in scans if one.path not in match.structures.lacking]
    if not scans:
        raise PairingError(f"no case is left. {left_out[-1].path}: {left_out[-1].reason}.", where=source)
    cases, notes = _make_cases(scans, channels, match, root, series)
    labels = description.labels or _lits_labels(scans, match.pairs)
    notes = [*description.notes, *channels.notes, *notes, *match.notes]
    return _check(Collection(cases=tuple(cases), left_out=tuple(left_out), labels=labels, notes=tuple(notes)))


def _make_no_image_error(source: Location, files: int, masks: int, unread: str) -> PairingError:
    """Return the error about a collection without a scan; `unread` describes the other files."""
    return PairingError(
        f"no CT image among {count_noun(files, 'file')} ({masks} of them look like masks) and {unread}. Name them with "
        "--image and --mask patterns, or list them with --pairs CSV.",
        where=source,
    )


def _read_names(relative: Mapping[Location, str]) -> list[Entry]:
    """Return the names of files, from their paths relative to the collection."""
    with progress("read names", len(relative), "files") as advance:
        names = parse_names(list(relative.values()))
        entries = []
        for number, (path, text) in enumerate(relative.items(), 1):
            entries.append(make_entry(path, text, names[text]))
            if number % STEP == 0:
                advance(STEP, "")
    return entries


def _choose_masks(
    entries: Sequence[Entry], options: MaskOptions, source: Location, others: Sequence[Location]
) -> tuple[list[Entry], list[Entry], list[tuple[Location, str]]]:
    """Return images, masks, and the masks that an option excludes, with reasons; `others` are other DICOM files."""
    images = [one for one in entries if one.is_image]
    masks = [one for one in entries if not one.is_image]
    if options.none:
        return images, [], [(one.path, "named like a mask; --no-masks stores scans only") for one in masks]
    if options.pattern is None:
        return images, masks, []
    chosen = [one for one in entries if fits_below(one.relative, options.pattern, source)]
    if not chosen and not any(fits_below(relative_path(path, source), options.pattern, source) for path in others):
        raise PairingError(
            f"no file fits --mask {options.pattern}; use a path below this folder like 'labelsTr2/*', "
            "or a name like '*_seg.nii.gz', in quotes.",
            where=source,
        )
    paths = {one.path for one in chosen}
    passed = [(one.path, "named like a mask, but does not fit --mask") for one in masks if one.path not in paths]
    chosen = [replace(one, name=replace(one.name, role="mask")) for one in chosen]
    return [one for one in images if one.path not in paths], chosen, passed


@dataclass(frozen=True, kw_only=True)
class _Match:
    """The masks of the images."""

    pairs: Pairs
    """Image -> mask, or -> folder of its structures."""
    structures: StructureFiles
    reasons: tuple[tuple[Location, str], ...]
    """Files without partner, and images that lack a structure."""
    notes: tuple[str, ...]


def _pair_files(
    images: Sequence[Entry],
    masks: Sequence[Entry],
    options: MaskOptions,
    source: Location,
    objects: Mapping[Location, Location],
) -> _Match:
    """Return the masks of the images; `objects` are the masks in DICOM, by their series."""
    structures = find_structures(images, masks, options.files)
    rest = [mask for mask in masks if mask.path not in structures.used]
    pairs = {image: files[0].path.parent for image, files in structures.complete.items()}
    done = pairs.keys() | structures.lacking.keys()
    pairs |= pair([image for image in images if image.path not in done], rest)
    images = [image for image in images if image.path not in structures.lacking]
    check_pairing(source, images, rest, pairs)
    for image in pairs.keys() & objects.keys():
        raise PairingError(
            f"has two masks: {pairs[image].name}, and {objects[image].name}, which refers to it; choose one with "
            "--mask PATTERN.",
            where=image,
        )
    pairs |= objects
    check_namesakes(source, images, may_be_masks=not options.none)
    reasons = [
        *((image, f"has no file for {', '.join(names)}") for image, names in structures.lacking.items()),
        *explain_unpaired(images, rest, pairs).items(),
    ]
    unread = len(structures.used) - sum(len(files) for files in structures.complete.values())
    notes = [f"{count_noun(unread, 'file')} of structures without a label: not read"] if unread else []
    return _Match(pairs=pairs, structures=structures, reasons=tuple(reasons), notes=tuple(notes))


def _make_cases(
    images: Sequence[Entry],
    channels: Channels,
    match: _Match,
    root: Location,
    series: Mapping[Location, FoundSeries],
) -> tuple[list[CaseFiles], list[str]]:
    """Return the cases, and notes about their ids. The id may be the name of the collection's folder."""
    folder = root.resolve() if isinstance(root, Path) else root
    ids, notes = choose_case_ids({one.relative: channels.case_stem[one.relative] for one in images}, folder.name)
    cases = [
        CaseFiles(
            case_id=ids[one.relative],
            patient_id=ids[one.relative],
            image=one.path,
            mask=match.pairs.get(one.path),
            structures=match.structures.complete.get(one.path, ()),
            root=root,
            dicom=identify(series[one.path].series) if one.path in series else None,
        )
        for one in images
    ]
    return cases, notes


def make_collection(
    cases: Sequence[CaseFiles],
    root: Location,
    left_out: Iterable[LeftOut] = (),
    notes: Iterable[str] = (),
    *,
    with_labels: bool = True,
) -> Collection:
    """Return a collection of listed cases with the labels that it declares, after a check of its case ids."""
    description = _read_description(root, [case.image for case in cases], with_labels=with_labels)
    are_lits = all(_is_lits(case.image, case.mask) for case in cases)
    labels = description.labels or (LITS_LABELS if are_lits else None)
    notes = (*description.notes, *notes)
    return _check(Collection(cases=tuple(cases), left_out=tuple(left_out), labels=labels, notes=notes))


def _check(collection: Collection) -> Collection:
    check_case_ids(collection)
    return collection


def _lits_labels(images: Sequence[Entry], pairs: Pairs) -> Labels | None:
    """Return LiTS's labels if all names are LiTS's."""
    return LITS_LABELS if all(_is_lits(one.path, pairs.get(one.path)) for one in images) else None


def _is_lits(image: Location, mask: Location | None) -> bool:
    """Return whether names are LiTS's; CT-ORG names its masks otherwise, and has other labels."""
    return bool(re.fullmatch(r"volume-\d+", strip_suffix(image.name), re.IGNORECASE)) and (
        mask is None or bool(re.fullmatch(r"segmentation-\d+", strip_suffix(mask.name), re.IGNORECASE))
    )


def _read_description(source: Location, images: Sequence[Location], *, with_labels: bool) -> DatasetDescription:
    """Return the content of the only ``dataset.json`` next to the images or above them; an empty one without it."""
    parents = dict.fromkeys(image.parent for image in images)
    folders = dict.fromkeys(folder for parent in parents for folder in (parent, parent.parent))
    documents = sorted(path for folder in folders if _is_inside(folder, source) and (path := folder / NAME).is_file())
    if len(documents) != 1:
        return DatasetDescription()
    return read_dataset_description(documents[0], with_labels=with_labels)


def _is_inside(folder: Location, source: Location) -> bool:
    try:
        return not relative_path(folder, source).startswith("..")
    except ValueError:
        return False


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
        cases.append(replace(case, patient_id=match[1], dicom=None))
    return replace(collection, cases=tuple(cases))


def add_prefix(collection: Collection, prefix: str) -> Collection:
    """Put a prefix before all case ids, and before the patients that are named after their case.

    >>> case = CaseFiles(case_id="volume-0", patient_id="volume-0", image=Path("a"), mask=None, root=Path())
    >>> add_prefix(Collection(cases=(case,), left_out=(), labels=None), "siteB/").cases[0].case_id
    'siteB_volume-0'
    """
    start = prefix if prefix.endswith(("/", "_", "-")) else f"{prefix}_"
    start = start.replace("/", "_")
    cases = [
        replace(
            case,
            case_id=start + case.case_id,
            patient_id=start + case.patient_id if case.patient_id == case.case_id else case.patient_id,
        )
        for case in collection.cases
    ]
    return _check(replace(collection, cases=tuple(cases)))


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
