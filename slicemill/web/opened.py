"""A case that is open: its scan, its masks, and the parts of their labels."""

import threading
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError
from slicemill.ct.labels import Labels
from slicemill.ct.lesion_hu import measure_mean_hu
from slicemill.ct.lesions import BATCH_SLICES, Lesion, LesionTracker
from slicemill.ct.runs import Runs, select_values
from slicemill.ct.surface import LEAST_TRIANGLES, Surface, make_surface
from slicemill.web.volumes import NotReadYetError, Volume, VolumeSource

Role = Literal["image", "mask"]
MOST_TRIANGLES = 60_000
"""Triangles of all surfaces of a case: a page draws them in a few hundredths of a second without a graphics card."""


@dataclass(frozen=True, kw_only=True)
class MaskSource:
    """A mask of a case."""

    name: str
    labels: Labels | None
    """Names of the label values; None if nothing names them."""
    source: VolumeSource | None
    """None if the mask cannot be shown."""
    failure: str | None = None
    """Why the mask cannot be shown."""
    is_probability: bool = False
    """Whether its values are probabilities of tumor, 255 is certain; a value then stands for a threshold."""

    def region_of(self, value: int) -> tuple[int, ...]:
        """Return the values that belong to a label: those of the organ and of its tumors, or its own.

        In a map of probabilities they are those from a threshold on.
        """
        if self.is_probability:
            return tuple(range(value, 256))
        if self.labels is not None:
            for name, values in self.labels.regions().items():
                if self.labels.values[name] == value:
                    return tuple(values)
        return (value,)


@dataclass(frozen=True, kw_only=True)
class CaseSource:
    """A case, before its voxels are read."""

    name: str
    image: VolumeSource
    masks: tuple[MaskSource, ...]
    spacing_mm: tuple[float, float, float]
    """z, y, x."""
    affine_lps: npt.NDArray[np.float64]
    """float64[4, 4], voxel (x, y, z, 1) to LPS mm."""
    warnings: tuple[str, ...] = ()
    """Warnings about the scan's header."""


@dataclass(frozen=True, slots=True)
class _Located:
    """Where the parts of the region of a label are: needed until their mean HU is known."""

    key: tuple[int, int]
    """The mask, and the value of the label."""
    runs: Runs
    ids: npt.NDArray[np.int64]
    """int64[n], the part of each run."""


class OpenCase:
    """A case whose volumes are being read, or have been."""

    def __init__(self, source: CaseSource) -> None:
        self.source = source
        self.image = Volume(source.image)
        self.masks = tuple(None if mask.source is None else Volume(mask.source, counts_values=True)
                           for mask in source.masks)  # fmt: skip
        self._parts: dict[tuple[int, int], tuple[Lesion, ...]] = {}
        self._located: _Located | None = None
        """The region looked at last, while the scan is read: those of all thresholds would fill the memory."""
        self._mean_hu: dict[tuple[int, int], tuple[float, ...]] = {}
        self._surfaces: dict[tuple[int, int], Surface | None] = {}
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Stop reading."""
        for volume in (self.image, *self.masks):
            if volume is not None:
                volume.stop()

    def find_parts(self, mask: int, value: int) -> tuple[Lesion, ...]:
        """Return the 26-connected parts of the region of a label of a mask (`MaskSource.region_of`), the largest first.

        Raises
        ------
        IndexError
            There is no such mask or value.
        NotReadYetError
            The mask was not read completely yet.
        InputError
            The label has too many parts.
        """
        volume = self.masks[mask]
        if volume is None or not 1 <= value <= 255:
            raise IndexError(f"value {value} of mask {mask}")
        if volume.failure is not None:
            raise InputError(volume.failure)
        if not volume.is_complete:
            raise NotReadYetError
        with self._lock:
            if (mask, value) not in self._parts:
                tracker = self._track(mask, value)
                self._parts[mask, value] = tracker.lesions(self.source.affine_lps)
                self._located = None
                if self.image.is_complete:
                    self._measure(_Located((mask, value), *tracker.locate()))
                elif self.image.failure is None:
                    self._located = _Located((mask, value), *tracker.locate())
            return self._parts[mask, value]

    def find_mean_hu(self, mask: int, value: int) -> tuple[float, ...] | None:
        """Return the mean HU of each part; None if the scan was not read, or not yet. Raises as `find_parts`."""
        self.find_parts(mask, value)
        if not self.image.is_complete:
            return None
        with self._lock:
            if (mask, value) not in self._mean_hu:
                located, self._located = self._located, None
                if located is None or located.key != (mask, value):
                    located = _Located((mask, value), *self._track(mask, value).locate())
                self._measure(located)
            return self._mean_hu[mask, value]

    def find_surface(self, mask: int, value: int) -> Surface | None:
        """Return the surface of the region of a label; None if the region is empty. Raises as `find_parts`."""
        parts = self.find_parts(mask, value)
        with self._lock:
            if (mask, value) not in self._surfaces:
                self._surfaces[mask, value] = self._make_surface(mask, value, parts) if parts else None
            return self._surfaces[mask, value]

    def _track(self, mask: int, value: int) -> LesionTracker:
        volume = self.masks[mask]
        assert volume is not None  # noqa: S101 (`find_parts` refuses a mask that cannot be shown)
        region = self.source.masks[mask].region_of(value)
        tracker = LesionTracker(keeps_runs=True)
        for z, slab in volume.iter_slabs(BATCH_SLICES):
            tracker.add(z, select_values(slab, region))
        return tracker

    def _measure(self, located: _Located) -> None:
        means = measure_mean_hu(located.runs, located.ids, self.image.read_slices, self.image.shape[0])
        self._mean_hu[located.key] = tuple(means.tolist())

    def _make_surface(self, mask: int, value: int, parts: tuple[Lesion, ...]) -> Surface:
        volume = self.masks[mask]
        assert volume is not None  # noqa: S101 (it has parts)
        region = self.source.masks[mask].region_of(value)
        labels = sum(
            int(np.count_nonzero(one.counts[:, 1:].any(axis=0)))
            for one, source in zip(self.masks, self.source.masks, strict=True)
            if one is not None and one.counts is not None and not source.is_probability
        )
        return make_surface(
            parts,
            lambda start, stop: select_values(volume.read_slices(start, stop), region),
            self.source.affine_lps,
            max(LEAST_TRIANGLES, MOST_TRIANGLES // max(1, labels)),
        )
