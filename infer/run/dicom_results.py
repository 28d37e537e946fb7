"""DICOM results of a scan: of one that was just segmented, or of the mask of an earlier run, without the network.

A mask of an earlier run is taken if the ledger's last line of the scan has the same scan, model and options, DICOM
results apart, and the hash of the mask's file. A structured report has the mean probability of each lesion, which no
mask has: a scan that lacks one is segmented again, unless the model has no probability of tumor.
"""

from pathlib import Path

import numpy as np

from slicemill.common.errors import ReadError
from slicemill.ct.formats.dicom.series import Series
from slicemill.ct.formats.dicom_objects.maker import Maker
from slicemill.ct.formats.dicom_objects.options import ENDINGS, DicomOptions
from slicemill.ct.formats.dicom_objects.results import SegmentedScan, write_results
from slicemill.ct.formats.dicom_objects.source_series import describe_source
from slicemill.ct.same_grid import require_same_grid
from slicemill.ct.scan import ScanReader
from slicemill.infer.inputs.jobs import Job, OpenScan, Stamp
from slicemill.infer.run.ledger import LedgerLine, RunLedger
from slicemill.infer.run.summary import ScanOutcome
from slicemill.store.model_card import ModelInfo

ADDED = "its mask is of an earlier run; only its DICOM results were written"


def write_dicom(stem: Path, series: Series, scan: SegmentedScan, info: ModelInfo, options: DicomOptions) -> None:
    """Write the requested DICOM results of a scan next to its mask; `stem` is the mask's path without suffix.

    Raises
    ------
    InputError
        See `write_results`.
    """
    if options.endings():
        write_results(stem, describe_source(series), scan, Maker(name=info.name, sha256=info.sha256), options)


def find_mask(ledger: RunLedger, job: Job, info: ModelInfo) -> LedgerLine | None:
    """Return the ledger's line of the mask that DICOM results can be made from, or None."""
    if ledger.options.dicom.sr and (info.gives_tumor or info.gives_probability):
        return None
    return ledger.find_mask(job)


def add_dicom(ledger: RunLedger, job: Job, scan: OpenScan, stamp: Stamp, made: LedgerLine) -> ScanOutcome:
    """Write the requested DICOM results from the mask of an earlier run, and remove those that are not requested.

    Call it while holding the claim. `stamp` is the version tag of the scan when it was opened, `made` the mask's line.

    Raises
    ------
    ReadError
        The scan changed meanwhile.
    InputError
        See `write_results`.
    """
    info, options, path = ledger.info, ledger.options.dicom, ledger.out / job.name
    with ScanReader(path, "mask", hashed=False) as reader:
        reader.replace_grid(require_same_grid(reader.grid, scan.grid, path, f"its scan {job.path}"))
        label = reader.read()
    image = scan.read(np.empty).volume if options.sr else None  # the report has mean HU
    if job.stamp() != stamp:
        raise ReadError("changed while it was read; the next run segments it again.", where=job.path)
    outcome = made.outcome
    ledger.append(job, outcome, stamp=stamp, begun=True)
    stem = ledger.out / job.stem
    for ending in set(ENDINGS) - set(options.endings()):
        if ending in made.extras:
            stem.with_name(stem.name + ending).unlink(missing_ok=True)
    if scan.series is not None:
        write_dicom(stem, scan.series, SegmentedScan(label=label, labels=info.labels, image=image), info, options)
    ledger.append(job, outcome, stamp=stamp, mask_sha256=made.mask_sha256)
    return ScanOutcome(name=job.name, status="done", reason=ADDED, answer=made.answer, warnings=made.warnings)
