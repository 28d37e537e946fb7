"""Writes MetaImage files (``.mha``), header and voxels in one, atomically."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.files import atomic_write
from slicemill.ct.geometry import make_contiguous

ELEMENT_TYPES = {"int16": "MET_SHORT", "uint8": "MET_UCHAR"}
ZLIB_LEVEL = 1


def write_metaimage(
    path: Path, volume: npt.NDArray[np.generic], affine_lps: npt.NDArray[np.float64], *, compressed: bool = False
) -> None:
    """Write a volume as MetaImage.

    Parameters
    ----------
    volume
        int16 or uint8[z, y, x] in LPS+ order.
    affine_lps
        float64[4, 4], voxel (x, y, z, 1) to LPS mm.
    compressed
        Whether to write the voxels as one zlib stream.
    """
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
    directions = affine_lps[:3, :3] / spacing
    data: Any = make_contiguous(volume.astype(volume.dtype.newbyteorder("<"), copy=False)).data
    if compressed:
        import zlib

        data = zlib.compress(data, ZLIB_LEVEL)
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(compressed),
        **({"CompressedDataSize": str(len(data))} if compressed else {}),
        "TransformMatrix": _numbers(directions.T.ravel()),
        "Offset": _numbers(affine_lps[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": _numbers(spacing),
        "DimSize": " ".join(str(count) for count in volume.shape[::-1]),
        "ElementType": ELEMENT_TYPES[volume.dtype.name],
        "ElementDataFile": "LOCAL",
    }
    header = "".join(f"{key} = {value}\n" for key, value in fields.items())
    with atomic_write(path) as aside, aside.open("wb") as file:
        file.write(header.encode("ascii"))
        file.write(data)


def _numbers(values: npt.NDArray[np.float64]) -> str:
    return " ".join(repr(float(value)) for value in values)
