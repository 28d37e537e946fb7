"""The commands `infer`, also `slicemill infer`, and `slicemill tune`."""

import inspect
from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slicemill.common.app import App
from slicemill.common.left_out import SHOWN, print_left_out
from slicemill.common.memory_limits import ONNX, bound_thread_starts
from slicemill.common.options import Json
from slicemill.common.output import current_output
from slicemill.common.signals import leave_at_once_after_signals
from slicemill.common.terminal import (
    count_noun,
    format_table,
    peak_mib,
    print_always,
    print_json,
    print_line,
    print_lines,
)
from slicemill.infer.request import InferRequest, ModelFile, ProviderName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slicemill.infer.inputs.jobs import Job
    from slicemill.infer.network.model import Model
    from slicemill.infer.run.summary import ScanOutcome, Summary


def _take_fields(request: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Use the fields of a dataclass as a command's parameters, so that every option is declared once."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(request).replace(return_annotation=None)
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
        return command

    return decorate


@_take_fields(InferRequest)
def infer(**fields: Any) -> None:
    """Segment CT scans in bulk: a mask on each scan's grid, a JSON report, and a preview picture.

    Masks keep the scan's name and folder tree. Run the same command again to continue. Research software, not a
    medical device.

        infer liver.onnx scans/                       # into scans-liver/
        infer liver.onnx scans/ --out segmented/
        infer liver.onnx 'scans/*.nii.gz' --out segmented/ --provider cuda
    """
    request = InferRequest(**fields)
    request.check()
    _segment(request)


def tune(
    model: ModelFile,
    store: Annotated[str, typer.Argument(help="Slice store of cases with reference segmentations.")],
    split: Annotated[
        Path | None,
        typer.Option(help="Split file of a training run: use its validation cases; default: all cases of the store."),
    ] = None,
    provider: ProviderName = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the chosen rules without writing them.")] = False,
    json: Json = False,
) -> None:
    """Choose a model's post-processing by its Dice on validation cases, and write it into the model file.

    Rules: largest organ, holes, tumor far from the organ, minimum volume, mean and largest probability of a lesion; or,
    with 20 lesions of tumor and 20 others at least, a rule that is fitted to volume, probabilities, HU, depth in the
    organ and shape of a lesion. Flavors of the model in the same folder are updated, too. Changing a model file makes a
    new model: the next `infer` segments all scans again, and TensorRT builds a new engine.

        slicemill tune liver.onnx store/ --split run/split.json

    A classifier of candidates is calibrated, and its thresholds for 1 and 4 false alarms a scan are chosen, on the
    candidates of the store. On the store that it was trained on, --split is required. In a file NAME.nodules of both
    models, the classifier is tuned; tune its segmentation model before `export` adds it.

        slicemill tune classifier.onnx store/ --split runs/nodules/split.json
        slicemill tune lung.nodules store/ --split runs/nodules/split.json
    """
    if _is_classifier(model):
        _tune_classifier(model, store, split, provider, dry_run=dry_run, json=json)
        return
    from slicemill.common.progress import progress
    from slicemill.infer import tune as rules
    from slicemill.infer.network.model import open_model
    from slicemill.infer.run.options import InferOptions
    from slicemill.infer.run.pipeline import describe_device
    from slicemill.store.reader import open_store

    files = rules.find_flavors(model)
    if not dry_run:
        rules.check_writable(model)
    opened, reference = open_model(model, provider), open_store(store)
    cases = rules.choose_cases(reference, split)
    print_line(f"model {opened.info.name} on {describe_device(opened, InferOptions())}")
    with progress("tune", len(cases), "cases") as advance:
        tuned = rules.tune(opened, reference, cases, lambda case_id: advance(1, case_id))
    print_line(f"{count_noun(len(cases), 'case')} of {store}")
    rows = [
        (name, _format_dice(one.organ), _format_dice(one.tumor), *rules.show_rules(one.rules).values())
        for name, one in (("before", tuned.before), ("chosen", tuned.chosen))
    ]
    print_lines(format_table(["", "organ Dice", "tumor Dice", *rules.show_rules(tuned.chosen.rules)], rows))
    if tuned.fit:
        print_line(tuned.fit)
    for gap in rules.find_gaps(opened.info.labels, tuned.before):
        print_line(gap)
    if dry_run:
        print_line(f"nothing was written; as TOML: {rules.as_toml(tuned.chosen.rules)}")
    elif tuned.chosen.rules == tuned.before.rules:
        print_line("no other rules are better: the model is unchanged")
    else:
        rules.write_rules(files, tuned)
        print_line(f"written: {', '.join(map(str, files))}")
    if json:
        is_written = not dry_run and tuned.chosen.rules != tuned.before.rules
        scores = tuned.as_json()
        rules_before, rules_chosen = tuned.before.rules.as_json(), tuned.chosen.rules.as_json()
        print_json(
            {
                "cases": list(tuned.cases),
                "before": {**scores["before"], "rules": rules_before},
                "chosen": {**scores["chosen"], "rules": rules_chosen},
                "fit": tuned.fit,
                "written": [str(path) for path in files] if is_written else [],
            }
        )


def _is_classifier(path: Path) -> bool:
    """Return whether the thresholds of a classifier are to be chosen: it is one, or a file of both models."""
    from slicemill.common.files import parse_json, read_file
    from slicemill.infer.runtime.onnx_file import read_metadata
    from slicemill.store.crop_card import is_crop_metadata
    from slicemill.store.model_card import METADATA_KEY
    from slicemill.store.nodules_file import BUNDLE_SUFFIX

    if path.suffix == BUNDLE_SUFFIX:
        return True
    try:
        return is_crop_metadata(parse_json(read_metadata(read_file(path), METADATA_KEY) or "{}"))
    except (OSError, ValueError):  # opening the model explains it
        return False


def _tune_classifier(
    model: Path, store: str, split: Path | None, provider: ProviderName, *, dry_run: bool, json: bool
) -> None:
    """Calibrate a classifier, choose its thresholds, and write both into its file."""
    from dataclasses import asdict

    from slicemill.common.progress import progress
    from slicemill.ct.points import has_ratings
    from slicemill.infer import tune_classifier as thresholds
    from slicemill.infer.calibration import NotCalibrated, describe_calibration
    from slicemill.infer.malignancy import describe_malignancy_fit
    from slicemill.store.crop_card import CropTuning
    from slicemill.store.reader import open_store

    opened = thresholds.open_tunable(model, provider)
    opened_store = open_store(store)
    cases = thresholds.choose_judged_cases(opened_store, split, opened.card)
    ratings = has_ratings(point.malignancy for case in opened_store.values() for point in case.points or ())
    with progress("tune", len(cases), "cases") as advance:
        chosen = thresholds.tune_classifier(opened, cases, lambda case_id: advance(1, case_id), ratings=ratings)
    print_line(f"{count_noun(len(cases), 'case')} of {store}{', its validation part' if split else ''}")
    if not split:
        print_line("all cases: thresholds are too good if patients of the training are among them")
    rows = [
        (one.rate, f"{one.threshold:.4f}", f"{one.false_alarms:.2f}", f"{one.detected} of {one.nodules}")
        for one in chosen.thresholds
    ]
    print_lines(format_table(["false alarms a scan, at most", "threshold", "false alarms a scan", "nodules"], rows))
    for line in [*describe_calibration(chosen.calibration), *describe_malignancy_fit(chosen.malignancy)]:
        print_line(line)
    if not dry_run:
        nodules = chosen.thresholds[0].nodules
        tuned = CropTuning(cases=len(cases), part="validation" if split else "all", nodules=nodules)
        thresholds.write_tuning(model, opened.card, chosen, tuned)
    print_line("nothing was written (--dry-run)" if dry_run else f"written: {model}")
    if json:
        print_json(
            {
                "cases": [case.case_id for case in cases],
                "thresholds": [asdict(one) for one in chosen.thresholds],
                "calibration": None if isinstance(chosen.calibration, NotCalibrated) else chosen.calibration,
                "malignancy_calibration": None if isinstance(chosen.malignancy, NotCalibrated) else chosen.malignancy,
                "written": [] if dry_run else [str(model)],
            }
        )


def _format_dice(dice: float) -> str:
    return "-" if isnan(dice) else f"{dice:.4f}"


def _segment(request: InferRequest) -> None:
    """Segment the scans of a request and show the result; exit 1 if a scan failed."""
    out = request.out_folder
    jobs, left_out = request.find_jobs()
    opened = request.open_model()
    print_line(_describe_model(request, opened))
    print_left_out(left_out)
    if request.dry_run:
        _show_plan(request, opened, jobs)
        return
    if request.watch is not None:
        print_line(f"watching {request.watch}; press Ctrl-C to finish the scans in progress and stop")
    summary = request.run(opened, jobs, left_out)
    _show_summary(summary, out, out / f"summary{request.options.part}.json")
    if request.has_candidates:
        print_line(f"candidates: {out / f'candidates{request.options.part}.html'}")
    if request.json:
        from slicemill.infer.run.summary import make_document

        print_json(make_document(opened, summary))
    if summary.count("failed"):
        raise SystemExit(1)


def _describe_model(request: InferRequest, opened: "Model") -> str:
    """Return a line about the model, its device and the output folder."""
    from slicemill.infer.run.pipeline import describe_device

    info, scheduler, options = opened.info, request.scheduler, request.options
    shape = f"slices {info.size[0]}x{info.size[1]}, context {info.context}, {info.card.precision}"
    where = f"the workers of {scheduler}: {request.provider}" if scheduler else describe_device(opened, options)
    most_gb = options.max_memory_gb
    memory = f"at most {most_gb:g} GB" if most_gb else "scans use at most half of the free memory"
    line = f"model {info.name} ({shape}) on {where}; {memory}; output: {request.out_folder}"
    if not request.dicom.endings():
        return line
    from slicemill.ct.formats.dicom_objects.codes import choose_codes

    line += f"\nDICOM results carry patient and study of their series: {request.dicom.flags()}"
    warning = choose_codes(info.labels, request.dicom.codes)[1]
    return f"{line}\nwarning: labels {warning}" if warning else line


def _show_summary(summary: "Summary", out: Path, written: Path) -> None:
    outcomes = summary.outcomes
    rows = [(one.name, one.status, one.slices, one.answer or one.reason) for one in outcomes]
    print_lines(format_table(["scan", "status", "slices", "answer"], rows))
    if current_output().quiet:
        for one in outcomes:
            if one.status == "failed":
                print_always(f"failed: {one.name}: {one.reason}")
    warned = [one for one in outcomes if one.warnings]
    shown = len(warned) if current_output().verbose else SHOWN
    for one in warned[:shown]:
        print_line(f"warning: {one.name}: {one.warnings}")
    if len(warned) > shown:
        print_line(f"warning: {len(warned) - shown} more scans; see the column warnings of the summary")
    done, skipped, failed = (summary.count(status) for status in ("done", "skipped", "failed"))
    print_line(
        f"{len(rows)} scans: {done} done, {skipped} skipped (done before), {failed} failed; "
        f"{len(summary.left_out)} files left out; "
        f"{summary.slices:,} slices in {summary.seconds:.1f} s ({summary.slices / summary.seconds:,.1f} slices/s)"
        + (f", {summary.labeled:,} labeled" if summary.labeled < summary.slices else "")
        + (f" on {summary.provider}" if summary.provider else "")
    )
    if summary.slices:
        stages = sorted(summary.stages.items(), key=lambda item: -item[1].seconds)
        times = [(name, f"{time.seconds:.1f}", f"{time.share:.0%}") for name, time in stages]
        print_lines(format_table(["stage", "seconds of all threads", "share"], times))
        print_line(
            f"the network ran {summary.device_busy:.0%} of the run; peak memory of this process: {peak_mib():,.0f} MiB"
        )
    print_line(f"masks, reports and pictures: {out}; summary: {written}")


def _show_plan(request: InferRequest, opened: "Model", jobs: "Sequence[Job]") -> None:
    """Show what a run would do."""
    from slicemill.infer.run.ledger import RunLedger
    from slicemill.infer.run.outputs import extra_names
    from slicemill.infer.run.pipeline import select_jobs

    ledger = RunLedger(request.out_folder, opened, request.options)
    left, known = select_jobs(jobs, ledger, extra_names(opened.info.labels, request.options))
    outcomes: dict[str, ScanOutcome] = {outcome.name: outcome for outcome in known}
    rows = [
        (job.name, outcomes[job.name].status, outcomes[job.name].reason)
        if job.name in outcomes
        else (job.name, "segmented", "")
        for job in jobs
    ]
    print_lines(format_table(["scan", "would be", "because"], rows))
    failed = sum(outcome.status == "failed" for outcome in known)
    print_line(
        f"{len(jobs)} scans: {len(left)} to segment, {len(known) - failed} done before, {failed} would fail. "
        "Nothing was written (--dry-run)."
    )
    if request.json:
        print_json([{"name": name, "would_be": status, "reason": reason} for name, status, reason in rows])


def main() -> None:
    """Run `infer` as a separate command."""
    app = App(name="infer")
    bound_thread_starts()
    app.command("infer", need=ONNX)(infer)
    with leave_at_once_after_signals():
        app(prog_name="infer")


if __name__ == "__main__":
    main()
