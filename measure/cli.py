"""The commands `slicemill evaluate | froc | measure | compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slicemill.common.errors import ConfigError, UsageError
from slicemill.common.options import require_finite
from slicemill.common.terminal import format_table, print_line, report_errors

if TYPE_CHECKING:
    from slicemill.measure.evaluation.evaluate import Evaluation

SCREEN = ("dice", "hd95_mm", "error_ml")
"""Measures of a case that fit on a screen; evaluation.csv has all."""


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Folder of masks written by infer, one mask, or a slice store of predicted masks.")
    ],
    references: Annotated[
        Path, typer.Argument(help="Folder of reference masks (with their scans, for the pictures), or a slice store.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for tables, figures and error pictures.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Names of the label values, like liver=1,tumor=2, when no report says them.")
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="corrected, or official: the LiTS program's rules, with its defects, to compare with tables."
        ),
    ] = "corrected",
    tolerance_mm: Annotated[
        float, typer.Option(callback=require_finite, help="Tolerance of the surface Dice, mm.", min=0)
    ] = 2.0,
    against: Annotated[
        Path | None,
        typer.Option(help="Masks of another run on the same scans (or their store), to compare with case by case."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; each holds one case.", min=1)] = 1,
) -> None:
    """Score predicted masks: overlap, distances, volumes, burden and lesions, with 95 % intervals over cases.

    slicemill evaluate segmented/ lits/ --out scores/
    slicemill evaluate segmented/ lits/ --out scores/ --against other/
    """
    with report_errors():
        from functools import partial

        from slicemill.ct.labels import parse_labels
        from slicemill.measure.evaluation.evaluate import evaluate as score
        from slicemill.measure.evaluation.evaluate import totals
        from slicemill.measure.evaluation.figures import evaluation_figure, save
        from slicemill.measure.pairs import check_reports, pair_up

        _check(mode, predictions, against)
        named = parse_labels(labels) if labels else None
        scored = partial(score, mode=mode, tolerance_mm=tolerance_mm, workers=workers)  # type: ignore[arg-type]
        evaluation = scored(predictions, references, out, named)
        _show(evaluation)
        scores = totals(evaluation)
        for line in describe(scores):
            print_line(line)
        if out is not None and evaluation.cases:
            save(out / "evaluation.png", evaluation_figure(evaluation, scores))
        if against is not None:
            if named is None:
                check_reports(pair_up(against, references).pairs, evaluation.labels)
            other = scored(against, references, None, evaluation.labels)
            for name, reason in other.failures:
                print_line(f"failed: {against / name}: {reason}")
            _show_comparison(evaluation, other, out)
        _end(evaluation, out)
        if evaluation.failures or (against is not None and other.failures):
            raise SystemExit(1)


def _check(mode: str, *places: Path | None) -> None:
    if mode not in ("corrected", "official"):
        raise UsageError(f"--mode {mode}: choose corrected or official.")
    for given in places:
        if given is not None and not given.exists():
            raise ConfigError(f"{given}: there is no such file or folder.")


def _end(evaluation: "Evaluation", out: Path | None) -> None:
    """Print what was left out."""
    for name, reason in evaluation.failures:
        print_line(f"failed: {name}: {reason}")
    for name in evaluation.alone:
        print_line(f"left out: {name}: no reference has its name")
    print_line(
        f"{len(evaluation.cases)} cases compared, {len(evaluation.failures)} failed; {len(evaluation.missing)} references without a prediction"
    )
    print_line(f"peak memory of a process: {evaluation.peak_mib:,.0f} MiB")
    if out is not None:
        print_line(f"tables and pictures: {out}")


def _show(evaluation: "Evaluation") -> None:
    """Print the cases, with the measures that fit."""
    from slicemill.measure.evaluation.evaluate import case_row

    rows = [case_row(case, evaluation.rules) for case in evaluation.cases]
    if rows:
        shown = ["case_id", *(key for key in rows[0] if key.startswith(SCREEN) or "lesions" in key)]
        print_line(format_table(shown, [[row[key] for key in shown] for row in rows]))
        print_line()


def _show_comparison(evaluation: "Evaluation", other: "Evaluation", out: Path | None) -> None:
    """Print two runs beside each other, and write the comparison where there is a folder."""
    from slicemill.measure.evaluation.two_runs import comparison, write_comparison

    rows = comparison(evaluation, other) if out is None else write_comparison(out, evaluation, other)
    print_line(format_table(list(rows[0]), [list(row.values()) for row in rows]))
    print_line(
        "difference: this run - the other; interval: 95 % over draws of cases; p: Wilcoxon's signed-rank test, two-sided"
    )
    print_line()


def froc(
    results: Annotated[
        Path, typer.Argument(help="CSV of detections: seriesuid, coordX, coordY, coordZ (mm), probability.")
    ],
    annotations: Annotated[
        Path, typer.Argument(help="CSV of findings: seriesuid, coordX, coordY, coordZ, diameter_mm.")
    ],
    scans: Annotated[Path, typer.Option(help="Names of all scans, one a line; those without detections count, too.")],
    excluded: Annotated[Path | None, typer.Option(help="CSV of findings that count neither way.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for froc.json and froc.png.")] = None,
) -> None:
    """Score detected points by LUNA16's rules: free-response curve and CPM, with both read-offs and 95 % intervals.

    slicemill froc results.csv annotations.csv --scans seriesuids.csv --excluded annotations_excluded.csv
    """
    with report_errors():
        from slicemill.common.files import write_json
        from slicemill.measure.evaluation.froc import luna16

        found = luna16(results, annotations, scans, excluded)
        if found["cpm"] is None:
            raise ConfigError(
                f"{annotations}: has no finding in the scans that {scans} lists; there is nothing to find."
            )
        rates = ("sensitivity_between", "sensitivity_at_or_above")
        print_line(
            format_table(
                ["false positives a scan", *(f"{rate:g}" for rate in found["rates"])],
                [[name, *found[name]] for name in rates],
            )
        )
        low, high = found["cpm_interval"]
        print_line(
            f"CPM {found['cpm']:.4f} by a line between points (95 % interval {low:.4f} to {high:.4f} over draws of scans)"
        )
        print_line(
            f"CPM {found['cpm_at_or_above']:.4f} at the first point at or above each rate; {found['cpm_of_mean_curve']:.4f} of the draws' mean curve"
        )
        print_line(
            f"{found['findings']} findings in {found['scans']} scans; {found['candidates_of_unlisted_scans']} candidates in unlisted scans"
        )
        if out is not None:
            from functools import partial

            from slicemill.measure.evaluation.figures import draw_froc, figure_of, save

            write_json(out / "froc.json", found)
            save(out / "froc.png", figure_of([partial(draw_froc, record=found)]))
            print_line(f"curve: {out / 'froc.json'}, {out / 'froc.png'}")


def measure(
    masks: Annotated[Path, typer.Argument(help="A mask, a folder of masks, or a slice store.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, pages and segmentations for 3D Slicer.")],
    image: Annotated[
        Path | None, typer.Option(help="The mask's scan, or the folder of the scans; a store has its own.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Names of the label values, like liver=1,tumor=2, when no report says them.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; each holds one case.", min=1)] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure again what is done already.")] = False,
) -> None:
    """Measure the lesions of masks that exist, without any inference: a table, a page and a picture a case, and one page for all.

    The same command again does only what is left. Research software, not a medical device.

        slicemill measure segmented/ --image scans/ --out lesions/
        slicemill measure store/ --out lesions/ --workers 8
    """
    with report_errors():
        from slicemill.ct.labels import parse_labels
        from slicemill.measure.lesions.jobs import gather, left_out, run

        for given in (masks, *([image] if image is not None else [])):
            if out.resolve() == (given if given.is_dir() else given.parent).resolve():
                raise ConfigError(
                    f"--out {out}: holds the files of {given}, and what others keep beside them; choose another folder."
                )
        jobs = gather(masks, image, parse_labels(labels) if labels else None)
        outcomes = run(jobs, out, workers=workers, overwrite=overwrite)
        for file in left_out(masks):
            print_line(
                f"left out: {file}: other names here say mask, and this one does not; if it is one, measure it by itself"
            )
        for outcome in outcomes:
            if outcome.status == "failed":
                print_line(f"failed: {outcome.name}: {outcome.reason}")
        counts = {status: sum(one.status == status for one in outcomes) for status in ("done", "skipped", "failed")}
        print_line(
            f"{len(jobs)} cases: {counts['done']} done, {counts['skipped']} skipped (done before), {counts['failed']} failed"
        )
        print_line(f"tables: {out / 'cases.csv'}, {out / 'lesions.csv'}; page: {out / 'report.html'}")
        if counts["failed"]:
            raise SystemExit(1)


def compare(
    baseline: Annotated[Path, typer.Argument(help="Mask of the first time point.")],
    followup: Annotated[Path, typer.Argument(help="Mask of the second, of the same patient.")],
    labels: Annotated[
        str | None, typer.Option(help="Names of the label values, like liver=1,tumor=2, when no report says them.")
    ] = None,
    align: Annotated[
        str, typer.Option(help="headers: patient millimetres as they are; organ: by the organ's centroid and extent.")
    ] = "headers",
    baseline_image: Annotated[Path | None, typer.Option(help="The first mask's scan, for the pictures.")] = None,
    followup_image: Annotated[Path | None, typer.Option(help="The second mask's scan.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for compare.html and compare.json.")] = None,
) -> None:
    """Compare two time points of a patient: lesions matched, changes, new and vanished ones, and the RECIST 1.1 category, computed.

    slicemill compare first.nii.gz second.nii.gz --labels liver=1,tumor=2 --out change/
    """
    with report_errors():
        from slicemill.ct.labels import parse_labels
        from slicemill.measure.followup.page import write_comparison
        from slicemill.measure.followup.recist import compared, time_point
        from slicemill.measure.lesions.jobs import job_of, load, source_of

        if align not in ("headers", "organ"):
            raise UsageError(f"--align {align}: choose headers or organ.")
        named = parse_labels(labels) if labels else None
        cases, points = [], []
        for mask, image in ((baseline, baseline_image), (followup, followup_image)):
            if not mask.is_file():
                raise ConfigError(f"{mask}: there is no such file; name a mask of each time point.")
            cases.append(load(job_of(mask, image, named)))
            points.append(time_point(cases[-1].volume))
        found = compared(points[0], points[1], align)  # type: ignore[arg-type]
        if found["lesions"]:
            print_line(format_table(list(found["lesions"][0]), [list(one.values()) for one in found["lesions"]]))
            print_line()
        recist = found["recist"]
        print_line(
            f"tumor volume: {_shown(found['baseline']['tumor_ml'])} to {_shown(found['followup']['tumor_ml'])} ml; aligned by {align}"
        )
        print_line(
            f"RECIST 1.1 category, computed: {recist['category']}; sum of {recist['targets']} target diameters "
            f"{recist['baseline_sum_mm']:.1f} to {recist['followup_sum_mm']:.1f} mm; {recist['new_lesions']} new lesions"
        )
        print_line(found["note"])
        if out is not None:
            write_comparison(out, found, (points[0], points[1]), [source_of(case) for case in cases])
            print_line(f"page: {out / 'compare.html'}; record: {out / 'compare.json'}")


def describe(scores: dict[str, Any]) -> list[str]:
    """Return the lines that sum an evaluation up."""
    lines = [*_regions(scores), *_lesions(scores)]
    answers = [
        (f"by {part}", *scores[f"tumor_by_{part}"].values()) for part in ("case", "slice") if scores[f"tumor_by_{part}"]
    ]
    if answers:
        lines += [
            format_table(["tumor yes/no", "with", "without", "accuracy", "sensitivity", "specificity", "AUC"], answers),
            f"AUC: ranked by {scores['tumor_ranked_by']}",
            "",
        ]
    return lines


def _regions(scores: dict[str, Any]) -> list[str]:
    """Return a table of each region: measure, value, interval."""
    lines = []
    for name, row in scores["regions"].items():
        figures = [
            (key, row[key], *row["intervals"].get(key, (None, None)), row["cases_counted"].get(key))
            for key in row
            if key not in ("intervals", "cases_counted", "cases_without_region", "cases_without_distances")
        ]
        without = (
            f"neither mask has it in {row['cases_without_region']}, no distances in {row['cases_without_distances']}"
        )
        lines += [
            format_table([name, "value", "95 % from", "to", "cases"], figures),
            f"{name}: {scores['cases']} cases, {without}; {scores['empty_regions']}",
            "",
        ]
    lines.append(
        f"mode {scores['mode']}; surface Dice at {scores['tolerance_mm']:g} mm; rvd (P - R) / R, rvd_lits (R - P) / P, by voxels"
    )
    burden = scores["burden"]
    if burden is not None:
        lines.append(
            f"tumor burden: RMSE {_shown(burden['rmse'])}, maximum {_shown(burden['maximum'])} ({burden['maximum_is']}), "
            f"{burden['cases']} cases, {burden['cases_without_organ']} without an organ left out"
        )
    return [*lines, ""]


def _lesions(scores: dict[str, Any]) -> list[str]:
    """Return the tables of lesions: at each threshold, by size, and the free-response curve."""
    lesions = scores["lesions"]
    if lesions is None:
        return []
    rows, sizes = [], []
    for key in ("overlap_above_0", "overlap_above_0.5"):
        row, name = lesions[key], key.replace("_", " ")
        rows.append(
            (
                name,
                *(
                    row[part]
                    for part in ("true_positive", "false_positive", "false_negative", "precision", "recall", "f1")
                ),
            )
        )
        sizes += [(name, size, *counts.values()) for size, counts in row["by_size"].items()]
    curve = lesions["froc"]
    return [
        format_table(["lesions", "found", "false", "missed", "precision", "recall", "F1"], rows),
        f"cases without lesions: {lesions['overlap_above_0']['cases_without_reference_lesion']}; their false lesions count in precision",
        "",
        format_table(["lesions", "size", "found", "references", "false", "F1"], sizes),
        f"sizes: {lesions['overlap_above_0']['sizes']}; false ones by their own size",
        "",
        f"lesion CPM {_shown(curve['cpm'])}, ranked by {curve['score']}: {curve['hit']}; scans without lesions count",
        "",
    ]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
