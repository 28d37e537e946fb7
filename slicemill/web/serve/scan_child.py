"""The child process of one job: reads the uploaded bytes, within limits, and later writes the results.

Run as ``python -m slicemill.web.serve.scan_child FOLDER``. It takes a PrepareOrder, a ChooseOrder if it found several
scans, and a WriteOrder when the labels are there.
"""

import os
import sys
from pathlib import Path

import numpy as np

from slicemill.common.disk import require_space
from slicemill.common.errors import ScanError
from slicemill.ct.formats.nifti.stream import view_bytes
from slicemill.ct.hu_checks import hu_range, rounding_warnings
from slicemill.ct.scan import ScanReader
from slicemill.ct.transpose import write_all
from slicemill.web.serve.example import WARNING
from slicemill.web.serve.limits import limit_process
from slicemill.web.serve.messages import Channel
from slicemill.web.serve.pictures import LESS_RELIABLE, NO_PIXEL_SIZE
from slicemill.web.serve.prepare import Candidate, Prepared, explain_publicly, prepare
from slicemill.web.serve.records import (
    HEADER,
    IMAGE,
    ChoicesMessage,
    ChooseOrder,
    FailedMessage,
    Limits,
    PrepareOrder,
    ReadMessage,
    ScanMessage,
    SlicesMessage,
    ThumbnailMessage,
    WriteOrder,
)
from slicemill.web.serve.results import write_results
from slicemill.web.serve.thumbnails import draw_thumbnail
from slicemill.web.serve.uploads import Names

DISK_BYTES = 8
"""Bytes a voxel on disk: HU, labels and probabilities, and the server's copies of them that the page shows."""


def main() -> None:
    """Serve one job."""
    folder = Path(sys.argv[1])
    os.nice(5)
    limit_process()
    channel, names = Channel(), Names()
    try:
        order = channel.orders.get().read(PrepareOrder)
        chosen = _choose(prepare(folder, order, names), order.limits, channel)
        _read(folder, chosen, order, channel)
        write = channel.orders.get().read(WriteOrder)
        channel.send(write_results(folder, chosen, write))
    except Exception as error:  # noqa: BLE001 (any error is shown on the page, and the next job works)
        channel.send(FailedMessage(reason=explain_publicly(error, folder, names.files)))


def _choose(prepared: Prepared, limits: Limits, channel: Channel) -> Candidate:
    """Return the only scan, or the one that the user chooses."""
    usable = [one for one in prepared.candidates if one.choice.refused is None]
    if len(usable) == 1:
        return usable[0]
    channel.send(ChoicesMessage(choices=tuple(one.choice for one in prepared.candidates)))
    for number, one in enumerate(prepared.candidates):
        if one.choice.refused is None:
            gray = draw_thumbnail(one.path, limits, channel.orders.empty)
            if gray is not None:
                channel.send(ThumbnailMessage(index=number, gray=gray))
    index = channel.orders.get().read(ChooseOrder).index
    if not 0 <= index < len(prepared.candidates) or prepared.candidates[index].choice.refused is not None:
        raise ScanError("this scan cannot be chosen.")
    return prepared.candidates[index]


def _read(folder: Path, chosen: Candidate, order: PrepareOrder, channel: Channel) -> None:
    """Write the voxels slice by slice, so that they can be looked at, and then the header."""
    limits, has_pixel_size = order.limits, order.picture is None or order.picture.pixel_mm is not None
    notes = {WARNING: order.is_example, LESS_RELIABLE: chosen.is_picture, NO_PIXEL_SIZE: not has_pixel_size}
    warnings = [text for text, applies in notes.items() if applies]
    with ScanReader(chosen.path, "image", hashed=False) as reader:
        nz, ny, nx = shape = reader.grid.stored_shape
        if nz > limits.slices or max(ny, nx) > limits.side:
            raise ScanError(
                f"has {nz:,} slices of {nx:,} x {ny:,} pixels; at most {limits.slices:,} slices of {limits.side:,} x "
                f"{limits.side:,} are read here. Use `slicemill infer`.",
                where=chosen.choice.name,
            )
        if nz * ny * nx > limits.voxels:
            raise ScanError(
                f"has {nz * ny * nx:,} voxels; at most {limits.voxels:,} are read here. Use `slicemill infer`.",
                where=chosen.choice.name,
            )
        require_space(folder, DISK_BYTES * nz * ny * nx, "this scan")
        warnings += reader.warnings
        channel.send(
            ScanMessage(
                name=chosen.choice.name,
                shape=shape,
                spacing_mm=reader.grid.spacing_mm,
                affine_lps=tuple(map(tuple, reader.grid.affine_lps.tolist())),
                is_dicom=chosen.is_dicom,
                is_picture=chosen.is_picture,
                has_pixel_size=has_pixel_size,
                warnings=tuple(warnings),
            )
        )
        _write_slices(folder / IMAGE, reader, channel)
        reader.finish()
        warnings += rounding_warnings(reader.max_rounding_error)
        header = reader.stored_header(keep_text=False)
    warnings += hu_range(np.memmap(folder / IMAGE, dtype="<i2", mode="r", shape=shape)).warnings()
    (folder / HEADER).write_bytes(header)
    channel.send(ReadMessage(warnings=tuple(dict.fromkeys(warnings))))


def _write_slices(path: Path, reader: ScanReader, channel: Channel) -> None:
    nz, ny, nx = reader.grid.stored_shape
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(descriptor, 2 * nz * ny * nx)
        for slab in reader.slabs(temp_folder=path.parent):
            data = np.ascontiguousarray(slab.voxels, dtype="<i2")
            write_all(descriptor, view_bytes(data), slab.z * 2 * ny * nx, None)
            channel.send(SlicesMessage(z=slab.z, count=len(data)))
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
