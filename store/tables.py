"""The tables of a store, derived from its groups alone: one row a case, a slice, a lesion."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slicemill.common.errors import StoreError
from slicemill.common.files import (
    Location,
    atomic_write,
    parse_location,
    sha256_of_file,
    sha256_of_json,
    write_csv,
    write_json,
)
from slicemill.common.locks import wait_for_claim
from slicemill.common.remote import RemotePath
from slicemill.store.case import CaseInfo
from slicemill.store.layout import CHECKSUMS, DOCUMENT, GROUP, IMAGE, LABEL, LESIONS, MANIFEST, SLICES, TABLES
from slicemill.store.reader import Store, case_in, open_store

Row = dict[str, Any]
REMOTE_READERS = 16
"""Cases whose documents are asked for at a time from an object store, where the answer takes longer than the work."""

MAIN_COLUMNS = ("case_id", "nz", "ny", "nx", "spacing_z_mm", "spacing_x_mm", "orientation", "has_tumor", "n_lesions", "tumor_volume_ml",
                "tumor_percent_organ", "organ_volume_ml", "max_axial_diameter_mm", "hu_min", "hu_max")  # fmt: skip
"""What a person reads first; all columns stand in manifest.csv."""


def manifest_row(info: CaseInfo) -> Row:
    """Return a case's row of the manifest. Without a mask: null, not 0; without an organ label: its columns are null."""
    labels, lesions = info.labels, info.lesions
    voxels = {name: sum(counts) for name, counts in info.slice_stats.voxels.items()}
    total = info.shape[0] * info.shape[1] * info.shape[2]
    tumor = voxels[labels.tumor] if labels and labels.tumor else None
    organ = sum(voxels[name] for name in (labels.organ, labels.tumor) if name) if labels and labels.organ else None
    return {
        "case_id": info.case_id,
        "patient_id": info.patient_id,
        "image_path": info.image.name,
        "image_name": PurePosixPath(info.image.name).name,
        "mask_path": info.mask.name if info.mask else None,
        "mask_name": PurePosixPath(info.mask.name).name if info.mask else None,
        **dict(zip(("nz", "ny", "nx"), info.shape, strict=True)),
        **dict(zip(("spacing_z_mm", "spacing_y_mm", "spacing_x_mm"), info.spacing_mm, strict=True)),
        "orientation": info.source_axcodes,
        **{f"voxels_{name}": count for name, count in voxels.items()},
        "has_tumor": None if tumor is None else tumor > 0,
        "tumor_percent_scan": None if tumor is None else 100 * tumor / total,
        "tumor_percent_organ": 100 * tumor / organ if organ and tumor is not None else None,
        "tumor_volume_ml": None if tumor is None else tumor * info.voxel_ml,
        "organ_volume_ml": None if organ is None else organ * info.voxel_ml,
        "n_lesions": None if lesions is None else len(lesions),
        "max_axial_diameter_mm": max((lesion.max_axial_diameter_mm for lesion in lesions), default=0.0)
        if lesions is not None
        else None,
        "hu_min": min((low for low in info.slice_stats.hu_min if low is not None), default=None),
        "hu_max": max((high for high in info.slice_stats.hu_max if high is not None), default=None),
        "source_sha256": info.image.sha256,
        "warnings": "; ".join(info.warnings),
        "fingerprint": info.fingerprint,
    }


def slice_rows(info: CaseInfo) -> list[Row]:
    """Return a case's rows of the slice table."""
    stats = info.slice_stats
    tumor = info.labels.tumor if info.labels else None
    return [
        {
            "case_id": info.case_id,
            "z": z,
            **{f"voxels_{name}": counts[z] for name, counts in stats.voxels.items()},
            "hu_min": stats.hu_min[z],
            "hu_max": stats.hu_max[z],
            "has_tumor": stats.voxels[tumor][z] > 0 if tumor else None,
        }
        for z in range(info.shape[0])
    ]


def lesion_rows(info: CaseInfo) -> list[Row]:
    """Return a case's rows of the lesion table."""
    return [{"case_id": info.case_id, **flat(lesion.as_json())} for lesion in info.lesions or ()]


def flat(record: Row) -> Row:
    """Return a record whose lists of numbers became numbered columns, for tables."""
    axes = {"centroid_lps_mm": ("x", "y", "z"), "bbox_zyx": ("z0", "y0", "x0", "z1", "y1", "x1")}
    row: Row = {}
    for key, value in record.items():
        if key in axes:
            row |= {f"{key.removesuffix('_zyx')}_{axis}": item for axis, item in zip(axes[key], value, strict=True)}
        else:
            row[key] = value
    return row


def reindex(url: str | Location) -> list[Row]:
    """Build the three tables of a store, and the checksums, from its groups and return the manifest's rows.

    Runs take turns. A case that cannot be read is left out of the tables and named when they are written.

    Raises
    ------
    StoreError
        A case cannot be read.
    """
    root = open_store(url).root
    with wait_for_claim(root, TABLES):
        store = open_store(root)
        derived = [row for row in _derived(store) if row is not None]
        manifest = [row.manifest for row in derived]
        _write_table(store.root, MANIFEST, [pa.Table.from_pylist(_complete(manifest))] if manifest else [])
        write_csv(store.root / f"{MANIFEST}.csv", _complete(manifest), ("case_id",))
        _write_table(store.root, SLICES, [row.slices for row in derived])
        _write_table(store.root, LESIONS, [row.lesions for row in derived if row.lesions is not None])
        checksums = {
            "tables": {name: sha256_of_file(store.root / name) for name in table_names()},
            "group": sha256_of_file(store.root / GROUP / DOCUMENT),
            "cases": {row.manifest["case_id"]: row.documents_sha256 for row in derived},
        }
        write_json(store.root / CHECKSUMS, checksums)
    unread = sorted(set(store.case_ids) - set(checksums["cases"]))
    if unread:
        raise StoreError(
            f"{store.root}: the tables were built without {len(unread)} cases that cannot be read: {', '.join(unread[:5])}. "
            "Ingest their collection again with --rehash, which does them anew; `slicemill store verify` says what is wrong with them."
        )
    return manifest


@dataclass(frozen=True, slots=True)
class _Derived:
    """What the tables take from one case."""

    manifest: Row
    slices: pa.Table
    lesions: pa.Table | None
    documents_sha256: str


def _derived(store: Store) -> Iterator[_Derived | None]:
    """Yield what each case gives, None for one that cannot be read; nothing of a case is kept in memory but this."""

    def derive(case_id: str) -> _Derived | None:
        try:
            try:
                info = case_in(store.root, case_id).info
            except StoreError:
                with wait_for_claim(store.root, case_id):  # it may just be replaced
                    info = case_in(store.root, case_id).info
            lesions = lesion_rows(info)
            return _Derived(
                manifest=manifest_row(info),
                slices=pa.Table.from_pylist(slice_rows(info)),
                lesions=pa.Table.from_pylist(lesions) if lesions else None,
                documents_sha256=case_documents_sha256(store.root, case_id),
            )
        except (StoreError, OSError):
            return None

    with ThreadPoolExecutor(REMOTE_READERS if isinstance(store.root, RemotePath) else 1) as pool:
        yield from pool.map(derive, store.case_ids)


def table_names() -> tuple[str, ...]:
    """Return the names of the tables' files."""
    return (f"{MANIFEST}.parquet", f"{MANIFEST}.csv", f"{SLICES}.parquet", f"{LESIONS}.parquet")


def case_documents_sha256(root: Location, case_id: str) -> str:
    """Return one hash of a case's Zarr documents: its group's and its arrays'."""
    folder = root / GROUP / case_id
    found = []
    for name in (DOCUMENT, f"{IMAGE}/{DOCUMENT}", f"{LABEL}/{DOCUMENT}"):
        try:
            found.append((name, sha256_of_file(folder / name)))
        except FileNotFoundError:
            continue
    return sha256_of_json(found)


def read_table(url: str | Location, name: str) -> list[Row]:
    """Return the rows of a table: manifest, slices or lesions.

    Raises
    ------
    StoreError
        The table is not there or cannot be read.
    """
    path = parse_location(url) / f"{name}.parquet"
    try:
        rows: list[Row] = pq.read_table(pa.BufferReader(path.read_bytes())).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{path}: cannot be read; `slicemill store reindex {url}` builds it from the store."
        ) from error
    return rows


def store_sha256(store: Store) -> str:
    """Return one hash that stands for everything a store holds: case ids, sources and parameters."""
    infos = (case.info for case in store)
    return sha256_of_json(
        [(info.case_id, info.image.sha256, info.mask and info.mask.sha256, info.params_sha256) for info in infos]
    )


def _complete(rows: list[Row]) -> list[Row]:
    columns = _columns(rows)
    return [{column: row.get(column) for column in columns} for row in rows]


def _write_table(root: Location, name: str, parts: list[pa.Table]) -> None:
    """Write parts that may differ in their columns as one table; what a part lacks is null."""
    whole = pa.table({"case_id": pa.array([], pa.string())})
    if parts:
        whole = pa.concat_tables(parts, promote_options="default").combine_chunks()
        whole = whole.select(_columns([dict.fromkeys(part.column_names) for part in parts]))
    with atomic_write(root / f"{name}.parquet") as aside:
        pq.write_table(whole, aside)


def _columns(rows: Iterable[Row]) -> list[str]:
    """Return the union of the rows' columns; label columns stay together, before what follows them."""
    names = dict.fromkeys(column for row in rows for column in row)
    labels = [name for name in names if name.startswith("voxels_")]
    fixed = [name for name in names if not name.startswith("voxels_")]
    place = min((fixed.index(name) for name in ("has_tumor", "hu_min") if name in fixed), default=len(fixed))
    return [*fixed[:place], *labels, *fixed[place:]]
