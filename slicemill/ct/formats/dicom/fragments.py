"""Encapsulated pixels: the fragments of each frame (DICOM PS3.5, annex A.4)."""

from collections.abc import Callable

from slicemill.common.errors import ScanError

ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
MAX_FRAGMENTS = 1_000_000
Range = tuple[int, int]
"""Offset in the file and length, bytes."""


def find_frames(
    read: Callable[[int, int], bytes | memoryview], offset: int, size: int, frames: int
) -> list[list[Range]]:
    """Return the fragments of each frame.

    Parameters
    ----------
    read
        Returns bytes of the file, by offset and length.
    offset
        Where the value of the pixels begins.
    size
        Size of the file.

    Raises
    ------
    ScanError
        The fragments are damaged, or nothing tells which belong to which frame.
    """
    items = _list_items(read, offset, size)
    table, fragments = items[0], items[1:]
    if frames == 1:
        return [fragments]
    if len(fragments) == frames:
        return [[fragment] for fragment in fragments]
    starts = _read_table(read(*table), frames)
    if not starts or not fragments:
        raise ScanError(f"has {frames} frames in {len(fragments)} fragments without a table of offsets (7FE0,0010).")
    base = fragments[0][0] - 8
    by_start: dict[int, list[Range]] = {start: [] for start in starts}
    current: list[Range] = []
    for at, length in fragments:
        current = by_start.get(at - 8 - base, current)
        current.append((at, length))
    found = [by_start[start] for start in starts]
    if not all(found):
        raise ScanError("its table of offsets (7FE0,0010) does not point to its fragments; the file is damaged.")
    return found


def _list_items(read: Callable[[int, int], bytes | memoryview], offset: int, size: int) -> list[Range]:
    """Return the items: the table of offsets first, which may be empty."""
    items: list[Range] = []
    at = offset
    while at + 8 <= size and len(items) <= MAX_FRAGMENTS:
        head = read(at, 8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] == END:
            break
        if head[:4] != ITEM or at + 8 + length > size:
            raise ScanError("the fragments of its compressed pixels (7FE0,0010) are damaged; copy the file again.")
        items.append((at + 8, length))
        at += 8 + length
    if len(items) < 2 or len(items) > MAX_FRAGMENTS:
        raise ScanError(f"its compressed pixels (7FE0,0010) have {max(0, len(items) - 1)} fragments.")
    return items


def _read_table(data: bytes | memoryview, frames: int) -> list[int]:
    starts = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data) - 3, 4)]
    return starts if len(starts) == frames else []
