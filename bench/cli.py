"""The commands `slicemill bench ...`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slicemill.common.options import require_finite
from slicemill.common.terminal import print_line, report_errors

if TYPE_CHECKING:
    from slicemill.bench.harness.catalog import Scale

bench = typer.Typer(
    name="bench",
    help="Measure slices per second here; every figure comes with the machine it was measured on.",
    no_args_is_help=True,
)


Slices = Annotated[int, typer.Option(help="Slices of the scan; 0 fits the stage.", min=0)]
Rounds = Annotated[int, typer.Option(help="Interleaved rounds; 0 fits the stage.", min=0)]
Quick = Annotated[bool, typer.Option("--quick", help="3 rounds and fewer slices.")]
Data = Annotated[Path | None, typer.Option(help="A collection of yours, of which one scan is taken; else a phantom.")]
Cold = Annotated[bool, typer.Option("--cold", help="Have the system forget the files before every run.")]
Environments = Annotated[
    Path, typer.Option(help="Folder of the peers' environments; made the first time, then used again.")
]
Json = Annotated[Path | None, typer.Option(help="File to write the record to.")]


@bench.command()
def ingest(
    scale: Annotated[
        str, typer.Option(help="case: one case beside peers and kernels; lits: a collection of LiTS's size, whole.")
    ] = "case",
    slices: Slices = 0,
    rounds: Rounds = 0,
    quick: Quick = False,
    data: Data = None,
    dicom: Annotated[
        Path | None, typer.Option(help="Folder of a real DICOM series, for the store's size against .nii.gz.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also the peak memory of scans of 50 to 3,000 slices.")
    ] = False,
    suffix: Annotated[str, typer.Option(help="Format of the collection of --scale lits: .nii.gz or .nii.")] = ".nii.gz",
    workers: Annotated[int, typer.Option(help="Worker processes of --scale lits.", min=1)] = 2,
    cases: Annotated[int | None, typer.Option(help="Only so many cases of --scale lits.", min=1)] = None,
    folder: Annotated[Path | None, typer.Option(help="Where to make it; --scale lits takes 12 GB for a while.")] = None,
    json: Json = None,
) -> None:
    """Ingest: CPU time beside PNG, JPEG, nnU-Net and zarr-python, beside its own kernels; or LiTS's size from end to end.

    slicemill bench ingest --memory --dicom CRLM-CT-1004/
    slicemill bench ingest --scale lits
    """
    with report_errors():
        from slicemill.bench.harness.subject import subject_of, work_folder
        from slicemill.bench.stages.ingest import run as run_case
        from slicemill.bench.stages.real_size import real_size
        from slicemill.common.errors import UsageError

        if scale not in ("case", "lits"):
            raise UsageError(f"--scale {scale}: choose case or lits.")
        if suffix not in (".nii.gz", ".nii"):
            raise UsageError(f"--suffix {suffix}: choose .nii.gz or .nii.")
        with work_folder(folder) as place:
            if scale == "lits":
                from slicemill.bench.stages.ingest_lits import run as run_lits

                record = run_lits(place / "lits", suffix=suffix, workers=workers, limit=cases)
            else:
                given = _begin("ingest", slices, rounds, quick)
                record = run_case(place, subject_of(data, given.slices), rounds=given.rounds, memory=memory)
                if dicom is not None:
                    record["real_size"] = real_size(dicom)
        _finish(record, json)


@bench.command("store")
def read_store(
    slices: Slices = 0,
    rounds: Rounds = 0,
    quick: Quick = False,
    data: Data = None,
    cold: Cold = False,
    json: Json = None,
) -> None:
    """Random slices with their labels: ours beside zarr-python, zarrs, tensorstore, and the bare decode."""
    with report_errors():
        from functools import partial

        from slicemill.bench.stages.store import run

        _finish(_on_one_scan("store", partial(run, cold=cold), slices, rounds, quick, data), json)


@bench.command()
def loader(slices: Slices = 0, rounds: Rounds = 0, quick: Quick = False, data: Data = None, json: Json = None) -> None:
    """Training pairs a CPU-second: the ring beside a PNG folder and our own reader in DataLoader workers, and the bare decode."""
    with report_errors():
        from slicemill.bench.stages.loader import run

        _finish(_on_one_scan("loader", run, slices, rounds, quick, data), json)


@bench.command("train")
def training(
    slices: Slices = 0,
    rounds: Rounds = 0,
    quick: Quick = False,
    data: Data = None,
    config: Annotated[Path | None, typer.Option(help="Settings of the training, as TOML.")] = None,
    json: Json = None,
) -> None:
    """A training step from the store, with augmentation, beside the bare forward and backward of its network."""
    with report_errors():
        from functools import partial

        from slicemill.bench.stages.train import run
        from slicemill.train.config import Config, read_config

        settings = read_config(config) if config else Config()
        _finish(_on_one_scan("train", partial(run, config=settings), slices, rounds, quick, data), json)


@bench.command("export")
def exporting(
    slices: Slices = 0, rounds: Rounds = 0, quick: Quick = False, data: Data = None, json: Json = None
) -> None:
    """Export: a network to a proved model file, beside torch's exporter alone."""
    with report_errors():
        from slicemill.bench.stages.export import run

        _finish(_on_one_scan("export", run, slices, rounds, quick, data), json)


@bench.command("infer")
def segment(slices: Slices = 0, rounds: Rounds = 0, quick: Quick = False, json: Json = None) -> None:
    """Inference on the CPU: end to end over the bare session, beside the usual script, torch, scipy, and scan by scan."""
    with report_errors():
        from importlib.util import find_spec

        from slicemill.common.errors import ConfigError

        if find_spec("scipy") is None:
            raise ConfigError("bench infer compares with scipy, which is missing: pip install 'slicemill[dev]'.")
        from slicemill.bench.harness.subject import work_folder
        from slicemill.bench.stages.infer_cpu import run

        given = _begin("infer", slices, rounds, quick)
        with work_folder() as place:
            record = run(place, slices=given.slices, rounds=given.rounds)
        _finish(record, json)


@bench.command()
def constants(
    slices: Annotated[int, typer.Option(help="Slices of the scan.", min=8)] = 64,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.", min=1)] = 9,
    data: Data = None,
    json: Json = None,
) -> None:
    """Tuned constants: the work that each bears on, with other values of it.

    slicemill bench constants
    """
    with report_errors():
        from slicemill.bench.harness.subject import subject_of, work_folder
        from slicemill.bench.stages.constants import run

        with work_folder() as place:
            record = run(place, subject_of(data, slices), rounds=rounds)
        _finish(record, json)


@bench.command("measure")
def distances(
    slices: Slices = 0,
    side: Annotated[int, typer.Option(help="Pixels along a slice's side.", min=32)] = 512,
    lesions: Annotated[int, typer.Option(help="Lesions in the liver.", min=1, max=200)] = 20,
    rounds: Rounds = 0,
    by_medpy: Annotated[int, typer.Option(help="Objects that medpy's way does, too; a minute each.", min=1)] = 2,
    quick: Quick = False,
    json: Json = None,
) -> None:
    """Surface distances of a whole case: ours beside distance transforms of the scan and of boxes."""
    with report_errors():
        from slicemill.bench.stages.measure import run

        given = _begin("measure", slices, rounds, quick)
        record = run(slices=given.slices, side=side, lesions=lesions, rounds=given.rounds, by_medpy=by_medpy)
        _finish(record, json)


@bench.command()
def peers(
    environments: Environments = Path("peers"),
    kind: Annotated[
        str, typer.Option(help="loading: training slices, one core; inference: from scans to masks, all cores.")
    ] = "loading",
    slices: Annotated[int, typer.Option(help="Slices of each scan; 0 fits the kind.", min=0)] = 0,
    rounds: Rounds = 0,
    quick: Quick = False,
    only: Annotated[str | None, typer.Option(help="Only these: monai, torchio, hdf5, nnunet.")] = None,
    json: Json = None,
) -> None:
    """Training slices, or masks of scans: ours beside MONAI, TorchIO, HDF5 and nnU-Net, each installed aside, in one run.

    slicemill bench peers --only hdf5
    slicemill bench peers --kind inference --quick
    """
    with report_errors():
        from slicemill.bench.harness.subject import work_folder
        from slicemill.bench.peers.peer import packages
        from slicemill.bench.stages import peers_inference as inference
        from slicemill.bench.stages import peers_loading as loading
        from slicemill.common.errors import UsageError

        kinds = {"loading": loading, "inference": inference}
        if kind not in kinds:
            raise UsageError(f"--kind {kind}: choose loading or inference.")
        chosen = kinds[kind]
        names = tuple(name.strip() for name in only.split(",")) if only else ()
        known = packages(chosen.PEERS)
        if unknown := [name for name in names if name not in known]:
            raise UsageError(f"--only {unknown[0]}: no such peer; they are {', '.join(known)}.")
        scale = _begin(f"peers-{kind}", slices, rounds, quick)
        with work_folder() as place:
            record = chosen.run(place, environments.resolve(), slices=scale.slices, rounds=scale.rounds, only=names)
        _finish(record, json)


@bench.command()
def limits(quick: Quick = False, json: Json = None) -> None:
    """What this machine can do at most: memory copy, disk, matrix products, convolutions, copies to a card."""
    with report_errors():
        from slicemill.bench.harness.subject import work_folder
        from slicemill.bench.stages.limits import run

        with work_folder() as place:
            record = run(place, rounds=3 if quick else 7)
        _finish(record, json)


@bench.command()
def scale(
    quick: Quick = False,
    data: Data = None,
    picture: Annotated[Path | None, typer.Option(help="PNG to draw.")] = None,
    json: Json = None,
) -> None:
    """How cost grows with slices, scans, workers and tasks: time in proportion, memory not at all; the fits are printed.

    slicemill bench scale --picture scaling.png
    """
    with report_errors():
        from slicemill.bench.harness.subject import subject_of, work_folder
        from slicemill.bench.stages.scaling import draw, run

        with work_folder() as place:
            record = run(place, subject_of(data, 148), quick=quick)
        if picture is not None:
            draw(picture, record)
        _finish(record, json)


@bench.command()
def instructions(json: Json = None) -> None:
    """Instructions a slice of the hot loops, counted by perf or valgrind: a change shows even on a busy machine.

    slicemill bench instructions --json new.json
    slicemill bench compare old.json new.json
    """
    with report_errors():
        from slicemill.bench.harness.subject import work_folder
        from slicemill.bench.stages.instructions import run

        with work_folder() as place:
            record = run(place)
        _finish(record, json)


@bench.command()
def plan(
    scale: Annotated[Path, typer.Option(help="Record of bench scale.")],
    store: Annotated[Path, typer.Option(help="Record of bench store.")],
    infer: Annotated[Path | None, typer.Option(help="Record of bench infer.")] = None,
    lits: Annotated[
        Path | None, typer.Option(help="Record of bench ingest --scale lits, to check the model with.")
    ] = None,
    workers: Annotated[str, typer.Option(help="Workers to plan for, a core each.")] = "2,16,128",
    scans: Annotated[int, typer.Option(help="Scans of a collection of yours.", min=0)] = 0,
    slices: Annotated[int, typer.Option(help="Its slices.", min=0)] = 0,
) -> None:
    """What 50 GB, 1 TB and the National Lung Screening Trial cost in hours, cores, bytes and requests, from measured inputs.

    slicemill bench plan --scale scale.json --store store.json --infer infer.json --lits lits.json
    slicemill bench plan --scale scale.json --store store.json --scans 1200 --slices 300000 --workers 64
    """
    with report_errors():
        from slicemill.bench.records.plan import HEADER, KNOWN, Collection, checked, inputs_of, rows_of
        from slicemill.bench.studies.study import numbers
        from slicemill.common.errors import UsageError
        from slicemill.common.files import read_json
        from slicemill.common.terminal import format_table

        if bool(scans) != bool(slices):
            raise UsageError("--scans and --slices: give both, or neither.")
        inputs = inputs_of(read_json(scale), read_json(store), None if infer is None else read_json(infer))
        own = (Collection(name="yours", scans=scans, slices=slices),) if scans else ()
        print_line(format_table(list(HEADER), rows_of(own or KNOWN, inputs, numbers("--workers", workers))))
        if lits is not None:
            print_line(
                f"a measured ingest of LiTS's size took {checked(inputs, read_json(lits)):.2f} of what the model says"
            )


@bench.command("all")
def every(
    out: Annotated[Path, typer.Option(help="Folder for the record, the page and the picture.")] = Path("bench-out"),
    quick: Quick = False,
    data: Data = None,
    cold: Cold = False,
    only: Annotated[str | None, typer.Option(help="Only these stages, like store,loader.")] = None,
    environments: Environments = Path("peers"),
) -> None:
    """Every stage beside its limit and its peers: a table, one JSON record by date, bench.html and pictures.

    The first time it installs MONAI, TorchIO, HDF5 and nnU-Net, each into an environment of its own; one that cannot be had is told.

    slicemill bench all --quick
    slicemill bench all --data scans/
    """
    with report_errors():
        from slicemill.bench.harness.catalog import STAGES
        from slicemill.bench.records import suite
        from slicemill.bench.records.sheet import PICTURE, SHARES, draw, draw_shares, write_page
        from slicemill.bench.records.tables import all_table
        from slicemill.common.errors import UsageError
        from slicemill.common.files import write_json

        names = tuple(name.strip() for name in only.split(",")) if only else ()
        if unknown := [name for name in names if name not in STAGES]:
            raise UsageError(f"--only {unknown[0]}: no such stage; they are {', '.join(STAGES)}.")
        record = suite.run(suite.Suite(quick=quick, data=data, only=names, cold=cold, environments=environments))
        out.mkdir(parents=True, exist_ok=True)
        path = out / suite.file_name(record)
        write_json(path, record)
        if record["stages"]:
            draw(out / PICTURE, record)
        if "infer" in record["stages"]:
            draw_shares(out / SHARES, record["stages"]["infer"])
        shown = write_page(out, record)
        print_line(all_table(record))
        print_line(f"record: {path}; page: {shown}; picture: {out / PICTURE}")
        if record["failed"]:
            for name, reason in record["failed"].items():
                print_line(f"failed: {name}: {reason}")
            raise SystemExit(1)


@bench.command("compare")
def comparing(
    old: Annotated[Path, typer.Argument(help="Record of an earlier run.")],
    new: Annotated[Path, typer.Argument(help="Record of a later run of the same benchmark.")],
) -> None:
    """Compare two records of a benchmark: ratio of rates with its 95 % interval; within the noise it says no difference.

    slicemill bench compare bench/results/runs/A.json bench/results/runs/B.json
    """
    with report_errors():
        from slicemill.bench.records.compare import compare, differences
        from slicemill.common.files import read_json
        from slicemill.common.terminal import format_table

        one, other = (read_json(path) for path in (old, new))
        changes = compare(one, other)
        for difference in differences(one, other):
            print_line(f"differs: {difference}")
        rows = [(change.name, change.ratio, change.low, change.high, change.verdict) for change in changes]
        print_line(format_table(["contender", "new over old", "from", "to", ""], rows))


def _on_one_scan(
    stage: str, run: Callable[..., dict[str, Any]], slices: int, rounds: int, quick: bool, data: Path | None
) -> dict[str, Any]:
    """Return a benchmark's record, made in a folder that is gone afterwards."""
    from slicemill.bench.harness.subject import subject_of, work_folder

    given = _begin(stage, slices, rounds, quick)
    with work_folder() as place:
        return run(place, subject_of(data, given.slices), rounds=given.rounds)


def _begin(stage: str, slices: int, rounds: int, quick: bool) -> "Scale":
    """Say what is measured, what should bound it and on which machine, and return how much is done."""
    from slicemill.bench.harness.catalog import STAGES
    from slicemill.common.machine import format_machine, machine_info

    chosen = STAGES[stage]
    print_line(f"{stage}: {chosen.what}; should be bounded by {chosen.bound}")
    print_line(format_machine(machine_info()))
    return chosen.scale(slices, rounds, quick=quick)


def _finish(record: dict[str, Any], json: Path | None) -> None:
    """Print a record as its README table and as one JSON line, and write it where asked."""
    from slicemill.bench.records.readme import TABLES
    from slicemill.common.files import to_json, write_json

    print_line(TABLES[record["benchmark"]](record))
    print_line()
    print_line(to_json(record))
    if json is not None:
        write_json(json, record)


@bench.command()
def quality(
    data: Annotated[Path | None, typer.Option(help="Collection of scans with masks.")] = None,
    phantoms: Annotated[int, typer.Option(help="Make so many phantoms with liver and tumor instead.", min=0)] = 0,
    table: Annotated[
        Path | None,
        typer.Option(help="Variants as TOML; by default bench/studies/sarcoma.toml, or phantoms.toml with --phantoms."),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Names of the label values, like tumor=1.")] = None,
    folds: Annotated[int | None, typer.Option(help="Folds; each patient is in the test part of one.")] = None,
    only_folds: Annotated[str | None, typer.Option(help="Run only these folds, like 0,2.")] = None,
    variants: Annotated[str | None, typer.Option(help="Run only these variants, like default,one-slice.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds of the trainings, like 0,1,2.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of every training.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of an epoch.")] = None,
    jobs: Annotated[int, typer.Option(help="Trainings at a time, each on its share of the cores.", min=1)] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the study; the same command again goes on in it.")] = Path(
        "quality"
    ),
    json: Annotated[Path | None, typer.Option(help="File to write the record to.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG to draw; by default quality.png in the study.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs with the time that they take, and stop.")
    ] = False,
) -> None:
    """Quality: train variants of the settings on folds by patient, and compare their Dice patient by patient.

    A table names the variants: a TOML file of settings that all share and of what each variant changes; the first is what
    the others are compared with. Every training takes the same number of steps. Each run goes through train, export,
    infer and evaluate; recipes are chosen by the validation parts, the test parts are shown beside. Killed and run again,
    it does what is left; later calls with other variants or seeds add to the same record.

    slicemill bench quality --data sarcoma/ --dry-run
    slicemill bench quality --data sarcoma/ --jobs 2
    slicemill bench quality --data sarcoma/ --variants default --seeds 0,1,2
    slicemill bench quality --phantoms 200 --only-folds 0
    """
    with report_errors():
        from dataclasses import replace

        from slicemill.bench.records.study import draw
        from slicemill.bench.studies.study import Study, numbers, plan, run_study
        from slicemill.bench.studies.summary import summarize
        from slicemill.bench.studies.table import read_table
        from slicemill.common.errors import ConfigError, UsageError

        chosen = read_table(table or _shipped_table(phantoms))
        given: dict[str, Any] = {
            "labels": labels,
            "folds": folds,
            "epochs": epochs,
            "steps": steps,
            "seeds": None if seeds is None else numbers("--seeds", seeds),
        }
        try:
            chosen = replace(chosen, **{name: value for name, value in given.items() if value is not None})
        except ConfigError as error:
            raise UsageError(str(error)) from error
        study = Study(
            table=chosen,
            out=out,
            data=data,
            phantoms=phantoms,
            variants=tuple(name.strip() for name in variants.split(",")) if variants else (),
            only_folds=numbers("--only-folds", only_folds),
            jobs=jobs,
        )
        if dry_run:
            plan(study)
            return
        record = summarize(study.table, run_study(study))
        draw(picture or out / "quality.png", record)
        _finish(record, json or out / "quality.json")
        print_line(f"picture: {picture or out / 'quality.png'}; record: {json or out / 'quality.json'}")


@bench.command()
def yardstick(
    data: Annotated[Path | None, typer.Option(help="Collection of scans with masks.")] = None,
    phantoms: Annotated[int, typer.Option(help="Make so many phantoms with liver and tumor instead.", min=0)] = 0,
    table: Annotated[Path | None, typer.Option(help="Settings as in bench quality.")] = None,
    variant: Annotated[str | None, typer.Option(help="The variant that stands for us; by default the first.")] = None,
    only_folds: Annotated[str, typer.Option(help="Folds to compare on, like 0,2.")] = "0",
    minutes: Annotated[float, typer.Option(callback=require_finite, help="Training time of each.")] = 20.0,
    out: Annotated[Path, typer.Option(help="Folder of the study; the same command again goes on in it.")] = Path(
        "quality"
    ),
    json: Annotated[Path | None, typer.Option(help="File to write the record to.")] = None,
) -> None:
    """Yardstick: nnU-Net's 2D configuration and ours on the same folds, for the same minutes on the same device.

    nnU-Net is installed into an environment of its own below the study's folder, from pinned versions, and keeps its own
    plans and defaults but for when it stops. One after the other, with all cores: let nothing else run. Folds that are
    done are not done again.

    slicemill bench yardstick --data sarcoma/ --minutes 20
    slicemill bench yardstick --data sarcoma/ --minutes 20 --only-folds 0,1,2,3
    """
    with report_errors():
        from slicemill.bench.studies.study import Study, numbers
        from slicemill.bench.studies.table import read_table
        from slicemill.bench.studies.yardstick import Duel, run_duel

        study = Study(
            table=read_table(table or _shipped_table(phantoms)),
            out=out,
            data=data,
            phantoms=phantoms,
            variants=(variant,) if variant else (),
            only_folds=numbers("--only-folds", only_folds),
        )
        _finish(run_duel(Duel(study=study, minutes=minutes)), json or out / "yardstick.json")
        print_line(f"record: {json or out / 'yardstick.json'}")


def _shipped_table(phantoms: int) -> Path:
    """Return the table of variants that comes with the command."""
    return Path(__file__).parent / "studies" / ("phantoms.toml" if phantoms else "sarcoma.toml")
