"""Masks of DICOM series: SEG and RTSTRUCT, paired by what they refer to, and folders of PNG slices beside a series."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from slicemill.common.errors import PairingError, ScanError
from slicemill.common.files import Location, relative_path
from slicemill.ct.formats.dicom.discover import FoundDicom, FoundSeries, find_dicom
from slicemill.ct.formats.dicom.lookup import find_series
from slicemill.ct.formats.dicom.series import Series
from slicemill.ct.formats.dicom_objects.open_mask import References, is_mask_object, read_references
from slicemill.ct.formats.open import is_dicom
from slicemill.ct.mask_files import find_png_masks
from slicemill.ct.naming import is_below
from slicemill.ingest.globs import fits_below

Reasons = tuple[tuple[Location, str], ...]
"""Files that are left out, and why."""
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class MaskUse:
    """Which masks in DICOM are used."""

    pattern: str | None
    """Pattern of the masks' paths below the folder; None: all."""
    none: bool
    """Whether no mask is used."""
    root: Location
    """Folder of the collection."""
    results: list[Path]
    """Folders with results of infer."""

    def explain_unused(self, path: Location) -> str:
        """Return why a mask is not used, or an empty text."""
        if is_below(path, self.results):
            return "a result of infer, not a reference"
        if self.none:
            return "a mask; --no-masks stores scans only"
        if self.pattern is not None and not fits_below(relative_path(path, self.root), self.pattern, self.root):
            return "a mask that does not fit --mask"
        return ""


@dataclass(frozen=True, kw_only=True)
class DicomMasks:
    """The masks in DICOM of a collection."""

    pairs: Mapping[Location, Location]
    """Location of a series -> its SEG or RTSTRUCT."""
    left_out: Reasons
    """Other DICOM files that are no scan, and masks that refer to no series here."""


def find_dicom_masks(
    others: Iterable[tuple[Location, str]],
    series: Mapping[Location, FoundSeries],
    use: MaskUse,
) -> DicomMasks:
    """Pair the masks among DICOM files that are no scan.

    Parameters
    ----------
    others
        Files and the reasons why they are no scan.
    series
        The series that are scans, by location.
    use
        Which masks are used.

    Raises
    ------
    PairingError
        Several masks refer to one series.
    """
    masks: dict[Location, list[Location]] = defaultdict(list)
    left_out: list[tuple[Location, str]] = []
    for path, why in others:
        if not is_mask_object(path):
            left_out.append((path, why))
        elif excluded := use.explain_unused(path):
            left_out.append((path, excluded))
        else:
            found, reason = _find_partner(path, series)
            if found is None:
                left_out.append((path, reason))
            else:
                masks[found].append(path)
    for folder, reason in _pair_png_folders(series, use, masks):
        left_out.append((folder, reason))
    for location, some in masks.items():
        if len(some) > 1:
            names = ", ".join(one.name for one in some[:SHOWN])
            raise PairingError(
                f"{len(some)} masks refer to this series ({names}); choose one with --mask PATTERN.", where=location
            )
    return DicomMasks(pairs={location: some[0] for location, some in masks.items()}, left_out=tuple(left_out))


def _pair_png_folders(
    series: Mapping[Location, FoundSeries], use: MaskUse, masks: dict[Location, list[Location]]
) -> Iterator[tuple[Path, str]]:
    """Add the folders of PNG slices that are the mask of one series (`find_png_masks`) to `masks`.

    Yields those that are not used, with the reason.
    """
    for folder, some in find_png_masks(series, use.root).items():
        if excluded := use.explain_unused(folder):
            yield folder, excluded
        elif len(some) > 1:
            yield folder, f"PNG slices of a mask that could belong to {len(some)} series"
        else:
            masks[some[0]].append(folder)


def _find_partner(path: Location, series: Mapping[Location, FoundSeries]) -> tuple[Location | None, str]:
    """Return the series that a mask refers to; or None, and why there is none."""
    try:
        references = read_references(path)
    except ScanError as error:
        return None, error.reason
    known = {location: one.series for location, one in series.items() if isinstance(one.series, Series)}
    fitting = [location for location, one in known.items() if _refers(references, one)]
    if len(fitting) == 1:
        return fitting[0], ""
    if not fitting:
        return None, "a mask in DICOM that refers to no series here"
    return None, f"a mask in DICOM that fits {len(fitting)} series here; list it with --pairs CSV"


def _refers(references: References, series: Series) -> bool:
    """Return whether a mask is one of a series: by SeriesInstanceUID, else, if it names none, by frame of reference."""
    if references.series_uids:
        return series.series_uid in references.series_uids
    return bool(series.frame_of_reference_uid) and references.frame_of_reference_uid == series.frame_of_reference_uid


def find_scans_and_others(source: Location, *, is_folder: bool) -> FoundDicom:
    """Return the DICOM series below a folder, or the one that a file names."""
    if is_folder:
        return find_dicom(source)
    if not is_dicom(source):
        return FoundDicom(series=(), left_out=())
    one = FoundSeries(location=source, relative=PurePosixPath(source.name).stem, series=find_series(source))
    return FoundDicom(series=(one,), left_out=())


def first_reason(dicom: FoundDicom) -> str:
    """Return why the first DICOM file is no scan, in brackets."""
    return f" ({dicom.left_out[0][0].name}: {dicom.left_out[0][1]})" if dicom.left_out else ""
