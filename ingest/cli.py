"""The command `slicemill ingest`."""

from typing import TYPE_CHECKING, Annotated

import typer

from slicemill.common.errors import UsageError
from slicemill.common.files import Location, parse_location
from slicemill.common.left_out import print_left_out
from slicemill.common.options import CHECKS, INPUT, MACHINE, OUTPUT, RERUN, Json
from slicemill.common.terminal import format_table, print_always, print_json, print_line, print_lines
from slicemill.ct.geometry_option import Geometry, Uneven
from slicemill.ingest.params import CaseIdKind, Overlap
from slicemill.store.layout import ProfileName

POINTS = "Points (lung nodules)"

if TYPE_CHECKING:
    from slicemill.ct.labels import Labels
    from slicemill.ingest.discover import Collection
    from slicemill.ingest.outcomes import IngestReport


def ingest(
    source: Annotated[
        str | None,
        typer.Argument(help="Folder with the scans, searched recursively. Omit it with --pairs or --image."),
    ] = None,
    store: Annotated[str | None, typer.Argument(help="Folder of the slice store to create or extend.")] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=INPUT, help="CSV with the columns image and mask, optionally case_id and patient_id."
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option("--image", rich_help_panel=INPUT, help="Pattern of the images, quoted, like 'ct/*_ct.nii.gz'."),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            "--mask",
            rich_help_panel=INPUT,
            help="Pattern of the masks. With --image, a mask belongs to the image with the same text for *. With a "
            "folder, only files below it that fit are masks, like 'labelsTr2/*'.",
        ),
    ] = None,
    no_masks: Annotated[
        bool, typer.Option("--no-masks", rich_help_panel=INPUT, help="Store the scans without masks.")
    ] = False,
    labels: Annotated[
        str | None,
        typer.Option(help="Names of the label values, like liver=1,tumor=2, or a CSV with the columns name and value."),
    ] = None,
    organ: Annotated[str | None, typer.Option(help="Label that is the organ.")] = None,
    tumor: Annotated[str | None, typer.Option(help="Label that is tumor.")] = None,
    patient: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=INPUT, help="Regular expression; its first group, in the image's path, is the patient."
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(help="Text before each case id, like siteB/, for collections with equal file names."),
    ] = None,
    geometry: Annotated[
        Geometry,
        typer.Option(
            rich_help_panel=CHECKS,
            help="If image and mask are on different grids: fail, use the image's header for both, "
            "or resample the mask by both headers.",
        ),
    ] = "error",
    overlap: Annotated[
        Overlap,
        typer.Option(
            rich_help_panel=CHECKS,
            help="If structures with a file each overlap: fail, or take the highest label value.",
        ),
    ] = "error",
    workers: Annotated[int, typer.Option(rich_help_panel=MACHINE, help="Worker processes; 0: all cores.", min=0)] = 0,
    threads: Annotated[
        int,
        typer.Option(
            rich_help_panel=MACHINE,
            help="Threads per case; 0: divide the cores, so that a few large cases use all of them.",
            min=0,
        ),
    ] = 0,
    profile: Annotated[
        ProfileName,
        typer.Option(
            rich_help_panel=OUTPUT,
            help="compact (zstd), or fast (lz4): a fifth larger, but reads slices more than twice as fast.",
        ),
    ] = "compact",
    scheduler: Annotated[
        str | None, typer.Option(rich_help_panel=MACHINE, help="Address of a Dask scheduler, like tcp://host:8786.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=MACHINE,
            help="I/N: convert only every Nth case from the Ith (from 0); then run store reindex.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be ingested, and stop.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel=RERUN, help="Convert all cases again.")
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            rich_help_panel=RERUN,
            help="Retry cases that failed before, even if their files did not change.",
        ),
    ] = False,
    rehash: Annotated[
        bool,
        typer.Option(
            "--rehash", rich_help_panel=RERUN, help="Recognize unchanged files by their content, not by size and time."
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", rich_help_panel=CHECKS, help="Refuse cases with a warning; do not store them.")
    ] = False,
    keep_text: Annotated[
        bool,
        typer.Option(
            "--keep-text", rich_help_panel=OUTPUT, help="Keep free-text header fields; they may name a person."
        ),
    ] = False,
    uneven: Annotated[
        Uneven,
        typer.Option(
            rich_help_panel=CHECKS,
            help="DICOM series whose steps between slices differ: refuse, or store the longest part with equal steps.",
        ),
    ] = "refuse",
    case_id: Annotated[
        CaseIdKind,
        typer.Option(
            "--case-id",
            rich_help_panel=INPUT,
            help="Case ids of DICOM series: the folder's name, or the SeriesInstanceUID.",
        ),
    ] = "name",
    salt: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=INPUT,
            help="File with the salt of the hashes that replace DICOM's PatientID. By default the store keeps its own.",
        ),
    ] = None,
    keep_uids: Annotated[
        bool,
        typer.Option("--keep-uids", rich_help_panel=OUTPUT, help="Store the UIDs of DICOM series; they identify it."),
    ] = False,
    points: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=POINTS,
            help="CSV of nodules (seriesuid or case_id, coordX, coordY, coordZ in LPS mm, diameter_mm): the masks are "
            "made from it. Every scan counts as annotated.",
        ),
    ] = None,
    excluded: Annotated[
        str | None,
        typer.Option(rich_help_panel=POINTS, help="CSV of findings that training and scores leave out."),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(rich_help_panel=POINTS, help="CSV of candidates, with class 0 or 1 instead of a diameter."),
    ] = None,
    lungs: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=POINTS, help="Folder with segmentations of lungs, named like the scans (LUNA16's)."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Convert CT scans and their masks into a slice store.

    Layouts: LiTS, KiTS, CT-ORG, SegTHOR, BIDS, Decathlon and nnU-Net (imagesTr, labelsTr, dataset.json), a folder for
    each patient, a file for each structure (TotalSegmentator), two parallel folders, a CSV, or two patterns. Run the
    same command again to convert only what is new or changed.

        slicemill ingest lits/ lits-store/
        slicemill ingest sarcoma/ sarcoma-store/ --labels tumor=1 --dry-run
        slicemill ingest totalsegmentator/ store/ --labels liver=1,spleen=2
        slicemill ingest --pairs cases.csv lits-store/
        slicemill ingest luna16/ luna-store/ --points annotations.csv --lungs luna16/seg-lungs-LUNA16
    """
    from slicemill.ingest.json_output import collection_document, report_document
    from slicemill.ingest.request import IngestRequest

    source, store = _assign_arguments(source, store, has_list=pairs is not None or images is not None)
    request = IngestRequest(
        source=source, store=store, pairs=pairs, images=images, masks=masks, no_masks=no_masks, labels=labels,
        organ=organ, tumor=tumor, prefix=prefix, patient=patient, geometry=geometry, overlap=overlap,
        workers=workers, threads=threads, profile=profile, scheduler=scheduler, shard=shard, overwrite=overwrite,
        retry_failed=retry_failed, rehash=rehash, keep_text=keep_text, strict=strict, uneven=uneven, case_id=case_id,
        salt=salt, keep_uids=keep_uids, points=points, excluded=excluded, candidates=candidates, lungs=lungs,
    )  # fmt: skip
    collection = request.collection()
    if dry_run:
        found_labels = request.params(collection).labels
        _print_collection(collection, found_labels)
        if json:
            print_json(collection_document(collection, found_labels))
        return
    report = request.run(collection)
    target = parse_location(store or "")
    _print_report(report, collection, target)
    if json:
        print_json(report_document(report, collection, target))
    if report.problem:
        print_always(f"failed: {report.problem}")
    if report.bug is not None:
        raise report.bug
    if report.failures or report.problem:
        raise SystemExit(1)


def _assign_arguments(source: str | None, store: str | None, *, has_list: bool) -> tuple[str | None, str | None]:
    """Return source and store; with a list of files the only argument is the store."""
    if has_list and source is not None and store is None:
        return None, source
    if not has_list and source is None:
        raise UsageError(
            "ingest: pass the folder with the scans, or list them with --pairs or --image. See slicemill ingest --help."
        )
    return source, store


def _print_collection(collection: "Collection", labels: "Labels | None") -> None:
    from slicemill.ct.labels import format_labels

    rows = [
        (case.case_id, case.patient_id, case.name(case.image), case.name(case.mask) if case.mask else None)
        for case in collection.cases
    ]
    print_lines(format_table(["case", "patient", "image", "mask"], rows))
    print_line()
    print_left_out(collection.left_out)
    _print_notes(collection)
    print_line(f"labels: {format_labels(labels.values) if labels else 'not declared (only the value 1 is accepted)'}")
    if labels:
        print_line(f"organ: {labels.organ or '-'}, tumor: {labels.tumor or '-'}")
    masks = sum(case.mask is not None for case in collection.cases)
    print_line(
        f"{len(collection.cases)} cases, {masks} with a mask; {len(collection.left_out)} files left out. "
        "Nothing was written (--dry-run)."
    )


def _print_notes(collection: "Collection") -> None:
    for note in collection.notes:
        print_line(f"note: {note}")


def _print_report(report: "IngestReport", collection: "Collection", store: Location) -> None:
    print_left_out(collection.left_out)
    _print_notes(collection)
    for outcome in report.outcomes:
        for warning in outcome.warnings:
            print_line(f"warning: {outcome.case_id}: {warning}")
    for outcome in report.failures:
        print_always(f"{outcome.status}: {outcome.case_id}: {outcome.reason}")
    done = report.count("done")
    if done:
        slices = sum(outcome.slices for outcome in report.outcomes)
        gigabytes = sum(outcome.voxel_bytes for outcome in report.outcomes) / 1e9
        peak = max(outcome.peak_mib for outcome in report.outcomes)
        print_line(
            f"{slices:,} slices, {gigabytes:.2f} GB of voxels in {report.seconds:.1f} s "
            f"({slices / report.seconds:,.0f} slices/s); peak memory of a worker: {peak:,.0f} MiB"
        )
    print_line(
        f"{len(report.outcomes)} cases: {done} done, {report.count('unchanged')} unchanged, "
        f"{report.count('failed')} failed, {report.count('failed before')} failed before; "
        f"{len(collection.left_out)} files left out"
    )
    print_line(f"store: {store}")
