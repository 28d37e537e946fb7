"""DICOM results of masks that exist: SEG, SR and RTSTRUCT that refer to the series of the mask's scan."""

from collections.abc import Sequence
from pathlib import Path

from slicemill.common.errors import PairingError, ScanError
from slicemill.ct.formats.dicom_objects.codes import choose_codes
from slicemill.ct.formats.dicom_objects.maker import UNKNOWN_MAKER, Maker
from slicemill.ct.formats.dicom_objects.options import ENDINGS, DicomOptions
from slicemill.ct.formats.dicom_objects.results import SegmentedScan, write_results
from slicemill.ct.formats.dicom_objects.source_series import describe_source
from slicemill.ct.formats.open import is_dicom
from slicemill.measure.lesions.jobs import MeasureJob
from slicemill.measure.lesions.load import LoadedCase


def require_dicom_scans(jobs: Sequence[MeasureJob], options: DicomOptions) -> None:
    """Check before a run that the scan of every mask is a DICOM series.

    Raises
    ------
    PairingError
        The scan of a mask is of another format, or there is none.
    """
    others = [job for job in jobs if job.image is None or not is_dicom(job.image)]
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        name = others[0].mask if others[0].case_id is None else f"{others[0].mask}: {others[0].case_id}"
        scan = f"its scan {others[0].image} is no DICOM" if others[0].image else "it has no scan beside it"
        raise PairingError(
            f"a DICOM result refers to the DICOM files of a mask's scan; {scan}. Pass --image with the series, or omit "
            f"{options.flags()}.",
            where=f"{name}{more}",
        )


def find_code_warnings(job: MeasureJob, case: LoadedCase) -> list[str]:
    """Return a warning if labels are written without codes of their own."""
    if not job.dicom.endings():
        return []
    warning = choose_codes(case.volume.labels, job.dicom.codes)[1]
    return [f"DICOM results: labels {warning}"] if warning else []


def write_dicom_results(out: Path, job: MeasureJob, case: LoadedCase) -> None:
    """Write the DICOM results of a case, and remove those of earlier runs that are not requested now.

    Raises
    ------
    ScanError
        The scan is no DICOM series, or its headers lack what a result needs.
    """
    stem, wanted = out / job.name, job.dicom.endings()
    for ending in ENDINGS:
        if ending not in wanted:
            stem.with_name(stem.name + ending).unlink(missing_ok=True)
    if not wanted:
        return
    if case.series is None:
        raise ScanError(f"is no DICOM series. Omit {job.dicom.flags()}.", where=job.image)
    volume, model = case.volume, case.model
    scan = SegmentedScan(label=volume.label, labels=volume.labels, image=volume.image, probability=volume.probability)
    known = model is not None and model.model is not None and model.model_sha256 is not None
    maker = Maker(name=str(model.model), sha256=str(model.model_sha256)) if known and model else UNKNOWN_MAKER
    write_results(stem, describe_source(case.series), scan, maker, job.dicom)
