"""Scans -> batches for the network, filled across scans -> labels on the scans' own slices."""

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.scan import Room
from slicemill.infer.network.model import Answer
from slicemill.infer.runtime.capacity import Capacity
from slicemill.infer.slices.assembly import Plan, VolumeAssembly
from slicemill.infer.slices.tiles import View


class Scan:
    """A scan on its way through the network."""

    def __init__(self, plan: Plan, seen: npt.NDArray[np.int16], room: Room = np.empty) -> None:
        """Take `seen`: int16[z, y, x], HU, at the network's pixel size (`Plan.seen`); `room` makes the arrays for labels."""
        self.plan = plan
        self.canvas = VolumeAssembly(plan, room)
        self._seen = seen
        self._left = len(seen) * len(plan.views)
        self._lock = threading.Lock()

    def units(self, together: int) -> Iterator[tuple[int, View]]:
        """Yield each slice with each view; `together` slices of one view follow each other, so that they share neighbors."""
        for start in range(0, len(self._seen), together):
            for view in self.plan.views:
                for z in range(start, min(start + together, len(self._seen))):
                    yield z, view

    def show(self, z: int, view: View, out: npt.NDArray[np.int16]) -> None:
        """Copy a view of the slice at `z` into `out`: int16[H, W], HU."""
        view.show(self._seen[z], out)

    def slices(self, z: int, count: int) -> npt.NDArray[np.int16] | None:
        """Return slices as they lie here, int16[n, H, W], HU; None where the network takes others."""
        seen = self._seen[z : z + count]
        return (
            seen
            if self.plan.shows_whole and seen.dtype == np.int16 and seen.flags.c_contiguous and seen.flags.aligned
            else None
        )

    def is_whole_after(self, count: int) -> bool:
        """Count so many units as done and return whether they were the last."""
        with self._lock:
            self._left -= count
            return self._left == 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Slices that go through the network together, of one scan or of several."""

    units: list[tuple[Scan, int, View]]
    """What is labelled."""
    rows: list[tuple[Scan, int, View]]
    """What goes in."""
    neighbors: npt.NDArray[np.int32]
    """int32[b, c]: for each unit, the rows of its window."""

    def show(self, image: npt.NDArray[np.int16], *, in_place: bool = False) -> npt.NDArray[np.int16]:
        """Return what goes in, int16[n, H, W], HU: copied to the first rows of `image`, or, `in_place`, where it lies already if it does."""
        if in_place and (run := consecutive(self.rows)) is not None:
            scan, z, count = run
            if (slices := scan.slices(z, count)) is not None:
                return slices
        for (scan, z, view), out in zip(self.rows, image, strict=False):
            scan.show(z, view, out)
        return image[: len(self.rows)]

    def targets(self) -> dict[str, npt.NDArray[np.uint8]]:
        """Return where outputs of the network may be written at once, by name: uint8[b, H, W]; none when they must be put in place (`put`)."""
        if (run := consecutive(self.units)) is None:
            return {}
        scan, z, count = run
        return scan.canvas.targets(z, count)

    def put(self, answer: Answer) -> list[Scan]:
        """Give the scans what the network says of the units, in their order, unless it is there; return those that are whole now."""
        counts: dict[Scan, int] = {}
        for index, (scan, z, view) in enumerate(self.units):
            scan.canvas.put(z, view, answer, index)
            counts[scan] = counts.get(scan, 0) + 1
        return [scan for scan, count in counts.items() if scan.is_whole_after(count)]


def consecutive(parts: list[tuple[Scan, int, View]]) -> tuple[Scan, int, int] | None:
    """Return scan, first z and count of slices of one scan that follow each other, or None when they do not."""
    scan, first, _ = parts[0]
    together = all(one is scan and z == first + index for index, (one, z, _) in enumerate(parts))
    return (scan, first, len(parts)) if together else None


class Filler:
    """Cuts scans into batches, in the order in which they come; a batch goes on in the next scan where one ends."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._scans: deque[tuple[Scan, deque[tuple[int, View]]]] = deque()
        self.waiting = 0
        """Units that are in no batch yet."""

    def add(self, scan: Scan) -> None:
        """Put a scan at the end of the line."""
        units = deque(scan.units(self._capacity.labels))
        self._scans.append((scan, units))
        self.waiting += len(units)

    def drop(self, scan: Scan) -> None:
        """Take a scan out of the line."""
        self._scans = deque(entry for entry in self._scans if entry[0] is not scan)
        self.waiting = sum(len(units) for _, units in self._scans)

    def is_full(self) -> bool:
        """Return whether the next batch would be as large as one may be."""
        return self.waiting >= self._capacity.labels

    def next(self) -> Batch:
        """Return the next batch, of at least one unit; to be asked for only when some are waiting."""
        units: list[tuple[Scan, int, View]] = []
        rows: dict[tuple[Scan, int, View], int] = {}
        windows: list[list[int]] = []
        while self._scans and len(units) < self._capacity.labels:
            scan, left = self._scans[0]
            z, view = left[0]
            window = [(scan, near, view) for near in scan.plan.window(z)]
            fresh = [row for row in dict.fromkeys(window) if row not in rows]
            if len(rows) + len(fresh) > self._capacity.rows:
                break
            for row in fresh:
                rows[row] = len(rows)
            windows.append([rows[row] for row in window])
            units.append((scan, z, view))
            left.popleft()
            self.waiting -= 1
            if not left:
                self._scans.popleft()
        return Batch(units=units, rows=list(rows), neighbors=np.array(windows, dtype=np.int32))
