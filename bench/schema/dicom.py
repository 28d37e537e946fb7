"""Record of the ingest of DICOM series. Units are in the names of the fields."""

from collections.abc import Mapping

from msgspec import Struct

from slicemill.bench.schema.base import BenchmarkRecord, ClockRatios
from slicemill.bench.schema.data import MemoryPeak


class SeriesCost(Struct, frozen=True, kw_only=True):
    """Ingest of one scan in one transfer syntax; CPU times are medians a slice."""

    bytes_a_slice: int
    """Stored pixels."""
    ingest_milliseconds: float
    read_milliseconds: float
    """Headers, HU and hash, as ingest reads them, without a store."""
    codec_milliseconds: float | None
    """The codec alone on pixels in memory; None for uncompressed ones."""
    times_nifti: float
    """Time of the ingest of the same slices as .nii.gz over that of the series."""
    read_over_codec: float | None
    """Time of reading over that of the codec alone."""


class FoundFiles(Struct, frozen=True, kw_only=True):
    """Files that were found and sorted into series."""

    files: int
    milliseconds_a_file: float


class DicomPeer(Struct, frozen=True, kw_only=True):
    """Another tool that writes .nii, which slicemill then ingests."""

    milliseconds: Mapping[str, float]
    """CPU time a slice of both, by transfer syntax, without those that it does not convert to one file."""
    times_ours: Mapping[str, float]
    """That time over slicemill's own, by transfer syntax."""
    tilted: str
    """What it made of the tilted series."""


class DicomPeers(Struct, frozen=True, kw_only=True):
    """Other tools, in time and on a series of a tilted gantry."""

    tilted: str
    """Name of that series."""
    ours: str
    """What slicemill makes of it."""
    peers: Mapping[str, DicomPeer]


class DicomIngestRecord(BenchmarkRecord, frozen=True, kw_only=True, tag="ingest --format dicom"):
    """Record of `bench ingest --format dicom`."""

    subject: str
    slices: int
    rounds: int
    page_cache: str
    clock: str
    nifti_milliseconds: float
    """CPU time of the ingest of the same slices as .nii.gz."""
    series: Mapping[str, SeriesCost]
    """By transfer syntax."""
    found: FoundFiles
    two_workers: ClockRatios | None
    """Rate of two workers over that of one, uncompressed; None on a single core."""
    memory: Mapping[str, MemoryPeak] | None = None
    """By transfer syntax; only with --memory."""
    peers: DicomPeers
