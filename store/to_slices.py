"""Exports a store as folders of slice files, for code that reads pictures or arrays one by one.

::

    OUT/<case_id>/image/0017.jpg    the slice at z = 17, in one of the formats below
    OUT/<case_id>/mask/0017.png     its label values, unscaled (.npy for npy); only with a mask
    OUT/<case_id>/case.json         source and options of the folder, and its rows of the table
    OUT/pairs.csv                   one row per slice: case, patient, z, image, mask, has_tumor, spacing

1. A case's folder is written under another name, ``case.json`` last, and renamed when it is complete.
2. A folder of the same case, source and options is skipped. All folders of one OUT must have the same options.
3. ``pairs.csv`` is built from every ``case.json`` of OUT.
"""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from slicemill.common.documents import read_document, to_document
from slicemill.common.errors import ConfigError, InputError, UsageError
from slicemill.common.failures import explain_failure
from slicemill.common.files import write_csv, write_json
from slicemill.common.machine import count_workers
from slicemill.common.names import natural_key
from slicemill.common.progress import progress
from slicemill.ct.pictures import encode_png
from slicemill.ct.window import DEFAULT_WINDOW, Window
from slicemill.store.case import CaseInfo, SourceHashes, hash_source
from slicemill.store.layout import SliceFormat
from slicemill.store.reader import Case, Store

WINDOWED: tuple[SliceFormat, ...] = ("jpeg", "png")
"""Formats of 8 bits, which show a window; the others keep all HU."""
SUFFIX: dict[SliceFormat, str] = {"jpeg": "jpg", "png": "png", "png16": "png", "npy": "npy"}
PNG16_OFFSET = 32768
"""A 16-bit PNG is unsigned, so its value is HU + 32768."""
JPEG_QUALITY = 95
MARKER = "case.json"
TABLE = "pairs.csv"

Section = npt.NDArray[np.int16] | npt.NDArray[np.uint8]
"""A slice [y, x]."""


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """A row of ``pairs.csv``, its fields in the order of the columns: one slice."""

    case_id: str
    patient_id: str
    z: int
    image: str
    """Path of the slice's file, relative to the folder of the export."""
    mask: str | None
    """Path of the mask's file; None without a mask."""
    has_tumor: bool | None
    spacing_z_mm: float
    spacing_y_mm: float
    spacing_x_mm: float


COLUMNS = tuple(column.name for column in fields(PairRow))


@dataclass(frozen=True, kw_only=True)
class Marker:
    """The document ``case.json`` of an exported case."""

    case_id: str
    form: str
    """The options of the export (`str` of a SliceForm)."""
    source: SourceHashes
    rows: tuple[PairRow, ...]


@dataclass(frozen=True, kw_only=True)
class SliceForm:
    """Format, window and choice of the exported slices; the same for all files of a folder."""

    format: SliceFormat
    window: Window | None
    """HU shown as black and white in 8-bit formats; None in the others."""
    only_labeled: bool = False
    """Whether slices without any label are left out."""

    def __post_init__(self) -> None:
        """Check that 8-bit formats have a window, and the others none."""
        if (self.window is not None) != (self.format in WINDOWED):
            raise UsageError(
                f"--window: {self.format} keeps all HU and has no window; omit --window, or choose jpeg or png."
            )

    def __str__(self) -> str:
        window = f" --window {self.window.low:g},{self.window.high:g}" if self.window else ""
        return f"--format {self.format}{window}{' --only-labeled' if self.only_labeled else ''}"


@dataclass(frozen=True, kw_only=True)
class ExportOutcome:
    """Outcome of one case."""

    case_id: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """Outcomes of an export, and the size of its table."""

    outcomes: tuple[ExportOutcome, ...]
    slices: int
    """Rows of the table, including those of earlier runs."""

    def count(self, status: str) -> int:
        """Return the number of cases with this status."""
        return sum(outcome.status == status for outcome in self.outcomes)


def parse_window(text: str) -> Window:
    """Parse a window such as ``-200,300``.

    >>> parse_window("-200,300")
    Window(low=-200.0, high=300.0)

    Raises
    ------
    UsageError
        The text is not two numbers in ascending order.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--window {text}: expected two HU, LOW,HIGH, like -200,300.") from error
    try:
        return Window(low, high)
    except ConfigError as error:
        raise UsageError(f"--window {text}: {error}") from error


def make_form(chosen: SliceFormat, window: str | None, *, only_labeled: bool = False) -> SliceForm:
    """Return the form for a command's options. 8-bit formats use DEFAULT_WINDOW by default.

    >>> str(make_form("png", None))
    '--format png --window -200,300'

    Raises
    ------
    UsageError
        The window is invalid, or the format has no window.
    """
    limits = parse_window(window) if window is not None else DEFAULT_WINDOW if chosen in WINDOWED else None
    return SliceForm(format=chosen, window=limits, only_labeled=only_labeled)


def export_slices(store: Store, out: Path, form: SliceForm, case_ids: Sequence[str], workers: int = 0) -> ExportReport:
    """Write the slices of cases as files, and the table of all slices in `out`.

    Threads are enough, because decoding and encoding release the GIL: two threads were as fast as two processes in all
    formats. A worker has one slice in memory at a time.

    Parameters
    ----------
    workers
        Threads, each with one case at a time; 0 means one per core.

    Raises
    ------
    ConfigError
        `out` has slices of another form.
    StoreError
        A case is not in the store.
    """
    check_form(out, form)
    store.check_known(case_ids)
    outcomes = export_in_threads(lambda case_id: _try_case(store, case_id, out, form), case_ids, count_workers(workers))
    rows = [to_document(row) for marker in _read_markers(out) for row in marker.rows]
    write_csv(out / TABLE, rows, COLUMNS)
    order = {case_id: number for number, case_id in enumerate(case_ids)}
    return ExportReport(outcomes=tuple(sorted(outcomes, key=lambda outcome: order[outcome.case_id])), slices=len(rows))


def check_form(out: Path, form: SliceForm) -> None:
    """Check that a folder has no slices of another form.

    Raises
    ------
    ConfigError
        The folder has slices of another form.
    """
    for marker in _read_markers(out):
        if marker.form != str(form):
            raise ConfigError(
                f"all slices of a folder must have the same options; {marker.case_id} was written with "
                f"{marker.form}, now the options are {form}. Use the first options, or choose another folder.",
                where=out,
            )


def _read_markers(out: Path) -> list[Marker]:
    """Read the ``case.json`` of each complete case folder, in natural order."""
    paths = sorted(out.glob(f"[!.]*/{MARKER}"), key=lambda path: natural_key(path.parent.name))
    return [_read_marker(path) for path in paths]


def _read_marker(path: Path) -> Marker:
    try:
        return read_document(Marker, path)
    except InputError as error:
        reason = f"{error.reason} It was not written by this command; move its folder, or choose another --out."
        raise ConfigError(reason, where=error.where) from error


def export_in_threads(
    work: Callable[[str], ExportOutcome], case_ids: Sequence[str], workers: int
) -> list[ExportOutcome]:
    """Return the outcomes of all cases, in the order in which they end; Ctrl-C cancels those that have not begun."""
    outcomes: list[ExportOutcome] = []
    with ThreadPoolExecutor(workers) as pool, progress("export", len(case_ids), "cases") as advance:
        futures: list[Future[ExportOutcome]] = [pool.submit(work, case_id) for case_id in case_ids]
        try:
            for future in as_completed(futures):
                outcomes.append(future.result())
                advance(1, outcomes[-1].case_id)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return outcomes


def _try_case(store: Store, case_id: str, out: Path, form: SliceForm) -> ExportOutcome:
    """Export one case; an error becomes its outcome and does not stop the others."""
    try:
        return ExportOutcome(case_id=case_id, status="done" if write_case(store[case_id], out, form) else "skipped")
    except Exception as error:  # noqa: BLE001 (any error fails one case)
        return ExportOutcome(case_id=case_id, status="failed", reason=explain_failure(error, case_id).reason)


def write_case(case: Case, out: Path, form: SliceForm) -> bool:
    """Write one case's folder atomically, unless it is up to date; return whether it was written.

    Raises
    ------
    ConfigError
        A folder of this name exists, but is not an exported case.
    """
    folder, partial = out / case.info.case_id, out / f".{case.info.case_id}.part"
    source = hash_source(case.info)
    if folder.exists():
        if not (folder / MARKER).is_file():
            raise ConfigError("exists and is not an exported case; move it, or choose another folder.", where=folder)
        if _read_marker(folder / MARKER).source == source:
            return False
    shutil.rmtree(partial, ignore_errors=True)
    rows = list_rows(case.info, form)
    try:
        for row in rows:
            _write_slice(case, row, partial, form)
        marker = Marker(case_id=case.info.case_id, form=str(form), source=source, rows=rows)
        write_json(partial / MARKER, to_document(marker))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def list_rows(info: CaseInfo, form: SliceForm) -> tuple[PairRow, ...]:
    """Return a case's rows of the table."""
    spacing_z, spacing_y, spacing_x = info.spacing_mm
    mask_suffix = "npy" if form.format == "npy" else "png"
    return tuple(
        PairRow(
            case_id=info.case_id,
            patient_id=info.patient_id,
            z=z,
            image=f"{info.case_id}/image/{z:04d}.{SUFFIX[form.format]}",
            mask=f"{info.case_id}/mask/{z:04d}.{mask_suffix}" if info.mask else None,
            has_tumor=info.has_tumor(z),
            spacing_z_mm=spacing_z,
            spacing_y_mm=spacing_y,
            spacing_x_mm=spacing_x,
        )
        for z in (info.slice_stats.labeled() if form.only_labeled else range(info.shape[0]))
    )


def _write_slice(case: Case, row: PairRow, partial: Path, form: SliceForm) -> None:
    """Write one slice and its mask into `partial`, the new folder of the case."""
    sections: list[tuple[str, Section]] = [(row.image, convert_slice(case.image[row.z], form))]
    if case.label is not None and row.mask is not None:
        sections.append((row.mask, case.label[row.z]))
    for name, section in sections:
        path = partial / name.removeprefix(f"{case.info.case_id}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_section(path, section)


def convert_slice(image: npt.NDArray[np.int16], form: SliceForm) -> npt.NDArray[Any]:
    """Convert a slice int16[y, x], HU, to its file's values: uint8 over the window, uint16 of HU + 32768, or int16 HU.

    >>> convert_slice(np.array([[-1024, 0]], dtype=np.int16), SliceForm(format="png16", window=None)).tolist()
    [[31744, 32768]]
    """
    if form.window is not None:
        return form.window.to_gray(image)
    if form.format == "png16":
        return (image.astype(np.int32) + PNG16_OFFSET).astype(np.uint16)
    return image


def save_section(path: Path, section: npt.NDArray[Any]) -> None:
    """Write any[y, x] in the format of the path's suffix; a PNG keeps the values (mode L, or 16 bits)."""
    if path.suffix == ".npy":
        np.save(path, section, allow_pickle=False)
    elif path.suffix == ".jpg":
        Image.fromarray(section).save(path, quality=JPEG_QUALITY)
    else:
        path.write_bytes(encode_png(section))
