"""The commands `slicemill info | phantom | demo | doctor`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from slicemill.common.errors import UsageError
from slicemill.common.options import Json, require_finite
from slicemill.common.terminal import print_always, print_json, print_line, print_lines

Provider = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
"""As in `slicemill.infer.runtime.providers`, whose import would slow down ``--help``."""


def info(
    path: Annotated[
        str, typer.Argument(help="A NIfTI file, a slice store (folder or s3:// URL), an ONNX model, or a run folder.")
    ],
    json: Json = False,
) -> None:
    """Show what a file or folder is: a scan, a slice store, a model, or a training run.

    slicemill info ct.nii.gz
    slicemill info s3://bucket/lits-store
    slicemill info liver.onnx --json
    """
    from slicemill.common.files import parse_location
    from slicemill.info import describe, summarize
    from slicemill.store.cli import print_info
    from slicemill.store.reader import is_store

    location = parse_location(path)
    if is_store(location):
        print_info(path, json=json)
        return
    summary = summarize(location)
    if json:
        print_json(summary)
        return
    for line in describe(summary):
        print_always(line)


def phantom(
    folder: Annotated[Path, typer.Argument(help="Folder to write the collection into.")],
    cases: Annotated[int, typer.Option(help="Number of scans.", min=1)] = 12,
    size: Annotated[
        int | None,
        typer.Option(help="Pixels along a slice's side; 128 by default, 256 with --lungs.", min=32, max=1024),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same scans.", min=0)] = 0,
    trunk: Annotated[
        bool, typer.Option("--trunk", help="From hips to shoulders: the liver in about a third of the slices.")
    ] = False,
    small_tumors: Annotated[
        bool, typer.Option("--small-tumors", help="Half of the tumors have a radius of 4 to 8 mm: 0.3 to 2 ml.")
    ] = False,
    lungs: Annotated[
        bool,
        typer.Option("--lungs", help="Chests with lung nodules in the form of LUNA16: scans, lungs, annotations.csv."),
    ] = False,
    nodules: Annotated[
        int | None,
        typer.Option(
            show_default="drawn as in LUNA16, 1.3 on average",
            help="With --lungs: so many nodules in each chest, to train on.",
            min=0,
            max=12,
        ),
    ] = None,
    insert_into: Annotated[
        Path | None, typer.Option(help="With --lungs: put nodules into this real chest CT instead of synthetic ones.")
    ] = None,
    lungs_mask: Annotated[Path | None, typer.Option(help="Mask of the lungs of --insert-into, on its grid.")] = None,
    workers: Annotated[int, typer.Option(help="With --lungs: processes that draw chests; 0: all cores.", min=0)] = 0,
) -> None:
    """Make a collection of synthetic CTs: abdomens with liver and tumors, named as in LiTS, or chests with nodules.

    slicemill phantom phantoms/ --cases 12
    slicemill phantom chests/ --lungs --cases 12
    slicemill phantom inserted/ --lungs --insert-into ct.mha --lungs-mask lungs.mha
    """
    if lungs and (trunk or small_tumors):
        option = "--trunk" if trunk else "--small-tumors"
        raise UsageError(f"{option} and --lungs are different collections. Pass one of them.")
    if (insert_into is None) != (lungs_mask is None):
        raise UsageError("--insert-into and --lungs-mask belong together. Pass both.")
    if nodules is not None and (not lungs or insert_into is not None):
        raise UsageError("--nodules needs --lungs, and does not apply to --insert-into.")
    if workers and (not lungs or insert_into is not None):
        raise UsageError("--workers needs --lungs, and does not apply to --insert-into.")
    if insert_into is not None and lungs_mask is not None:
        if not lungs or size is not None:
            raise UsageError("--insert-into needs --lungs, and takes the size of the scan: pass no --size.")
        _write_inserted(folder, cases, seed, insert_into, lungs_mask)
        return
    if lungs:
        _write_chests(folder, cases, size, seed, nodules, workers)
        return
    from slicemill.common.progress import progress
    from slicemill.ct.phantom import write_collection

    with progress("phantoms", cases, "cases") as advance:
        options = {"trunk": trunk, "small_tumors": small_tumors}
        for image, _ in write_collection(folder, cases=cases, size=size or 128, seed=seed, **options):
            advance(1, image.name)
    print_line(f"{cases} synthetic CTs with masks (1 liver, 2 tumor): {folder}")


def _write_chests(folder: Path, cases: int, size: int | None, seed: int, nodules: int | None, workers: int) -> None:
    """Write chests with lung nodules."""
    from contextlib import closing

    from slicemill.common.machine import count_workers
    from slicemill.common.progress import progress
    from slicemill.ct.chest.collection import ChestSettings, write_chests
    from slicemill.ct.chest.spec import DEFAULT_SIZE, FIELD_MM, SMALLEST_SIZE

    size = size or DEFAULT_SIZE
    if size < SMALLEST_SIZE:
        raise UsageError(
            f"--size must be at least {SMALLEST_SIZE} with --lungs; it is {size}: "
            f"at {FIELD_MM / size:.1f} mm a pixel the smallest nodules do not show."
        )
    settings = ChestSettings(seed=seed, size=size, nodules=nodules)
    written = write_chests(folder, settings, cases, count_workers(workers))
    with progress("chests", cases, "cases") as advance, closing(written):
        for name in written:
            advance(1, name)
    print_line(f"{cases} synthetic chest CTs with masks of lungs and nodules, and annotations.csv: {folder}")


def _write_inserted(folder: Path, cases: int, seed: int, scan: Path, mask: Path) -> None:
    """Write copies of a scan with nodules put into them."""
    from slicemill.common.progress import progress
    from slicemill.ct.chest.inserted import read_real_chest, write_inserted

    real = read_real_chest(scan, mask)
    with progress("nodules", cases, "scans") as advance:
        for name in write_inserted(folder, real, seed, cases):
            advance(1, name)
    print_line(f"{cases} copies of {scan.name} with nodules put in, and annotations.csv: {folder}")


def demo(
    out: Annotated[
        Path | None, typer.Option(show_default="demo, or nodules with --lungs", help="Output folder.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Your collection, instead of phantoms.")] = None,
    labels: Annotated[str | None, typer.Option(help="Names of the label values, like tumor=1.")] = None,
    lungs: Annotated[
        bool, typer.Option("--lungs", help="Chests with nodules: find them, judge them, and score both by FROC.")
    ] = False,
    cases: Annotated[
        int | None, typer.Option(help="Phantoms to make: 36 by default; with --lungs 18, and 8 for tests.", min=12)
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of the training. By default 6 epochs of phantoms, or 4 minutes of --data.", min=1),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(callback=require_finite, help="Time limit of the training, minutes. Phantoms have none."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings of the training, as TOML.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of phantoms, split and training.")] = 0,
    provider: Annotated[Provider, typer.Option(help="Execution provider of the inference.")] = "auto",
    strict_goals: Annotated[
        bool, typer.Option("--strict-goals", help="Exit 1 if a goal of the demo on phantoms is missed.")
    ] = False,
) -> None:
    """Run everything: make scans, ingest, train, export, infer on unseen cases, evaluate, and summarize.

    slicemill demo
    slicemill demo --lungs
    slicemill demo --data sarcoma/ --labels tumor=1 --out real --max-minutes 25
    """
    from slicemill.demo import DemoOptions, run_demo
    from slicemill.demo_summary import describe_goals, missed_goals

    if lungs:
        used = {"data": data, "labels": labels, "epochs": epochs, "max_minutes": max_minutes, "config": config,
                "strict_goals": strict_goals or None}  # fmt: skip
        for name in (name for name, value in used.items() if value is not None):
            raise UsageError(f"--{name.replace('_', '-')}: does not apply to --lungs. Remove it.")
        _demo_nodules(out or Path("nodules"), cases, seed, provider)
        return
    out = out or Path("demo")
    options = DemoOptions(
        out=out,
        data=data,
        cases=DemoOptions(out=out).cases if cases is None else cases,
        labels=labels,
        epochs=epochs,
        minutes=max_minutes,
        seed=seed,
        provider=provider,
        config=config,
    )
    summary = run_demo(options)
    if data is not None:
        return
    print_lines(describe_goals(summary))
    if strict_goals and missed_goals(summary):
        raise SystemExit(1)


def _demo_nodules(out: Path, cases: int | None, seed: int, provider: Provider) -> None:
    """Run everything on chests with nodules."""
    from slicemill.nodule_demo import DemoAmounts, NoduleDemoOptions, run_nodule_demo

    amounts = DemoAmounts() if cases is None else DemoAmounts(cases=cases)
    run_nodule_demo(NoduleDemoOptions(out=out, amounts=amounts, seed=seed, provider=provider))


def doctor(json: Json = False) -> None:
    """Report hardware, packages, working providers and required repairs; exit 1 if a repair is required."""
    from slicemill.doctor import examine

    examination = examine()
    for line in examination.lines:
        print_line(line)
    for repair in examination.repairs:
        print_always(f"REPAIR     {repair}")
    if json:
        print_json(examination)
    if examination.repairs:
        raise SystemExit(1)
    print_line("nothing to repair")
