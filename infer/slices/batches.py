"""Batches: cut scans into batches for the network, filled across scans, and return outputs to their scans."""

import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from slicemill.ct.scan import Allocate
from slicemill.infer.network.model import NetworkOutput
from slicemill.infer.runtime.capacity import Capacity
from slicemill.infer.slices.assembly import ScanPlan, VolumeAssembly
from slicemill.infer.slices.tiles import SliceTile
from slicemill.infer.slices.z_range import RangeSearch


class NetworkScan:
    """The slices of a scan that the network labels, and the assembly of its outputs."""

    def __init__(self, plan: ScanPlan, seen: npt.NDArray[np.int16], allocate: Allocate = np.empty) -> None:
        """Take `seen`: int16[z, y, x], HU, at the network's pixel size; `allocate` makes the result."""
        self.plan = plan
        self.assembly = VolumeAssembly(plan, allocate)
        self._seen = seen
        self.search = None if plan.range_rule is None else RangeSearch(plan.range_rule, self.assembly.label)
        """Chooses the slices to label; None if all are."""
        self._asked: Sequence[int] = range(len(seen)) if self.search is None else self.search.next_slices()
        self._missing = len(self._asked) * len(plan.tiles)
        self._lock = threading.Lock()

    def units(self, together: int) -> Iterator[tuple[int, SliceTile]]:
        """Yield every slice that is asked for now, with every tile.

        Runs of `together` slices with the same tile follow each other, so that their windows share slices.
        """
        for start in range(0, len(self._asked), together):
            for tile in self.plan.tiles:
                for z in self._asked[start : start + together]:
                    yield z, tile

    def ask_more(self) -> bool:
        """Choose further slices to label, when all that were asked for are; return whether there are any.

        If there are none, the scan is complete.
        """
        if self.search is None:
            return False
        self._asked = self.search.next_slices()
        self._missing = len(self._asked) * len(self.plan.tiles)
        if not self._asked:
            self.assembly.blank(self.search.unlabeled)
        return bool(self._asked)

    def cut(self, z: int, tile: SliceTile, out: npt.NDArray[np.int16]) -> None:
        """Copy a tile of the slice at `z` to `out`: int16[H, W], HU."""
        tile.cut(self._seen[z], out)

    def view_slices(self, z: int, count: int) -> npt.NDArray[np.int16] | None:
        """Return a view of slices int16[n, H, W], or None if the network cannot take them unchanged."""
        seen = self._seen[z : z + count]
        packed = seen.dtype == np.int16 and seen.flags.c_contiguous and seen.flags.aligned
        return seen if self.plan.passes_slices_unchanged and packed else None

    def count_labeled(self, count: int) -> bool:
        """Count `count` more labeled units and return whether all that were asked for are labeled now."""
        with self._lock:
            self._missing -= count
            return self._missing == 0


class Unit(NamedTuple):
    """One tile of one slice of one scan."""

    scan: NetworkScan
    z: int
    tile: SliceTile


@dataclass(frozen=True, kw_only=True)
class NetworkBatch:
    """Slices that go through the network together, from one scan or several."""

    units: list[Unit]
    """Tiles to label."""
    rows: list[Unit]
    """Tiles of the input: the units and their neighbors, each once."""
    neighbors: npt.NDArray[np.int32]
    """int32[b, c]: for each unit, the rows of its window."""

    def fill(self, image: npt.NDArray[np.int16], *, in_place: bool = False) -> npt.NDArray[np.int16]:
        """Return the network's input, int16[n, H, W], HU: the first rows of `image`, filled.

        With `in_place`, return a view of the scan's slices instead if the network can take them unchanged.
        """
        if in_place and (run := find_run(self.rows)) is not None:
            first, count = run
            if (slices := first.scan.view_slices(first.z, count)) is not None:
                return slices
        for row, out in zip(self.rows, image, strict=False):
            row.scan.cut(row.z, row.tile, out)
        return image[: len(self.rows)]

    def targets(self) -> dict[str, npt.NDArray[np.uint8]]:
        """Return arrays for the network's outputs, by name: uint8[b, H, W]; empty if `put` must copy the outputs."""
        if (run := find_run(self.units)) is None:
            return {}
        first, count = run
        return first.scan.assembly.targets(first.z, count)

    def put(self, output: NetworkOutput) -> list[NetworkScan]:
        """Copy each unit's output to its scan, unless it was written in place.

        Returns the scans of which all slices that were asked for are labeled now; they may ask for more (`ask_more`).
        """
        for index, unit in enumerate(self.units):
            unit.scan.assembly.put(unit.z, unit.tile, output, index)
        counts = Counter(unit.scan for unit in self.units)
        return [scan for scan, count in counts.items() if scan.count_labeled(count)]


def find_run(units: Sequence[Unit]) -> tuple[Unit, int] | None:
    """Return the first unit and the count if all are consecutive slices of one scan, else None."""
    first = units[0]
    consecutive = all(unit.scan is first.scan and unit.z == first.z + index for index, unit in enumerate(units))
    return (first, len(units)) if consecutive else None


class Batcher:
    """Cuts scans into batches in order of arrival; a batch continues in the next scan where one ends."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._scans: deque[tuple[NetworkScan, deque[tuple[int, SliceTile]]]] = deque()
        self.waiting = 0
        """Number of units that are not in a batch yet."""

    def add(self, scan: NetworkScan) -> None:
        """Append a scan to the queue."""
        units = deque(scan.units(self._capacity.labels))
        self._scans.append((scan, units))
        self.waiting += len(units)

    def drop(self, scan: NetworkScan) -> None:
        """Remove a scan from the queue."""
        self._scans = deque(entry for entry in self._scans if entry[0] is not scan)
        self.waiting = sum(len(units) for _, units in self._scans)

    def holds(self, scan: NetworkScan) -> bool:
        """Return whether units of a scan wait."""
        return any(entry[0] is scan for entry in self._scans)

    def is_full(self) -> bool:
        """Return whether enough units wait for a full batch."""
        return self.waiting >= self._capacity.labels

    def next(self, most: int | None = None) -> NetworkBatch:
        """Return the next batch of at least one unit; call it only while units are waiting.

        A batch ends when it has `most` units (by default, and at most, `labels` of the capacity), or when the
        window of the next unit does not fit in its `rows`.
        """
        limit = self._capacity.labels if most is None else min(most, self._capacity.labels)
        units: list[Unit] = []
        rows: dict[Unit, int] = {}
        windows: list[list[int]] = []
        while self._scans and len(units) < limit:
            scan, left = self._scans[0]
            z, tile = left[0]
            window = [Unit(scan, near, tile) for near in scan.plan.window(z)]
            fresh = [row for row in dict.fromkeys(window) if row not in rows]
            if len(rows) + len(fresh) > self._capacity.rows:
                break
            for row in fresh:
                rows[row] = len(rows)
            windows.append([rows[row] for row in window])
            units.append(Unit(scan, z, tile))
            left.popleft()
            self.waiting -= 1
            if not left:
                self._scans.popleft()
        return NetworkBatch(units=units, rows=list(rows), neighbors=np.array(windows, dtype=np.int32))
