"""Options of the commands `evaluate` and `measure`, and of the same functions in Python, and what they lead to."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from slicemill.common.errors import ConfigError, UsageError
from slicemill.common.files import write_bytes
from slicemill.common.machine import count_workers
from slicemill.ct.formats.dicom_objects.options import DicomOptions, Holes, SegmentationType, make_options
from slicemill.ct.labels import Labels, choose_labels
from slicemill.ct.page_options import VIEWER_MB, check_viewer_mb
from slicemill.measure.evaluation.detection import Mode
from slicemill.measure.evaluation.evaluate import ErrorPages, Evaluation, evaluate
from slicemill.measure.evaluation.figures import draw_evaluation
from slicemill.measure.evaluation.score import TOLERANCE_MM
from slicemill.measure.lesions.dicom_results import require_dicom_scans
from slicemill.measure.lesions.jobs import find_left_out, gather_jobs
from slicemill.measure.lesions.records import CaseRecord, read_record
from slicemill.measure.lesions.run import MeasureOutcome, run

LabelNames = str | Mapping[str, int] | Labels | None
"""Names of the label values: ``liver=1,tumor=2``, ``{"liver": 1, "tumor": 2}``, or None to take those of the files."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What to evaluate, and by which rules."""

    predictions: Path
    """Folder of predicted masks, one mask file, or a slice store of predicted masks."""
    references: Path
    """Folder of reference masks, one file, or a slice store; scans are used for the pictures."""
    out: Path | None = None
    """Folder for tables, figures and error pictures; None writes nothing."""
    labels: LabelNames = None
    """Names of the label values; None takes those of a report of infer or of a store."""
    mode: Mode = "corrected"
    """``corrected``, or ``official``: rules and defects of the LiTS program."""
    tolerance_mm: float = TOLERANCE_MM
    """Tolerance of the surface Dice, mm."""
    workers: int = 1
    """Worker processes, each with one case in memory; 0: one per core."""
    viewer_mb: float = VIEWER_MB
    """MiB of slices in the page of each case; 0 for no pages."""

    def __post_init__(self) -> None:
        """Check that there are predictions and workers.

        Raises
        ------
        ConfigError
            There are none.
        """
        if not self.predictions.exists():
            raise ConfigError(f"{self.predictions}: there is no such file or folder.")
        _check_workers(self.workers)
        check_viewer_mb(self.viewer_mb)

    def run(self) -> Evaluation:
        """Score every prediction against its reference, and write the results if there is a folder for them.

        Raises
        ------
        InputError
            The labels have no names, or the files cannot be paired. A case that cannot be scored is a failure of the
            result instead.
        """
        evaluation = evaluate(
            self.predictions,
            self.references,
            None if self.out is None else ErrorPages(folder=self.out, viewer_mb=self.viewer_mb),
            choose_labels(self.labels),
            mode=self.mode,
            tolerance_mm=self.tolerance_mm,
            workers=count_workers(self.workers),
        )
        if self.out is not None and evaluation.cases:
            write_bytes(self.out / "evaluation.png", draw_evaluation(evaluation))
        return evaluation


@dataclass(frozen=True, kw_only=True)
class MeasureReport:
    """The result of measuring masks: an outcome for every case."""

    outcomes: tuple[MeasureOutcome, ...]
    """Done, skipped (done before) or failed, with the reason."""
    left_out: tuple[Path, ...]
    """Files whose names do not look like masks."""
    out: Path
    """Folder of the results."""

    def count(self, status: str) -> int:
        """Return the number of cases with this status."""
        return sum(outcome.status == status for outcome in self.outcomes)

    def records(self) -> list[CaseRecord]:
        """Read the record of each case that was measured, now or before."""
        measured = [outcome.name for outcome in self.outcomes if outcome.status != "failed"]
        return [read_record(self.out / f"{name}.json") for name in measured]


@dataclass(frozen=True, kw_only=True)
class MeasureRequest:
    """What to measure, and where the results go."""

    masks: Path
    """A mask, a folder of masks, or a slice store."""
    out: Path
    """Folder for tables, pages and segmentations for 3D Slicer."""
    image: Path | None = None
    """Scan of the mask, or folder of scans; not needed for a store."""
    labels: LabelNames = None
    """Names of the label values; None takes those of a report of infer or of a store."""
    workers: int = 1
    """Worker processes, each with one case in memory; 0: one per core."""
    overwrite: bool = False
    """Whether finished cases are measured again."""
    dicom_seg: bool = False
    """Whether a DICOM SEG is written for each mask of a scan in DICOM."""
    dicom_sr: bool = False
    """Whether a DICOM report of the lesions is written, and a SEG in which each is a segment."""
    rtstruct: bool = False
    """Whether a DICOM RTSTRUCT is written."""
    seg_type: SegmentationType = "binary"
    """Kind of SEG; ``labelmap`` is smaller, but new (2024)."""
    seg_per_lesion: bool = False
    """Whether each lesion is a segment of its own."""
    rtstruct_holes: Holes = "keyhole"
    """Holes of an RTSTRUCT: ``keyhole`` joins them to their outline, ``xor`` writes outlines of their own."""
    codes: Path | None = None
    """CSV of codes for labels: label, category, type, region."""
    viewer_mb: float = VIEWER_MB
    """MiB of slices in the page of each case, for its viewer; 0 for none."""

    def __post_init__(self) -> None:
        """Check that the results do not go into the folder of an input, and that there are workers.

        Raises
        ------
        ConfigError
            They do.
        """
        for path in (self.masks, *([self.image] if self.image is not None else [])):
            if self.out.resolve() == (path if path.is_dir() else path.parent).resolve():
                raise ConfigError(f"--out {self.out}: is the folder of the input {path}; choose another folder.")
        _check_workers(self.workers)
        check_viewer_mb(self.viewer_mb)

    def make_dicom_options(self) -> DicomOptions:
        """Return which DICOM results are written.

        Raises
        ------
        ConfigError
            The table of codes is none, or options do not go together.
        """
        return make_options(
            seg=self.dicom_seg,
            sr=self.dicom_sr,
            rtstruct=self.rtstruct,
            seg_type=self.seg_type,
            per_lesion=self.seg_per_lesion,
            holes=self.rtstruct_holes,
            codes=self.codes,
        )

    def run(self) -> MeasureReport:
        """Measure what is new or changed, and write tables and pages.

        Raises
        ------
        InputError
            There are no masks, or a file of the folder was not written by this command.
        """
        dicom = self.make_dicom_options()
        jobs = gather_jobs(self.masks, self.image, choose_labels(self.labels))
        if dicom.endings():
            require_dicom_scans(jobs, dicom)
        jobs = [replace(job, dicom=dicom, viewer_mb=self.viewer_mb) for job in jobs]
        outcomes = run(jobs, self.out, workers=count_workers(self.workers), overwrite=self.overwrite)
        return MeasureReport(outcomes=tuple(outcomes), left_out=tuple(find_left_out(self.masks)), out=self.out)


def _check_workers(workers: int) -> None:
    if workers < 0:
        raise UsageError(f"--workers {workers}: must be at least 1, or 0 for all cores.")
