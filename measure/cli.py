"""The commands `slicemill evaluate | froc | measure | compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slicemill.common.errors import ConfigError, UsageError
from slicemill.common.options import MACHINE, OUTPUT, RERUN, Json, require_finite
from slicemill.common.terminal import (
    count_noun,
    format_cell,
    format_table,
    print_always,
    print_json,
    print_line,
    print_lines,
)
from slicemill.ct.page_options import VIEWER_MB

Ranking = Literal["probability", "segmentation_mean"]
"""Columns of candidates that can rank them."""

if TYPE_CHECKING:
    from slicemill.measure.evaluation.evaluate import Evaluation
    from slicemill.measure.evaluation.two_runs import ComparedMeasure

MARK_PICTURES, MOST_MARK_PICTURES = 12, 200
"""Pictures of each kind of marks in the page of `froc`: by default, and at most; each has about 0.2 MB."""
LabelNames = Annotated[
    str | None,
    typer.Option(help="Names of the label values, like liver=1,tumor=2; required without a report of infer."),
]
Workers = Annotated[
    int,
    typer.Option(help="Worker processes, each with one case in memory; 0: all cores.", min=0, rich_help_panel=MACHINE),
]
ViewerMb = Annotated[
    float,
    typer.Option(
        callback=require_finite, help="MiB of slices in each page; 0: no pages.", min=0, rich_help_panel=OUTPUT
    ),
]


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Folder of predicted masks, one mask file, or a slice store of predicted masks.")
    ],
    references: Annotated[
        Path, typer.Argument(help="Folder of reference masks, or a slice store; scans are used for the pictures.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for tables, figures, error pictures and pages.")] = None,
    labels: LabelNames = None,
    mode: Annotated[
        Literal["corrected", "official"],
        typer.Option(
            rich_help_panel="Scores",
            help="official: rules and defects of the LiTS program, to compare with published results.",
        ),
    ] = "corrected",
    tolerance_mm: Annotated[
        float,
        typer.Option(
            callback=require_finite, rich_help_panel="Scores", help="Tolerance of the surface Dice, mm.", min=0
        ),
    ] = 2.0,
    against: Annotated[
        Path | None,
        typer.Option(help="Masks or store of another run on the same scans, for a case-by-case comparison."),
    ] = None,
    workers: Workers = 1,
    viewer_mb: ViewerMb = VIEWER_MB,
    json: Json = False,
) -> None:
    """Evaluate predicted masks: overlap, surface distances, volumes, tumor burden and lesions, with 95 % intervals.

    slicemill evaluate segmented/ lits/ --out scores/
    slicemill evaluate segmented/ lits/ --out scores/ --against other/
    """
    from dataclasses import replace

    from slicemill.measure.evaluation.summary import format_evaluation
    from slicemill.measure.inputs.label_names import check_same_labels
    from slicemill.measure.inputs.pairs import pair_up
    from slicemill.measure.requests import EvaluateRequest

    request = EvaluateRequest(
        predictions=predictions,
        references=references,
        out=out,
        labels=labels,
        mode=mode,
        tolerance_mm=tolerance_mm,
        workers=workers,
        viewer_mb=viewer_mb,
    )
    other_request = replace(request, predictions=against, out=None) if against else None  # checks that it exists
    evaluation = request.run()
    for line in format_evaluation(evaluation):
        print_line(line)
    failures, compared = len(evaluation.failures), None
    if other_request is not None:
        if not labels:
            check_same_labels(pair_up(other_request.predictions, references).pairs, evaluation.labels)
        other = replace(other_request, labels=evaluation.labels).run()
        failures += len(other.failures)
        compared = _print_comparison(evaluation, other, other_request.predictions, out)
    _print_end(evaluation, compared, out, json=json)
    if failures:
        raise SystemExit(1)


def _print_end(
    evaluation: "Evaluation", compared: "list[ComparedMeasure] | None", out: Path | None, *, json: bool
) -> None:
    """Print what was left out and where the tables are, and the document of `--json`."""
    from slicemill.measure.evaluation.evaluate import evaluation_document
    from slicemill.measure.evaluation.summary import format_left_out

    for line in format_left_out(evaluation):
        (print_always if line.startswith("failed: ") else print_line)(line)
    if out is not None:
        print_line(f"tables and pictures: {out}")
    if json:
        print_json({**evaluation_document(evaluation), **({} if compared is None else {"compared": compared})})


def _print_comparison(
    evaluation: "Evaluation", other: "Evaluation", against: Path, out: Path | None
) -> "list[ComparedMeasure]":
    """Print the comparison of two runs, write it to `out`, and return it."""
    from slicemill.measure.evaluation.summary import format_comparison
    from slicemill.measure.evaluation.two_runs import compare_runs, write_run_comparison

    for name, reason in other.failures:
        print_always(f"failed: {against / name}: {reason}")
    compared = write_run_comparison(out, evaluation, other) if out else compare_runs(evaluation, other)
    for line in format_comparison(compared):
        print_line(line)
    return list(compared)


def froc(
    results: Annotated[
        Path, typer.Argument(help="CSV of detections: seriesuid, coordX, coordY, coordZ (mm), probability.")
    ],
    annotations: Annotated[
        Path,
        typer.Argument(
            help="CSV of findings: seriesuid, coordX, coordY, coordZ, diameter_mm; or a slice store that was ingested "
            "with --points."
        ),
    ],
    scans: Annotated[
        Path | None,
        typer.Option(
            help="Text file with the names of all scans, one per line, including those without detections. Of a store: "
            "its cases to score, by default all."
        ),
    ] = None,
    excluded: Annotated[
        Path | None, typer.Option(help="CSV of excluded findings; detections that hit them are ignored.")
    ] = None,
    patients: Annotated[
        Path | None,
        typer.Option(
            help="CSV with the columns seriesuid and patient_id: intervals are over patients. A store has its own."
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="Column of the findings, like texture: a curve for each of its values, at most 20."),
    ] = None,
    ranked_by: Annotated[
        Ranking,
        typer.Option(help="Column that ranks the detections; segmentation_mean is one of `infer`'s candidates."),
    ] = "probability",
    malignancy_threshold: Annotated[
        float | None, typer.Option(callback=require_finite, help="Score of a malignant patient; by default 0.5.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for froc.json, froc.png and froc.html.")] = None,
    pictures: Annotated[
        int | None,
        typer.Option(
            help="Pictures in froc.html of nodules found, of nodules missed and of false marks, each; 0 for none, by "
            f"default {MARK_PICTURES}. They need a slice store.",
            min=0,
            max=MOST_MARK_PICTURES,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Score point detections by LUNA16's rules: FROC curve, and CPM by two definitions, with 95 % intervals.

    Each band of diameters has a curve of its own. Where candidates and store have malignancy, it is scored by patient.

        slicemill froc results.csv annotations.csv --scans seriesuids.csv --excluded annotations_excluded.csv
        slicemill froc candidates.csv luna-store/ --by texture
        slicemill froc candidates.csv luna-store/ --ranked-by segmentation_mean
    """
    from dataclasses import replace

    from slicemill.measure.evaluation.findings import FindingFiles, read_findings
    from slicemill.measure.evaluation.froc import NoFindings
    from slicemill.measure.evaluation.froc_summary import describe_result
    from slicemill.measure.evaluation.luna16 import PROBABILITY, score_points
    from slicemill.measure.evaluation.malignancy import score_malignancy

    files = FindingFiles(annotations=annotations, scans=scans, excluded=excluded, patients=patients, group=by)
    if pictures and (out is None or not files.is_store):
        raise UsageError("--pictures: pictures need --out and the scans of a slice store instead of a table.")
    if ranked_by != PROBABILITY and malignancy_threshold is not None:
        raise UsageError(f"--malignancy-threshold: malignancy goes with probability, not with --ranked-by {ranked_by}.")
    findings = read_findings(files)
    malignancy = score_malignancy(results, findings, malignancy_threshold) if ranked_by == PROBABILITY else None
    result = replace(score_points(results, findings, ranked_by), malignancy=malignancy)
    response = result.response
    if isinstance(response, NoFindings):
        raise ConfigError(f"{annotations}: has no finding in the scans that are scored.")
    print_lines("\n".join(describe_result(result, response, findings)))
    if out is not None:
        from slicemill.measure.evaluation.froc_report import write_froc_report

        write_froc_report(out, results, files, findings, result, MARK_PICTURES if pictures is None else pictures)
        print_line(f"curve: {out / 'froc.json'}, {out / 'froc.png'}; page: {out / 'froc.html'}")
    if json:
        print_json(result.as_json())


def measure(
    masks: Annotated[Path, typer.Argument(help="A mask, a folder of masks, or a slice store.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, pages and segmentations for 3D Slicer.")],
    image: Annotated[
        Path | None, typer.Option(help="Scan of the mask, or folder of scans; not needed for a store.")
    ] = None,
    labels: LabelNames = None,
    workers: Workers = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel=RERUN, help="Measure finished cases again too.")
    ] = False,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", rich_help_panel=OUTPUT, help="For scans in DICOM, also write NAME.seg.dcm.")
    ] = False,
    dicom_sr: Annotated[
        bool,
        typer.Option(
            "--dicom-sr",
            rich_help_panel=OUTPUT,
            help="Also write NAME.sr.dcm, a DICOM report, and a SEG of the lesions.",
        ),
    ] = False,
    rtstruct: Annotated[
        bool, typer.Option("--rtstruct", rich_help_panel=OUTPUT, help="Also write NAME.rtstruct.dcm (DICOM RTSTRUCT).")
    ] = False,
    seg_type: Annotated[
        Literal["binary", "labelmap"],
        typer.Option(rich_help_panel=OUTPUT, help="Kind of SEG; labelmap is smaller, but new (2024)."),
    ] = "binary",
    seg_per_lesion: Annotated[
        bool,
        typer.Option("--seg-per-lesion", rich_help_panel=OUTPUT, help="Make each lesion a segment of its own."),
    ] = False,
    rtstruct_holes: Annotated[
        Literal["keyhole", "xor"],
        typer.Option(
            rich_help_panel=OUTPUT, help="How RTSTRUCT has holes: one joined outline, or outlines of their own."
        ),
    ] = "keyhole",
    codes: Annotated[
        Path | None,
        typer.Option(rich_help_panel=OUTPUT, help="CSV of codes for labels: label, category, type, region."),
    ] = None,
    viewer_mb: ViewerMb = VIEWER_MB,
    json: Json = False,
) -> None:
    """Measure the lesions of existing masks: tables, a page and a picture per case, and one page of all cases.

    Run the same command again to measure only new and changed cases. Research software, not a medical device.

        slicemill measure segmented/ --image scans/ --out lesions/
        slicemill measure store/ --out lesions/ --workers 8
        slicemill measure segmented/ --image dicom/ --out lesions/ --dicom-seg --dicom-sr
    """
    from slicemill.measure.requests import MeasureRequest

    request = MeasureRequest(
        masks=masks, out=out, image=image, labels=labels, workers=workers, overwrite=overwrite, dicom_seg=dicom_seg,
        dicom_sr=dicom_sr, rtstruct=rtstruct, seg_type=seg_type, seg_per_lesion=seg_per_lesion,
        rtstruct_holes=rtstruct_holes, codes=codes, viewer_mb=viewer_mb,
    )  # fmt: skip
    report = request.run()
    for file in report.left_out:
        print_line(f"left out: {file}: name does not look like a mask; to measure it, pass this file")
    for outcome in report.outcomes:
        if outcome.status == "failed":
            print_always(f"failed: {outcome.name}: {outcome.reason}")
    print_line(
        f"{count_noun(len(report.outcomes), 'case')}: {report.count('done')} done, {report.count('skipped')} "
        f"skipped (done before), {report.count('failed')} failed"
    )
    print_line(f"tables: {out / 'cases.csv'}, {out / 'lesions.csv'}; page: {out / 'report.html'}")
    if json:
        print_json({"out": str(out), "cases": report.outcomes})
    if report.count("failed"):
        raise SystemExit(1)


def compare(
    baseline: Annotated[Path, typer.Argument(help="Mask of the first time point.")],
    followup: Annotated[Path, typer.Argument(help="Mask of the second time point of the same patient.")],
    labels: LabelNames = None,
    align: Annotated[
        Literal["headers", "organ"],
        typer.Option(help="headers: patient coordinates of the headers; organ: centroid and extent of the organ."),
    ] = "headers",
    baseline_image: Annotated[
        Path | None, typer.Option(rich_help_panel="Pictures", help="Scan of the first mask, for the pictures.")
    ] = None,
    followup_image: Annotated[
        Path | None, typer.Option(rich_help_panel="Pictures", help="Scan of the second mask.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for compare.html and compare.json.")] = None,
    json: Json = False,
) -> None:
    """Compare two time points of a patient: matched, new and vanished lesions, and the RECIST 1.1 category.

    slicemill compare first.nii.gz second.nii.gz --labels liver=1,tumor=2 --out change/
    """
    from slicemill.ct.labels import parse_labels
    from slicemill.measure.followup.page import write_comparison
    from slicemill.measure.followup.recist import compare_time_points, measure_time_point
    from slicemill.measure.lesions.jobs import file_job
    from slicemill.measure.lesions.load import load_case

    for mask in (baseline, followup):
        if not mask.is_file():
            raise ConfigError(f"{mask}: there is no such file; pass one mask per time point.")
    named = parse_labels(labels) if labels else None
    first = load_case(file_job(baseline, baseline_image, named))
    second = load_case(file_job(followup, followup_image, named))
    points = measure_time_point(first.volume), measure_time_point(second.volume)
    comparison = compare_time_points(*points, align)
    rows = [change.as_row() for change in comparison.lesions]
    if rows:
        print_lines(format_table(list(rows[0]), [list(row.values()) for row in rows]))
        print_line()
    recist = comparison.recist
    before, after = format_cell(comparison.baseline.tumor_ml), format_cell(comparison.followup.tumor_ml)
    print_line(f"tumor volume: {before} to {after} ml; aligned by {align}")
    print_line(
        f"computed RECIST 1.1 category: {recist.category}; sum of {recist.targets} target diameters "
        f"{recist.baseline_sum_mm:.1f} to {recist.followup_sum_mm:.1f} mm; {recist.new_lesions} new lesions"
    )
    print_line(comparison.note)
    if out is not None:
        write_comparison(out, comparison, points, (first.origin(), second.origin()))
        print_line(f"page: {out / 'compare.html'}; record: {out / 'compare.json'}")
    if json:
        print_json(comparison.as_json())
