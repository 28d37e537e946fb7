"""The commands `slicemill bench ...`. Commands that read records, and those of experiments, are in their packages."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from slicemill.bench.options import Cold, Data, Environments, Json, Quick
from slicemill.bench.records.cli import compare_records, plan, run_all
from slicemill.bench.studies.cli import luna, nodule_context, nodule_rules, nodules, quality, yardstick
from slicemill.common.app import App
from slicemill.common.terminal import print_line, print_lines

if TYPE_CHECKING:
    from slicemill.bench.harness.catalog import Scale

bench = App(
    name="bench",
    help="Measure slices per second on this machine. Each record describes the machine.",
    no_args_is_help=True,
)

Slices = Annotated[int, typer.Option(help="Slices of the scan; 0 uses the stage's default.", min=0)]
Rounds = Annotated[int, typer.Option(help="Interleaved rounds; 0 uses the stage's default.", min=0)]
Record = dict[str, Any]


class BenchSize(NamedTuple):
    """Requested slices and rounds; 0 uses the default of the stage, or that of its quick run."""

    slices: int
    rounds: int
    quick: bool


def _run_in_folder(work: Callable[[Path], Record], json: Path | None, parent: Path | None = None) -> None:
    """Run a benchmark in a temporary folder, print its record, and write it if requested."""
    from slicemill.bench.harness.subject import work_folder
    from slicemill.bench.records.output import print_record

    with work_folder(parent) as folder:
        record = work(folder)
    print_record(record, json)


def _run_stage(
    stage: str,
    requested: BenchSize,
    work: Callable[[Path, "Scale"], Record],
    json: Path | None,
    parent: Path | None = None,
) -> None:
    """Print a stage, its expected bottleneck and the machine, then run it."""
    from slicemill.bench.harness.catalog import STAGES
    from slicemill.common.machine import format_machine, machine_info

    chosen = STAGES[stage]
    print_line(f"{stage}: {chosen.what}; expected bottleneck: {chosen.bound}")
    print_lines(format_machine(machine_info()))
    scale = chosen.scale(requested.slices, requested.rounds, quick=requested.quick)
    _run_in_folder(lambda folder: work(folder, scale), json, parent)


def _run_on_scan(
    stage: str, requested: BenchSize, run: Callable[..., Record], data: Path | None, json: Path | None
) -> None:
    """Run a stage that takes one scan."""
    from slicemill.bench.harness.subject import choose_subject

    _run_stage(
        stage,
        requested,
        lambda folder, scale: run(folder, choose_subject(data, scale.slices), rounds=scale.rounds),
        json,
    )


@bench.command()
def ingest(
    scale: Annotated[
        Literal["case", "lits"],
        typer.Option(help="case: one case, its peers and its kernels; lits: a collection as large as LiTS."),
    ] = "case",
    file_format: Annotated[
        Literal["nifti", "dicom"],
        typer.Option("--format", help="Format of the case: .nii.gz and .nii, or DICOM in several transfer syntaxes."),
    ] = "nifti",
    slices: Slices = 0,
    rounds: Rounds = 0,
    quick: Quick = False,
    data: Data = None,
    dicom: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a real DICOM series. NIfTI: to compare the store's size with .nii.gz; with --format dicom, "
            "a tilted series, to compare where other tools place it."
        ),
    ] = None,
    memory: Annotated[
        bool,
        typer.Option("--memory", help="Also measure the peak memory: scans of 50 to 3,000 slices, or each syntax."),
    ] = False,
    suffix: Annotated[
        Literal[".nii.gz", ".nii"], typer.Option(help="Format of the collection of --scale lits.")
    ] = ".nii.gz",
    workers: Annotated[int, typer.Option(help="Worker processes of --scale lits.", min=1)] = 2,
    cases: Annotated[int | None, typer.Option(help="Number of cases of --scale lits; by default all.", min=1)] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Working folder; --scale lits needs 12 GB during the run.")
    ] = None,
    json: Json = None,
) -> None:
    """Ingest: CPU time compared with PNG, JPEG, nnU-Net, zarr-python and its kernels; or a collection as large as LiTS.

    With --format dicom: compared with .nii.gz, the codecs alone, dcm2niix, dicom2nifti and SimpleITK.

    slicemill bench ingest --memory --dicom CRLM-CT-1004/
    slicemill bench ingest --format dicom --memory
    slicemill bench ingest --scale lits
    """
    from slicemill.bench.harness.subject import choose_subject
    from slicemill.bench.stages.ingest import run as run_case
    from slicemill.bench.stages.ingest_lits import run as run_lits
    from slicemill.common.errors import UsageError

    if file_format == "dicom":
        if scale == "lits":
            raise UsageError("--format dicom measures one case; leave out --scale lits.")
        from slicemill.bench.stages.ingest_dicom import run as run_dicom

        count, repeats = slices or (24 if quick else 160), rounds or (3 if quick else 7)
        subject = choose_subject(data, count)
        _run_in_folder(
            lambda work: run_dicom(work, subject, rounds=repeats, quick=quick, memory=memory, tilted=dicom),
            json,
            folder,
        )
        return

    def one_case(work: Path, amount: "Scale") -> Record:
        return run_case(work, choose_subject(data, amount.slices), rounds=amount.rounds, memory=memory, dicom=dicom)

    if scale == "lits":
        _run_in_folder(lambda work: run_lits(work / "lits", suffix=suffix, workers=workers, limit=cases), json, folder)
    else:
        _run_stage("ingest", BenchSize(slices, rounds, quick), one_case, json, folder)


@bench.command()
def store(
    slices: Slices = 0,
    rounds: Rounds = 0,
    quick: Quick = False,
    data: Data = None,
    cold: Cold = False,
    json: Json = None,
) -> None:
    """Random slices with their labels: slicemill, zarr-python, zarrs, tensorstore, and the bare decode."""
    from slicemill.bench.stages.store import run

    _run_on_scan("store", BenchSize(slices, rounds, quick), partial(run, cold=cold), data, json)


@bench.command()
def loader(slices: Slices = 0, rounds: Rounds = 0, quick: Quick = False, data: Data = None, json: Json = None) -> None:
    """Training pairs per CPU-second: slicemill's loader, DataLoader with PNGs or the store, and the bare decode."""
    from slicemill.bench.stages.loader import run

    _run_on_scan("loader", BenchSize(slices, rounds, quick), run, data, json)


@bench.command()
def train(
    slices: Slices = 0,
    rounds: Rounds = 0,
    quick: Quick = False,
    data: Data = None,
    config: Annotated[Path | None, typer.Option(help="Settings of the training, as TOML.")] = None,
    json: Json = None,
) -> None:
    """A training step from the store, with augmentation, compared with the bare forward and backward of its network."""
    from slicemill.bench.stages.train import run
    from slicemill.train.config import Config, read_config

    settings = read_config(config) if config else Config()
    _run_on_scan("train", BenchSize(slices, rounds, quick), partial(run, config=settings), data, json)


@bench.command()
def export(slices: Slices = 0, rounds: Rounds = 0, quick: Quick = False, data: Data = None, json: Json = None) -> None:
    """Export of a network to a verified model file, compared with torch's exporter alone."""
    from slicemill.bench.stages.export import run

    _run_on_scan("export", BenchSize(slices, rounds, quick), run, data, json)


@bench.command()
def infer(
    slices: Slices = 0,
    rounds: Rounds = 0,
    quick: Quick = False,
    only_range: Annotated[
        bool, typer.Option("--range", help="Only the organ's range compared with all slices; --quick: small slices.")
    ] = False,
    json: Json = None,
) -> None:
    """Inference on the CPU from files to files, compared with the bare session, the usual script, torch, and scipy."""
    from slicemill.bench.stages import infer_range
    from slicemill.bench.stages.infer_cpu import run

    if only_range:
        size = infer_range.QUICK_SIZE if quick else infer_range.SIZE
        _run_in_folder(partial(infer_range.run, slices=slices or 500, rounds=rounds or 3, size=size), json)
        return

    def work(folder: Path, scale: "Scale") -> Record:
        return run(folder, slices=scale.slices, rounds=scale.rounds)

    _run_stage("infer", BenchSize(slices, rounds, quick), work, json)


@bench.command()
def constants(
    slices: Annotated[int, typer.Option(help="Slices of the scan.", min=8)] = 64,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.", min=1)] = 9,
    data: Data = None,
    json: Json = None,
) -> None:
    """Tuned constants: run time with the value in the code and with other values.

    slicemill bench constants
    """
    from slicemill.bench.harness.subject import choose_subject
    from slicemill.bench.stages.constants import run

    _run_in_folder(lambda folder: run(folder, choose_subject(data, slices), rounds=rounds), json)


@bench.command()
def components(rounds: Annotated[int, typer.Option(help="Interleaved rounds.", min=1)] = 7, json: Json = None) -> None:
    """Connected components and their sizes: slicemill's runs, compared with cc3d, on three masks.

    slicemill bench components
    """
    from slicemill.bench.stages.components import run

    _run_in_folder(lambda _: run(rounds=rounds), json)


@bench.command()
def volumes(
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.", min=1)] = 7,
    slices: Annotated[int, typer.Option(help="Slices of the scan.", min=8)] = 64,
    data: Data = None,
    json: Json = None,
) -> None:
    """Reading MetaImage and NRRD, compared with SimpleITK and pynrrd, on the slices of one scan.

    slicemill bench volumes
    """
    from slicemill.bench.harness.subject import choose_subject
    from slicemill.bench.stages.volumes import run

    _run_in_folder(lambda folder: run(folder, choose_subject(data, slices), rounds=rounds), json)


@bench.command()
def documents(rounds: Annotated[int, typer.Option(help="Interleaved rounds.", min=1)] = 15, json: Json = None) -> None:
    """Start time that typed documents add to Python: msgspec, compared with pydantic if it is installed.

    slicemill bench documents
    """
    from slicemill.bench.stages.documents import run

    _run_in_folder(lambda _: run(rounds=rounds), json)


@bench.command()
def viewer(
    slices: Annotated[int, typer.Option(help="Slices of the scan.", min=2)] = 164,
    side: Annotated[int, typer.Option(help="Pixels along a slice's side.", min=32)] = 512,
    rounds: Annotated[int, typer.Option(help="Times that the scan is scrolled through.", min=1)] = 5,
    browser: Annotated[Path, typer.Option(help="Chromium.")] = Path("/usr/bin/chromium"),
    json: Json = None,
) -> None:
    """Slices per second of the viewer in Chromium, with outlines, and its 3-D picture.

    slicemill bench viewer
    """
    from slicemill.bench.stages.viewer import run

    _run_in_folder(lambda folder: run(folder, slices=slices, side=side, rounds=rounds, browser=browser), json)


@bench.command()
def measure(
    slices: Slices = 0,
    side: Annotated[int, typer.Option(help="Pixels along a slice's side.", min=32)] = 512,
    lesions: Annotated[int, typer.Option(help="Lesions in the liver.", min=1, max=200)] = 20,
    rounds: Rounds = 0,
    by_medpy: Annotated[
        int, typer.Option(help="Objects to measure with medpy's method too; each takes a minute.", min=1)
    ] = 2,
    quick: Quick = False,
    json: Json = None,
) -> None:
    """Surface distances of a case, compared with distance transforms of the complete scan and of boxes."""
    from slicemill.bench.stages.measure import run

    def work(_: Path, scale: "Scale") -> Record:
        return run(slices=scale.slices, side=side, lesions=lesions, rounds=scale.rounds, by_medpy=by_medpy)

    _run_stage("measure", BenchSize(slices, rounds, quick), work, json)


@bench.command()
def peers(
    environments: Environments = Path("peers"),
    kind: Annotated[
        Literal["loading", "inference"],
        typer.Option(help="loading: training slices on one core; inference: scans to masks on all cores."),
    ] = "loading",
    slices: Annotated[int, typer.Option(help="Slices of each scan; 0 uses the default of the kind.", min=0)] = 0,
    rounds: Rounds = 0,
    quick: Quick = False,
    only: Annotated[str | None, typer.Option(help="Run only these peers: monai, torchio, hdf5, nnunet.")] = None,
    json: Json = None,
) -> None:
    """Load slices or segment scans with slicemill, MONAI, TorchIO, HDF5 and nnU-Net, each in its environment.

    slicemill bench peers --only hdf5
    slicemill bench peers --kind inference --quick
    """
    from slicemill.bench.options import parse_known_names
    from slicemill.bench.peers.peer import packages
    from slicemill.bench.stages import peers_inference, peers_loading

    stage = peers_loading if kind == "loading" else peers_inference
    names = parse_known_names("--only", only, packages(stage.PEERS), "peer")

    def work(folder: Path, scale: "Scale") -> Record:
        record: Record = stage.run(folder, environments.resolve(), slices=scale.slices, rounds=scale.rounds, only=names)
        return record

    _run_stage(f"peers-{kind}", BenchSize(slices, rounds, quick), work, json)


@bench.command()
def limits(quick: Quick = False, json: Json = None) -> None:
    """Peak rates of this machine: memory copy, disk, matrix products, convolutions, copies to a GPU."""
    from slicemill.bench.stages.limits import run

    _run_in_folder(lambda folder: run(folder, rounds=3 if quick else 7), json)


@bench.command()
def scale(
    quick: Quick = False,
    data: Data = None,
    picture: Annotated[Path | None, typer.Option(help="PNG file to write.")] = None,
    json: Json = None,
) -> None:
    """Growth of cost with slices, scans, workers and tasks. Expected: linear time, constant memory.

    slicemill bench scale --picture scaling.png
    """
    from slicemill.bench.harness.subject import choose_subject
    from slicemill.bench.records.figures import draw_growth
    from slicemill.bench.stages.scaling import run

    def work(folder: Path) -> Record:
        record = run(folder, choose_subject(data, 148), quick=quick)
        if picture is not None:
            draw_growth(picture, record)
        return record

    _run_in_folder(work, json)


@bench.command()
def instructions(json: Json = None) -> None:
    """Instructions per slice of the hot loops, counted by perf or valgrind. Load hardly affects the counts.

    slicemill bench instructions --json new.json
    slicemill bench compare old.json new.json
    """
    from slicemill.bench.stages.instructions import run

    _run_in_folder(run, json)


bench.command()(plan)
bench.command("all")(run_all)
bench.command("compare")(compare_records)
for study in (quality, yardstick, nodules, nodule_rules, nodule_context, luna):
    bench.command()(study)
