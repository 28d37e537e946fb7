"""Options of the command `ingest` and of `slicemill.ingest_scans`, and what they lead to."""

from collections.abc import Mapping
from dataclasses import dataclass

from slicemill.common.errors import UsageError
from slicemill.common.files import Location, parse_location
from slicemill.common.options import parse_shard
from slicemill.ct.labels import choose_labels
from slicemill.ingest.discover import Collection, discover, from_csv, from_patterns, set_patients
from slicemill.ingest.outcomes import IngestReport
from slicemill.ingest.params import Geometry, Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store.layout import ProfileName

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
    """Pattern of the masks; a mask belongs to the image with the same text for ``*``."""
    labels: str | Mapping[str, int] | None = None
    """Names of the label values, ``{"liver": 1}`` or ``liver=1``; None takes those that the collection declares."""
    organ: str | None = None
    """Label that is the organ."""
    tumor: str | None = None
    """Label that is tumor."""
    patient: str | None = None
    """Regular expression; its first group, in the image's path, is the patient."""
    geometry: Geometry = "error"
    """If image and mask are on different grids: ``error``, or ``trust-image``."""
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

    def __post_init__(self) -> None:
        """Check that one kind of input was passed, and that the numbers are possible.

        Raises
        ------
        UsageError
            It is not.
        """
        if min(self.workers, self.threads) < 0:
            raise UsageError(f"workers = {self.workers}, threads = {self.threads}: must not be negative.")
        if self.masks is not None and self.images is None:
            raise UsageError("--masks needs --images.")
        if sum(one is not None for one in (self.source, self.pairs, self.images)) != 1:
            raise UsageError("ingest: pass exactly one of a folder, --pairs and --images.")
        if self.store is not None:
            parse_location(self.store)  # raises before the search for scans

    def collection(self) -> Collection:
        """Find the cases.

        Raises
        ------
        PairingError
            Images and masks cannot be recognized or paired.
        """
        if self.images is not None:
            found = from_patterns(self.images, self.masks)
        elif self.pairs is not None:
            found = from_csv(parse_location(self.pairs))
        else:
            found = discover(parse_location(self.source or ""))
        return set_patients(found, self.patient) if self.patient else found

    def params(self, collection: Collection) -> Params:
        """Return the settings that change the bytes of the store.

        Raises
        ------
        InputError
            The labels do not fit.
        """
        return Params(
            labels=choose_labels(self.labels, collection.labels, self.organ, self.tumor),
            geometry=self.geometry,
            keep_text=self.keep_text,
            profile=self.profile,
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
        )
        return ingest(collection, parse_location(self.store), self.params(collection), options)
