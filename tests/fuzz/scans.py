"""Damaged files of every kind: a case is stored completely, or one clear error says why not."""

import gzip
import struct
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from slicemill.common.errors import InputError
from slicemill.ct.labels import LITS_LABELS
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.store.reader import open_store
from slicemill.store.writer import prepare_store

KINDS = ("x.nii", "x.nii.gz", "big.nii", "two.nii", "x.hdr", "x.hdr.gz", "two.hdr")
VOXELS = ("img", "raw", "zraw")
"""Suffixes of files of voxels, whose scan is the header beside them."""
FIELDS_1 = {
    40: "8h",
    70: "h",
    72: "h",
    76: "8f",
    108: "f",
    112: "2f",
    123: "B",
    252: "2h",
    256: "6f",
    280: "12f",
    344: "4B",
    348: "4B",
}
FIELDS_2 = {12: "2h", 16: "8q", 104: "8d", 168: "q", 176: "2d", 344: "2i", 352: "6d", 400: "12d", 500: "i", 540: "4B"}
NUMBERS = (0, 1, -1, 2, 3, 4, 7, 16, 64, 255, 256, 348, 512, 32767, -32768, 2**31 - 1, 2**63 - 1,
           0.5, -0.0, 1e-30, 1e-3, 1e3, 1e6, 1e20, 3e38, 1e308, -1e308,
           float("nan"), float("inf"), float("-inf"))  # fmt: skip


def sample(kind, data):
    """Return the files of a small valid scan, as nibabel writes them, by suffix."""
    image_class = {
        "x.nii": nib.Nifti1Image,
        "x.nii.gz": nib.Nifti1Image,
        "big.nii": nib.Nifti1Image,
        "two.nii": nib.Nifti2Image,
        "x.hdr": nib.Nifti1Pair,
        "x.hdr.gz": nib.Nifti1Pair,
        "two.hdr": nib.Nifti2Pair,
    }[kind]
    header = image_class.header_class(endianness=">" if kind.startswith("big") else "<")
    picture = image_class(data, np.array([[-0.8, 0, 0, 3], [0, -0.8, 0.1, 4], [0, 0, 2.5, -9], [0, 0, 0, 1]]), header)
    picture.set_qform(picture.affine, code=1, strip_shears=True)
    if kind == "x.nii.gz":
        picture.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    with tempfile.TemporaryDirectory() as folder:
        nib.save(picture, Path(folder) / kind)
        return {path.name.split(".", 1)[1]: path.read_bytes() for path in Path(folder).iterdir()}


rng = np.random.default_rng(0)
IMAGE = rng.integers(-1000, 1500, (6, 5, 4)).astype(np.int16)
MASK = rng.integers(0, 3, (6, 5, 4)).astype(np.uint8)
SAMPLES = {(role, kind): sample(kind, data) for role, data in (("image", IMAGE), ("mask", MASK)) for kind in KINDS}
FLOATS = {("image", kind): sample(kind, IMAGE.astype(np.float32)) for kind in KINDS}


def edited(content, changes):
    """Return bytes with edits applied in turn."""
    data = bytearray(content)
    for what, where, value in changes:
        at = min(where, len(data)) if where >= 0 else max(0, len(data) + where)
        if what == "field":
            put_number(data, where, value)
        elif what == "flip" and at < len(data):
            data[at] ^= value
        elif what == "insert":
            data[at:at] = bytes([value]) * (1 + value % 3)
        elif what == "delete":
            del data[at : at + value % 8]
        elif what == "cut":
            del data[at:]
    return bytes(data)


def put_number(data, which, value):
    """Write a number into one of the header's fields, as far as it fits the field's type."""
    order = ">" if data[:1] == b"\0" else "<"
    fields = FIELDS_2 if data[:4] in (struct.pack("<i", 540), struct.pack(">i", 540)) else FIELDS_1
    slots = [
        (start + index * struct.calcsize(form[-1]), form[-1])
        for start, form in fields.items()
        for index in range(int(form[:-1] or 1))
    ]
    at, form = slots[which % len(slots)]
    try:
        packed = struct.pack(f"{order}{form}", value if form in "fd" else int(value))
    except (struct.error, OverflowError, ValueError):
        return
    data[at : at + len(packed)] = packed


def draw_edits(rng):
    """Return one to four edits: what, where, value."""
    edits = []
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.5:
            where = rng.choice([rng.randint(0, 700), rng.randint(-24, -1)])
            edits.append((rng.choice(["flip", "insert", "delete", "cut"]), where, rng.randint(1, 255)))
        else:
            edits.append(("field", rng.randint(0, 40), rng.choice(NUMBERS)))
    return edits


def draw_damaged(rng):
    """Return the files of an image and a mask, of which one file is damaged."""
    kinds = {"image": rng.choice(KINDS), "mask": rng.choice(KINDS)}
    samples = SAMPLES | (FLOATS if rng.random() < 0.5 else {})
    files = {role: dict(samples[role, kind]) for role, kind in kinds.items()}
    role = rng.choice(["image", "mask"])
    suffix = rng.choice(sorted(files[role]))
    content, changes = files[role][suffix], draw_edits(rng)
    inside = suffix.endswith(".gz") and rng.random() < 0.5
    files[role][suffix] = (
        gzip.compress(edited(gzip.decompress(content), changes), 1) if inside else edited(content, changes)
    )
    return files


def check(files, params):
    """Check that a case is stored completely and readable, or that there is one clear error and nothing left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for role, contents in files.items():
            for suffix, content in contents.items():
                (folder / f"{role}.{suffix}").write_bytes(content)
        image, mask = (
            folder / f"{role}.{next(s for s in files[role] if not s.startswith(VOXELS))}" for role in ("image", "mask")
        )
        store = prepare_store(folder / "store")
        case = CaseFiles(case_id="x", patient_id="x", image=image, mask=mask, root=folder)
        error = None
        try:
            info = convert_case(case, params, store)
        except InputError as raised:
            error = str(raised)
        if error is None:
            stored = open_store(store)["x"]
            assert stored.info.as_json() == info.as_json()
            assert stored.image[:].shape == stored.label[:].shape == info.shape
        else:
            assert str(folder) in error, "the message names the file"
            assert "\n" not in error
            assert open_store(store).case_ids == []
        assert not list((store / ".partial").glob("*"))


def attempt(rng, folder):
    """Ingest a damaged scan."""
    geometry = rng.choice(["error", "trust-image", "resample"])
    check(draw_damaged(rng), Params(labels=LITS_LABELS, geometry=geometry, keep_text=rng.random() < 0.5))
