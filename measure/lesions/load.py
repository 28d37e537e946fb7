"""Loads a case: segmentation, scan, probability map and their source files."""

from dataclasses import dataclass

from slicemill.common.errors import LabelError
from slicemill.ct.formats.dicom.series import Series
from slicemill.ct.formats.open import require_unchanged
from slicemill.ct.geometry import Grid
from slicemill.ct.mask_files import needs_scan, open_mask_file, read_scan_grid, turn_series
from slicemill.ct.same_grid import require_same_grid
from slicemill.ct.scan import ScanReader
from slicemill.measure.inputs.infer_output import ModelUsed, read_own_report, read_tumor_probability
from slicemill.measure.inputs.label_names import check_stored_names
from slicemill.measure.inputs.masks import check_values
from slicemill.measure.lesions.jobs import MeasureJob
from slicemill.measure.lesions.measurements import DECIMALS, Image, Volume
from slicemill.measure.lesions.records import CaseOrigin, FileUsed, Sources
from slicemill.store.reader import open_store


@dataclass(frozen=True, kw_only=True)
class LoadedCase:
    """A case in memory."""

    volume: Volume
    sources: Sources
    warnings: tuple[str, ...]
    """Warnings about the mask file, and those of the report of `infer` about the scan."""
    model: ModelUsed | None
    """The model of the mask; None without a report of `infer`."""
    series: Series | None = None
    """The DICOM series of the scan, with its axes on the mask's voxels; None for other formats."""

    def origin(self) -> CaseOrigin:
        """Return the provenance of the case, as it is written."""
        labels = self.volume.labels
        return CaseOrigin(
            labels=dict(labels.values),
            organ=labels.organ,
            tumor=labels.tumor,
            shape_zyx=self.volume.label.shape,
            spacing_mm_zyx=tuple(round(step, DECIMALS) for step in self.volume.spacing_mm),
            affine_lps=tuple(map(tuple, self.volume.affine_lps.tolist())),
            source=self.sources,
            model=self.model,
            warnings=self.warnings,
        )


def load_case(job: MeasureJob) -> LoadedCase:
    """Read a case.

    Raises
    ------
    InputError
        A file cannot be read or changes meanwhile, scan and mask have different grids, or the label values have no
        names.
    """
    if job.case_id is not None:
        return _load_stored(job, job.case_id)
    with require_unchanged(*job.files()):
        return _load_file(job)


def _load_file(job: MeasureJob) -> LoadedCase:
    report, labels = read_own_report(job.mask), job.find_labels()
    if labels is None:
        raise LabelError(f"{job.mask}: the label values have no names; pass --labels, like --labels liver=1,tumor=2.")
    placed_on = read_scan_grid(job.image) if job.image is not None and needs_scan(job.mask) else None
    with open_mask_file(job.mask, placed_on, labels) as reader:
        grid = reader.grid
        label = reader.read()
        mask_used = FileUsed(name=job.mask.name, sha256=reader.finish())
        own = (*reader.warnings, *reader.value_warnings())
    check_values(label, labels, str(job.mask))
    scan = _read_scan(job, grid)
    probability = read_tumor_probability(job.mask, labels, grid)
    return LoadedCase(
        volume=Volume(
            label=label, labels=labels, affine_lps=grid.affine_lps, image=scan.image, probability=probability
        ),
        sources=Sources(mask=mask_used, image=scan.used),
        warnings=(*own, *(warning for warning in (report.warnings if report else ()) if warning not in own)),
        model=report.model if report else None,
        series=scan.series,
    )


@dataclass(frozen=True, kw_only=True)
class _ReadScan:
    image: Image | None = None
    used: FileUsed | None = None
    series: Series | None = None


def _read_scan(job: MeasureJob, grid: Grid) -> _ReadScan:
    """Read the scan of a mask on the mask's grid."""
    if job.image is None:
        return _ReadScan()
    with ScanReader(job.image, "image") as reader:
        # the scan is turned to the mask, so that results keep the mask's grid
        reader.replace_grid(require_same_grid(reader.grid, grid, job.image, f"its mask {job.mask}"))
        image = reader.read()
        series = turn_series(reader)
        return _ReadScan(image=image, used=FileUsed(name=job.image.name, sha256=reader.finish()), series=series)


def _load_stored(job: MeasureJob, case_id: str) -> LoadedCase:
    case = open_store(job.mask)[case_id]
    labels = job.labels or case.info.labels
    if case.label is None or labels is None:
        raise LabelError(f"{job.mask}: case {case_id} has no mask; choose a case with a mask.")
    check_stored_names(case, labels)
    label = case.label[:]
    check_values(label, labels, f"{job.mask}: {case_id}")
    mask, image = (
        None if file is None else FileUsed(name=file.name, sha256=file.sha256)
        for file in (case.info.mask, case.info.image)
    )
    return LoadedCase(
        volume=Volume(label=label, labels=labels, affine_lps=case.info.affine_lps, image=case.image[:]),
        sources=Sources(mask=mask, image=image),
        warnings=tuple(case.info.warnings),
        model=None,
    )
