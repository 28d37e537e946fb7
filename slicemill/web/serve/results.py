"""The files to download: the mask on the scan's grid, measures, and DICOM results of a DICOM series."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slicemill.common.files import write_csv
from slicemill.ct.formats.dicom_objects.options import NO_DICOM, DicomOptions
from slicemill.ct.formats.nifti.header import sign_header
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.scan import ScanReader
from slicemill.measure.lesions.cohort import make_lesion_row
from slicemill.measure.lesions.jobs import MeasureJob
from slicemill.measure.lesions.records import read_record
from slicemill.measure.lesions.run import MeasureOutcome, measure_job
from slicemill.web.serve.prepare import Candidate
from slicemill.web.serve.records import (
    CANDIDATES_CSV,
    CANDIDATES_JSON,
    CANDIDATES_PAGE,
    HEADER,
    LABEL,
    REPORT,
    RESULTS,
    FilesMessage,
    ResultFile,
    WriteOrder,
)

MASK, LESIONS, MEASURES, ALL = "segmentation.nii.gz", "lesions.csv", "measures", "all.zip"
TEXTS = {
    MASK: "Mask on the grid of the scan (NIfTI)",
    f"{MEASURES}.seg.nrrd": "Segmentation for 3D Slicer",
    f"{MEASURES}.seg.dcm": "Segmentation for a PACS (DICOM SEG)",
    f"{MEASURES}.sr.dcm": "Report of lesions for a PACS (DICOM SR)",
    LESIONS: "Table of lesions (CSV)",
    f"{MEASURES}.html": "Report with pictures (HTML)",
    f"{MEASURES}.png": "Picture of the largest lesion (PNG)",
    f"{MEASURES}.json": "All measures (JSON)",
    REPORT: "Answer of the model (JSON)",
    CANDIDATES_PAGE: "Candidates of nodules with pictures (HTML)",
    CANDIDATES_CSV: "Candidates of nodules (CSV)",
    CANDIDATES_JSON: "Candidates of nodules (JSON)",
    ALL: "All of these (ZIP)",
}
"""Names of the results in the order of the page, and what they are."""


@dataclass(frozen=True, slots=True)
class _Measured:
    outcome: MeasureOutcome
    missing: tuple[str, ...]


def write_results(folder: Path, scan: Candidate, order: WriteOrder) -> FilesMessage:
    """Write the results of a job; REPORT is there already, and names the labels."""
    out = folder / RESULTS
    with ScanReader(scan.path, "image", hashed=False) as reader:
        grid = reader.grid
    label = np.fromfile(folder / LABEL, dtype=np.uint8).reshape(grid.stored_shape)
    header = sign_header((folder / HEADER).read_bytes(), order.model_sha256)
    write_volume(out / MASK, header, np.uint8, grid.to_file(label))
    measured = _measure(out, scan)
    missing = list(measured.missing)
    if measured.outcome.status == "failed":
        missing.append(f"Measures, tables and report: {_shorten(measured.outcome.reason, out)}")
    else:
        record = read_record(out / f"{MEASURES}.json")
        columns = list(make_lesion_row(record.case, record.lesions[0])) if record.lesions else ["case", "id"]
        write_csv(out / LESIONS, [make_lesion_row(record.case, lesion) for lesion in record.lesions], columns)
    _pack(out)
    files = tuple(
        ResultFile(name=name, bytes=(out / name).stat().st_size, text=text)
        for name, text in TEXTS.items()
        if (out / name).exists()
    )
    return FilesMessage(files=files, missing=tuple(missing))


def _measure(out: Path, scan: Candidate) -> _Measured:
    """Measure the mask; where DICOM results cannot be written, say why and measure without them."""
    dicom = DicomOptions(seg=True, sr=True) if scan.is_dicom else NO_DICOM
    job = MeasureJob(name=MEASURES, mask=out / MASK, image=scan.path, dicom=dicom)
    outcome = measure_job(job, out, overwrite=True)
    if outcome.status != "failed" or not scan.is_dicom:
        return _Measured(outcome, ())
    why = f"DICOM SEG and SR: {_shorten(outcome.reason, out)}"
    plain = MeasureJob(name=MEASURES, mask=out / MASK, image=scan.path)
    return _Measured(measure_job(plain, out, overwrite=True), (why,))


def _shorten(reason: str, out: Path) -> str:
    """Return a reason without paths of this machine."""
    return reason.replace(f"{out}/", "").replace(f"{out.parent}/", "").replace(str(out.parent), "the files")


def _pack(out: Path) -> None:
    with zipfile.ZipFile(out / ALL, "x", zipfile.ZIP_STORED) as archive:
        for name in TEXTS:
            if name != ALL and (out / name).exists():
                archive.write(out / name, name)
