"""Tables that a user writes: pairs of images and masks, and names of label values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from slicemill.common.errors import LabelError, PairingError, UsageError
from slicemill.common.files import Location, parse_location
from slicemill.common.names import is_text
from slicemill.common.tables import Row, read_table
from slicemill.ct.formats.names import strip_suffix
from slicemill.ct.labels import Labels, make_labels, parse_labels
from slicemill.ct.naming import derive_case_id
from slicemill.ingest.case_ids import join_path, separate_case_ids
from slicemill.ingest.discover import CaseFiles, Collection, make_collection

LABEL_TABLE_SUFFIXES = (".csv", ".tsv", ".txt")


@dataclass(frozen=True, kw_only=True)
class ChosenLabels:
    """The labels of the option --labels."""

    labels: Labels
    files: Mapping[str, int]
    """Name of a structure's file without suffix -> value, for collections with a file for each structure."""


def from_csv(table: Location, *, no_masks: bool = False, with_labels: bool = True) -> Collection:
    """Read cases from a CSV with the columns image and mask (may be empty), and optionally case_id and patient_id.

    Paths are relative to the CSV's folder; URLs of an object store are used unchanged. With `no_masks`, the column mask
    may be missing and is not used. `with_labels` tells whether the labels of a ``dataset.json`` are read.

    Raises
    ------
    PairingError
        The CSV cannot be read or its columns do not fit, a row has no image, or two rows have the same case id.
    """
    required = ("image",) if no_masks else ("image", "mask")
    optional = ("case_id", "patient_id", *(("mask",) if no_masks else ()))
    rows = read_table(table, required=required, optional=optional, error=PairingError)
    if not rows:
        raise PairingError("has the columns image and mask, but no rows.", where=table)
    root = table.parent
    paths = [(_find_file(table, row, "image"), _find_file(table, row, "mask")) for row in rows]
    unnamed = {
        f"line {row.line}": row.cells["image"].replace("\\", "/") for row in rows if not row.cells.get("case_id")
    }
    derived = {line: derive_case_id(text) for line, text in unnamed.items()}
    longer = {line: _join_path(text) for line, text in unnamed.items()}
    ids, notes = separate_case_ids(derived, longer)
    cases = []
    for row, (image, mask) in zip(rows, paths, strict=True):
        if image is None:
            raise PairingError(
                f"{table}, line {row.line}: the column image is empty; name the scan, or remove the row."
            )
        if image == mask:
            raise PairingError(f"{table}, line {row.line}: image and mask are the same file, {row.cells['image']}.")
        case_id = row.cells.get("case_id") or ids[f"line {row.line}"]
        patient_id = row.cells.get("patient_id") or case_id
        cases.append(
            CaseFiles(case_id=case_id, patient_id=patient_id, image=image, mask=None if no_masks else mask, root=root)
        )
    return make_collection(cases, root, notes=notes, with_labels=with_labels)


def _join_path(text: str) -> str:
    """Return a case id made of a path.

    >>> _join_path("s3://bucket/p1/venous.nii.gz")
    'bucket_p1_venous'
    """
    parts = PurePosixPath(text.rpartition("://")[2])
    return join_path(parts.as_posix(), strip_suffix(parts.name))


def _find_file(table: Location, row: Row, column: str) -> Location | None:
    """Return the path of a cell; None if it is empty."""
    text = row.cells.get(column, "")
    if not text:
        return None
    if not is_text(Path(text)):
        raise PairingError(f"{table}, line {row.line}: the path in the column {column} is not valid text.")
    if "://" in text:
        return parse_location(text)
    path = table.parent / text
    if "\\" in text and not path.exists():  # a table that was written on Windows
        return table.parent / text.replace("\\", "/")
    return path


def choose_labels(text: str, organ: str | None, tumor: str | None) -> ChosenLabels:
    """Parse the option --labels: ``liver=1,tumor=2``, or the name of a table (`read_label_table`).

    Raises
    ------
    UsageError
        The text is neither.
    LabelError
        The table does not fit.
    """
    if "=" not in text and text.lower().endswith(LABEL_TABLE_SUFFIXES):
        return read_label_table(parse_location(text), organ, tumor)
    labels = parse_labels(text, organ, tumor)
    return ChosenLabels(labels=labels, files=dict(labels.values))


def read_label_table(table: Location, organ: str | None = None, tumor: str | None = None) -> ChosenLabels:
    """Read a table with the columns name and value, and optionally file.

    ``file`` is the name of the structure's file without suffix, by default the name of the label. Several files may
    have one label: ``kidney,1,kidney_left`` and ``kidney,1,kidney_right``.

    Raises
    ------
    LabelError
        The table does not fit, or a value is not a whole number from 1 to 255.
    """
    values: dict[str, int] = {}
    files: dict[str, int] = {}
    for row in read_table(table, required=("name", "value"), optional=("file",), error=LabelError):
        name, text = row.cells["name"], row.cells["value"]
        where = f"{table}, line {row.line}"
        if not name or not (text.isascii() and text.isdecimal()):
            raise LabelError(f"must have a name and a whole number; it has {name!r} and {text!r}.", where=where)
        value, file = int(text), row.cells.get("file") or name
        if value == 0 and name.lower() == "background":
            continue
        if values.setdefault(name, value) != value:
            raise LabelError(f"{name} has the values {values[name]} and {value}; give it one value.", where=where)
        if file in files:
            raise LabelError(f"{file} occurs in two rows; a file has one label.", where=where)
        files[file] = value
    if not values:
        raise LabelError("names no label.", where=table)
    try:
        return ChosenLabels(labels=make_labels(values, organ, tumor), files=files)
    except UsageError:
        raise
    except LabelError as error:
        raise LabelError(f"{error}", where=table) from error
