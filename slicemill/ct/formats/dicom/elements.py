"""A fast reader of DICOM elements for bulk work: explicit and implicit VR, little endian.

It returns where the values of the wanted tags of the top level are, and where the pixels begin, without decoding
anything else. Sequences are skipped with an explicit stack of at most MAX_DEPTH; nothing recurses, and each step moves
forward in the bytes, so that a hostile file costs no more time than its size. Other syntaxes are left to pydicom.

The encoding is that of DICOM PS3.5 section 7 and annex A, the file's start that of PS3.10 section 7.1.
"""

import struct
from collections.abc import Collection
from dataclasses import dataclass, field

from slicemill.common.errors import ScanError
from slicemill.ct.formats.dicom.uids import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT

PREAMBLE = 128
MAGIC = b"DICM"
META_SYNTAX = 0x00020010
PIXELS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
"""Float, double and integer pixel data."""
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
MAX_DEPTH = 64
"""Deepest nesting of sequences of undefined length. Enhanced CT has four levels."""
LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_EXPLICIT = struct.Struct("<HH2sH").unpack_from
_IMPLICIT = struct.Struct("<HHI").unpack_from
_LONG = struct.Struct("<I").unpack_from


class TooShortError(Exception):
    """The bytes end before the pixels; `needed` is the least number of bytes that help."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


class UnwalkableError(Exception):
    """The bytes are not encoded as this reader expects; pydicom may read them."""


@dataclass(slots=True)
class Elements:
    """The wanted elements of a file."""

    syntax: str
    """Transfer syntax; the one that the bytes show if the file does not say."""
    values: dict[int, bytes] = field(default_factory=dict)
    """Tag -> bytes of the value; of sequences, an empty value."""
    pixel_tag: int = 0
    """Tag of the pixels; 0 without pixels."""
    pixel_offset: int = 0
    """Offset of the pixels' value in the file."""
    pixel_length: int = 0
    """Bytes of the pixels; UNDEFINED if they are encapsulated."""
    pixel_vr: bytes = b"OW"


def is_dicom(start: bytes) -> bool:
    """Return whether the first bytes of a file are those of DICOM: ``DICM`` at byte 128, or an element of group 8.

    A file without the magic must also state its SOP class; `slicemill.ct.formats.dicom.header` checks that.
    """
    if start[PREAMBLE : PREAMBLE + 4] == MAGIC:
        return True
    if len(start) < 16 or start[0:2] not in (b"\x08\0", b"\x02\0"):
        return False
    return start[4:6] in SHORT_VRS or (start[0:1] == b"\x08" and start[6:8] == b"\0\0" and start[3] < 0x20)


def walk(data: bytes, size: int, wanted: Collection[int]) -> Elements:
    """Read the elements of a file up to its pixels.

    Parameters
    ----------
    data
        The first bytes of the file.
    size
        Size of the file, bytes.
    wanted
        Tags whose values are returned.

    Raises
    ------
    TooShortError
        The pixels begin after the end of `data`.
    UnwalkableError
        The file has another syntax (big endian, deflated), or elements that are encoded otherwise.
    ScanError
        A length points beyond the end of the file, or sequences are nested too deeply.
    """
    has_magic = data[PREAMBLE : PREAMBLE + 4] == MAGIC
    at, syntax = _read_meta(data, PREAMBLE + 4 if has_magic else 0, size)
    explicit = data[at + 4 : at + 6] in SHORT_VRS or data[at + 4 : at + 6] in LONG_VRS
    if syntax in (BIG_ENDIAN, DEFLATED):
        raise UnwalkableError(syntax)
    if (syntax == IMPLICIT and explicit) or (syntax not in (IMPLICIT, "") and not explicit and at + 8 <= size):
        raise UnwalkableError("the elements are not encoded as the transfer syntax says")
    elements = Elements(syntax=syntax or (EXPLICIT if explicit else IMPLICIT))
    _Walker(data, size).read(elements, at, wanted, explicit=explicit)
    return elements


def _read_meta(data: bytes, at: int, size: int) -> tuple[int, str]:
    """Return where the data set begins after the elements of group 2, and the transfer syntax; empty if not stated."""
    walker, syntax = _Walker(data, size), ""
    while data[at : at + 2] == b"\x02\0":
        tag, _, start, length = walker.head(at, explicit=True)
        if length == UNDEFINED:
            raise UnwalkableError("an element of group 2 without length")
        if tag == META_SYNTAX:
            syntax = walker.value(start, length).rstrip(b"\0 ").decode("ascii", "replace")
        at = start + length
        if at > size:
            raise ScanError("ends within its first elements (group 2). It is truncated; copy it again.")
    return at, syntax


class _Walker:
    """The bytes of a file, and the rules to step from element to element."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data = data
        self._end = len(data)
        self._size = size

    def head(self, at: int, *, explicit: bool) -> tuple[int, bytes, int, int]:
        """Return tag, VR, offset and length of the value of the element at `at`."""
        if at + 8 > self._end:
            raise self._short(at + 8)
        if not explicit or self._data[at : at + 2] == b"\xfe\xff":  # delimiters have no VR
            group, element, length = _IMPLICIT(self._data, at)
            return group << 16 | element, b"", at + 8, length
        group, element, vr, length = _EXPLICIT(self._data, at)
        if vr in SHORT_VRS:
            return group << 16 | element, vr, at + 8, length
        if vr not in LONG_VRS:
            raise UnwalkableError(f"VR {vr!r}")
        if at + 12 > self._end:
            raise self._short(at + 12)
        return group << 16 | element, vr, at + 12, _LONG(self._data, at + 8)[0]

    def value(self, start: int, length: int) -> bytes:
        """Return the bytes of a value."""
        if start + length > self._end:
            raise self._short(start + length)
        return self._data[start : start + length]

    def _short(self, needed: int) -> Exception:
        if needed > self._size:
            return ScanError(
                f"an element needs {needed:,} bytes, but the file has {self._size:,}. It is truncated or damaged; "
                "copy it again."
            )
        return TooShortError(needed)

    def read(  # noqa: C901 (one loop: a call for each element costs more than its work)
        self, elements: Elements, at: int, wanted: Collection[int], *, explicit: bool
    ) -> None:
        """Add the wanted values and the place of the pixels to `elements`."""
        last = self._end - 8
        while at < self._size:
            if explicit and at <= last:  # most elements; `head` would do the same in twice the time
                group, element, vr, length = _EXPLICIT(self._data, at)
                if vr in SHORT_VRS:
                    at += 8 + length
                    tag = group << 16 | element
                    if tag in wanted:
                        elements.values[tag] = self.value(at - length, length)
                    continue
            tag, vr, start, length = self.head(at, explicit=explicit)
            if tag in PIXELS:
                elements.pixel_tag, elements.pixel_offset, elements.pixel_length = tag, start, length
                elements.pixel_vr = vr or b"OW"
                return
            if length == UNDEFINED:
                if tag in wanted:
                    elements.values[tag] = b""
                # a UN of unknown length is implicit inside (PS3.5 6.2.2, note 2)
                at = self._skip_sequence(start, explicit=explicit and vr != b"UN")
                continue
            if start + length > self._size:
                raise self._short(start + length)
            if tag in wanted:
                elements.values[tag] = b"" if vr == b"SQ" else self.value(start, length)
            at = start + length
        if at > self._size:
            raise self._short(at)

    def _skip_sequence(self, at: int, *, explicit: bool) -> int:
        """Return the end of a sequence of undefined length whose first item is at `at`."""
        stack = [(SEQUENCE_END, explicit)]
        while stack:
            closing, inner = stack[-1]
            tag, vr, start, length = self.head(at, explicit=inner)
            at = start
            if tag == closing:
                stack.pop()
            elif length == UNDEFINED:
                in_item = closing == SEQUENCE_END
                if in_item and tag != ITEM:
                    raise ScanError("a sequence holds something else than items; the file is damaged.")
                if len(stack) >= MAX_DEPTH:
                    raise ScanError(f"sequences are nested more than {MAX_DEPTH} levels deep; the file is damaged.")
                stack.append((ITEM_END, inner) if in_item else (SEQUENCE_END, inner and vr != b"UN"))
            else:
                at += length
                if at > self._size:
                    raise self._short(at)
        return at
