"""Moves the cases of a store of format 1 to format 2, without decoding a voxel.

A case is claimed, and then:

1. The segmentation is linked to its new path (in a bucket: copied on the server; on a disk without hard links: copied).
2. The group documents are written, the case's own last. Until then the case has format 1, and is complete.
3. The old files of the segmentation are removed.

A run that was killed leaves a complete case of one format, with files of the other, which the next run removes. At the
end the tables and checksums are built again. A case whose documents do not match the checksums is left as it is: new
checksums would hide the damage.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slicemill.common.documents import read_document
from slicemill.common.errors import StoreError
from slicemill.common.failures import explain_failure
from slicemill.common.files import Location, sha256_of_file, write_json
from slicemill.common.locks import Claim, try_claim
from slicemill.common.progress import progress
from slicemill.common.remote import RemotePath
from slicemill.store.layout import (
    ARRAY_PATHS,
    ATTRIBUTE,
    CHECKSUMS,
    DOCUMENT,
    FORMAT,
    GROUP,
    LABEL,
    LABELS_GROUP,
    SHARD,
)
from slicemill.store.reader import Store, open_case
from slicemill.store.tables import Checksums, hash_documents, reindex
from slicemill.store.writer import check_claim, write_group_documents
from slicemill.store.zarr_documents import make_group_document, read_attribute

OLD_LABEL = ARRAY_PATHS[1][LABEL]
NEW_LABEL = ARRAY_PATHS[FORMAT][LABEL]


@dataclass(frozen=True, kw_only=True)
class UpgradeOutcome:
    """Outcome of one case."""

    case_id: str
    status: Literal["done", "skipped", "failed"]
    """``skipped``: the case had the newest format already."""
    reason: str = ""


def upgrade_store(store: Store, workers: int) -> list[UpgradeOutcome]:
    """Move every case to the newest format, then build the tables and checksums again.

    Parameters
    ----------
    workers
        Cases at a time.

    Raises
    ------
    StoreError
        The checksums cannot be read.
    """
    root, checksums = store.root, _read_checksums(store.root)
    with ThreadPoolExecutor(workers) as pool, progress("upgrade", len(store), "cases") as advance:

        def upgrade(case_id: str) -> UpgradeOutcome:
            outcome = _try_case(root, case_id, checksums.cases.get(case_id))
            advance(1, case_id)
            return outcome

        outcomes = list(pool.map(upgrade, store.case_ids))
    statuses = {outcome.status for outcome in outcomes}
    if "failed" not in statuses:
        _upgrade_root(root)
        # a run that was killed before this line has left checksums of another document of the root
        if "done" in statuses or checksums.group != sha256_of_file(root / GROUP / DOCUMENT):
            reindex(root)
    return outcomes


def _read_checksums(root: Location) -> Checksums:
    """Return the hashes from the time when the tables were built, or empty ones if there are no tables."""
    if not (root / CHECKSUMS).is_file():
        return Checksums(tables={}, group="", cases={})
    return read_document(Checksums, root / CHECKSUMS, error=StoreError)


def _upgrade_root(root: Location) -> None:
    attribute = read_attribute(root / GROUP)
    if isinstance(attribute, dict) and attribute.get("format", FORMAT) != FORMAT:
        document = make_group_document({ATTRIBUTE: {**attribute, "format": FORMAT}})
        write_json(root / GROUP / DOCUMENT, document)


def _try_case(root: Location, case_id: str, recorded: str | None) -> UpgradeOutcome:
    """Upgrade one case; an error becomes its outcome and does not stop the others."""
    try:
        with try_claim(root, case_id) as claim:
            if claim is None:
                reason = f"{case_id}: another run is writing it; run this command again when that run has ended."
                return UpgradeOutcome(case_id=case_id, status="failed", reason=reason)
            moved = _upgrade(root, case_id, recorded, claim)
            return UpgradeOutcome(case_id=case_id, status="done" if moved else "skipped")
    except Exception as error:  # noqa: BLE001 (any error fails one case)
        return UpgradeOutcome(case_id=case_id, status="failed", reason=explain_failure(error, case_id).reason)


def _upgrade(root: Location, case_id: str, recorded: str | None, claim: Claim) -> bool:
    """Move one case to the newest format, and return whether it had another.

    Raises
    ------
    StoreError
        The case cannot be read, or its documents are not those that the tables were built from.
    """
    folder = root / GROUP / case_id
    info = open_case(root, case_id).info
    if isinstance(folder, Path):
        for unfinished in folder.glob(f".{DOCUMENT}.*.part*"):  # of `write_group_documents`
            unfinished.unlink()
    if info.format == FORMAT:
        _remove(folder / OLD_LABEL)
        return False
    _remove(folder / LABELS_GROUP)
    if recorded is not None and hash_documents(root, info) != recorded:
        raise StoreError(
            "its documents changed since the tables were built. If it was ingested later, run "
            "`slicemill store reindex` and this command again; otherwise ingest it again with --overwrite.",
            where=folder,
        )
    if info.mask is not None:
        for name in (SHARD, DOCUMENT):
            _link(folder / OLD_LABEL / name, folder / NEW_LABEL / name)
    if isinstance(folder, RemotePath):
        check_claim(folder, claim.held)
    write_group_documents(folder, info)
    _remove(folder / OLD_LABEL)
    return True


def _link(old: Location, new: Location) -> None:
    """Give a file a second path: a hard link, or else a copy."""
    if isinstance(old, RemotePath) and isinstance(new, RemotePath):
        old.copy_to(new)
    elif isinstance(old, Path) and isinstance(new, Path):
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(old, new)
        except OSError:  # the disk has no hard links; if something else is wrong, the copy reports it
            shutil.copyfile(old, new)


def _remove(folder: Location) -> None:
    if isinstance(folder, RemotePath):
        for path, _ in list(folder.files()):
            path.unlink(missing_ok=True)
    elif folder.exists():
        shutil.rmtree(folder)
