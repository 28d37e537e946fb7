"""Checks of a scan's HU, which return warnings. They change no voxel.

The warnings belong to the scan: ingest writes them to the manifest, inference to its reports.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ScanError
from slicemill.common.files import Location
from slicemill.ct.window import AIR_HU

UNSIGNED_WATER_HU = 900
"""A CT stored without its intercept of -1024 has soft tissue near 1024, and no negative value."""
LEAST_RANGE_HU = 100
"""A CT has at least air and soft tissue."""
MOST_LABEL_VALUES = 32
"""A volume with this many values from 0 to 255 at most is a segmentation. Public ones have up to 28 (VerSe); the voxels
of a scan with noise have more."""
SHOWN_VALUES = 5
"""Number of values that a message lists."""


@dataclass(frozen=True, kw_only=True)
class HuRange:
    """Range of HU without padding below air (such as -3024)."""

    low: int | None
    """None if all voxels are padding."""
    high: int | None
    padding: int
    """Number of voxels below AIR_HU."""

    @classmethod
    def of_slice(cls, section: npt.NDArray[np.int16]) -> Self:
        """Return the range of int16[y, x]."""
        low = int(section.min())
        if low >= AIR_HU:
            return cls(low=low, high=int(section.max()), padding=0)
        inside = section[section >= AIR_HU]
        padding = section.size - inside.size
        if not inside.size:
            return cls(low=None, high=None, padding=padding)
        return cls(low=int(inside.min()), high=int(inside.max()), padding=padding)

    @classmethod
    def of_all(cls, ranges: Iterable["HuRange"]) -> Self:
        """Return the range of several parts."""
        parts = list(ranges)
        return cls(
            low=min((one.low for one in parts if one.low is not None), default=None),
            high=max((one.high for one in parts if one.high is not None), default=None),
            padding=sum(one.padding for one in parts),
        )

    def warnings(self) -> list[str]:
        """Return warnings about values that do not look like a CT's HU."""
        if self.low is None or self.high is None:
            return ["every voxel is padding below air: this does not look like a CT"]
        if self.low >= 0 and self.high > UNSIGNED_WATER_HU:
            why = "the values may lack the intercept of -1024, or the scan is no CT"
            return [f"no HU below 0 (range {self.low}..{self.high}): {why}"]
        if self.low >= 0 or self.high - self.low < LEAST_RANGE_HU:
            return [f"HU range {self.low}..{self.high} does not look like a CT"]
        return []

    def notes(self) -> list[str]:
        """Return what is worth knowing and no reason for doubt."""
        if not self.padding:
            return []
        return [f"{self.padding:,} voxels below {AIR_HU} HU are taken as padding and left out of HU statistics"]


class DistinctValues:
    """The values of a volume, as long as they could be those of a segmentation."""

    def __init__(self) -> None:
        self._seen: npt.NDArray[np.bool_] | None = np.zeros(256, dtype=bool)

    def add(self, section: npt.NDArray[np.int16], found: HuRange) -> None:
        """Add int16[y, x], whose range was found."""
        if self._seen is None:
            return
        if found.padding or found.low is None or found.high is None or found.low < 0 or found.high > 255:
            self._seen = None
            return
        self._seen[section] = True
        if np.count_nonzero(self._seen) > MOST_LABEL_VALUES:
            self._seen = None

    def check_is_scan(self, path: Location) -> None:
        """Check that the values are not those of a segmentation: 0 and a few other small values.

        Raises
        ------
        ScanError
            The file looks like a segmentation.
        """
        values = [] if self._seen is None else np.flatnonzero(self._seen).tolist()
        if len(values) < 2 or values[0] != 0:
            return
        shown = ", ".join(map(str, values[:SHOWN_VALUES])) + (", ..." if len(values) > SHOWN_VALUES else "")
        raise ScanError(
            f"looks like a segmentation, not a CT: its voxels have only the values {shown}. If it is the mask of a "
            "scan, name the masks with --mask or --pairs; if it is a scan, save its HU.",
            where=path,
        )


def hu_range(volume: npt.NDArray[np.int16]) -> HuRange:
    """Return the range of int16[z, y, x], HU, read once.

    >>> hu_range(np.array([[[0, 255]]], dtype=np.int16)).warnings()
    ['HU range 0..255 does not look like a CT']
    """
    return HuRange.of_all(HuRange.of_slice(section) for section in volume)


def rounding_warnings(largest_error_hu: float) -> list[str]:
    """Return a warning if HU were rounded to integers, by at most `largest_error_hu`."""
    return [f"HU were rounded to integers, by at most {largest_error_hu:.3g}"] if largest_error_hu else []
