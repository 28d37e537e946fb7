"""A store as folders of slice files, for code that wants pictures or arrays one by one.

::

    OUT/<case_id>/image/0017.jpg    the slice at z = 17, in one of the formats below
    OUT/<case_id>/mask/0017.png     its label values as they are (.npy for npy); absent without a mask
    OUT/<case_id>/case.json         what the folder was made of and with, and its rows of the table
    OUT/pairs.csv                   one row a slice: case, patient, z, image, mask, has_tumor, spacing

1. A case's folder is written aside and renamed when it is whole, ``case.json`` last.
2. A folder of the same case, source and options is skipped; other options in one OUT are refused.
3. ``pairs.csv`` is built from every ``case.json`` of OUT.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from slicemill.common.errors import ConfigError, InputError, StoreError, UsageError
from slicemill.common.files import read_json, write_csv, write_json
from slicemill.common.progress import progress
from slicemill.ct.naming import natural_key
from slicemill.ct.pictures import png_bytes
from slicemill.ct.window import DEFAULT_WINDOW, Window
from slicemill.store.case import CaseInfo
from slicemill.store.reader import Case, Store
from slicemill.store.tables import slice_rows

Format = Literal["jpeg", "png", "png16", "npy"]
FORMATS: tuple[Format, ...] = get_args(Format)
WINDOWED = ("jpeg", "png")
"""Formats of 8 bits, which show a window; the others hold every HU."""
SUFFIX: dict[Format, str] = {"jpeg": "jpg", "png": "png", "png16": "png", "npy": "npy"}
PNG16_OFFSET = 32768
"""A 16-bit PNG has no sign: its value is HU + 32768."""
JPEG_QUALITY = 95
MARKER = "case.json"
TABLE = "pairs.csv"
COLUMNS = ("case_id", "patient_id", "z", "image", "mask", "has_tumor", "spacing_z_mm", "spacing_y_mm", "spacing_x_mm")

Row = dict[str, Any]
Section = npt.NDArray[np.int16] | npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Form:
    """What the slice files are; one folder holds files of one form."""

    format: Format
    window: Window | None
    """HU shown as black and white in 8-bit formats; None in the others."""
    only_labeled: bool = False
    """Leave out slices on which nothing is labeled."""

    def __post_init__(self) -> None:
        """Check that there is a window where one is shown, and none elsewhere."""
        if (self.window is not None) != (self.format in WINDOWED):
            raise UsageError(
                f"--window: {self.format} holds every HU and shows no window; leave it out, or choose jpeg or png."
            )

    def __str__(self) -> str:
        window = f" --window {self.window.low:g},{self.window.high:g}" if self.window else ""
        return f"--format {self.format}{window}{' --only-labeled' if self.only_labeled else ''}"


@dataclass(frozen=True, kw_only=True)
class ExportOutcome:
    """How one case ended."""

    case_id: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an export did, and what its table now holds."""

    outcomes: tuple[ExportOutcome, ...]
    slices: int
    """Rows of the table, of earlier runs too."""

    def count(self, status: str) -> int:
        """Return how many cases ended so."""
        return sum(outcome.status == status for outcome in self.outcomes)


def parse_window(text: str) -> Window:
    """Read ``-200,300``.

    >>> parse_window("-200,300")
    Window(low=-200.0, high=300.0)

    Raises
    ------
    UsageError
        The text is not two numbers, the lower one first.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--window {text}: expected two HU, LOW,HIGH, like -200,300.") from error
    try:
        return Window(low, high)
    except ConfigError as error:
        raise UsageError(f"--window {text}: {error}") from error


def form_of(name: str, window: str | None, *, only_labeled: bool = False) -> Form:
    """Return the form that a command's options ask for; 8-bit formats have DEFAULT_WINDOW where none is given.

    >>> str(form_of("png", None))
    '--format png --window -200,300'

    Raises
    ------
    UsageError
        There is no such format, or the window is unfit or not shown.
    """
    chosen = next((known for known in FORMATS if known == name), None)
    if chosen is None:
        raise UsageError(f"--format {name}: choose one of {', '.join(FORMATS)}.")
    limits = parse_window(window) if window is not None else DEFAULT_WINDOW if chosen in WINDOWED else None
    return Form(format=chosen, window=limits, only_labeled=only_labeled)


def export_slices(store: Store, out: Path, form: Form, case_ids: Sequence[str], workers: int = 0) -> Report:
    """Write the slices of cases as files, and the table of all that lie in `out`.

    Threads suffice: decoding and encoding run outside Python's lock (two threads were as fast as two processes in
    every format). A worker holds one slice at a time.

    Parameters
    ----------
    workers
        Threads, each with one case at a time; 0 is one per core.

    Raises
    ------
    ConfigError
        `out` holds slices of another form.
    StoreError
        A case is not in the store.
    """
    check_form(out, form)
    check_known(store, case_ids)
    outcomes = _in_threads(
        lambda case_id: _outcome(store, case_id, out, form), case_ids, workers or len(os.sched_getaffinity(0))
    )
    rows = [row for marker in _markers(out) for row in marker["rows"]]
    write_csv(out / TABLE, rows, COLUMNS)
    order = {case_id: place for place, case_id in enumerate(case_ids)}
    return Report(outcomes=tuple(sorted(outcomes, key=lambda outcome: order[outcome.case_id])), slices=len(rows))


def check_form(out: Path, form: Form) -> None:
    """Refuse a folder that holds slices of another form.

    Raises
    ------
    ConfigError
        It does.
    """
    for marker in _markers(out):
        if marker["form"] != str(form):
            raise ConfigError(
                f"{out}: one folder holds slices of one form; {marker['case_id']} is there with {marker['form']}, asked for is "
                f"{form}. Repeat the options that are there, or name another folder."
            )


def check_known(store: Store, case_ids: Sequence[str]) -> None:
    """Refuse ids of cases that the store does not have, before anything is written.

    Raises
    ------
    StoreError
        There is one.
    """
    known = set(store.case_ids)
    for case_id in case_ids:
        if case_id not in known:
            raise StoreError(f"{store.root}: there is no case {case_id!r}; `slicemill store manifest` lists them.")


def _markers(out: Path) -> list[dict[str, Any]]:
    """Return what each whole case folder says of itself, in natural order."""
    paths = sorted(out.glob(f"[!.]*/{MARKER}"), key=lambda path: natural_key(path.parent.name))
    markers = [(path, read_json(path)) for path in paths]
    for path, marker in markers:
        if not {"case_id", "form", "source", "rows"} <= marker.keys():
            raise ConfigError(f"{path}: was not written by this command; move its folder away, or name another one.")
    return [marker for _, marker in markers]


def _in_threads(work: Callable[[str], ExportOutcome], case_ids: Sequence[str], workers: int) -> list[ExportOutcome]:
    """Return the outcomes of all cases, as they end; Ctrl-C leaves those that have not begun."""
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


def _outcome(store: Store, case_id: str, out: Path, form: Form) -> ExportOutcome:
    """Export one case; what breaks is its own reason and stops no other."""
    try:
        return ExportOutcome(case_id=case_id, status="done" if write_case(store[case_id], out, form) else "skipped")
    except InputError as error:
        return ExportOutcome(case_id=case_id, status="failed", reason=str(error))
    except OSError as error:
        return ExportOutcome(
            case_id=case_id, status="failed", reason=f"{error.filename or out}: {error.strerror or error}"
        )


def write_case(case: Case, out: Path, form: Form) -> bool:
    """Write one case's folder, whole or not at all; return whether it had to be written.

    Raises
    ------
    ConfigError
        Something else stands in the folder's place.
    """
    folder, aside = out / case.info.case_id, out / f".{case.info.case_id}.part"
    source = source_of(case.info)
    if folder.exists():
        if not (folder / MARKER).is_file():
            raise ConfigError(f"{folder}: is there and is no exported case; move it away, or name another folder.")
        if read_json(folder / MARKER)["source"] == source:
            return False
    shutil.rmtree(aside, ignore_errors=True)
    rows = case_rows(case.info, form)
    try:
        for row in rows:
            _write_slice(case, row, aside, form)
        marker = {"case_id": case.info.case_id, "form": str(form), "source": source, "rows": rows}
        write_json(aside / MARKER, marker)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def source_of(info: CaseInfo) -> dict[str, str | None]:
    """Return the hashes that change when a case of the store does."""
    return {
        "image_sha256": info.image.sha256,
        "mask_sha256": info.mask.sha256 if info.mask else None,
        "params_sha256": info.params_sha256,
    }


def case_rows(info: CaseInfo, form: Form) -> list[Row]:
    """Return a case's rows of the table; without a mask, its cell and has_tumor are empty."""
    mask_suffix = "npy" if form.format == "npy" else "png"
    return [
        {
            "case_id": info.case_id,
            "patient_id": info.patient_id,
            "z": row["z"],
            "image": f"{info.case_id}/image/{row['z']:04d}.{SUFFIX[form.format]}",
            "mask": f"{info.case_id}/mask/{row['z']:04d}.{mask_suffix}" if info.mask else None,
            "has_tumor": row["has_tumor"],
            **dict(zip(COLUMNS[-3:], info.spacing_mm, strict=True)),
        }
        for row in slice_rows(info)
        if not form.only_labeled or any(row[name] for name in row if name.startswith("voxels_"))
    ]


def _write_slice(case: Case, row: Row, aside: Path, form: Form) -> None:
    """Write one slice and its mask below the folder `aside`, which takes the place of the case's own."""
    sections: list[tuple[str, Section]] = [(row["image"], shown(case.image[row["z"]], form))]
    if case.label is not None:
        sections.append((row["mask"], case.label[row["z"]]))
    for name, section in sections:
        path = aside / name.removeprefix(f"{case.info.case_id}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_section(path, section)


def shown(image: npt.NDArray[np.int16], form: Form) -> npt.NDArray[Any]:
    """Turn a slice int16[y, x], HU, into what its file holds: uint8 over the window, HU + 32768 as uint16, or HU.

    >>> shown(np.array([[-1024, 0]], dtype=np.int16), Form(format="png16", window=None)).tolist()
    [[31744, 32768]]
    """
    if form.window is not None:
        return form.window.to_gray(image)
    if form.format == "png16":
        return (image.astype(np.int32) + PNG16_OFFSET).astype(np.uint16)
    return image


def save_section(path: Path, section: npt.NDArray[Any]) -> None:
    """Write any[y, x] as the file that its suffix says; a PNG keeps values as they are (mode L, or 16 bits)."""
    if path.suffix == ".npy":
        np.save(path, section, allow_pickle=False)
    elif path.suffix == ".jpg":
        Image.fromarray(section).save(path, quality=JPEG_QUALITY)
    else:
        path.write_bytes(png_bytes(section))
