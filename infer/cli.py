"""The command `infer`, also `slicemill infer`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from store.screen import errors_shown, say, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infer.inputs import Job
    from infer.ledger import Outcome

SHOWN = 40


def infer(
    model: Annotated[Path, typer.Argument(help="ONNX file written by slicemill export.")],
    inputs: Annotated[
        list[str], typer.Argument(help="Scans (.nii, .nii.gz), folders, quoted patterns, or a slice store.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for masks, reports and pictures.")],
    provider: Annotated[
        str, typer.Option(help="auto (CUDA where it starts, else CPU), cpu, cuda or tensorrt.")
    ] = "auto",
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Average over each slice and its mirror images; four times the work.")
    ] = False,
    overlap: Annotated[
        bool, typer.Option("--overlap", help="Average over tiles that overlap by half, where slices need tiles.")
    ] = False,
    probability: Annotated[
        bool, typer.Option("--probability", help="Also write NAME_probability_LABEL for every label.")
    ] = False,
    separate: Annotated[
        bool, typer.Option("--separate", help="Also write NAME_LABEL, 0 and 1, for every label.")
    ] = False,
    no_postprocess: Annotated[
        bool, typer.Option("--no-postprocess", help="Leave the labels as the network gives them.")
    ] = False,
    batch: Annotated[int, typer.Option(help="Slices in a batch; 0 fits the provider.", min=0)] = 0,
    readers: Annotated[int, typer.Option(help="Threads that decode scans; 0 fits the cores.", min=0)] = 0,
    writers: Annotated[int, typer.Option(help="Threads that post-process and write; 0 fits the cores.", min=0)] = 0,
    max_memory: Annotated[
        float, typer.Option(help="GB that the whole process may take; 0 is half of what is free.", min=0)
    ] = 0.0,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Segment again what is done already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be segmented, and stop.")] = False,
) -> None:
    """Segment CT scans in bulk: a mask on each scan's own grid, a JSON report, and a picture to check it by.

    Masks keep the scan's name and tree. The same command again does only what is left. Research software, not a
    medical device.

        infer liver.onnx scans/ --out segmented/
        infer liver.onnx 'scans/*.nii.gz' --out segmented/ --provider cuda
    """
    with errors_shown():
        from infer.inputs import gather
        from infer.ledger import Book
        from infer.model import open_model
        from infer.options import Options
        from infer.pipeline import extra_names, left_to_do
        from infer.pipeline import infer as run
        from infer.views import Manner

        options = Options(
            overwrite=overwrite,
            retry_failed=retry_failed,
            manner=Manner(mirror=mirror, overlap=overlap, probability=probability),
            postprocess=not no_postprocess,
            separate=separate,
            batch=batch,
            readers=readers,
            writers=writers,
            max_memory_gb=max_memory,
        )
        jobs, left_out = gather(inputs)
        opened = open_model(model, provider)  # type: ignore[arg-type]
        info = opened.info
        shape = f"slices {info.size[0]}x{info.size[1]}, context {info.context}, {info.metadata.get('precision')}"
        say(f"model {info.name} ({shape}) on {opened.provider}: {opened.reason}")
        for path, reason in left_out[:SHOWN]:
            say(f"left out: {path}: {reason}")
        if len(left_out) > SHOWN:
            say(f"left out: {len(left_out) - SHOWN} more")
        if dry_run:
            _show_plan(jobs, *left_to_do(jobs, Book(out, opened, options), extra_names(info.labels, options)))
            return
        summary = run(opened, jobs, out, options)
        rows = [
            (outcome.name, outcome.status, outcome.slices, outcome.answer or outcome.reason)
            for outcome in summary.outcomes
        ]
        say(table(["scan", "status", "slices", "answer"], rows))
        say(
            f"{len(jobs)} scans: {summary.count('done')} done, {summary.count('skipped')} skipped (done before), {summary.count('failed')} failed; "
            f"{len(left_out)} files left out; {summary.slices:,} slices in {summary.seconds:.1f} s ({summary.slices / summary.seconds:,.1f} slices/s)"
        )
        say(f"masks, reports and pictures: {out}; summary: {out / 'summary.json'}")
        if summary.count("failed"):
            raise SystemExit(1)


def _show_plan(jobs: "Sequence[Job]", left: "Sequence[Job]", skipped: "Sequence[Outcome]") -> None:
    pending = {job.name for job in left}
    say(table(["scan", "would be"], [(job.name, "segmented" if job.name in pending else "skipped") for job in jobs]))
    say(f"{len(jobs)} scans: {len(left)} to segment, {len(skipped)} done before. Nothing was written (--dry-run).")


def main() -> None:
    """Run `infer` as a command of its own."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name="infer")(infer)
    app()


if __name__ == "__main__":
    main()
