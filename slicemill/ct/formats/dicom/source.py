"""A DICOM series as a `slicemill.ct.formats.source.ScanSource`.

One plane is read at a time: uncompressed pixels go straight from the file into the caller's array, compressed ones
through imagecodecs, those of rare syntaxes through pydicom.
"""

import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ScanError
from slicemill.common.files import HASH_BLOCK
from slicemill.ct.formats.dicom.codecs import decode_into
from slicemill.ct.formats.dicom.elements import walk
from slicemill.ct.formats.dicom.files import DicomFile, OpenFile
from slicemill.ct.formats.dicom.fragments import Range, find_frames
from slicemill.ct.formats.dicom.header import inflate
from slicemill.ct.formats.dicom.pixels import number_type, padding_fill, replace_padding, use_bits
from slicemill.ct.formats.dicom.planes import Plane
from slicemill.ct.formats.dicom.pydicom_files import read_frame
from slicemill.ct.formats.dicom.series import Series
from slicemill.ct.formats.dicom.uids import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, SYNTAX_NAMES
from slicemill.ct.formats.nifti.make import make_header
from slicemill.ct.formats.source import RawPlanes, Scaling

MAX_SLICE_FILE = 256 << 20
"""Largest file of one compressed slice."""


class DicomSource:
    """An open series."""

    def __init__(self, series: Series, *, hashed: bool) -> None:
        self.series = series
        self.format = f"DICOM, {SYNTAX_NAMES[series.planes[0].header.format.syntax]}"
        self.grid = series.grid
        self.scaling: tuple[Scaling, Scaling] = (
            _one_or_many([plane.slope for plane in series.planes]),
            _one_or_many([plane.inter for plane in series.planes]),
        )
        self.dtype = number_type(series.planes[0].header.format)
        self.private_bytes = 0
        self.read_seconds = 0.0
        self.bytes_read = 0
        self._hashed = hashed
        self._hashes: dict[DicomFile, str] = {}
        self._frames: tuple[DicomFile, list[list[Range]]] | None = None
        fills = {padding_fill(plane.header.format, plane.slope, plane.inter) for plane in series.planes} - {None}
        self.warnings = (
            *series.warnings,
            *(
                ("PixelPaddingValue (0028,0120) does not fit in int16 as HU; such voxels got the lowest HU",)
                if fills
                else ()
            ),
        )

    def planes(self, depth: int, buffers: int) -> Iterator[RawPlanes]:
        """Yield all planes any[k, j, i] in order of position, `depth` at a time, cycling through `buffers` arrays."""
        ni, nj, nk = self.grid.shape
        arrays = [np.empty((min(depth, nk), nj, ni), dtype=self.dtype) for _ in range(buffers)]
        for turn, k in enumerate(range(0, nk, depth)):
            some = self.series.planes[k : k + depth]
            raw = arrays[turn % buffers][: len(some)]
            for plane, out in zip(some, raw, strict=True):
                self._read_plane(plane, out)
            yield RawPlanes(
                k=k,
                voxels=raw,
                slope=_one_or_many([plane.slope for plane in some]),
                inter=_one_or_many([plane.inter for plane in some]),
            )

    def _read_plane(self, plane: Plane, out: npt.NDArray[Any]) -> None:
        """Read the stored numbers of a plane into any[j, i]."""
        header, form = plane.header, plane.header.format
        start = time.perf_counter()
        with OpenFile(header.file) as opened:
            if form.syntax in (IMPLICIT, EXPLICIT):
                self._read_plain(opened, plane, out)
                self.read_seconds += time.perf_counter() - start
            elif form.syntax == DEFLATED:
                content = inflate(opened.read(0, header.file.size), header.file)
                at = walk(content, len(content), ()).pixel_offset + plane.frame * out.nbytes
                if len(content) < at + out.nbytes:
                    raise _ends_early(at + out.nbytes - len(content), header.file)
                out[...] = np.frombuffer(content, self.dtype, out.size, at).reshape(out.shape)
            elif form.syntax == BIG_ENDIAN:
                out[...] = read_frame(opened, header.file, plane.frame)
            else:
                self._decode(opened, plane, out)
        use_bits(out, form)
        fill = padding_fill(form, plane.slope, plane.inter)
        if fill is not None:
            replace_padding(out, form, fill)

    def _read_plain(self, opened: OpenFile, plane: Plane, out: npt.NDArray[Any]) -> None:
        """Read uncompressed pixels into any[j, i]; hash the file on the way if it has one frame."""
        header = plane.header
        at = header.pixel_offset + plane.frame * out.nbytes
        view = memoryview(out.view(np.uint8).reshape(-1))  # type: ignore[arg-type]
        if not self._hashed or header.frames > 1:
            read_fully(opened, view, at, header.file)
            return
        before = bytearray(at)
        count = opened.read_vector([memoryview(before), view])
        if count < at + len(view):
            raise _ends_early(at + len(view) - count, header.file)
        digest = sha256(before)
        digest.update(view)
        _hash_rest(opened, header.file, count, digest)
        self._hashes[header.file] = digest.hexdigest()

    def _decode(self, opened: OpenFile, plane: Plane, out: npt.NDArray[Any]) -> None:
        """Decode a compressed frame into any[j, i]; hash the file on the way if it has one frame."""
        header = plane.header
        file = header.file
        if header.frames == 1:
            data = self._read_file(opened, file)

            def read(offset: int, length: int) -> memoryview:
                return data[offset : offset + length]

        else:
            read = opened.read  # type: ignore[assignment]
        if self._frames is None or self._frames[0] != file:
            try:
                self._frames = (file, find_frames(read, header.pixel_offset, file.size, header.frames))
            except ScanError as error:
                raise ScanError(error.reason, where=file) from error
        ranges = self._frames[1][plane.frame]
        if sum(length for _, length in ranges) > MAX_SLICE_FILE:
            raise ScanError(f"a frame has more than {MAX_SLICE_FILE:,} bytes.", where=file)
        parts = [read(offset, length) for offset, length in ranges]
        decode_into(out, parts[0] if len(parts) == 1 else b"".join(parts), header.format, file)

    def _read_file(self, opened: OpenFile, file: DicomFile) -> memoryview:
        """Read and hash the file of one compressed slice."""
        if file.size > MAX_SLICE_FILE:
            raise ScanError(f"one slice has {file.size:,} bytes; at most {MAX_SLICE_FILE:,} are read.", where=file)
        start = time.perf_counter()
        data = memoryview(bytearray(file.size))
        read_fully(opened, data, 0, file)
        self.read_seconds += time.perf_counter() - start
        if self._hashed:
            self._hashes[file] = sha256(data).hexdigest()
        return data

    def finish(self) -> str:
        """Return the SHA-256 over the files' SHA-256 in order of position; reads what was not hashed yet."""
        files = list(dict.fromkeys(plane.header.file for plane in self.series.planes))
        self.bytes_read = sum(file.size for file in files)
        if not self._hashed:
            return ""
        return combine([self._hashes.get(file) or hash_file(file) for file in files])

    def template_header(self, *, private: bool) -> bytes:  # noqa: ARG002 (nothing private is in it)
        """Return a NIfTI header of the grid, to write segmentations with."""
        return make_header(self.grid)

    def close(self) -> None:
        """Close the series; no file is open between planes."""


def _one_or_many(numbers: list[float]) -> Scaling:
    """Return the number of all planes, or float64[k], one for each."""
    return numbers[0] if len(set(numbers)) == 1 else np.array(numbers)


def combine(hashes: list[str]) -> str:
    """Return the hash of a series, from the hashes of its files in order of position."""
    return sha256("\n".join(hashes).encode()).hexdigest()


def hash_series(series: Series) -> str:
    """Return the hash that `DicomSource.finish` returns, without decoding a voxel."""
    return combine([hash_file(file) for file in dict.fromkeys(plane.header.file for plane in series.planes)])


def hash_file(file: DicomFile) -> str:
    """Return the SHA-256 of a file."""
    digest = sha256()
    with OpenFile(file) as opened:
        _hash_rest(opened, file, 0, digest)
    return digest.hexdigest()


def _hash_rest(opened: OpenFile, file: DicomFile, at: int, digest: Any) -> None:
    while at < file.size:
        block = opened.read(at, HASH_BLOCK)
        if not block:
            break
        digest.update(block)
        at += len(block)


def read_fully(opened: OpenFile, view: memoryview, at: int, file: DicomFile) -> None:
    """Fill `view` from offset `at`.

    Raises
    ------
    ScanError
        The file ends early.
    """
    count = opened.read_into(view, at)
    if count < len(view):
        raise _ends_early(len(view) - count, file)


def _ends_early(missing: int, file: DicomFile) -> ScanError:
    return ScanError(f"ends early: {missing:,} bytes of pixels are missing. Copy the file again.", where=file)
