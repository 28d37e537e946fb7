"""Pairs of a predicted mask and its reference, from folders of files or from stores."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import PairingError, StoreError
from slicemill.ct.mask_files import needs_scan
from slicemill.ct.naming import derive_case_id, find_files, parse_name
from slicemill.measure.inputs.dicom_masks import (
    DicomListing,
    DicomMask,
    ScanSeries,
    is_known_mask,
    list_dicom,
    list_one,
    spell_out,
)
from slicemill.measure.inputs.infer_output import find_masks
from slicemill.measure.inputs.names import Index, add_to_index, find_doubles, find_match, match_keys
from slicemill.store.reader import Case, SliceArray, is_store, open_store


@dataclass(frozen=True, kw_only=True)
class MaskFile:
    """A mask in a file."""

    path: Path
    image: Path | None
    """The mask's scan, if it is in the same folder."""
    series_uids: frozenset[str] = frozenset()
    """SeriesInstanceUIDs of its scan, as a DICOM SEG or RTSTRUCT refers to it, or PNG slices lie beside it; empty for
    other masks."""


@dataclass(frozen=True, kw_only=True)
class StoredMask:
    """The mask of a stored case."""

    case: Case
    label: SliceArray
    """uint8[z, y, x], values of the case's labels."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The reference of a case."""

    case_id: str
    """Id of the case, with its folder as prefix if several cases have the same id."""
    folder: str = ""
    """Folder relative to the references, in the form of `slicemill.ct.naming.Name.folder`; empty for a stored case."""
    mask: MaskFile | StoredMask


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A predicted mask with its reference."""

    prediction: Path
    """The mask file, or the store."""
    name: str
    """Path relative to the predictions, or the id of the stored case."""
    reference: Reference
    stored: StoredMask | None = None
    """The predicted mask, if the predictions are a store."""
    image: Path | None = None
    """The scan that the predicted mask refers to, if it is a DICOM SEG, RTSTRUCT or PNG slices beside it."""

    @property
    def where(self) -> str:
        """Return the location of the prediction, for messages."""
        return str(self.prediction) if self.stored is None else f"{self.prediction}: {self.name}"


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """All pairs, and the unmatched masks."""

    pairs: tuple[Pair, ...]
    missing: tuple[str, ...]
    """References without a prediction."""
    alone: tuple[str, ...]
    """Predictions without a reference."""
    damaged: tuple[tuple[str, str], ...] = ()
    """Stored cases that cannot be opened: id and reason."""


@dataclass(frozen=True, kw_only=True)
class _Prediction:
    relative: str
    """Path relative to the predictions; for a stored case, its id with a suffix."""
    path: Path
    name: str
    stored: StoredMask | None = None
    image: Path | None = None
    series_uids: frozenset[str] = frozenset()


def pair_up(predictions: Path, references: Path) -> Pairing:
    """Find the reference of each prediction.

    First, DICOM masks that refer to one series are matched, then predictions to references with the same folder and
    name. The others are matched by case id or name (`find_match`), but not to a reference that already has a match of
    the first two kinds. Masks that refer to different series are never matched.

    Raises
    ------
    PairingError
        No prediction has a reference, two predictions belong to the same case, or two references to one prediction.
    """
    damaged: dict[str, str] = {}
    index = _index_references(references, damaged)
    listed = _list_predictions(predictions, damaged)
    exact = {
        one.relative: reference
        for one in listed
        if (reference := _find_same_series(one, index) or _find_by_name(one, index, exact=True)) is not None
    }
    taken = {reference.case_id for reference in exact.values()}
    pairs: dict[str, Pair] = {}
    alone = []
    for one in listed:
        reference = exact.get(one.relative) or _find_by_name(one, index, exact=False)
        if reference is None:
            _refuse_doubles(one, index)
        if reference is None or (one.relative not in exact and reference.case_id in taken):
            alone.append(one.name)
            continue
        pair = Pair(prediction=one.path, name=one.name, reference=reference, stored=one.stored, image=one.image)
        if reference.case_id in pairs:
            raise PairingError(
                f"{pairs[reference.case_id].where} and {pair.where} both belong to the case {reference.case_id}; "
                "keep one of them."
            )
        pairs[reference.case_id] = pair
    if not pairs:
        raise PairingError(
            f"{predictions}: none of the {len(listed)} masks matches the name of a reference in {references}."
        )
    case_ids = {reference.case_id for several in index.values() for reference in several}
    return Pairing(
        pairs=tuple(pairs.values()),
        missing=tuple(sorted(case_ids - set(pairs) - set(damaged))),
        alone=tuple(name for name in alone if name not in damaged and derive_case_id(name) not in damaged),
        damaged=tuple(damaged.items()),
    )


def _refuse_doubles(one: _Prediction, index: Index[Reference]) -> None:
    """Refuse a prediction that several references match, because they have one name in one folder."""
    files = [str(double.mask.path) for double in find_doubles(one.relative, index) if isinstance(double.mask, MaskFile)]
    if files:
        raise PairingError(f"{' and '.join(files)} belong to the prediction {one.name}; keep one of them.")


def _series_uids(reference: Reference) -> frozenset[str]:
    return reference.mask.series_uids if isinstance(reference.mask, MaskFile) else frozenset()


def _find_same_series(one: _Prediction, index: Index[Reference]) -> Reference | None:
    """Return the only reference that refers to the same series."""
    references = {reference.case_id: reference for several in index.values() for reference in several}
    fitting = [reference for reference in references.values() if one.series_uids & _series_uids(reference)]
    return fitting[0] if len(fitting) == 1 else None


def _find_by_name(one: _Prediction, index: Index[Reference], *, exact: bool) -> Reference | None:
    """Return the reference of the same name, unless the two refer to different series."""
    found = find_match(one.relative, index, exact=exact)
    if found is None or (one.series_uids and _series_uids(found) and not one.series_uids & _series_uids(found)):
        return None
    return found


def _list_predictions(predictions: Path, damaged: dict[str, str]) -> list[_Prediction]:
    if is_store(predictions):
        ids_and_masks = [(mask.case.info.case_id, mask) for mask in _stored_masks(predictions, damaged)]
        if not ids_and_masks:
            raise PairingError(f"{predictions}: has no case with a mask; ingest the predicted masks with their scans.")
        return [
            _Prediction(relative=f"{case_id}.nii", path=predictions, name=case_id, stored=mask)
            for case_id, mask in ids_and_masks
        ]
    if needs_scan(predictions):
        predictions = spell_out(predictions)
        one = list_one(predictions)
        return [_describe_prediction(one.masks[0], predictions.parent, one.scans)]
    if predictions.is_file():
        return [_Prediction(relative=predictions.name, path=predictions, name=predictions.name)]
    files = find_masks(predictions)
    dicom = list_dicom(predictions, files)
    if not files and not dicom.masks:
        raise PairingError(f"{predictions}: contains no mask; `slicemill infer` writes masks.")
    paths = [(file.relative_to(predictions).as_posix(), file) for file in files if file not in dicom.scan_files]
    return [
        *(_Prediction(relative=relative, path=file, name=relative) for relative, file in paths),
        *(_describe_prediction(one, predictions, dicom.scans) for one in dicom.masks),
    ]


def _describe_prediction(one: DicomMask, root: Path, scans: Sequence[ScanSeries]) -> _Prediction:
    scan = one.find_scan(scans)
    return _Prediction(
        relative=one.relative,
        path=one.path,
        name=one.path.relative_to(root).as_posix() if one.path != root else one.relative,
        image=None if scan is None else scan.path,
        series_uids=frozenset(one.references.series_uids),
    )


def _stored_masks(root: Path, damaged: dict[str, str]) -> list[StoredMask]:
    """Return the masks of the stored cases; add the cases that cannot be opened to `damaged`, with the reason."""
    store, cases = open_store(root), []
    for case_id in store.case_ids:
        try:
            cases.append(store[case_id])
        except StoreError as error:
            damaged[case_id] = str(error)
    return [StoredMask(case=case, label=case.label) for case in cases if case.label is not None]


def _index_references(references: Path, damaged: dict[str, str]) -> Index[Reference]:
    if is_store(references):
        index: Index[Reference] = {}
        for mask in _stored_masks(references, damaged):
            case_id = mask.case.info.case_id
            add_to_index(index, [case_id, *match_keys(f"{case_id}.nii")], Reference(case_id=case_id, mask=mask))
        return index
    if not references.exists():
        raise PairingError(f"{references}: there is no such folder or store.")
    return _index_reference_files(references)


def _index_reference_files(references: Path) -> Index[Reference]:
    is_one = needs_scan(references)
    references = spell_out(references) if is_one else references
    is_folder = references.is_dir() and not is_one
    root = references if is_folder else references.parent
    files = find_files(references) if is_folder else [] if is_one else [references]
    alone = list_one(references) if is_one else DicomListing(masks=(), scans=())
    dicom = list_dicom(references, files) if is_folder else alone
    relative = {file: file.relative_to(root).as_posix() for file in files}
    relative |= {scan.path: scan.relative for scan in dicom.scans} | {mask.path: mask.relative for mask in dicom.masks}
    of_dicom, series = {one.path: one for one in dicom.masks}, {one.path: one for one in dicom.scans}
    names = {path: parse_name(text) for path, text in relative.items()}
    of_files = [file for file in files if names[file].role == "mask"]
    if files and not of_files:
        of_files = [file for file in find_masks(root) if is_known_mask(file, root)] if dicom.masks else files
    masks = [*of_files, *of_dicom]
    images = {
        (names[path].folder, names[path].key): path
        for path in relative
        if path not in masks and (path in series or names[path].role == "image")
    }
    scans: dict[Path, Path | None] = {}
    for mask in masks:
        scan = of_dicom[mask].find_scan(dicom.scans) if mask in of_dicom else None
        scans[mask] = scan.path if scan else images.get((names[mask].folder, names[mask].key))
    case_ids = {mask: derive_case_id(relative[image or mask]) for mask, image in scans.items()}
    counts = Counter(case_ids.values())
    index: Index[Reference] = {}
    for mask, case_id in case_ids.items():
        name = names[mask]
        with_folder = name.folder if not name.key else f"{name.folder}/{case_id}".lstrip("/")
        image = scans[mask]
        uids = of_dicom[mask].references.series_uids if mask in of_dicom else ()
        of_scan = series.get(image) if image is not None else None
        reference = Reference(
            case_id=case_id if counts[case_id] == 1 else with_folder,
            folder=name.folder,
            mask=MaskFile(path=mask, image=image, series_uids=_join(uids, of_scan)),
        )
        further = match_keys(of_scan.relative) if of_scan is not None else []
        add_to_index(index, [*match_keys(relative[mask]), case_id, *further], reference)
    return index


def _join(uids: Sequence[str], scan: ScanSeries | None) -> frozenset[str]:
    return frozenset((*uids, *(() if scan is None else (scan.series_uid,)))) - {""}
