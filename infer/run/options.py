"""Options of a run, and the memory and threads that it may use."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from slicemill.common.errors import ConfigError, UsageError
from slicemill.ct.formats.dicom_objects.options import NO_DICOM, DicomOptions
from slicemill.ct.page_options import VIEWER_MB, check_viewer_mb
from slicemill.infer.slices.assembly import RangeChoice, ScanPlan
from slicemill.infer.slices.tiles import PLAIN, PredictOptions

DICOM = "dicom_"
"""Start of the names of options about DICOM results in `InferOptions.as_json`."""
MIRRORED = "mirror left-right"
"""Name of `mirror` in `InferOptions.as_json`. Results of versions that averaged four images have `mirror`."""
MAX_READERS, MAX_WRITERS = 8, 8
MAX_GB = 1e6
GZIP_RATIO = 50
"""Assumed effect of gzip on a volume. Most masks get smaller still, and none is to be refused that would fit."""
WORKING_BYTES = 16
"""Bytes per voxel that post-processing may take: for noise of three labels. Organ labels need almost none."""


@dataclass(frozen=True, kw_only=True)
class InferOptions:
    """Options of a run."""

    overwrite: bool = False
    """Whether scans that are done are segmented again."""
    retry_failed: bool = False
    """Whether scans that have failed are tried again."""
    predict: PredictOptions = PLAIN
    postprocess: bool = True
    """Whether labels are post-processed by the model's rules."""
    strict: bool = False
    """Whether a scan with a warning is refused."""
    z_range: RangeChoice = "auto"
    """Which slices are labeled (`slicemill.infer.slices.z_range`)."""
    separate: bool = False
    """Whether each label is also written to its own file, as 0 and 1."""
    dicom: DicomOptions = NO_DICOM
    """DICOM results that are written for inputs in DICOM."""
    candidates: bool = False
    """Whether candidates are written without a classifier; a classifier's always are."""
    classifier_sha256: str = ""
    """Hash of the classifier that judges candidates; empty without one."""
    viewer_mb: float = VIEWER_MB
    """MiB of pictures in the page of a scan's candidates; 0 for no pages."""
    batch: int = 0
    """Slices in a batch; 0 for the provider's default (`slicemill.infer.runtime.capacity`)."""
    readers: int = 0
    """Threads that decode; 0 for one per two cores, at least two."""
    writers: int = 0
    """Threads that post-process and write; 0 for one per two cores, at least two."""
    devices: tuple[int, ...] = (0,)
    """Numbers of the GPUs that share the work, each with its own session."""
    part: str = ""
    """Suffix of the summary's file names, for one of several runs into one folder."""
    max_memory_gb: float = 0.0
    """Memory that the process may take, GB; 0 lets scans take half of the free memory."""

    def __post_init__(self) -> None:
        """Check that all values are in a sensible range."""
        for name in ("batch", "readers", "writers"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} {getattr(self, name)}: must not be negative.")
        if not 0 <= self.max_memory_gb <= MAX_GB:
            raise UsageError(
                f"--max-memory {self.max_memory_gb:g}: must be 0 to {MAX_GB:g} GB; 0 is half of the free memory."
            )
        check_viewer_mb(self.viewer_mb)
        if not self.devices or len(set(self.devices)) != len(self.devices) or min(self.devices) < 0:
            raise UsageError(
                f"--device {','.join(map(str, self.devices))}: expected numbers of GPUs, each once, like 0,1."
            )

    @property
    def has_candidates(self) -> bool:
        """Return whether candidates are written."""
        return self.candidates or bool(self.classifier_sha256)

    @property
    def has_candidate_pages(self) -> bool:
        """Return whether a page of candidates is written for each scan."""
        return self.has_candidates and self.viewer_mb > 0

    def for_worker(self, index: int) -> "InferOptions":
        """Return the same options for one of several workers, with a separate summary name."""
        return replace(self, part=f"{self.part}-worker-{index}")

    def as_json(self) -> dict[str, bool]:
        """Return the options that change outputs, if they differ from the defaults; a change segments scans again."""
        changed = {MIRRORED if name == "mirror" else name: True for name, on in asdict(self.predict).items() if on}
        if self.separate:
            changed["separate"] = True
        if not self.postprocess:
            changed["postprocess"] = False
        if self.strict:
            changed["strict"] = True
        if self.z_range == "all":
            changed["all_slices"] = True
        if self.classifier_sha256:
            changed[f"classifier {self.classifier_sha256}"] = True
        elif self.candidates:
            changed["candidates"] = True
        if self.has_candidates and self.viewer_mb != VIEWER_MB:
            changed[f"viewer_mb {self.viewer_mb:g}"] = True
        return changed | {f"{DICOM}{name}": True for name in self.dicom.changes()}


def without_dicom(options: Mapping[str, bool]) -> dict[str, bool]:
    """Return the options of `InferOptions.as_json` that change the mask or what is written beside it but DICOM results.

    >>> without_dicom(InferOptions(separate=True, dicom=DicomOptions(seg=True)).as_json())
    {'separate': True}
    """
    return {name: value for name, value in options.items() if not name.startswith(DICOM)}


def count_threads(requested: int, most: int) -> int:
    """Return the number of reader or writer threads."""
    return requested or max(2, min(most, len(os.sched_getaffinity(0)) // 2))


def estimate_scan_bytes(plan: ScanPlan) -> int:
    """Return the peak memory of a scan from its first voxel to its mask, bytes."""
    nz, ny, nx = plan.shape
    height, width = plan.resampled_shape
    maps = len(plan.label_values) if plan.predict.probability else 0
    # int16 HU, uint8 label, uint8 tumor probability, uint8 maps
    bytes_per_voxel = 2 + 1 + (plan.tumor_class is not None) + maps + WORKING_BYTES
    resampled = 0 if plan.resampling is None else 2 * height * width
    return nz * (bytes_per_voxel * ny * nx + resampled)


def estimate_output_bytes(plan: ScanPlan, names: Sequence[str]) -> int:
    """Return the disk space that the volumes of a scan with these file names take about, bytes."""
    voxels = math.prod(plan.shape)
    return sum(voxels // GZIP_RATIO if name.endswith(".gz") else voxels for name in names)


def memory_for_scans(max_memory_gb: float, lanes_bytes: int) -> int:
    """Return the bytes that all scans may take; call it once the model is in memory.

    Parameters
    ----------
    max_memory_gb
        Memory that the process may take, GB; 0 lets scans take half of the free memory.
    lanes_bytes
        Memory that the model's lanes will take.

    Raises
    ------
    ConfigError
        The process takes more than `max_memory_gb` already.
    """
    import psutil

    if not max_memory_gb:
        return int(psutil.virtual_memory().available // 2)
    taken = int(psutil.Process().memory_info().rss) + lanes_bytes
    left = round(max_memory_gb * 1e9) - taken
    if left <= 0:
        raise ConfigError(
            f"--max-memory {max_memory_gb:g}: the model alone takes {taken / 1e9:.2f} GB with this batch size; "
            "raise --max-memory, or use a smaller --batch."
        )
    return left
