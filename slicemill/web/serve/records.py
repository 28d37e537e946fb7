"""What the page, the server and its two children tell each other, as JSON: the fields are the keys."""

from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["uploading", "reading", "choosing", "waiting", "segmenting", "writing", "done", "failed"]
ACTIVE: tuple[Status, ...] = ("uploading", "reading", "choosing", "waiting", "segmenting", "writing")
"""Steps of a job that has not ended, in their order."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a job may have. The page shows it before an upload, and the server counts."""

    file_bytes: int = 2 << 30
    """Bytes of all files of a job."""
    files: int = 10_000
    unpacked_bytes: int = 4 << 30
    """Bytes of the files in archives of a job."""
    slices: int = 3000
    side: int = 4096
    """Pixels along a side of a slice."""
    voxels: int = 1_500_000_000
    """Voxels of a scan, of which the folder holds 4 bytes each: 6 GB."""
    picture_pixels: int = 40_000_000
    jobs: int = 4
    """Scans that are kept."""
    idle_minutes: int = 60
    """A scan that nobody looks at for so long is removed."""
    stalled_seconds: int = 60
    """A client that sends nothing for so long has given up."""


LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """A model that runs; what its card says."""

    name: str
    sha256: str
    labels: dict[str, int]
    organ: str | None
    tumor: str | None
    size: tuple[int, int]
    """Height and width of its slices, pixels."""
    context: int
    spacing_mm: float | None
    license: str | None
    training: dict[str, Any] | None
    """Summary of its training, if it has one."""
    trained_on: str | None
    """What the scans of its training were like; None if the file does not say it."""
    gives_probability: bool
    """Whether it outputs the probability of tumor."""
    provider: str
    judges_candidates: bool = False
    """Whether a classifier judges candidates of nodules: it is a file NAME.nodules."""


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """How a picture becomes a slice: chosen by a person, as no picture says it."""

    low: float
    """HU of black."""
    high: float
    """HU of white."""
    left: int
    top: int
    right: int
    bottom: int
    """Frame to segment, pixels; right and bottom are the first ones outside."""
    pixel_mm: float | None = None
    """Size of a pixel; None if unknown."""


@dataclass(frozen=True, kw_only=True)
class StartRequest:
    """All files are here."""

    model: int = 0
    """Index of the model."""
    picture: PictureRequest | None = None
    is_example: bool = False
    """Whether to make a synthetic scan; there are no files."""


@dataclass(frozen=True, kw_only=True)
class UploadedFile:
    """A file of a job, for its child."""

    local: str
    """Name in the job's folder: a number and a known suffix."""
    shown: str
    """Name that the user gave it: text for messages, never a path."""


@dataclass(frozen=True, kw_only=True)
class PrepareOrder:
    """The server's first order to the child of a job."""

    files: tuple[UploadedFile, ...]
    limits: Limits
    picture: PictureRequest | None
    is_example: bool = False


@dataclass(frozen=True, kw_only=True)
class ChooseOrder:
    """Which of several scans the user chose."""

    index: int


@dataclass(frozen=True, kw_only=True)
class WriteOrder:
    """The labels are there; the results can be written."""

    model_sha256: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A scan among several."""

    name: str
    detail: str
    """Slices, spacing, and what tells it apart."""
    refused: str | None
    """Why it cannot be segmented."""


@dataclass(frozen=True, kw_only=True)
class ChoicesMessage:
    """The child found several scans."""

    choices: tuple[Choice, ...]


@dataclass(frozen=True, kw_only=True)
class ThumbnailMessage:
    """The child has drawn a scan of the choices."""

    index: int
    gray: str
    """Base64 of uint8[y, x], square."""


@dataclass(frozen=True, kw_only=True)
class ScanMessage:
    """The child has read the header of the scan."""

    name: str
    shape: tuple[int, int, int]
    """z, y, x."""
    spacing_mm: tuple[float, float, float]
    """z, y, x."""
    affine_lps: tuple[tuple[float, ...], ...]
    """4x4, voxel (x, y, z, 1) to LPS mm."""
    is_dicom: bool
    is_picture: bool
    has_pixel_size: bool
    """False for a picture whose pixel size nobody gave."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SlicesMessage:
    """The child has read slices, and written them to IMAGE."""

    z: int
    count: int


@dataclass(frozen=True, kw_only=True)
class ReadMessage:
    """The child has read and checked the whole scan, and written its header."""

    warnings: tuple[str, ...]
    """All warnings, of header and voxels."""


@dataclass(frozen=True, kw_only=True)
class ResultFile:
    """A file that can be downloaded."""

    name: str
    bytes: int
    text: str
    """What it is."""


@dataclass(frozen=True, kw_only=True)
class FilesMessage:
    """The child has written the results."""

    files: tuple[ResultFile, ...]
    missing: tuple[str, ...]
    """Results that could not be written, with reasons."""


@dataclass(frozen=True, kw_only=True)
class FailedMessage:
    """A child cannot go on with a job."""

    reason: str
    job: int | None = None
    """The job, for the child of the models."""


@dataclass(frozen=True, kw_only=True)
class ModelsMessage:
    """The models are loaded."""

    models: tuple[ModelRecord, ...]


@dataclass(frozen=True, kw_only=True)
class SegmentOrder:
    """A scan for the child of the models."""

    job: int
    model: int
    folder: str
    name: str
    shape: tuple[int, int, int]
    warnings: tuple[str, ...]
    is_picture: bool


@dataclass(frozen=True, kw_only=True)
class CancelOrder:
    """Stop work on a job."""

    job: int


@dataclass(frozen=True, kw_only=True)
class LabeledMessage:
    """The models have labeled more of a scan."""

    job: int
    share: float
    """0 to 1."""
    slices: tuple[int, ...]
    """Slices in LABEL since the last message, before the model's rules are applied."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer in words."""

    kind: Literal["found", "none", "volumes"]
    headline: str
    details: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SegmentedMessage:
    """The labels of a scan are in LABEL, and its report in REPORT."""

    job: int
    report: dict[str, Any]
    """`slicemill.infer.report.ScanReport`."""
    has_probability: bool
    """Whether PROBABILITY was written."""
    candidates: Answer | None = None
    """The answer of the candidates, which are among the results; None if none were judged."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a job and its time so far."""

    name: str
    seconds: float
    is_over: bool


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job, as the page shows it."""

    id: int
    revision: int
    """Grows with each change."""
    name: str
    status: Status
    model: int
    steps: tuple[Step, ...]
    upload_bytes: int
    upload_files: int
    slices: int
    """Slices of the scan; 0 before its header was read."""
    slices_read: int
    share: float
    """Part that is labeled, 0 to 1."""
    slices_per_second: float | None
    ahead: int
    """Scans that are segmented before this one."""
    has_case: bool
    """Whether slices can be looked at."""
    choices: tuple[Choice, ...]
    thumbnails: tuple[int, ...]
    """Choices whose pictures can be fetched."""
    answer: Answer | None
    failure: str | None
    files: tuple[ResultFile, ...]
    missing: tuple[str, ...]
    threshold_note: str
    """Why there is no threshold; empty if there is one."""
    has_pixel_size: bool
    """False for a picture whose pixel size nobody gave: the page then shows no mm and ml."""


@dataclass(frozen=True, kw_only=True)
class ServerRecord:
    """What the page needs to know before an upload."""

    version: str
    limits: Limits
    models: tuple[ModelRecord, ...] | None
    """None while they are loaded."""
    failure: str | None
    """Why they cannot be loaded."""
    suffixes: tuple[str, ...]
    """Of files that are not DICOM."""
    jobs: tuple[JobRecord, ...]


@dataclass(frozen=True, kw_only=True)
class CreatedRecord:
    """A new job."""

    id: int


@dataclass(frozen=True, kw_only=True)
class UploadRecord:
    """How much of a file has arrived."""

    bytes: int
    is_complete: bool


IMAGE, LABEL, PROBABILITY, HEADER = "image.raw", "label.raw", "probability.raw", "header.nii"
"""Files of a job's folder: int16, uint8 and uint8[z, y, x] in LPS+ order, little endian, and a NIfTI header."""
INPUT, RESULTS, REPORT = "input", "results", "segmentation.json"
"""Folders of the uploaded files and of the results, and the report of the model among them."""
CANDIDATES_PAGE, CANDIDATES_JSON = "segmentation.candidates.html", "segmentation.candidates.json"
CANDIDATES_CSV = "candidates.csv"
"""The candidates of nodules among the results, if the model judges them."""
