"""DICOM results are written for inputs in DICOM only: their files are what SEG, SR and RTSTRUCT refer to."""

from collections.abc import Sequence

from slicemill.common.errors import ConfigError, ScanError
from slicemill.ct.formats.dicom_objects.options import DicomOptions
from slicemill.ct.formats.dicom_objects.source_series import require_frame_of_reference
from slicemill.ct.formats.open import is_dicom
from slicemill.infer.inputs.jobs import Job, OpenScan

WHY = "a DICOM result refers to the DICOM files of its scan, and this scan has none"


def require_dicom_jobs(jobs: Sequence[Job], options: DicomOptions) -> None:
    """Check before a run that all inputs are DICOM, if DICOM results are requested.

    Raises
    ------
    ConfigError
        Some are not.
    """
    if not options.endings():
        return
    others = [job for job in jobs if job.case_id is not None or (job.path.exists() and not is_dicom(job.path))]
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise ConfigError(
            f"{WHY}. Pass DICOM series, or omit {options.flags()}.",
            where=f"{others[0].path}{more}",
        )


def require_series(scan: OpenScan, options: DicomOptions) -> None:
    """Check that an open scan is a DICOM series, if DICOM results are requested.

    Raises
    ------
    ScanError
        It is not, or its files have no frame of reference.
    """
    if not options.endings():
        return
    if scan.series is None:
        raise ScanError(f"{WHY}. Omit {options.flags()} for it.", where=scan.path)
    require_frame_of_reference(scan.series)
