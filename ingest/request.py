"""Options of the command `ingest` and of `slicemill.ingest_scans`, and what they lead to."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from slicemill.common.errors import UsageError
from slicemill.common.files import Location, parse_location
from slicemill.common.options import parse_shard
from slicemill.ct.geometry_option import Geometry, Uneven
from slicemill.ct.labels import choose_labels, make_labels
from slicemill.ingest.dicom_ids import find_identities, note_patients, use_series_uids
from slicemill.ingest.discover import Collection, MaskOptions, add_prefix, discover, set_patients
from slicemill.ingest.outcomes import IngestReport
from slicemill.ingest.pair_table import ChosenLabels, from_csv
from slicemill.ingest.pair_table import choose_labels as parse_label_option
from slicemill.ingest.params import CaseIdKind, Overlap, Params, PointLabels
from slicemill.ingest.patterns import from_patterns
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.ingest.point_masks import point_labels
from slicemill.ingest.point_matching import PointFiles, match_points
from slicemill.store.layout import ProfileName
from slicemill.store.patients import read_salt

Place = str | Location


@dataclass(frozen=True, kw_only=True)
class IngestRequest:
    """Everything that the command can be told, but `--dry-run`; `collection` is what it would convert."""

    source: Place | None = None
    """Folder with the scans, searched recursively; None with `pairs` or `images`."""
    store: Place | None = None
    """Folder or URL of the store to create or extend; None to look at the collection only."""
    pairs: Place | None = None
    """CSV with the columns image and mask, optionally case_id and patient_id."""
    images: str | None = None
    """Pattern of the images, like ``ct/*_ct.nii.gz``."""
    masks: str | None = None
    """Pattern of the masks. With `images`, a mask belongs to the image with the same text for ``*``. With a folder,
    only files below it that fit are masks."""
    no_masks: bool = False
    """Whether the scans are stored without masks."""
    labels: str | Mapping[str, int] | None = None
    """Names of the label values, ``{"liver": 1}``, ``liver=1``, or a CSV with the columns name and value; None takes
    those that the collection declares. If each structure has a file, these are the files' names."""
    organ: str | None = None
    """Label that is the organ."""
    tumor: str | None = None
    """Label that is tumor."""
    prefix: str | None = None
    """Text before each case id, like ``siteB/``, for collections with equal file names."""
    patient: str | None = None
    """Regular expression; its first group, in the image's path, is the patient."""
    geometry: Geometry = "error"
    """What happens if image and mask are on different grids; ``error`` refuses the case."""
    overlap: Overlap = "error"
    """If structures with a file each overlap: ``error``, or ``highest`` takes the highest label value."""
    workers: int = 0
    """Worker processes; 0: one per core."""
    threads: int = 0
    """Threads per case; 0 divides the cores."""
    profile: ProfileName = "compact"
    """``compact`` (zstd), or ``fast`` (lz4): a fifth larger, but reads slices more than twice as fast."""
    scheduler: str | None = None
    """Address of a Dask scheduler."""
    shard: str | None = None
    """``I/N``: convert only every Nth case from the Ith (from 0)."""
    overwrite: bool = False
    """Whether all cases are converted again."""
    retry_failed: bool = False
    """Whether cases that failed before are tried again, even if their files did not change."""
    rehash: bool = False
    """Whether unchanged files are recognized by their content, not by size and time."""
    keep_text: bool = False
    """Whether free-text header fields are kept; they may name a person."""
    strict: bool = False
    """Whether cases with a warning are refused."""
    uneven: Uneven = "refuse"
    """A DICOM series whose steps differ is refused, or its ``longest`` part with equal steps is stored."""
    case_id: CaseIdKind = "name"
    """Case ids of DICOM series: the ``name`` of the folder, or the ``series``' SeriesInstanceUID."""
    salt: Place | None = None
    """File with the salt of the ids of DICOM patients; None for a random one, which the store keeps."""
    keep_uids: bool = False
    """Whether the UIDs of DICOM series are stored."""
    points: Place | None = None
    """CSV of nodules with seriesuid or case_id, coordX, coordY, coordZ, diameter_mm: the masks are made from it."""
    excluded: Place | None = None
    """CSV of findings, like `points`, that training and scores leave out."""
    candidates: Place | None = None
    """CSV of candidates, like `points`, with class 0 or 1 instead of a diameter."""
    lungs: Place | None = None
    """Folder with segmentations of lungs, named like the scans (LUNA16's seg-lungs-LUNA16)."""

    def __post_init__(self) -> None:
        """Check that one kind of input was passed, and that the numbers are possible.

        Raises
        ------
        UsageError
            It is not.
        """
        if min(self.workers, self.threads) < 0:
            raise UsageError(f"workers = {self.workers}, threads = {self.threads}: must not be negative.")
        if self.masks is not None and (self.no_masks or self.pairs is not None):
            raise UsageError("--mask excludes --no-masks and --pairs.")
        tables = {"--excluded": self.excluded, "--candidates": self.candidates, "--lungs": self.lungs}
        if self.points is None and (passed := [name for name, value in tables.items() if value is not None]):
            raise UsageError(f"{passed[0]} needs --points, the table of nodules.")
        if self.points is not None and (self.masks is not None or self.labels or self.organ or self.tumor):
            raise UsageError(
                "--points makes masks with the labels lung, nodule and ignore: it excludes --mask, "
                "--labels, --organ and --tumor."
            )
        if sum(one is not None for one in (self.source, self.pairs, self.images)) != 1:
            raise UsageError("ingest: pass exactly one of a folder, --pairs and --image.")
        if self.store is not None:
            parse_location(self.store)  # raises before the search for scans

    @cached_property
    def _chosen(self) -> ChosenLabels | None:
        """The labels that were passed, and the files of their structures."""
        if not self.labels:
            return None
        if isinstance(self.labels, str):
            return parse_label_option(self.labels, self.organ, self.tumor)
        return ChosenLabels(labels=make_labels(dict(self.labels), self.organ, self.tumor), files=dict(self.labels))

    def collection(self) -> Collection:
        """Find the cases.

        Raises
        ------
        PairingError
            Images and masks cannot be recognized or paired.
        """
        files = self._chosen.files if self._chosen else {}
        no_masks = self.no_masks or self.points is not None
        lungs = None if self.lungs is None else parse_location(self.lungs)
        if self.images is not None:
            found = from_patterns(self.images, self.masks, with_labels=not files)
        elif self.pairs is not None:
            found = from_csv(parse_location(self.pairs), no_masks=no_masks, with_labels=not files)
        else:
            options = MaskOptions(pattern=self.masks, none=no_masks, files=files, lungs=lungs)
            found = discover(parse_location(self.source or ""), options)
        found = find_identities(found)
        uids = {case.image: case.dicom.series_uid for case in found.cases if case.dicom is not None}
        if self.case_id == "series":
            found = use_series_uids(found)
        if self.prefix:
            found = add_prefix(found, self.prefix)
        if self.patient:
            found = set_patients(found, self.patient)
        else:
            found = replace(found, notes=(*found.notes, *note_patients(found.cases)))
        if self.points is None:
            return found
        excluded, candidates = (
            None if one is None else parse_location(one) for one in (self.excluded, self.candidates)
        )
        tables = PointFiles(points=parse_location(self.points), excluded=excluded, candidates=candidates, lungs=lungs)
        return match_points(found, uids, tables)

    def params(self, collection: Collection) -> Params:
        """Return the settings that change the bytes of the store.

        Raises
        ------
        InputError
            The labels do not fit.
        """
        points: PointLabels = "none"
        labels = self._chosen.labels if self._chosen else choose_labels(None, collection.labels, self.organ, self.tumor)
        if self.points is not None:
            points = "nodules" if self.lungs is None else "nodules and lungs"
            labels = point_labels(with_lungs=self.lungs is not None)
        return Params(
            labels=labels,
            points=points,
            geometry=self.geometry,
            overlap=self.overlap,
            keep_text=self.keep_text,
            profile=self.profile,
            strict=self.strict,
            uneven=self.uneven,
            keep_uids=self.keep_uids,
        )

    def run(self, collection: Collection) -> IngestReport:
        """Convert a collection into the store.

        Raises
        ------
        UsageError
            No store was passed.
        InputError
            The store cannot be written, or has other parameters.
        """
        if self.store is None:
            raise UsageError("ingest: pass the folder of the store as the last argument, or use --dry-run.")
        options = IngestOptions(
            workers=self.workers,
            threads=self.threads,
            scheduler=self.scheduler,
            shard=parse_shard(self.shard),
            overwrite=self.overwrite,
            retry_failed=self.retry_failed,
            rehash=self.rehash,
            salt=None if self.salt is None else read_salt(parse_location(self.salt)),
        )
        return ingest(collection, parse_location(self.store), self.params(collection), options)
