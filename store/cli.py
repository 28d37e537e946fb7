"""The commands `slicemill store ...`."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slicemill.common.app import App
from slicemill.common.errors import UsageError
from slicemill.common.options import MACHINE, Json
from slicemill.common.terminal import bar_characters, format_table, print_always, print_json, print_line
from slicemill.store.layout import FORMAT, DatasetFormat, Link, SliceFormat, Suffix

if TYPE_CHECKING:
    from slicemill.common.files import Location
    from slicemill.store.reader import Case

store = App(
    name="store",
    help="Inspect a slice store, export cases and slices, draw plots, and rebuild the tables (reindex).",
    no_args_is_help=True,
)

COLLECTION = "All cases, with --format"

StorePath = Annotated[str, typer.Argument(help="Folder of the slice store.")]


@store.command()
def info(path: StorePath, json: Json = False) -> None:
    """Print a summary of a store: cases, slices, size, labels, spacing, tumor statistics, warnings."""
    print_info(path, json=json)


@store.command()
def manifest(
    path: StorePath,
    csv: Annotated[
        bool, typer.Option("--csv", help="Print all columns as CSV. The default is a table of the main columns.")
    ] = False,
    json: Json = False,
) -> None:
    """Print the manifest: one row per case."""
    from slicemill.store.tables import MAIN_COLUMNS, read_table

    rows = read_table(path, "manifest")
    if csv and json:
        raise UsageError("--csv and --json exclude each other.")
    if json:
        print_json(rows)
    elif csv:
        from slicemill.common.csv_cells import format_csv

        _print_data(format_csv(rows, ["case_id"]).replace("\r\n", "\n").rstrip("\n"))
    else:
        _print_data(format_table(MAIN_COLUMNS, [[row.get(column) for column in MAIN_COLUMNS] for row in rows]))


def print_info(path: str, *, json: bool) -> None:
    """Print the summary of a store, as `slicemill info` does too.

    Raises
    ------
    StoreError
        There is no store at `path`.
    """
    from slicemill.store.info import describe, summarize
    from slicemill.store.reader import open_store

    opened = open_store(path)
    if json:
        print_json(summarize(opened))
        return
    for line in describe(opened, bar_characters(getattr(sys.stdout, "encoding", None))):
        print_always(line)


def _print_data(text: str) -> None:
    for line in text.split("\n"):
        print_always(line)


@store.command()
def export(
    path: StorePath,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[CASE] OUT",
            help="Id of the case and file to write, .nii or .nii.gz. With --format, only the folder to write.",
        ),
    ],
    mask: Annotated[bool, typer.Option("--mask", help="Write the segmentation of CASE instead of the image.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    chosen: Annotated[
        DatasetFormat | None,
        typer.Option(
            "--format",
            help="Write all cases as nnU-Net's raw data, MONAI's datalist or the tree of LiTS.",
            rich_help_panel=COLLECTION,
        ),
    ] = None,
    split: Annotated[
        list[Path] | None,
        typer.Option(help="Split file, as train writes it; may be repeated, a fold each.", rich_help_panel=COLLECTION),
    ] = None,
    suffix: Annotated[
        Suffix | None,
        typer.Option(help="Ending of the files; by default .nii.gz, for lits .nii.", rich_help_panel=COLLECTION),
    ] = None,
    link: Annotated[
        Link,
        typer.Option(help="Link source files that have the bytes to be written.", rich_help_panel=COLLECTION),
    ] = "never",
    source: Annotated[
        Path | None, typer.Option(help="The source collection, for --link: a local folder.", rich_help_panel=COLLECTION)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be written.", rich_help_panel=COLLECTION)
    ] = False,
    workers: Annotated[int, typer.Option(help="Cases at a time; 0: all cores.", min=0, rich_help_panel=COLLECTION)] = 0,
    json: Json = False,
) -> None:
    """Export a case as NIfTI with the voxels and geometry of its source file, or all cases with --format.

    Run a command with --format again to write only the cases that are missing or changed.
    """
    if chosen is None:
        given = {"--split": split, "--suffix": suffix, "--link": link != "never", "--source": source,
                 "--dry-run": dry_run, "--workers": workers, "--json": json}  # fmt: skip
        for option, value in given.items():
            if value:
                raise UsageError(f"{option} needs --format: it is about a collection, not about one case.")
        export_one_case(path, names, mask=mask, overwrite=overwrite)
        return
    if mask or overwrite:
        raise UsageError("--mask and --overwrite are about one case; omit them with --format.")
    if len(names) != 1:
        raise UsageError(f"--format {chosen} needs a store and a folder to write; further names: {' '.join(names)}.")
    from slicemill.store.dataset_command import DatasetRequest, run_export

    request = DatasetRequest(
        out=Path(names[0]),
        form=chosen,
        suffix=suffix or (".nii" if chosen == "lits" else ".nii.gz"),
        splits=tuple(split or ()),
        link=link,
        source=source,
        dry_run=dry_run,
        workers=workers,
    )
    run_export(path, request, json=json)


def export_one_case(path: str, names: list[str], *, mask: bool, overwrite: bool) -> None:
    """Export the image or the segmentation of one case.

    Raises
    ------
    UsageError
        `names` are not an id and a file.
    """
    from slicemill.store.reader import open_store
    from slicemill.store.to_nifti import export_case

    if len(names) != 2:
        raise UsageError("name the store, a case and a file to write; or pass --format to export all cases.")
    case, out = names[0], Path(names[1])
    stored = open_store(path)[case]
    export_case(stored, out, array="label" if mask else "image", overwrite=overwrite)
    nz, ny, nx = stored.info.shape
    print_line(f"{'segmentation' if mask else 'image'} of {case}, {nz} slices of {ny}x{nx}: {out}")


@store.command(name="export-slices")
def export_slices(
    path: StorePath,
    out: Annotated[Path, typer.Argument(help="Folder to write to: one folder per case, and pairs.csv.")],
    chosen: Annotated[
        SliceFormat,
        typer.Option("--format", help="jpeg or png: 8 bits over the window; png16: HU + 32768; npy: int16 HU."),
    ],
    window: Annotated[
        str | None, typer.Option(help="HU shown as black and as white in jpeg and png; by default -200,300.")
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(help="A case to export; may be repeated. By default all cases.")
    ] = None,
    only_labeled: Annotated[bool, typer.Option("--only-labeled", help="Leave out slices without any label.")] = False,
    workers: Annotated[int, typer.Option(help="Threads; 0: all cores.", min=0, rich_help_panel=MACHINE)] = 0,
    json: Json = False,
) -> None:
    """Export slices as picture or array files, and masks as PNG with unscaled label values (.npy with npy).

    Run the same command again to write only the cases that are missing or changed.
    """
    from slicemill.store import to_slices
    from slicemill.store.reader import open_store

    opened = open_store(path)
    case_ids = list(dict.fromkeys(case)) if case else opened.case_ids
    form = to_slices.make_form(chosen, window, only_labeled=only_labeled)
    report = to_slices.export_slices(opened, out, form, case_ids, workers)
    for outcome in report.outcomes:
        if outcome.status == "failed":
            print_always(f"failed: {outcome.case_id}: {outcome.reason}")
    counts = [f"{report.count(status)} {status}" for status in ("done", "skipped", "failed")]
    print_line(f"{len(case_ids)} cases: {', '.join(counts)}; {report.slices:,} slices in {out / to_slices.TABLE}")
    if json:
        print_json({"table": str(out / to_slices.TABLE), "slices": report.slices, "cases": report.outcomes})
    if report.count("failed"):
        raise SystemExit(1)


@store.command()
def reindex(path: StorePath) -> None:
    """Rebuild the manifest, slice and lesion tables from the cases (after ingest --shard, or if a table is damaged)."""
    from slicemill.store.tables import reindex as build

    print_line(
        f"{len(build(path))} cases in manifest.parquet, manifest.csv, slices.parquet and lesions.parquet of {path}"
    )


@store.command()
def upgrade(
    path: StorePath,
    workers: Annotated[int, typer.Option(help="Cases at a time; 0: all cores.", min=0, rich_help_panel=MACHINE)] = 0,
    json: Json = False,
) -> None:
    """Move the cases of an older store to the newest format, so that each is an OME-Zarr image.

    No voxel is decoded. If the command is interrupted, the store can be read; run it again to upgrade the other cases.
    """
    from slicemill.common.machine import count_workers
    from slicemill.store.reader import open_store
    from slicemill.store.upgrade import upgrade_store

    outcomes = upgrade_store(open_store(path), count_workers(workers))
    counts = Counter(outcome.status for outcome in outcomes)
    for outcome in outcomes:
        if outcome.status == "failed":
            print_always(f"failed: {outcome.reason}")
    print_line(
        f"{len(outcomes)} cases: {counts['done']} upgraded to format {FORMAT}, {counts['skipped']} had it, "
        f"{counts['failed']} failed"
    )
    if json:
        print_json({"store": path, "format": FORMAT, "cases": outcomes})
    if counts["failed"]:
        raise SystemExit(1)


@store.command()
def verify(
    path: StorePath,
    source: Annotated[str | None, typer.Option(help="The source collection, to compare hashes and voxels.")] = None,
    workers: Annotated[
        int, typer.Option(help="Cases read in parallel; 0: all cores.", min=0, rich_help_panel=MACHINE)
    ] = 0,
    json: Json = False,
) -> None:
    """Check all chunks and checksums, recompute the statistics, and compare with the source.

    Each problem is printed on one line. If there are problems, the exit status is 1.
    """
    from slicemill.common.files import parse_location
    from slicemill.common.machine import count_workers
    from slicemill.common.progress import progress
    from slicemill.store.reader import open_store
    from slicemill.store.verify import verify as run

    opened = open_store(path)
    threads = count_workers(workers)
    collection = None if source is None else parse_location(source)
    uncompared: list[str] = []
    with progress("verify", len(opened), "cases") as advance:
        problems = run(opened, collection, workers=threads, advance=advance, uncompared=uncompared)
    for problem in problems:
        print_always(f"problem: {problem}")
    if uncompared:
        print_line(
            f"note: {len(uncompared)} masks are made from points, or from a file for each structure, which verify "
            "does not compare; ingest --rehash does"
        )
    compared = " and compared with the source" if source else ""
    print_line(f"{len(opened)} cases read completely{compared}: {len(problems)} problems")
    if json:
        print_json({"store": path, "cases": len(opened), "problems": list(problems)})
    if problems:
        raise SystemExit(1)


@store.command()
def preview(
    path: StorePath,
    out: Annotated[
        Path | None, typer.Option(help="PNG to write; by default preview.png (preview-points.png) in the store.")
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(help="A case to show; may be repeated. By default up to 8 cases; with --points, all."),
    ] = None,
    columns: Annotated[int, typer.Option(help="Slices per case.", min=1, max=12)] = 4,
    points: Annotated[
        bool, typer.Option("--points", help="Draw three views of each nodule that is annotated by a point.")
    ] = False,
) -> None:
    """Draw slices of the cases as one picture, with the organ outlined in blue and tumor in red."""
    from slicemill.ct.pictures import make_montage, pick_evenly, save_png
    from slicemill.store.preview import draw_tiles
    from slicemill.store.reader import open_store

    opened = open_store(path)
    readable, unreadable = ([opened[case_id] for case_id in case], []) if case else opened.read_cases()
    if points:
        _print_unreadable(unreadable)
        _preview_points(readable, out or opened.root / "preview-points.png")
        return
    shown = readable if case else pick_evenly(readable, 8)
    tiles = [tile for one in shown for tile in draw_tiles(one, columns)]
    if not tiles:
        print_line("the store has no readable cases; nothing was drawn")
        return
    target = out or opened.root / "preview.png"
    save_png(target, make_montage(tiles, columns))
    _print_unreadable(unreadable)
    print_line(f"preview: {target}")


@store.command()
def plots(
    path: StorePath,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write: .png, or .html with the manifest; by default plots.png in the store."),
    ] = None,
) -> None:
    """Draw plots of a collection: spacing, slices, HU, and number, size, volume and burden of tumors."""
    from slicemill.store.plots import write_plots
    from slicemill.store.reader import open_store

    opened = open_store(path)
    target = out or opened.root / "plots.png"
    _print_unreadable(write_plots(opened, target))
    print_line(f"plots: {target}")


def _preview_points(cases: "list[Case]", target: "Location") -> None:
    from slicemill.common.progress import progress
    from slicemill.ct.pictures import make_montage, save_png
    from slicemill.store.point_preview import PAGE_NODULES, VIEWS, draw_nodules, list_nodules

    nodules = list_nodules(cases)
    if not nodules:
        print_line("no case has nodules as points (`slicemill ingest --points`); nothing was drawn")
        return
    with progress("preview", len(nodules), "nodules") as advance:
        for start in range(0, len(nodules), PAGE_NODULES):
            page = nodules[start : start + PAGE_NODULES]
            number = start // PAGE_NODULES
            start_of_name, dot, end = target.name.rpartition(".")
            path = target.with_name(f"{start_of_name}-{number + 1}{dot}{end}") if number else target
            save_png(path, make_montage(list(draw_nodules(page)), len(VIEWS)))
            advance(len(page), "")
            print_line(f"preview: {path}")


def _print_unreadable(reasons: list[str]) -> None:
    for reason in reasons:
        print_line(f"left out: {reason}")
