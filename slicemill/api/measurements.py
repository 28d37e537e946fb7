"""The commands `evaluate` and `measure` as functions, which return their records."""

from pathlib import Path
from typing import TYPE_CHECKING

from slicemill.common.extras import name_missing_extras

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slicemill.ct.formats.dicom_objects.options import Holes, SegmentationType
    from slicemill.ct.labels import Labels
    from slicemill.measure.evaluation.detection import Mode
    from slicemill.measure.evaluation.evaluate import Evaluation
    from slicemill.measure.evaluation.two_runs import ComparedMeasure
    from slicemill.measure.requests import MeasureReport


@name_missing_extras()
def evaluate_masks(
    predictions: str | Path,
    references: str | Path,
    *,
    out: str | Path | None = None,
    labels: "str | Mapping[str, int] | Labels | None" = None,
    mode: "Mode" = "corrected",
    tolerance_mm: float = 2.0,
    workers: int = 1,
    viewer_mb: float = 8,
) -> "Evaluation":
    """Evaluate predicted masks: overlap, surface distances, volumes, tumor burden and lesions, with 95 % intervals.

    Parameters
    ----------
    predictions, references
        Folders of masks, mask files, or slice stores.
    out
        Folder for tables, figures and error pictures; by default nothing is written.
    labels
        Names of the label values; required if neither a report of `infer` nor a store has them.
    mode
        ``corrected``, or ``official``: rules and defects of the LiTS program.
    tolerance_mm
        Tolerance of the surface Dice, mm.
    workers
        Worker processes; with more than one, call this under ``if __name__ == "__main__":``.
    viewer_mb
        MiB of slices in the page of each case, ``CASE_errors.html``; 0 for no pages.

    Returns
    -------
    Evaluation
        `cases` (scores of each case), `totals` (of all cases), and the cases left out: `failures`, `missing`, `alone`.

    Raises
    ------
    InputError
        The labels have no names, or the files cannot be paired. A case that cannot be scored raises nothing.

    >>> result = slicemill.evaluate_masks("segmented", "lits", labels={"liver": 1, "tumor": 2})   # doctest: +SKIP
    >>> result.totals.as_json()["regions"]["tumor"]["dice_per_case"]                              # doctest: +SKIP
    0.62
    """
    from slicemill.measure.requests import EvaluateRequest

    return EvaluateRequest(
        predictions=Path(predictions), references=Path(references), out=None if out is None else Path(out),
        labels=labels, mode=mode, tolerance_mm=tolerance_mm, workers=workers, viewer_mb=viewer_mb,
    ).run()  # fmt: skip


@name_missing_extras()
def compare_evaluations(
    evaluation: "Evaluation", other: "Evaluation", *, out: str | Path | None = None
) -> "list[ComparedMeasure]":
    """Compare two evaluations case by case, as `slicemill evaluate --against` does.

    Returns
    -------
    list
        One record per region and measure: means, paired difference with its 95 % interval, and a Wilcoxon test.

    Raises
    ------
    ConfigError
        They were scored by different rules, or have no case in common.

    >>> slicemill.compare_evaluations(first, second)[0].difference     # doctest: +SKIP
    """
    from slicemill.measure.evaluation.two_runs import compare_runs, write_run_comparison

    return compare_runs(evaluation, other) if out is None else write_run_comparison(Path(out), evaluation, other)


@name_missing_extras()
def measure_masks(
    masks: str | Path,
    out: str | Path,
    *,
    image: str | Path | None = None,
    labels: "str | Mapping[str, int] | Labels | None" = None,
    workers: int = 1,
    overwrite: bool = False,
    dicom_seg: bool = False,
    dicom_sr: bool = False,
    rtstruct: bool = False,
    seg_type: "SegmentationType" = "binary",
    seg_per_lesion: bool = False,
    rtstruct_holes: "Holes" = "keyhole",
    codes: str | Path | None = None,
    viewer_mb: float = 8,
) -> "MeasureReport":
    """Measure the lesions of existing masks: tables, a page and a picture per case, and one page of all cases.

    A repeated call measures only new and changed cases. Research software, not a medical device.

    Parameters
    ----------
    masks
        A mask, a folder of masks, or a slice store.
    out
        Folder for the results.
    image
        Scan of the mask, or folder of scans; not needed for a store.
    dicom_seg, dicom_sr, rtstruct
        DICOM results of scans in DICOM: SEG, a report of the lesions, RTSTRUCT. The options after them say how; see
        `slicemill.measure.requests.MeasureRequest`.
    viewer_mb
        MiB of slices in the page of each case, for its viewer; 0 for none.

    Returns
    -------
    MeasureReport
        An outcome for every case; `records()` reads the measured lesions.

    Raises
    ------
    InputError
        There are no masks, or the folder has files of another command. A case that cannot be measured raises nothing.

    >>> report = slicemill.measure_masks("segmented", "lesions", image="lits")     # doctest: +SKIP
    >>> [lesion.volume_ml for record in report.records() for lesion in record.lesions]   # doctest: +SKIP
    """
    from slicemill.measure.requests import MeasureRequest

    return MeasureRequest(
        masks=Path(masks), out=Path(out), image=None if image is None else Path(image), labels=labels, workers=workers,
        overwrite=overwrite, dicom_seg=dicom_seg, dicom_sr=dicom_sr, rtstruct=rtstruct, seg_type=seg_type,
        seg_per_lesion=seg_per_lesion, rtstruct_holes=rtstruct_holes, codes=None if codes is None else Path(codes),
        viewer_mb=viewer_mb,
    ).run()  # fmt: skip
