"""A case that is open: its scan, its masks, and the parts of their labels."""

import threading
from collections import OrderedDict
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
KEPT_THRESHOLDS = 8
"""Thresholds of a map of probabilities whose regions are kept: there are 255, and a surface has some megabytes."""


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


@dataclass(slots=True)
class _Region:
    """What is known of the region of a label or of a threshold."""

    parts: tuple[Lesion, ...]
    mean_hu: tuple[float, ...] | None = None
    """Of each part; None if it was not measured yet."""
    surface: Surface | None = None
    """None if it was not asked for yet, or the region is empty."""


class OpenCase:
    """A case whose volumes are being read, or have been."""

    def __init__(self, source: CaseSource) -> None:
        self.source = source
        self.image = Volume(source.image)
        self.masks = tuple(None if mask.source is None else Volume(mask.source, counts_values=True)
                           for mask in source.masks)  # fmt: skip
        self._regions: OrderedDict[tuple[int, int], _Region] = OrderedDict()
        """By mask and value; what was used last is at the end."""
        self._located: _Located | None = None
        """The region looked at last, while the scan is read: those of all thresholds would fill the memory."""
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
        self._check(mask, value)
        with self._lock:
            return self._find(mask, value).parts

    def find_mean_hu(self, mask: int, value: int) -> tuple[float, ...] | None:
        """Return the mean HU of each part; None if the scan was not read, or not yet. Raises as `find_parts`."""
        self._check(mask, value)
        with self._lock:
            region = self._find(mask, value)
            if region.mean_hu is None and self.image.is_complete:
                located, self._located = self._located, None
                if located is None or located.key != (mask, value):
                    located = _Located((mask, value), *self._track(mask, value).locate())
                region.mean_hu = self._measure(located)
            return region.mean_hu

    def find_surface(self, mask: int, value: int) -> Surface | None:
        """Return the surface of the region of a label; None if the region is empty. Raises as `find_parts`."""
        self._check(mask, value)
        with self._lock:
            region = self._find(mask, value)
            if region.surface is None and region.parts:
                region.surface = self._make_surface(mask, value, region.parts)
            return region.surface

    def _check(self, mask: int, value: int) -> None:
        """Refuse what does not exist, cannot be read, or was not read yet."""
        volume = self.masks[mask]
        if volume is None or not 1 <= value <= 255:
            raise IndexError(f"value {value} of mask {mask}")
        if volume.failure is not None:
            raise InputError(volume.failure)
        if not volume.is_complete:
            raise NotReadYetError

    def _find(self, mask: int, value: int) -> _Region:
        """Return a region with its parts; of thresholds, the regions used last are kept."""
        key = (mask, value)
        if key not in self._regions:
            tracker = self._track(mask, value)
            region = self._regions[key] = _Region(tracker.lesions(self.source.affine_lps))
            self._located = None
            if self.image.is_complete:
                region.mean_hu = self._measure(_Located(key, *tracker.locate()))
            elif self.image.failure is None:
                self._located = _Located(key, *tracker.locate())
        self._regions.move_to_end(key)
        thresholds = [one for one in self._regions if self.source.masks[one[0]].is_probability]
        for oldest in thresholds[:-KEPT_THRESHOLDS]:
            del self._regions[oldest]
        return self._regions[key]

    def _track(self, mask: int, value: int) -> LesionTracker:
        volume = self.masks[mask]
        assert volume is not None  # noqa: S101 (`find_parts` refuses a mask that cannot be shown)
        region = self.source.masks[mask].region_of(value)
        tracker = LesionTracker(keeps_runs=True)
        for z, slab in volume.iter_slabs(BATCH_SLICES):
            tracker.add(z, select_values(slab, region))
        return tracker

    def _measure(self, located: _Located) -> tuple[float, ...]:
        means = measure_mean_hu(located.runs, located.ids, self.image.read_slices, self.image.shape[0])
        return tuple(means.tolist())

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
