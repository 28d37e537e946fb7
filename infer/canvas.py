"""What a network says of a scan, put together slice by slice on the scan's own grid."""

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infer.model import ModelInfo
from infer.resample import Resampling, resampling
from infer.views import View, views_of
from store.framing import neighbor_step, neighbors

Shape = tuple[int, int, int]
Uint8s = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]
ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a scan is shown to a network, and what is kept of the answer; all of it known before a voxel is read."""

    shape: Shape
    """z, y, x of the scan."""
    step: float
    """How many slices the neighbors in a window lie apart."""
    context: int
    resampling: Resampling | None
    views: tuple[View, ...]
    table: Uint8s
    """uint8[k]: the label values of the network's classes."""
    tumor: int | None
    """The class whose probability is kept; None where the model knows no tumor or gives no probability."""
    probability: bool
    """Whether the network is asked for probabilities."""

    @property
    def seen_shape(self) -> tuple[int, int]:
        """Return rows and columns of the slices that are cut into views."""
        return self.shape[1:] if self.resampling is None else self.resampling.shape

    def window(self, z: int) -> list[int]:
        """Return the slices that the network sees around the one at `z`."""
        return neighbors(z, self.shape[0], self.context, self.step)

    def seen(self, volume: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
        """Return slices int16[z, y, x], HU, at the network's pixel size."""
        if self.resampling is None:
            return volume
        out = np.empty((len(volume), *self.resampling.shape), dtype=np.int16)
        for section, row in zip(volume, out, strict=True):
            row[...] = self.resampling.image(section)
        return out


def asks_probability(info: ModelInfo) -> bool:
    """Return whether a model is asked for probabilities: for the tumor's, and to bring labels back to a scan's pixels."""
    return info.gives_probability and (info.labels.tumor is not None or info.spacing_mm is not None)


def plan_of(info: ModelInfo, shape: Shape, spacing_mm: tuple[float, float, float]) -> Plan:
    """Return how a scan of this shape and spacing in mm (both z, y, x) is shown to a model.

    Raises
    ------
    ScanError
        The spacing cannot be brought to the model's.
    """
    value = info.labels.tumor_value()
    table = info.labels.table()
    way = resampling(shape[1:], spacing_mm[1:], info.spacing_mm, info.size)
    return Plan(
        shape=shape,
        step=neighbor_step(info.context_spacing_mm, spacing_mm[0]),
        context=info.context,
        resampling=way,
        views=views_of(shape[1:] if way is None else way.shape, info.size),
        table=table,
        tumor=None if value is None or not info.gives_probability else table.tolist().index(value),
        probability=asks_probability(info),
    )


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """What the network says of a scan, before post-processing."""

    label: Uint8s
    """uint8[z, y, x], label values."""
    tumor_probability: Uint8s | None
    """uint8[z, y, x], 255 times the probability of tumor; None where the model knows no tumor or gives no probability."""


@dataclass(kw_only=True, slots=True)
class _Slice:
    """A slice of which some views are still to come."""

    label: Uint8s
    maps: Maps | None
    """float32[k, y, x]."""
    left: int


class Canvas:
    """Takes what the network says of the views of a scan, in any order and from several threads."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._label = np.zeros(plan.shape, dtype=np.uint8)
        self._tumor = None if plan.tumor is None else np.zeros(plan.shape, dtype=np.uint8)
        self._class = plan.tumor or 0
        self._slices: dict[int, _Slice] = {}
        self._lock = threading.Lock()

    def put(self, z: int, view: View, label: Uint8s, maps: Maps | None) -> None:
        """Take the labels uint8[H, W] of one view of the slice at `z`, and the probabilities float32[k, H, W] where they were asked for."""
        if self.plan.resampling is None:
            view.place(label, self._label[z])
            if self._tumor is not None and maps is not None:
                to_bytes(maps[self._class][view.inside], self._tumor[z][view.kept])
            return
        with self._lock:
            waiting = self._slices.get(z) or self._slices.setdefault(z, self._empty(maps))
            view.place(label, waiting.label)
            if maps is not None and waiting.maps is not None:
                view.place(maps, waiting.maps)
            waiting.left -= 1
            if waiting.left:
                return
            del self._slices[z]
        self._bring_back(z, waiting, self.plan.resampling)

    def _empty(self, maps: Maps | None) -> _Slice:
        shape = self.plan.seen_shape
        return _Slice(
            label=np.zeros(shape, dtype=np.uint8),
            maps=None if maps is None else np.zeros((len(maps), *shape), dtype=np.float32),
            left=len(self.plan.views),
        )

    def _bring_back(self, z: int, whole: _Slice, way: Resampling) -> None:
        self._label[z] = way.labels_back(whole.label, whole.maps, self.plan.table)
        if self._tumor is not None and whole.maps is not None:
            to_bytes(way.map_back(whole.maps[self._class]), self._tumor[z])

    def segmented(self) -> Segmented:
        """Return what was put together."""
        return Segmented(label=self._label, tumor_probability=self._tumor)


def to_bytes(map_: npt.NDArray[np.floating], out: Uint8s) -> None:
    """Write probabilities of 0 to 1, float[y, x], as 0 to 255 into `out`: uint8[y, x].

    Some rows at a time: what is in between stays in the processor's cache, a quarter of the time of whole slices.

    >>> out = np.empty((1, 3), dtype=np.uint8)
    >>> to_bytes(np.array([[0, 0.5, 1]], dtype=np.float32), out)
    >>> out.tolist()
    [[0, 128, 255]]
    """
    for start in range(0, len(map_), ROWS):
        part = slice(start, start + ROWS)
        scaled = map_[part] * np.float32(255)
        scaled += np.float32(0.5)
        np.copyto(out[part], scaled, casting="unsafe")
