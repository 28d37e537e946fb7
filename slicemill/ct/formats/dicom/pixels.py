"""Stored bits to stored numbers: unused bits, sign, and padding."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.ct.formats.dicom.header import Format

INT16 = np.iinfo(np.int16)


def number_type(form: Format) -> np.dtype[Any]:
    """Return the type of the stored numbers."""
    return np.dtype(f"{'i' if form.is_signed else 'u'}{form.bits_allocated // 8}")


def use_bits(pixels: npt.NDArray[Any], form: Format) -> None:
    """Replace bits by numbers, in place: the bits outside BitsStored are cleared, or repeat the sign at HighBit.

    Padding that needs more than BitsStored bits stays as it is.

    >>> pixels = np.array([0x7FFF, 0xF800], dtype=np.uint16).view(np.int16)
    >>> form = Format("", 1, 2, 16, 12, 11, True, 1, "MONOCHROME2", None, None)
    >>> use_bits(pixels, form); pixels.tolist()
    [-1, -2048]
    """
    drop, above = form.bits_allocated - form.bits_stored, form.bits_allocated - 1 - form.high_bit
    if not drop or (above == drop and _all_fit(pixels, form)):
        return
    padding = pixels == form.padding if form.padding is not None and not _fits_bits(form.padding, form) else None
    np.left_shift(pixels, above, out=pixels)  # the highest bit to the top; then down, which repeats the sign
    np.right_shift(pixels, drop, out=pixels)
    if padding is not None:
        pixels[padding] = form.padding


def _all_fit(pixels: npt.NDArray[Any], form: Format) -> bool:
    """Return whether all numbers need only the lowest BitsStored bits, and their sign is repeated above: most files."""
    return _fits_bits(int(pixels.max()), form) and (not form.is_signed or _fits_bits(int(pixels.min()), form))


def _fits_bits(number: int, form: Format) -> bool:
    half = 1 << (form.bits_stored - 1)
    return -half <= number < half if form.is_signed else 0 <= number < 2 * half


def padding_range(form: Format) -> tuple[int, int] | None:
    """Return the smallest and the largest stored number that is padding; None without padding."""
    if form.padding is None:
        return None
    other = form.padding if form.padding_limit is None else form.padding_limit
    return min(form.padding, other), max(form.padding, other)


def padding_fill(form: Format, slope: float, inter: float) -> int | None:
    """Return the stored number that replaces padding whose HU do not fit in int16; None if they fit.

    It is the one whose HU are lowest among those that fit, so that it stays padding or air.

    >>> form = Format("", 1, 1, 16, 16, 15, True, 1, "MONOCHROME2", -32768, None)
    >>> padding_fill(form, 1, -1024), padding_fill(form, 1, 0)
    (-31744, None)
    """
    span = padding_range(form)
    if span is None or all(INT16.min <= number * slope + inter <= INT16.max for number in span):
        return None
    kind = np.iinfo(number_type(form))
    ends = sorted(((INT16.min - inter) / slope, (INT16.max - inter) / slope))
    low, high = max(kind.min, math.ceil(ends[0])), min(kind.max, math.floor(ends[1]))
    return low if slope > 0 else high


def replace_padding(pixels: npt.NDArray[Any], form: Format, fill: int) -> None:
    """Replace padding by another stored number, in place."""
    span = padding_range(form)
    if span is not None:
        pixels[(pixels >= span[0]) & (pixels <= span[1])] = fill
