"""Small MetaImage and NRRD files of tests."""

import gzip
import zlib

import numpy as np

from slicemill.ct.scan import ScanReader

RAMP = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
"""int16[k, j, i]."""
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "-10 -20 30",
    "ElementSpacing": "0.7 0.8 2.5",
    "DimSize": "5 4 3",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "5 4 3",
    "space directions": "(0.7,0,0) (0,0.8,0) (0,0,2.5)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(-10,-20,30)",
}
AFFINE = np.array([[-0.7, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
"""RAS mm, of META and NRRD."""


def without_nones(fields):
    return {key: value for key, value in fields.items() if value is not None}


def write_meta(path, data=None, /, *, end="\n", **changes):
    """Write a .mha, or a .mhd with its data file; a change of None removes a key."""
    fields = without_nones(META | changes)
    last = fields.pop("ElementDataFile")
    content = RAMP.tobytes() if data is None else data
    if fields.get("CompressedData") == "True" and data is None:
        content = zlib.compress(content)
    head = end.join([*(f"{key} = {value}" for key, value in fields.items()), f"ElementDataFile = {last}", ""]).encode()
    if last == "LOCAL":
        path.write_bytes(head + content)
        return path
    path.write_bytes(head)
    if data is not None or not {"/", "\\", "%", "\n"} & set(last):
        (path.parent / last).write_bytes(content)
    return path


def write_nrrd(path, data=None, /, *, pairs=None, **changes):
    """Write a .nrrd, or a .nhdr with its data file; underscores in names of changes are spaces."""
    fields = without_nones(NRRD | {key.replace("_", " "): value for key, value in changes.items()})
    content = RAMP.tobytes() if data is None else data
    if fields.get("encoding") == "gzip" and data is None:
        content = gzip.compress(content)
    lines = ["NRRD0005", "# a comment", *(f"{key}: {value}" for key, value in fields.items())]
    lines += [f"{key}:={value}" for key, value in (pairs or {}).items()]
    name = fields.get("data file", "").removeprefix("./")
    head = ("\n".join(lines) + "\n\n").encode()
    path.write_bytes(head if name else head + content)
    if name and (data is not None or not {"/", "\\", "%", "\n"} & set(name)):
        (path.parent / name).write_bytes(content)
    return path


def read(path, kind="image"):
    """Return the voxels [z, y, x] in LPS+ order and the reader, after its end."""
    with ScanReader(path, kind) as reader:
        volume = reader.read()
        reader.sha256 = reader.finish()
        return volume, reader
