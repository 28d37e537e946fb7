"""The DICOM results of one segmented scan: SEG, SR and RTSTRUCT beside its mask."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ScanError
from slicemill.common.files import atomic_write
from slicemill.ct.formats.dicom_objects.codes import choose_codes
from slicemill.ct.formats.dicom_objects.maker import Maker, prepare_dicom
from slicemill.ct.formats.dicom_objects.measured_lesions import MeasuredLesion, measure_for_report
from slicemill.ct.formats.dicom_objects.options import RTSTRUCT, SEG, SR, DicomOptions
from slicemill.ct.formats.dicom_objects.report import make_report
from slicemill.ct.formats.dicom_objects.segmentation import make_segmentation
from slicemill.ct.formats.dicom_objects.segments import make_segments
from slicemill.ct.formats.dicom_objects.source_series import SourceSeries
from slicemill.ct.formats.dicom_objects.structure_set import make_structure_set
from slicemill.ct.labels import Labels

if TYPE_CHECKING:
    from pydicom import Dataset

PREAMBLE = bytes(128)
"""The first bytes of a file; those of a source could hold a program."""


@dataclass(frozen=True, kw_only=True)
class SegmentedScan:
    """A segmentation with its scan, on the stored grid."""

    label: npt.NDArray[np.uint8]
    """uint8[z, y, x], values of the labels."""
    labels: Labels
    image: npt.NDArray[np.int16] | None = None
    """int16[z, y, x], HU."""
    probability: npt.NDArray[np.uint8] | None = None
    """uint8[z, y, x], probability of tumor, 255 is certain."""


def write_results(
    stem: Path, series: SourceSeries, scan: SegmentedScan, maker: Maker, options: DicomOptions
) -> tuple[str, ...]:
    """Write the DICOM results of a scan, each atomically, and return warnings.

    Parameters
    ----------
    stem
        Path of the files without their endings.

    Raises
    ------
    LabelError
        There are too many lesions for a SEG.
    ScanError
        The headers of the series lack what a DICOM result needs.
    """
    prepare_dicom()
    codes, warning = choose_codes(scan.labels, options.codes)
    lesions: tuple[MeasuredLesion, ...] = ()
    if options.sr or options.per_lesion:
        affine = series.grid.affine_lps
        lesions = measure_for_report(scan.label, scan.labels, affine, scan.image, scan.probability)
    segments = make_segments(scan.label, scan.labels, codes, lesions)
    objects: dict[str, Dataset] = {}
    try:
        if options.seg or options.sr:
            segmentation = make_segmentation(series, segments, maker, options.seg_type)
            objects[SEG] = segmentation
            if options.sr:
                objects[SR] = make_report(series, segments, segmentation, maker)
        if options.rtstruct:
            objects[RTSTRUCT] = make_structure_set(series, segments, maker, options.holes)
    except AttributeError as error:
        if error.name is None or not error.name[0].isupper():
            raise
        raise ScanError(f"its headers lack {error.name}, which a DICOM result must have.") from None
    except (ValueError, TypeError) as error:  # the text may quote a value that is a patient's
        raise ScanError(
            f"no DICOM result can be written: its headers break a rule of DICOM ({_find_rule(error)})."
        ) from None
    for ending, one in objects.items():
        save(stem, ending, one)
    return (warning,) if warning else ()


def _find_rule(error: BaseException) -> str:
    """Return the type of an error and where it was raised, without its text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = trace.tb_frame.f_code.co_qualname if trace else "?"
    return f"{type(error).__name__} in {place}"


def save(stem: Path, ending: str, dataset: "Dataset") -> None:
    """Write a DICOM object atomically, with an empty preamble."""
    dataset.preamble = PREAMBLE
    with atomic_write(stem.with_name(stem.name + ending)) as aside:
        dataset.save_as(aside, enforce_file_format=True)
