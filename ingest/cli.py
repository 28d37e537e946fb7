"""The command `slicemill ingest`."""

from typing import TYPE_CHECKING, Annotated

import typer

from slicemill.common.errors import UsageError
from slicemill.common.files import Location, parse_location
from slicemill.common.options import parse_shard
from slicemill.common.terminal import format_table, print_line, report_errors

if TYPE_CHECKING:
    from slicemill.ingest.discover import Collection
    from slicemill.ingest.params import Params
    from slicemill.ingest.pipeline import Report

SHOWN = 40


def ingest(
    source: Annotated[
        str | None,
        typer.Argument(help="Folder with the scans, searched to the bottom. Leave it out with --pairs or --images."),
    ] = None,
    store: Annotated[str | None, typer.Argument(help="Folder of the slice store to make or to complete.")] = None,
    pairs: Annotated[
        str | None, typer.Option(help="CSV with columns image, mask and, if wanted, case_id, patient_id.")
    ] = None,
    images: Annotated[str | None, typer.Option(help="Pattern of the images, quoted, like 'ct/*_ct.nii.gz'.")] = None,
    masks: Annotated[
        str | None, typer.Option(help="Pattern of the masks; what its * matches pairs it with an image.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Names of the label values, like liver=1,tumor=2.")] = None,
    organ: Annotated[str | None, typer.Option(help="Which label is the organ.")] = None,
    tumor: Annotated[str | None, typer.Option(help="Which label is tumor.")] = None,
    patient: Annotated[
        str | None, typer.Option(help="Regular expression; its first group, in the image's path, is the patient.")
    ] = None,
    geometry: Annotated[str, typer.Option(help="When image and mask lie apart: error, or trust-image.")] = "error",
    workers: Annotated[int, typer.Option(help="Worker processes; 0 is one per core.", min=0)] = 0,
    threads: Annotated[
        int,
        typer.Option(help="Threads for one case; 0 shares the cores out, so that few huge cases use them all.", min=0),
    ] = 0,
    profile: Annotated[
        str,
        typer.Option(help="compact (zstd), or fast (lz4): a fifth larger, slices are read more than twice as fast."),
    ] = "compact",
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, like tcp://host:8786.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="I/N: this run does every Nth case from the Ith (from 0); then run store reindex."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be ingested, and stop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do all cases again, whatever is there.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed before, although its files did not change.")
    ] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Tell unchanged files by their content, not by size and time.")
    ] = False,
    keep_text: Annotated[
        bool, typer.Option("--keep-text", help="Keep free-text header fields; they may name a person.")
    ] = False,
) -> None:
    """Bring NIfTI scans and their masks into a slice store.

    Layouts that are understood: LiTS (volume-N, segmentation-N), Decathlon and nnU-Net (imagesTr, labelsTr,
    dataset.json), one folder per patient (CT_image, CT_mask), two parallel folders, a CSV, or two patterns. Run the
    same command again and only what is new or changed is done.

        slicemill ingest lits/ lits-store/
        slicemill ingest sarcoma/ sarcoma-store/ --labels tumor=1 --dry-run
        slicemill ingest --pairs cases.csv lits-store/
    """
    with report_errors():
        from slicemill.ingest.pipeline import IngestOptions
        from slicemill.ingest.pipeline import ingest as run

        source, store = _places(source, store, has_list=pairs is not None or images is not None)
        target = None if store is None else parse_location(store)
        collection = _collection(None if source is None else parse_location(source), pairs, images, masks)
        if patient:
            from slicemill.ingest.discover import with_patients

            collection = with_patients(collection, patient)
        params = _params(collection, (labels, organ, tumor), (geometry, profile), keep_text=keep_text)
        if dry_run:
            _show_collection(collection, params)
            return
        if target is None:
            raise UsageError("ingest: name the folder of the store as the last argument, or use --dry-run.")
        options = IngestOptions(
            workers=workers,
            threads=threads,
            scheduler=scheduler,
            shard=parse_shard(shard),
            overwrite=overwrite,
            retry_failed=retry_failed,
            rehash=rehash,
        )
        report = run(collection, target, params, options)
        _show_report(report, collection, target)
        if report.problem:
            print_line(f"failed: {report.problem}")
        if report.bug is not None:
            raise report.bug
        if report.failures or report.problem:
            raise SystemExit(1)


def _places(source: str | None, store: str | None, *, has_list: bool) -> tuple[str | None, str | None]:
    """With a list of files the only argument is the store."""
    if has_list and source is not None and store is None:
        return None, source
    if not has_list and source is None:
        raise UsageError(
            "ingest: name the folder with the scans, or list them with --pairs or --images. See slicemill ingest --help."
        )
    return source, store


def _collection(source: Location | None, pairs: str | None, images: str | None, masks: str | None) -> "Collection":
    from slicemill.ingest.discover import discover, from_csv, from_patterns

    if sum(given is not None for given in (source, pairs, images)) != 1:
        raise UsageError("ingest: give one of a folder, --pairs, or --images, not several.")
    if pairs is not None:
        return from_csv(parse_location(pairs))
    if images is not None:
        return from_patterns(images, masks)
    if masks is not None:
        raise UsageError("--masks goes with --images.")
    assert source is not None  # noqa: S101 (one of the three is given)
    return discover(source)


def _params(
    collection: "Collection",
    named: tuple[str | None, str | None, str | None],
    chosen: tuple[str, str],
    *,
    keep_text: bool,
) -> "Params":
    from slicemill.ct.labels import make_labels, parse_labels
    from slicemill.ingest.params import Params

    text, organ, tumor = named
    geometry, profile = chosen
    if geometry not in ("error", "trust-image"):
        raise UsageError(f"--geometry {geometry}: choose error or trust-image.")
    if profile not in ("compact", "fast"):
        raise UsageError(f"--profile {profile}: choose compact or fast.")
    labels = parse_labels(text, organ, tumor) if text else collection.labels
    if labels and not text and (organ or tumor):
        labels = make_labels(labels.values, organ, tumor)
    return Params(
        labels=labels,
        geometry="error" if geometry == "error" else "trust-image",
        keep_text=keep_text,
        profile="compact" if profile == "compact" else "fast",
    )


def _show_collection(collection: "Collection", params: "Params") -> None:
    from slicemill.ct.labels import format_labels

    rows = [
        (case.case_id, case.patient_id, case.name(case.image), case.name(case.mask) if case.mask else None)
        for case in collection.cases
    ]
    print_line(format_table(["case", "patient", "image", "mask"], rows))
    print_line()
    _show_left_out(collection)
    labels = params.labels
    print_line(f"labels: {format_labels(labels.values) if labels else 'not declared (only the value 1 is accepted)'}")
    if labels:
        print_line(f"organ: {labels.organ or '-'}, tumor: {labels.tumor or '-'}")
    masks = sum(case.mask is not None for case in collection.cases)
    print_line(
        f"{len(collection.cases)} cases, {masks} with a mask; {len(collection.left_out)} files left out. Nothing was written (--dry-run)."
    )


def _show_left_out(collection: "Collection") -> None:
    for path, reason in collection.left_out[:SHOWN]:
        print_line(f"left out: {path}: {reason}")
    if len(collection.left_out) > SHOWN:
        print_line(f"left out: {len(collection.left_out) - SHOWN} more")


def _show_report(report: "Report", collection: "Collection", store: Location) -> None:
    _show_left_out(collection)
    for outcome in report.outcomes:
        for warning in outcome.warnings:
            print_line(f"warning: {outcome.case_id}: {warning}")
    for outcome in report.failures:
        print_line(f"{outcome.status}: {outcome.case_id}: {outcome.reason}")
    done = report.count("done")
    if done:
        slices = sum(outcome.slices for outcome in report.outcomes)
        gigabytes = sum(outcome.voxel_bytes for outcome in report.outcomes) / 1e9
        peak = max(outcome.peak_mib for outcome in report.outcomes)
        print_line(
            f"{slices:,} slices, {gigabytes:.2f} GB of voxels in {report.seconds:.1f} s "
            f"({slices / report.seconds:,.0f} slices/s); a worker's peak memory {peak:,.0f} MiB"
        )
    print_line(
        f"{len(report.outcomes)} cases: {done} done, {report.count('unchanged')} unchanged, {report.count('failed')} failed, "
        f"{report.count('failed before')} failed before; {len(collection.left_out)} files left out"
    )
    print_line(f"store: {store}")
