"""The command `infer`, also `slicemill infer`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from store.screen import errors_shown, say, table
from store.shard import shard_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infer.inputs import Job
    from infer.ledger import Outcome, Summary

SHOWN = 40


def infer(
    model: Annotated[Path, typer.Argument(help="ONNX file written by slicemill export.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Scans (.nii, .nii.gz), folders, quoted patterns, slice stores; paths or URLs."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for masks, reports and pictures.")] = ...,  # type: ignore[assignment]
    lists: Annotated[
        list[str] | None, typer.Option("--list", help="File of inputs, one a line; - is standard input.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="I/N: only every Nth scan, from the Ith on; for job arrays into one folder.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, like tcp://host:8786; one worker a device.")
    ] = None,
    watch: Annotated[
        Path | None, typer.Option(help="Segment what arrives in this folder, until Ctrl-C or SIGTERM.")
    ] = None,
    settle: Annotated[
        float, typer.Option(help="Seconds that an arriving file must stay unchanged to count as whole.", min=0)
    ] = 5.0,
    window: Annotated[
        str | None, typer.Option(help="LOW,HIGH: HU of black and white of slices given as PNG or JPEG.")
    ] = None,
    provider: Annotated[
        str, typer.Option(help="auto (CUDA where it starts, else CPU), cpu, cuda, tensorrt or openvino.")
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
    devices: Annotated[str, typer.Option(help="Numbers of the GPUs that share the work, like 0,1.")] = "0",
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
        from infer.gather import gather, read_list
        from infer.ledger import Book
        from infer.model import file_for, open_model
        from infer.options import Options
        from infer.pipeline import infer as run
        from infer.pipeline import left_to_do
        from infer.places import extra_names
        from infer.views import Manner
        from store.slices import parse_window

        part = shard_of(shard)
        options = Options(
            overwrite=overwrite,
            retry_failed=retry_failed,
            manner=Manner(mirror=mirror, overlap=overlap, probability=probability),
            postprocess=not no_postprocess,
            separate=separate,
            batch=batch,
            readers=readers,
            writers=writers,
            devices=_numbers(devices),
            part="" if part is None else f"-{part[0]}-of-{part[1]}",
            max_memory_gb=max_memory,
        )
        given = [*(inputs or []), *(line for path in lists or [] for line in read_list(path))]
        if bool(given) == (watch is not None):
            raise typer.BadParameter(
                "name scans, folders, patterns or stores, or a --list of them; or --watch a folder."
            )
        if watch is not None and (scheduler or shard or dry_run or window):
            raise typer.BadParameter(
                "--watch takes no --scheduler, --shard, --dry-run, and no pictures with their --window."
            )
        jobs, left_out = gather(given, parse_window(window) if window else None)
        if part is not None:
            jobs, left_out = jobs[part[0] :: part[1]], left_out[part[0] :: part[1]]
        file, here = (file_for(model, provider), "cpu") if scheduler else (model, provider)
        opened = open_model(file, here, options.devices[0], options.batch)  # type: ignore[arg-type]
        info = opened.info
        shape = f"slices {info.size[0]}x{info.size[1]}, context {info.context}, {info.metadata.get('precision')}"
        where = f"the workers of {scheduler}: {provider}" if scheduler else f"{opened.provider}: {opened.reason}"
        say(f"model {info.name} ({shape}) on {where}")
        for path, reason in left_out[:SHOWN]:
            say(f"left out: {path}: {reason}")
        if len(left_out) > SHOWN:
            say(f"left out: {len(left_out) - SHOWN} more")
        if dry_run:
            _show_plan(jobs, *left_to_do(jobs, Book(out, opened, options), extra_names(info.labels, options)))
            return
        if watch is not None:
            from infer.inbox import until_signalled
            from infer.inbox import watch as segment_arrivals

            say(f"watching {watch}; Ctrl-C ends it once what was begun is finished")
            with until_signalled() as ended:
                summary = segment_arrivals(opened, watch, Book(out, opened, options), ended, settle)
        elif scheduler is not None:
            from infer.cluster import infer_on

            summary = infer_on(scheduler, opened, provider, jobs, Book(out, opened, options))  # type: ignore[arg-type]
        else:
            summary = run(opened, jobs, out, options)
        _show_summary(summary, len(left_out), out, out / f"summary{options.part}.json")
        if summary.count("failed"):
            raise SystemExit(1)


def _show_summary(summary: "Summary", left_out: int, out: Path, written: Path) -> None:
    rows = [
        (outcome.name, outcome.status, outcome.slices, outcome.answer or outcome.reason) for outcome in summary.outcomes
    ]
    say(table(["scan", "status", "slices", "answer"], rows))
    done, skipped, failed = (summary.count(status) for status in ("done", "skipped", "failed"))
    say(
        f"{len(rows)} scans: {done} done, {skipped} skipped (done before), {failed} failed; {left_out} files left out; "
        f"{summary.slices:,} slices in {summary.seconds:.1f} s ({summary.slices / summary.seconds:,.1f} slices/s)"
    )
    say(f"masks, reports and pictures: {out}; summary: {written}")


def _numbers(text: str) -> tuple[int, ...]:
    from store.errors import ConfigError

    if not all(number.strip().isdecimal() for number in text.split(",")):
        raise ConfigError(f"--devices {text}: expected numbers of GPUs, each once, like 0,1.")
    return tuple(int(number) for number in text.split(","))


def _show_plan(jobs: "Sequence[Job]", left: "Sequence[Job]", known: "Sequence[Outcome]") -> None:
    outcomes = {outcome.name: outcome for outcome in known}
    rows = [
        (job.name, outcomes[job.name].status, outcomes[job.name].reason)
        if job.name in outcomes
        else (job.name, "segmented", "")
        for job in jobs
    ]
    say(table(["scan", "would be", "because"], rows))
    failed = sum(outcome.status == "failed" for outcome in known)
    say(
        f"{len(jobs)} scans: {len(left)} to segment, {len(known) - failed} done before, {failed} would fail. "
        "Nothing was written (--dry-run)."
    )


def main() -> None:
    """Run `infer` as a command of its own."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name="infer")(infer)
    app()


if __name__ == "__main__":
    main()
