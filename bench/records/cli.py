"""The commands `slicemill bench plan | all | compare`."""

from pathlib import Path
from typing import Annotated

import typer

from slicemill.bench.options import Cold, Data, Environments, Quick
from slicemill.common.terminal import print_line, print_lines


def plan(
    scale: Annotated[Path, typer.Option(help="Record of bench scale.")],
    store: Annotated[Path, typer.Option(help="Record of bench store.")],
    infer: Annotated[Path | None, typer.Option(help="Record of bench infer.")] = None,
    lits: Annotated[
        Path | None, typer.Option(help="Record of bench ingest --scale lits, to check the model with.")
    ] = None,
    workers: Annotated[str, typer.Option(help="Numbers of workers, one core each.")] = "2,16,128",
    scans: Annotated[int, typer.Option(help="Scans of your collection.", min=0)] = 0,
    slices: Annotated[int, typer.Option(help="Slices of your collection.", min=0)] = 0,
) -> None:
    """Estimate the cost of 50 GB, 1 TB and the National Lung Screening Trial: hours, cores, bytes and requests.

    slicemill bench plan --scale scale.json --store store.json --infer infer.json --lits lits.json
    slicemill bench plan --scale scale.json --store store.json --scans 1200 --slices 300000 --workers 64
    """
    from slicemill.bench.options import parse_integers
    from slicemill.bench.records.plan import HEADER, KNOWN, Collection, measured_over_model, plan_rows, read_inputs
    from slicemill.common.errors import UsageError
    from slicemill.common.files import read_json
    from slicemill.common.terminal import format_table

    if bool(scans) != bool(slices):
        raise UsageError("--scans and --slices: pass both or neither.")
    inputs = read_inputs(read_json(scale), read_json(store), None if infer is None else read_json(infer))
    collections = (Collection(name="yours", scans=scans, slices=slices),) if scans else KNOWN
    print_lines(format_table(list(HEADER), plan_rows(collections, inputs, parse_integers("--workers", workers))))
    if lits is not None:
        ratio = measured_over_model(inputs, read_json(lits))
        print_line(f"measured ingest of LiTS's size: {ratio:.2f} of the estimated time")


def run_all(
    out: Annotated[Path, typer.Option(help="Folder for the record, the page and the pictures.")] = Path("bench-out"),
    quick: Quick = False,
    data: Data = None,
    cold: Cold = False,
    only: Annotated[str | None, typer.Option(help="Run only these stages, like store,loader.")] = None,
    environments: Environments = Path("peers"),
) -> None:
    """Run every stage, with its limit and its peers: a table, one JSON record by date, bench.html and pictures.

    The first run installs MONAI, TorchIO, HDF5 and nnU-Net, each into its own environment. A peer that cannot be
    installed is reported as not run.

    slicemill bench all --quick
    slicemill bench all --data scans/
    """
    from slicemill.bench.harness.catalog import STAGES
    from slicemill.bench.options import parse_known_names
    from slicemill.bench.records.figures import draw_stages, draw_time_shares
    from slicemill.bench.records.suite import SuiteOptions, all_table, record_name, run_suite
    from slicemill.bench.records.suite_page import PICTURE, SHARES, write_page
    from slicemill.common.files import write_json

    names = parse_known_names("--only", only, STAGES, "stage")
    record = run_suite(SuiteOptions(quick=quick, data=data, only=names, cold=cold, environments=environments))
    out.mkdir(parents=True, exist_ok=True)
    path = out / record_name(record)
    write_json(path, record)
    if record["stages"]:
        draw_stages(out / PICTURE, record)
    if "infer" in record["stages"]:
        draw_time_shares(out / SHARES, record["stages"]["infer"])
    page = write_page(out, record)
    print_lines(all_table(record))
    print_line(f"record: {path}; page: {page}; picture: {out / PICTURE}")
    for name, reason in record["failed"].items():
        print_line(f"failed: {name}: {reason}")
    if record["failed"]:
        raise SystemExit(1)


def compare_records(
    old: Annotated[Path, typer.Argument(help="Record of an earlier run.")],
    new: Annotated[Path, typer.Argument(help="Record of a later run of the same benchmark.")],
) -> None:
    """Compare two records of a benchmark: ratio of rates with its 95 % interval, and whether it is more than noise.

    slicemill bench compare bench/results/runs/A.json bench/results/runs/B.json
    """
    from slicemill.bench.records.compare import compare, machine_differences
    from slicemill.common.files import read_json
    from slicemill.common.terminal import format_table

    before, after = read_json(old), read_json(new)
    changes = compare(before, after)
    for difference in machine_differences(before, after):
        print_line(f"differs: {difference}")
    rows = [(change.name, change.ratio, change.low, change.high, change.verdict) for change in changes]
    print_lines(format_table(["contender", "new over old", "from", "to", ""], rows))
