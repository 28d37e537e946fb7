"""What a network says of a scan, put together slice by slice on the scan's own grid."""

import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ConfigError, ModelError
from slicemill.ct.crop import neighbor_step, neighbors
from slicemill.ct.scan import Room
from slicemill.infer.network.model import Answer
from slicemill.infer.slices.resample import Resampling, resampling
from slicemill.infer.slices.tiles import PLAIN, Manner, View, tiles_of
from slicemill.store.model_card import ModelCard

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
    """The class whose probability is kept; None where the model knows no tumor or gives no probability of it."""
    wanted: tuple[str, ...]
    """The outputs that the network is asked for."""
    manner: Manner
    size: tuple[int, int]
    """Height and width of the network's slices."""
    unknown: int | None = None
    """The value that stands for what is no label; None where the network gives labels only."""

    @property
    def averages(self) -> bool:
        """Return whether several views of a pixel are averaged."""
        return self.manner.mirror or self.manner.overlap

    @property
    def shows_whole(self) -> bool:
        """Return whether the network sees slices as they are: none is resampled, padded, cut or mirrored."""
        return self.resampling is None and self.seen_shape == self.size and len(self.views) == 1

    @cached_property
    def weights(self) -> dict[View, Maps]:
        """Return what each view of a slice counts, float32[y, x] of its kept pixels; together 1 at every pixel."""
        total = np.zeros(self.seen_shape, dtype=np.float32)
        for view in self.views:
            total[view.kept] += view.weights(self.size)
        return {view: view.weights(self.size) / total[view.kept] for view in self.views}

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


def wanted_of(info: ModelCard, manner: Manner = PLAIN) -> tuple[str, ...]:
    """Return the outputs that a model is asked for.

    ``probability`` of all classes only to average, to be kept, to bring labels back to a scan's pixels, or in want of ``tumor``.

    Raises
    ------
    ConfigError
        It gives no probabilities, and they are needed.
    """
    asked = [name for name in ("mirror", "overlap", "probability") if getattr(manner, name)]
    if asked and not info.gives_probability:
        raise ConfigError(
            f"--{asked[0]}: {info.name} gives no probabilities; export it again with `slicemill export --probability`."
        )
    averages = manner.mirror or manner.overlap
    knows_tumor = info.labels.tumor is not None
    tumor = knows_tumor and info.gives_tumor and not averages
    maps = info.gives_probability and (asked or info.spacing_mm is not None or (knows_tumor and not tumor))
    return ("label", *(["tumor"] if tumor else []), *(["probability"] if maps else []))


def plan_of(info: ModelCard, shape: Shape, spacing_mm: tuple[float, float, float], manner: Manner = PLAIN) -> Plan:
    """Return how a scan of this shape and spacing in mm (both z, y, x) is shown to a model.

    Raises
    ------
    ScanError
        The spacing cannot be brought to the model's.
    """
    value = info.labels.tumor_value()
    table = info.labels.table()
    wanted = wanted_of(info, manner)
    way = resampling(shape[1:], spacing_mm[1:], info.spacing_mm, info.size)
    return Plan(
        shape=shape,
        step=neighbor_step(info.context_spacing_mm, spacing_mm[0]),
        context=info.context,
        resampling=way,
        views=tiles_of(shape[1:] if way is None else way.shape, info.size, manner),
        table=table,
        tumor=None if value is None or len(wanted) == 1 else table.tolist().index(value),
        wanted=wanted,
        manner=manner,
        size=info.size,
        unknown=info.unknown,
    )


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """What the network says of a scan, before post-processing."""

    label: Uint8s
    """uint8[z, y, x], label values."""
    tumor_probability: Uint8s | None
    """uint8[z, y, x], 255 times the probability of tumor; None where the model knows no tumor or gives no probability."""
    probability: Uint8s | None = None
    """uint8[k, z, y, x], 255 times the probability of every class, where it was to be kept."""


@dataclass(kw_only=True, slots=True)
class _Slice:
    """A slice on the network's grid, of which some views are still to come."""

    label: Uint8s
    tumor: Uint8s | None
    maps: Maps | None
    """float32[k, y, x]."""
    left: int


class VolumeAssembly:
    """Takes what the network says of the views of a scan, in any order and from several threads.

    Where one view says all of a pixel on the scan's own grid, it is put in place at once. Else slices are put together on
    the network's grid first, and finished when their last view is in.
    """

    def __init__(self, plan: Plan, room: Room = np.empty) -> None:
        """Make arrays by `room` for what the network says; every voxel of them is written before it is read
        (`slicemill.infer.slices.tiles.cover`)."""
        self.plan = plan
        self._label = room(plan.shape, np.uint8)
        self._tumor = None if plan.tumor is None else room(plan.shape, np.uint8)
        keep = plan.manner.probability
        self._probability = room((len(plan.table), *plan.shape), np.uint8) if keep else None
        self._slices: dict[int, _Slice] = {}
        self._lock = threading.Lock()

    def targets(self, z: int, count: int) -> dict[str, Uint8s]:
        """Return where a network may write its outputs of `count` slices from `z` on, uint8[n, H, W] by name; none where others are kept."""
        if not self.plan.shows_whole or "probability" in self.plan.wanted:
            return {}
        kept = {"label": self._label, "tumor": self._tumor}
        return {name: map_[z : z + count] for name, map_ in kept.items() if map_ is not None}

    def put(self, z: int, view: View, answer: Answer, index: int) -> None:
        """Take one view of the slice at `z`: the `index`-th of an answer. An answer in place was written to `targets`."""
        if answer.in_place:
            return
        if self.plan.resampling is None and not self.plan.averages and self._probability is None:
            self._place(view, answer, index, _Slice(label=self._label[z], tumor=self._at(z), maps=None, left=0))
            return
        with self._lock:
            waiting = self._slices.get(z) or self._slices.setdefault(z, self._empty())
            self._place(view, answer, index, waiting)
            waiting.left -= 1
            if waiting.left:
                return
            del self._slices[z]
        self._finish(z, waiting)

    def _at(self, z: int) -> Uint8s | None:
        return None if self._tumor is None else self._tumor[z]

    def _empty(self) -> _Slice:
        shape = self.plan.seen_shape
        maps = np.zeros((len(self.plan.table), *shape), dtype=np.float32) if "probability" in self.plan.wanted else None
        tumor = None if self._tumor is None else np.zeros(shape, dtype=np.uint8)
        return _Slice(label=np.zeros(shape, dtype=np.uint8), tumor=tumor, maps=maps, left=len(self.plan.views))

    def _place(self, view: View, answer: Answer, index: int, out: _Slice) -> None:
        if self.plan.averages:
            if answer.maps is not None and out.maps is not None:
                part = view.turned(answer.maps[index])[:, *view.inside]
                out.maps[:, *view.kept] += part * self.plan.weights[view]
            return
        view.place(answer.label[index], out.label)
        if answer.maps is not None and out.maps is not None:
            view.place(answer.maps[index], out.maps)
        if out.tumor is not None and answer.tumor is not None:
            view.place(answer.tumor[index], out.tumor)
        elif out.tumor is not None and answer.maps is not None and self.plan.tumor is not None:
            to_bytes(answer.maps[index, self.plan.tumor][view.inside], out.tumor[view.kept])

    def _finish(self, z: int, whole: _Slice) -> None:
        """Bring a slice to the scan's grid, where that is another, and put it in place."""
        plan, way, maps = self.plan, self.plan.resampling, whole.maps
        if plan.averages and maps is not None:
            whole.label = plan.table[maps.argmax(axis=0)]
            if whole.tumor is not None and plan.tumor is not None:
                to_bytes(maps[plan.tumor], whole.tumor)
        self._label[z] = whole.label if way is None else way.labels_back(whole.label, maps, plan.table)
        if self._tumor is not None and whole.tumor is not None:
            self._tumor[z] = whole.tumor if way is None else np.rint(way.map_back(whole.tumor))
        if self._probability is not None and maps is not None:
            for map_, out in zip(maps, self._probability[:, z], strict=True):
                to_bytes(map_ if way is None else way.map_back(map_), out)

    def segmented(self) -> Segmented:
        """Return what was put together.

        Raises
        ------
        ModelError
            The network gave values that are no labels.
        """
        if self.plan.unknown is not None and any((label == self.plan.unknown).any() for label in self._label):
            known = ", ".join(map(str, self.plan.table))
            raise ModelError(f"the network gives values other than {known}; correct the labels in its TOML.")
        return Segmented(label=self._label, tumor_probability=self._tumor, probability=self._probability)


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
