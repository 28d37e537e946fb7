"""The commands `slicemill store info | manifest | reindex | preview`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from store.screen import errors_shown, say, table

if TYPE_CHECKING:
    from store.reader import Store

store = typer.Typer(
    name="store",
    help="Look into a slice store: info, manifest, preview; reindex builds its tables.",
    no_args_is_help=True,
)

StorePath = Annotated[str, typer.Argument(help="Folder of the slice store.")]
BRIEF = ("case_id", "nz", "ny", "nx", "spacing_z_mm", "spacing_x_mm", "orientation", "has_tumor", "n_lesions", "tumor_volume_ml",
         "tumor_percent_organ", "organ_volume_ml", "max_axial_diameter_mm", "hu_min", "hu_max")  # fmt: skip


@store.command()
def info(path: StorePath) -> None:
    """Say what a store holds: cases, slices, size, labels, tumor statistics, warnings."""
    with errors_shown():
        from store.manifest import manifest_row
        from store.reader import open_store

        opened = open_store(path)
        rows = [manifest_row(case.info) for case in opened]
        for line in describe(opened, rows):
            say(line)


def describe(opened: "Store", rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of `store info`."""
    raw = sum(row["nz"] * row["ny"] * row["nx"] * (3 if row["mask_path"] else 2) for row in rows)
    size = sum(path.stat().st_size for path in opened.root.rglob("*") if path.is_file())
    masks = sum(row["mask_path"] is not None for row in rows)
    patients = len({row["patient_id"] for row in rows})
    lines = [
        f"store      {opened.root}",
        f"cases      {len(rows)} of {patients} patients, {masks} with a mask",
        f"slices     {sum(row['nz'] for row in rows):,}",
        f"size       {size / 1e6:,.1f} MB for {raw / 1e6:,.1f} MB of voxels ({raw / max(size, 1):.2f} to 1)",
    ]
    labelled = [case.info for case in opened if case.info.labels]
    if labelled and labelled[0].labels:
        labels = labelled[0].labels
        lines.append(
            f"labels     {', '.join(f'{k}={v}' for k, v in labels.values.items())}; organ {labels.organ or '-'}, tumor {labels.tumor or '-'}"
        )
    tumors = [row for row in rows if row["has_tumor"]]
    known = [row for row in rows if row["has_tumor"] is not None]
    if known:
        volumes = sorted(row["tumor_volume_ml"] for row in tumors)
        middle = (
            f", volume {volumes[0]:.1f} to {volumes[-1]:.1f} ml, median {volumes[len(volumes) // 2]:.1f}"
            if volumes
            else ""
        )
        lines.append(
            f"tumor      in {len(tumors)} of {len(known)} cases, {sum(row['n_lesions'] for row in tumors)} lesions{middle}"
        )
    for axis in "zyx":
        steps = [row[f"spacing_{axis}_mm"] for row in rows]
        if steps:
            lines.append(f"spacing {axis}  {min(steps):.3f} to {max(steps):.3f} mm")
    lines += [f"warning    {row['case_id']}: {row['warnings']}" for row in rows if row["warnings"]]
    return lines


@store.command()
def manifest(
    path: StorePath,
    csv: Annotated[
        bool, typer.Option("--csv", help="Print every column as CSV instead of the main ones as a table.")
    ] = False,
) -> None:
    """Print the manifest: one row a case."""
    with errors_shown():
        from store.manifest import read_table

        rows = read_table(path, "manifest")
        if csv:
            import io
            from csv import DictWriter

            stream = io.StringIO()
            writer = DictWriter(stream, fieldnames=list(rows[0]) if rows else ["case_id"])
            writer.writeheader()
            writer.writerows(rows)
            say(stream.getvalue().rstrip("\r\n"))
        else:
            say(table(BRIEF, [[row.get(column) for column in BRIEF] for row in rows]))


@store.command()
def reindex(path: StorePath) -> None:
    """Build manifest, slice and lesion tables anew from the cases (after ingest --shard, or when a table is damaged)."""
    with errors_shown():
        from store.manifest import reindex as build

        say(f"{len(build(path))} cases in manifest.parquet, manifest.csv, slices.parquet and lesions.parquet of {path}")


@store.command()
def preview(
    path: StorePath,
    out: Annotated[Path | None, typer.Option(help="PNG to write; by default preview.png in the store.")] = None,
    case: Annotated[
        list[str] | None, typer.Option(help="A case to show; may be given several times. By default up to 8.")
    ] = None,
    columns: Annotated[int, typer.Option(help="Slices per case.", min=1, max=12)] = 4,
) -> None:
    """Draw slices of the cases as one picture: organ outlined in blue, tumor in red."""
    with errors_shown():
        from store.picture import montage, save_png, spread
        from store.preview import case_tiles
        from store.reader import open_store

        opened = open_store(path)
        ids = list(case) if case else spread(opened.case_ids, 8)
        tiles = [tile for case_id in ids for tile in case_tiles(opened[case_id], columns)]
        if not tiles:
            say("the store has no case yet; nothing was drawn")
            return
        target = out or opened.root / "preview.png"
        save_png(target, montage(tiles, columns))
        say(f"preview: {target}")
