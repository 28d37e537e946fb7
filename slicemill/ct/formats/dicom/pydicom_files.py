"""Files that pydicom reads: rare transfer syntaxes, and the nested groups of enhanced multi-frame files."""

import io
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ConfigError, InputError, ScanError
from slicemill.common.extras import describe_install
from slicemill.ct.formats.dicom.elements import Elements
from slicemill.ct.formats.dicom.files import DicomFile, OpenFile

MAX_BYTES = 256 << 20
"""Largest file that is read as a whole."""


class _Stream(io.RawIOBase):
    """An open file with a position."""

    name = ""  # pydicom reads it

    def __init__(self, opened: OpenFile, size: int) -> None:
        self._opened = opened
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = self._opened.read_into(view[: max(0, self._size - self._at)], self._at)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at


def read_frame(opened: OpenFile, file: DicomFile, frame: int) -> npt.NDArray[Any]:
    """Return the stored numbers of a frame, any[row, column].

    Raises
    ------
    ScanError
        The pixels are damaged.
    """
    from pydicom.pixels.utils import pixel_array

    dataset = read_dataset(opened, file)
    with report_damage(file):
        return np.asarray(pixel_array(dataset, index=frame, raw=True))


def read_dataset(opened: OpenFile, file: DicomFile, *, pixels: bool = True) -> Any:
    """Return a file as pydicom's Dataset.

    Raises
    ------
    ScanError
        The file is damaged, nested too deeply, or too large to be read as a whole.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ConfigError(f"this DICOM file needs pydicom. {describe_install('dicom')}.") from error
    if pixels and file.size > MAX_BYTES:
        raise ScanError(
            f"has {file.size:,} bytes in a syntax that is read as a whole, up to {MAX_BYTES:,}. Convert it to explicit "
            "VR little endian.",
            where=file,
        )
    with report_damage(file), io.BufferedReader(_Stream(opened, file.size), 1 << 16) as stream:
        return pydicom.dcmread(stream, force=True, stop_before_pixels=not pixels)


@contextmanager
def report_damage(file: DicomFile) -> Iterator[None]:
    """Convert the errors that pydicom raises on damaged files to errors that name the file, without its content."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except RecursionError:
        raise ScanError("its sequences are nested too deeply; the file is damaged.", where=file) from None
    except Exception as error:  # noqa: BLE001 (pydicom raises many types)
        name = type(error).__name__
        raise ScanError(f"cannot be read as DICOM ({name}); the file is damaged. Copy it again.", where=file) from None


def to_elements(dataset: Any, tags: Iterable[int], binary: Container[int]) -> Elements:
    """Return the wanted elements of pydicom's Dataset; those of the tags `binary` have numbers of two bytes."""
    values: dict[int, bytes] = {}
    for tag in tags:
        if tag not in dataset:
            continue
        value = dataset[tag].value
        if dataset[tag].VR == "SQ":
            values[tag] = b""
        elif tag in binary:
            values[tag] = (int(value) & 0xFFFF).to_bytes(2, "little") if value is not None else b""
        else:
            many = value if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else [value]
            values[tag] = "\\".join("" if one is None else str(one) for one in many).encode("latin-1", "replace")
    has_pixels = "PixelData" in dataset
    return Elements(
        syntax=str(dataset.file_meta.get("TransferSyntaxUID", "")) if hasattr(dataset, "file_meta") else "",
        values=values,
        pixel_tag=0x7FE00010 if has_pixels else 0,
        pixel_length=len(dataset.PixelData) if has_pixels else 0,
    )
