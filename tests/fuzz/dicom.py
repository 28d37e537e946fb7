"""Damaged DICOM series and masks: each case is stored completely, or one clear error says why not."""

import functools
import tempfile
import warnings
from pathlib import Path

import numpy as np
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from slicemill.common.errors import InputError
from slicemill.ct.formats.dicom_objects.open_mask import is_mask_object
from slicemill.ct.labels import LITS_LABELS
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles, discover
from slicemill.ingest.params import Params
from slicemill.store.reader import open_store
from slicemill.store.writer import prepare_store
from tests.ct.dicom.made import LOSSLESS, make_enhanced, make_volume, save, save_series
from tests.ct.dicom.made import make_series as make_slices
from tests.ct.dicom_objects.series import IN_PLANE, make_label, make_series, write_series
from tests.ct.dicom_objects.test_masks import write
from tests.fuzz.damage import damage_bytes

HEADER_BYTES = 1400
"""About the length of a sample's header."""
EXPLICIT = "1.2.840.10008.1.2.1"
SYNTAXES = (
    EXPLICIT, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90",
)  # fmt: skip
MASKS = ("binary", "labelmap", "rtstruct")
KINDS = (*SYNTAXES, "enhanced", *MASKS)
VALUES = (
    b"", b"0", b"-1", b"nan", b"inf", b"1e308", b"9" * 64, b"1\\2", b"1\\0\\0\\0\\1\\0", b"0\\0\\0", b"\0", b"\xff" * 8,
    b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.1.99", b"MONOCHROME1", b"1.2.840.10008.5.1.4.1.1.66.4",
)  # fmt: skip


@functools.cache
def sample(kind):
    """Return the files of a sound series, and of its mask if the kind is one, by name."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(action="ignore"):
        folder = Path(name)
        if kind in MASKS:
            series = make_series(IN_PLANE[6])
            label = make_label(series.grid.stored_shape)
            write_series(series, folder / "p1", np.where(label, 80, -100).astype(np.int16))
            write(folder, kind, series, label)
        elif kind == "enhanced":
            save(make_enhanced(make_volume((4, 12, 16)), (2, 0, 3, 1)), folder / "p1" / "IM001")
        else:
            assert kind in LOSSLESS
            save_series(folder / "p1", make_slices(make_volume((4, 12, 16))), kind)
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def damage_elements(rng, content):
    """Change values, lengths and types of elements in the header."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(132, max(133, min(len(data), HEADER_BYTES)))
        choice = rng.randrange(5)
        if choice == 0:
            value = rng.choice(VALUES)
            data[at : at + len(value)] = value
        elif choice == 1:
            data[at : at + 2] = rng.choice([b"SQ", b"UN", b"OB", b"DS", b"US", b"UI", b"\xff\xff"])
        elif choice == 2:
            data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\xfe\xff\x00\xe0", b"\0\0\0\0", b"\xff\xff\xff\x7f"])
        elif choice == 3:
            data[at : at + rng.randint(1, 8)] = b""
        else:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
    return bytes(data)


def draw_damaged(rng):
    """Return the files of a series, perhaps with a mask, of which one or two are damaged."""
    files = dict(sample(rng.choice(KINDS)))
    for name in rng.sample(sorted(files), rng.randint(1, min(2, len(files)))):
        damage = damage_bytes if rng.random() < 0.4 else damage_elements
        files[name] = damage(rng, files[name])
    return files


def check(files, params):
    """Find and convert the cases of a folder; return how many were stored."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for relative, content in files.items():
            path = folder / "in" / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        store = prepare_store(folder / "store")
        cases = _read(lambda: discover(folder / "in").cases, folder) or ()
        if not cases:
            first = min(path for path in (folder / "in").rglob("*") if path.is_file())
            cases = (CaseFiles(case_id="x", patient_id="x", image=first, mask=None, root=folder),)
        stored = [case for case in cases if _read(lambda case=case: convert_case(case, params, store), folder)]
        assert sorted(open_store(store).case_ids) == sorted(case.case_id for case in stored)
        for case in open_store(store).values():
            assert case.image[:].shape == case.info.shape
        assert not list((store / ".partial").glob("*"))
        return len(stored)


def _read(read, folder):
    """Return what a function returns; None if it ends in one clear error."""
    reason = ""
    try:
        return read()
    except InputError as error:
        reason = str(error)
    assert str(folder) in reason, "the message names the file"
    assert "\n" not in reason
    return None


def attempt(rng, folder):
    """Find and ingest a damaged series."""
    uneven = rng.choice(["refuse", "longest"])
    check(draw_damaged(rng), Params(labels=LITS_LABELS, uneven=uneven))


def has_mask(files):
    """Return whether the sample has a SEG or RTSTRUCT."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "mask.dcm"
        return any(path.write_bytes(content) and is_mask_object(path) for content in files.values())
