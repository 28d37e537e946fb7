"""Writes a store as a collection that nnU-Net, MONAI, or code for LiTS reads.

1. `slicemill.store.dataset_plan` names the files of each case.
2. A source file that has the very bytes that a file needs is linked, if links are requested. Otherwise the voxels are
   written from the store, with the header of the source file; segmentations on the grid of their image.
3. ``export.jsonl`` notes each case before its files are written and when they are complete. The next run leaves
   complete cases alone, and replaces no file that is not noted.
4. The documents of the collection are written last, when all cases are complete.
"""

import os
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from slicemill.common.documents import from_document, to_document
from slicemill.common.errors import ConfigError
from slicemill.common.failures import explain_failure
from slicemill.common.files import append_line, read_lines, relative_path, sha256_of_file, write_csv, write_json
from slicemill.common.locks import CLAIMS, try_claim
from slicemill.common.machine import count_workers
from slicemill.ct.naming import find_files
from slicemill.store.case import CaseInfo, SourceFile, SourceHashes, hash_source
from slicemill.store.dataset_plan import DOCUMENTS, TABLE, DatasetPlan, PlannedCase
from slicemill.store.layout import DatasetFormat, Link
from slicemill.store.reader import Case, Store
from slicemill.store.to_nifti import export_case, export_label_like_image, has_image_grid
from slicemill.store.to_slices import ExportOutcome, export_in_threads

NOTES = "export.jsonl"
CLAIM = "export"


@dataclass(frozen=True, kw_only=True)
class ExportNote:
    """A line of ``export.jsonl``: a case whose files are being written, or are complete."""

    case_id: str
    status: Literal["started", "done"]
    format: DatasetFormat
    image: str
    label: str | None
    changed: Mapping[str, int]
    """Stored label value to exported value, where they differ; the keys are texts, as JSON has them."""
    source: SourceHashes
    bytes: tuple[int, ...] = ()
    """Size of each complete file."""
    linked: tuple[str, ...] = ()
    """The files that are links to source files."""

    @property
    def files(self) -> tuple[str, ...]:
        """Return the paths of the case's files, relative to the exported folder."""
        return (self.image,) if self.label is None else (self.image, self.label)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Source files that may be linked."""

    link: Link = "never"
    files: Mapping[str, Path] = field(default_factory=dict)
    """The files of the collection by their relative path."""


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """Outcomes of an export."""

    outcomes: tuple[ExportOutcome, ...]
    linked: int
    """Files of the folder that are links to source files."""

    def count(self, status: str) -> int:
        """Return the number of cases with this status."""
        return sum(outcome.status == status for outcome in self.outcomes)


def find_sources(link: Link, collection: str | Path | None) -> Sources:
    """Return the files of a local collection that may be linked.

    Raises
    ------
    ConfigError
        Links are requested without a collection, or the collection is not a local folder.
    """
    if link == "never":
        return Sources()
    folder = None if collection is None else Path(collection)
    if folder is None or not folder.is_dir():
        raise ConfigError(
            f"--link {link} needs the collection that the store was made from, as a local folder: --source FOLDER; "
            f"it is {collection}."
        )
    return Sources(link=link, files={relative_path(path, folder): path for path in find_files(folder)})


def export_dataset(
    store: Store, out: Path, plan: DatasetPlan, sources: Sources | None = None, workers: int = 0
) -> DatasetReport:
    """Write the cases that are missing or out of date, and the documents when every case is complete.

    Parameters
    ----------
    sources
        Source files that may be linked; None to link none.
    workers
        Threads, each with one case at a time; 0 means one per core. A thread has a slab of voxels in memory.

    Raises
    ------
    ConfigError
        The folder holds something else, or cases under other names; or another run is writing to it.
    """
    check_folder(out, plan, read_notes(out))
    with try_claim(out, CLAIM) as claim:
        if claim is None:
            raise ConfigError("another run is exporting to this folder; wait for its end.", where=out)
        writer = _Writer(store, out, plan, sources or Sources())
        pending = {case.case_id: case for case in list_pending(store, out, plan)}
        current = () if pending else tuple(name for name, _ in plan.documents)
        for name in DOCUMENTS[plan.form].difference(current):
            (out / name).unlink(missing_ok=True)  # those of an earlier run describe other files
        outcomes = export_in_threads(
            lambda case_id: writer.try_case(pending[case_id]), list(pending), count_workers(workers)
        )
        if all(outcome.status == "done" for outcome in outcomes):
            _write_documents(out, plan)
    by_id = {outcome.case_id: outcome for outcome in outcomes}
    every = (by_id.get(case.case_id, ExportOutcome(case_id=case.case_id, status="skipped")) for case in plan.cases)
    return DatasetReport(outcomes=tuple(every), linked=sum(len(note.linked) for note in read_notes(out).values()))


def list_pending(store: Store, out: Path, plan: DatasetPlan) -> list[PlannedCase]:
    """Return the cases whose files are missing or out of date."""
    notes = read_notes(out)

    def is_done(case: PlannedCase) -> bool:
        note = notes.get(case.case_id)
        if note is None or note.status != "done":
            return False
        now = make_note(case, plan, store[case.case_id].info)
        if (note.source, note.changed) != (now.source, now.changed):
            return False
        return all(_has_size(out / name, size) for name, size in zip(note.files, note.bytes, strict=True))

    return [case for case in plan.cases if not is_done(case)]


def make_note(case: PlannedCase, plan: DatasetPlan, info: CaseInfo) -> ExportNote:
    """Return the note of a case whose files are to be written."""
    return ExportNote(
        case_id=case.case_id,
        status="started",
        format=plan.form,
        image=case.image,
        label=case.label,
        changed={str(value): exported for value, exported in plan.changed.items()} if case.label else {},
        source=hash_source(info),
    )


def read_notes(out: Path) -> dict[str, ExportNote]:
    """Return the last note of each case of a folder; empty if nothing was exported to it.

    Raises
    ------
    ConfigError
        The file of the notes was not written by this command.
    """
    if not (out / NOTES).exists():
        return {}
    notes: dict[str, ExportNote] = {}
    for record in read_lines(out / NOTES):
        try:
            note = from_document(ExportNote, record, str(out / NOTES), error=ConfigError)
        except ConfigError as error:
            reason = f"{error.reason} It was not written by this command; choose another folder."
            raise ConfigError(reason, where=error.where) from error
        notes[note.case_id] = note
    return notes


def check_folder(out: Path, plan: DatasetPlan, notes: Mapping[str, ExportNote]) -> None:
    """Check that a folder is empty, or holds an export with the same cases under the same names.

    Raises
    ------
    ConfigError
        It does not.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError("is a file, but a collection is a folder. Choose another name.", where=out)
    if not notes and out.exists() and any(path.name not in (CLAIMS, NOTES) for path in out.iterdir()):
        raise ConfigError("has files that this command did not write. Choose a new or an empty folder.", where=out)
    planned = {case.case_id: (plan.form, case.image, case.label) for case in plan.cases}
    for case_id, note in notes.items():
        before, now = (note.format, note.image, note.label), planned.get(case_id)
        if before != now:
            described = "is no part of this export" if now is None else f"would be {now[1]}, {now[2]} ({now[0]})"
            raise ConfigError(
                f"holds {case_id} as {note.image}, {note.label} ({note.format}), but the case {described}. "
                "Choose another folder, or remove this one.",
                where=out,
            )


class _Writer:
    """Writes cases into a folder, from several threads."""

    def __init__(self, store: Store, out: Path, plan: DatasetPlan, sources: Sources) -> None:
        self._store = store
        self._out = out
        self._plan = plan
        self._sources = sources
        self._values = plan.values()
        self._noted = {name for note in read_notes(out).values() for name in note.files}
        self._lock = threading.Lock()

    def try_case(self, case: PlannedCase) -> ExportOutcome:
        """Export one case; an error becomes its outcome and does not stop the others."""
        try:
            self._write(case)
        except Exception as error:  # noqa: BLE001 (any error fails one case)
            reason = explain_failure(error, case.case_id).reason
            return ExportOutcome(case_id=case.case_id, status="failed", reason=reason)
        return ExportOutcome(case_id=case.case_id, status="done")

    def _write(self, case: PlannedCase) -> None:
        stored = self._store[case.case_id]
        note = make_note(case, self._plan, stored.info)
        for name in note.files:
            if os.path.lexists(self._out / name) and name not in self._noted:
                raise ConfigError(
                    "exists and was not written by this command; move it, or choose another folder.",
                    where=self._out / name,
                )
        self._append(note)
        linked = [name for name in note.files if self._try_link(stored, name, is_image=name == case.image)]
        for name in note.files:
            if name not in linked and name == case.image:
                export_case(stored, self._out / name, overwrite=True)
            elif name not in linked:
                export_label_like_image(stored, self._out / name, self._values)
        sizes = tuple((self._out / name).stat().st_size for name in note.files)
        self._append(replace(note, status="done", bytes=sizes, linked=tuple(linked)))

    def _append(self, note: ExportNote) -> None:
        with self._lock:
            append_line(self._out / NOTES, to_document(note))

    def _try_link(self, case: Case, name: str, *, is_image: bool) -> bool:
        """Link a file to its source file if that has the same voxels, and return whether it did."""
        source = case.info.image if is_image else case.info.mask
        same = case.info.max_rounding_error_hu == 0 if is_image else self._values is None and is_mask_as_filed(case)
        if self._sources.link == "never" or source is None or not same:
            return False
        file = self._sources.files.get(source.name)
        if file is None or not file.name.endswith(self._plan.suffix) or not _is_source(file, source):
            return False
        link_file(file, self._out / name, self._sources.link)
        return True


def is_mask_as_filed(case: Case) -> bool:
    """Return whether the mask file of a case has the voxels of its image file, in the same order.

    Ingest stores a resampled mask with the header of the image, so a mask with that header counts as resampled.
    """
    mask = case.info.mask
    return mask is not None and mask.header_b64 != case.info.image.header_b64 and has_image_grid(case)


def _is_source(file: Path, source: SourceFile) -> bool:
    return file.stat().st_size == source.bytes and sha256_of_file(file) == source.sha256


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def link_file(file: Path, target: Path, link: Link) -> None:
    """Put a link to a file at `target`, and replace what is there.

    Raises
    ------
    ConfigError
        The disk refuses the link.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        if link == "hard":
            os.link(file.resolve(), aside)
        else:
            aside.symlink_to(file.resolve())
        aside.replace(target)
    except OSError as error:
        other = "symbolic or never" if link == "hard" else "never"
        raise ConfigError(
            f"cannot be a {link} link to {file} ({error.strerror}). Pass --link {other}.", where=target
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def _write_documents(out: Path, plan: DatasetPlan) -> None:
    for name, document in plan.documents:
        write_json(out / name, document)
    write_csv(out / TABLE, [to_document(case) for case in plan.cases])
