"""The command `infer`, also `slicemill infer`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slicemill.common.errors import UsageError
from slicemill.common.options import parse_shard, require_finite
from slicemill.common.terminal import count_noun, format_table, peak_mib, print_line, report_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slicemill.infer.inputs.jobs import Job, LeftOut
    from slicemill.infer.network.model import Model
    from slicemill.infer.run.ledger import ScanOutcome, Summary
    from slicemill.infer.run.options import InferOptions

SHOWN = 40

ModelFile = Annotated[Path, typer.Argument(help="ONNX file written by slicemill export.")]
Inputs = Annotated[
    list[str] | None,
    typer.Argument(help="Scans (.nii, .nii.gz), folders, quoted patterns, slice stores; paths or URLs."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder for masks, reports and pictures; by default FOLDER-MODEL beside the folder of the scans."
    ),
]
Lists = Annotated[list[str] | None, typer.Option("--list", help="File of inputs, one a line; - is standard input.")]
Shard = Annotated[
    str | None, typer.Option(help="I/N: only every Nth scan, from the Ith on; for job arrays into one folder.")
]
Scheduler = Annotated[
    str | None, typer.Option(help="Address of a Dask scheduler, like tcp://host:8786; one worker a device.")
]
Watch = Annotated[Path | None, typer.Option(help="Segment what arrives in this folder, until Ctrl-C or SIGTERM.")]
Settle = Annotated[
    float,
    typer.Option(
        callback=require_finite, help="Seconds that an arriving file must stay unchanged to count as whole.", min=0
    ),
]
PictureWindow = Annotated[
    str | None, typer.Option(help="LOW,HIGH: HU of black and white of slices given as PNG or JPEG.")
]
ProviderName = Annotated[
    str, typer.Option(help="auto (CUDA where it starts, else CPU), cpu, cuda, tensorrt or openvino.")
]
Mirror = Annotated[
    bool, typer.Option("--mirror", help="Average over each slice and its mirror images; four times the work.")
]
Overlap = Annotated[
    bool, typer.Option("--overlap", help="Average over tiles that overlap by half, where slices need tiles.")
]
Probability = Annotated[bool, typer.Option("--probability", help="Also write NAME_probability_LABEL for every label.")]
Separate = Annotated[bool, typer.Option("--separate", help="Also write NAME_LABEL, 0 and 1, for every label.")]
NoPostprocess = Annotated[bool, typer.Option("--no-postprocess", help="Leave the labels as the network gives them.")]
BatchSize = Annotated[int, typer.Option(help="Slices in a batch; 0 fits the provider.", min=0)]
Readers = Annotated[int, typer.Option(help="Threads that decode scans; 0 fits the cores.", min=0)]
Writers = Annotated[int, typer.Option(help="Threads that post-process and write; 0 fits the cores.", min=0)]
Devices = Annotated[str, typer.Option(help="Numbers of the GPUs that share the work, like 0,1.")]
MaxMemory = Annotated[
    float,
    typer.Option(callback=require_finite, help="GB that the whole process may take; 0 is half of what is free.", min=0),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Segment again what is done already.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be segmented, and stop.")]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Which scans a command is about, where they go, and how their run is driven."""

    model: Path
    provider: str
    out: Path
    options: "InferOptions"
    inputs: "Sequence[str]"
    watch: Path | None
    settle: float
    scheduler: str | None
    part: tuple[int, int] | None
    window: str | None
    dry_run: bool

    def __post_init__(self) -> None:
        """Check that the options fit together."""
        from slicemill.infer.runtime.capacity import HOSTS
        from slicemill.infer.runtime.providers import check_name

        check_name(self.provider)
        if self.provider in HOSTS and self.options.devices != (0,):
            numbers = ",".join(map(str, self.options.devices))
            raise UsageError(
                f"--devices {numbers}: {self.provider} runs on one device, the processor; leave --devices out."
            )
        if bool(self.inputs) == (self.watch is not None):
            raise UsageError("name scans, folders, patterns or stores, or a --list of them; or --watch a folder.")
        if self.watch is not None and (self.scheduler or self.part or self.dry_run or self.window):
            raise UsageError("--watch takes no --scheduler, --shard, --dry-run, and no pictures with their --window.")


def infer(
    model: ModelFile,
    inputs: Inputs = None,
    out: Out = None,
    lists: Lists = None,
    shard: Shard = None,
    scheduler: Scheduler = None,
    watch: Watch = None,
    settle: Settle = 5.0,
    window: PictureWindow = None,
    provider: ProviderName = "auto",
    mirror: Mirror = False,
    overlap: Overlap = False,
    probability: Probability = False,
    separate: Separate = False,
    no_postprocess: NoPostprocess = False,
    batch: BatchSize = 0,
    readers: Readers = 0,
    writers: Writers = 0,
    devices: Devices = "0",
    max_memory: MaxMemory = 0.0,
    retry_failed: RetryFailed = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Segment CT scans in bulk: a mask on each scan's own grid, a JSON report, and a picture to check it by.

    Masks keep the scan's name and tree. The same command again does only what is left. Research software, not a
    medical device.

        infer liver.onnx scans/                       # into scans-liver/
        infer liver.onnx scans/ --out segmented/
        infer liver.onnx 'scans/*.nii.gz' --out segmented/ --provider cuda
    """
    with report_errors():
        from slicemill.infer.inputs.gather import read_list
        from slicemill.infer.run.options import InferOptions
        from slicemill.infer.slices.tiles import Manner

        part = parse_shard(shard)
        options = InferOptions(
            overwrite=overwrite, retry_failed=retry_failed, postprocess=not no_postprocess, separate=separate,
            manner=Manner(mirror=mirror, overlap=overlap, probability=probability),
            batch=batch, readers=readers, writers=writers, devices=_numbers(devices), max_memory_gb=max_memory,
            part="" if part is None else f"-{part[0]}-of-{part[1]}",
        )  # fmt: skip
        given = [*(inputs or []), *(line for path in lists or [] for line in read_list(path))]
        if out is None and (watch or given):  # without either, `_Asked` says what is missing
            out = beside([str(watch)] if watch else given, model)
        asked = _Asked(
            model=model, provider=provider, out=out or Path(), options=options, inputs=given,
            watch=watch, settle=settle, scheduler=scheduler, part=part, window=window, dry_run=dry_run,
        )  # fmt: skip
        _segment(asked)


def tune(
    model: ModelFile,
    store: Annotated[str, typer.Argument(help="Slice store of cases with reference segmentations.")],
    split: Annotated[
        Path | None,
        typer.Option(help="Split of a training run: choose on its validation cases; else on all cases of the store."),
    ] = None,
    provider: ProviderName = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be chosen, and write nothing.")] = False,
) -> None:
    """Choose a model's post-processing by its Dice on validation cases, and write it into the model file.

    Largest organ, holes, tumor far from the organ, least volume and least probability of a lesion. Flavors of the model
    beside it are written, too. A model file that is changed is another model: the next `infer` segments all scans again, and
    TensorRT builds its engine anew.

        slicemill tune liver.onnx store/ --split run/split.json
    """
    with report_errors():
        from slicemill.common.progress import progress
        from slicemill.infer import tune as rules
        from slicemill.infer.network.model import open_model
        from slicemill.infer.run.options import InferOptions
        from slicemill.infer.run.pipeline import where_of
        from slicemill.store.reader import open_store

        files = rules.flavors_beside(model)
        if not dry_run:
            rules.check_writable(model)
        opened, held = open_model(model, provider), open_store(store)  # type: ignore[arg-type]
        cases = rules.cases_of(held, split)
        print_line(f"model {opened.info.name} on {where_of(opened, InferOptions())}")
        with progress("tune", len(cases), "cases") as advance:
            tuned = rules.tune(opened, held, cases, lambda case_id: advance(1, case_id))
        print_line(f"{count_noun(len(cases), 'case')} of {store}")
        rows = [
            (name, f"{one.organ:.4f}", f"{one.tumor:.4f}", *one.rules.as_json().values())
            for name, one in (("before", tuned.before), ("chosen", tuned.chosen))
        ]
        print_line(format_table(["", "organ Dice", "tumor Dice", *tuned.chosen.rules.as_json()], rows))
        if dry_run:
            print_line(f"nothing was written; as TOML: {rules.as_toml(tuned.chosen.rules)}")
        elif tuned.chosen.rules == tuned.before.rules:
            print_line("nothing else is better: the model stays as it is")
        else:
            rules.write_rules(files, tuned)
            print_line(f"written: {', '.join(map(str, files))}")


def beside(given: "Sequence[str]", model: Path) -> Path:
    """Return the folder for what a model makes of scans, beside theirs: ``scans-liver`` for ``liver.onnx`` on ``scans``, or on files in it.

    Raises
    ------
    UsageError
        The scans are not one folder or store, or files, that lie here, or nothing can be kept beside them.
    """
    from slicemill.common.files import parse_location
    from slicemill.store.model_card import network_name

    places = [parse_location(one) for one in given]
    local = [Path(os.path.abspath(place)) for place in places if isinstance(place, Path)]  # noqa: PTH100 (links are kept)
    if local and not any(place.is_dir() for place in local):
        local = [Path(os.path.commonpath([place.parent for place in local]))]
    elif len(places) > 1:
        local = []
    if any(not isinstance(place, Path) for place in places) or not local or not local[0].is_dir():
        raise UsageError(
            "--out is missing: name a folder for masks, reports and pictures. Only one folder or store that lies here, or files, have one "
            "beside theirs by default."
        )
    (folder,) = local
    if not folder.name or os.path.ismount(folder) or not os.access(folder.parent, os.W_OK):
        raise UsageError(
            f"--out is missing: nothing can be kept beside {folder}; name a folder for masks, reports and pictures."
        )
    return folder.with_name(f"{folder.name}-{network_name(model)}")


def _segment(asked: _Asked) -> None:
    """Do what was asked for, and show what came of it; exit 1 where a scan failed."""
    from slicemill.infer.run.ledger import RunLedger
    from slicemill.infer.run.outputs import extra_names
    from slicemill.infer.run.pipeline import left_to_do

    options = asked.options
    jobs, left_out = _gathered(asked)
    opened = _opened(asked)
    _show_left_out(left_out)
    if asked.dry_run:
        book = RunLedger(asked.out, opened, options)
        _show_plan(jobs, *left_to_do(jobs, book, extra_names(opened.info.labels, options)))
        return
    summary = _driven(asked, opened, jobs, left_out)
    _show_summary(summary, asked.out, asked.out / f"summary{options.part}.json")
    if summary.count("failed"):
        raise SystemExit(1)


def _gathered(asked: _Asked) -> "tuple[list[Job], LeftOut]":
    """Return the jobs of this part, and its share of the files that are left out."""
    from slicemill.infer.inputs.gather import gather
    from slicemill.store.to_slices import parse_window

    jobs, left_out = gather(asked.inputs, parse_window(asked.window) if asked.window else None)
    first, step = asked.part or (0, 1)
    return jobs[first::step], left_out[first::step]


def _opened(asked: _Asked) -> "Model":
    """Open the model, on the CPU where workers of a scheduler run it, and say on what it runs."""
    from slicemill.infer.network.model import file_for, open_model
    from slicemill.infer.run.pipeline import where_of

    provider, scheduler = asked.provider, asked.scheduler
    if scheduler:
        opened = open_model(file_for(asked.model, provider), "cpu", batch=asked.options.batch)
    else:
        opened = open_model(asked.model, provider, asked.options.devices[0], asked.options.batch)  # type: ignore[arg-type]
    info = opened.info
    shape = f"slices {info.size[0]}x{info.size[1]}, context {info.context}, {info.card.precision}"
    where = f"the workers of {scheduler}: {provider}" if scheduler else where_of(opened, asked.options)
    most = asked.options.max_memory_gb
    memory = f"{most:g} GB at most" if most else "scans take half of the free memory at most"
    print_line(f"model {info.name} ({shape}) on {where}; {memory}; into {asked.out}")
    return opened


def _driven(asked: _Asked, opened: "Model", jobs: "Sequence[Job]", left_out: "LeftOut") -> "Summary":
    """Segment what arrives, or on a cluster, or here."""
    if asked.watch is not None:
        from slicemill.infer.run.ledger import RunLedger
        from slicemill.infer.run.watch import until_signalled, watch

        print_line(f"watching {asked.watch}; Ctrl-C ends it once what was begun is finished")
        with until_signalled() as ended:
            return watch(opened, asked.watch, RunLedger(asked.out, opened, asked.options), ended, asked.settle)
    if asked.scheduler is not None:
        from slicemill.infer.run.cluster import infer_on
        from slicemill.infer.run.ledger import RunLedger

        book = RunLedger(asked.out, opened, asked.options)
        return infer_on(asked.scheduler, opened, asked.provider, jobs, book, left_out)  # type: ignore[arg-type]
    from slicemill.infer.run.pipeline import infer as run

    return run(opened, jobs, asked.out, asked.options, left_out)


def _show_left_out(left_out: "LeftOut") -> None:
    for path, reason in left_out[:SHOWN]:
        print_line(f"left out: {path}: {reason}")
    if len(left_out) > SHOWN:
        print_line(f"left out: {len(left_out) - SHOWN} more")


def _show_summary(summary: "Summary", out: Path, written: Path) -> None:
    rows = [
        (outcome.name, outcome.status, outcome.slices, outcome.answer or outcome.reason) for outcome in summary.outcomes
    ]
    print_line(format_table(["scan", "status", "slices", "answer"], rows))
    done, skipped, failed = (summary.count(status) for status in ("done", "skipped", "failed"))
    print_line(
        f"{len(rows)} scans: {done} done, {skipped} skipped (done before), {failed} failed; {len(summary.left_out)} files left out; "
        f"{summary.slices:,} slices in {summary.seconds:.1f} s ({summary.slices / summary.seconds:,.1f} slices/s)"
        + (f" on {summary.provider}" if summary.provider else "")
    )
    if summary.slices:
        stages = sorted(summary.stages.items(), key=lambda item: -item[1]["seconds"])
        print_line(
            format_table(
                ["stage", "seconds of all threads", "share"],
                [(name, f"{row['seconds']:.1f}", f"{row['share']:.0%}") for name, row in stages],
            )
        )
        print_line(
            f"the network ran {summary.device_busy:.0%} of the run; peak memory of this process: {peak_mib():,.0f} MiB"
        )
    print_line(f"masks, reports and pictures: {out}; summary: {written}")


def _numbers(text: str) -> tuple[int, ...]:
    if not all(number.strip().isdecimal() for number in text.split(",")):
        raise UsageError(f"--devices {text}: expected numbers of GPUs, each once, like 0,1.")
    return tuple(int(number) for number in text.split(","))


def _show_plan(jobs: "Sequence[Job]", left: "Sequence[Job]", known: "Sequence[ScanOutcome]") -> None:
    outcomes = {outcome.name: outcome for outcome in known}
    rows = [
        (job.name, outcomes[job.name].status, outcomes[job.name].reason)
        if job.name in outcomes
        else (job.name, "segmented", "")
        for job in jobs
    ]
    print_line(format_table(["scan", "would be", "because"], rows))
    failed = sum(outcome.status == "failed" for outcome in known)
    print_line(
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
