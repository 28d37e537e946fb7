"""Volume assembly: combines a network's outputs slice by slice on the scan's grid."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ConfigError, ModelError
from slicemill.ct.crop import neighbor_step, neighbors
from slicemill.ct.scan import Allocate
from slicemill.infer.network.model import NetworkOutput
from slicemill.infer.slices.resample import Resampling, make_resampling
from slicemill.infer.slices.tiles import PLAIN, PredictOptions, SliceTile, make_tiles
from slicemill.infer.slices.z_range import RangeRule, explain_no_range, make_range_rule
from slicemill.store.model_card import ModelInfo

Shape = tuple[int, int, int]
Uint8s = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]
RangeChoice = Literal["auto", "organ", "all"]
"""Which slices are labeled: the organ's range where the model allows it; only so; all."""
ROWS = 64
"""Rows that `to_bytes` converts at a time, so that intermediate values stay in the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class ScanPlan:
    """How a scan is passed to a network, and which outputs are kept; computed from the header."""

    shape: Shape
    """Shape of the scan, z, y, x."""
    neighbor_step: float
    """Distance between neighboring slices of a window, in slices of the scan."""
    context: int
    """Number of slices in a window."""
    resampling: Resampling | None
    """Maps to and from the network's pixel size; None where it takes the scan's pixels."""
    tiles: tuple[SliceTile, ...]
    """Tiles that each slice is cut into."""
    label_values: Uint8s
    """uint8[k]: label values of the network's classes."""
    tumor_class: int | None
    """Class whose probability is kept; None if the model has no tumor label or outputs no tumor probability."""
    outputs: tuple[str, ...]
    """Names of the outputs that are requested from the network."""
    predict: PredictOptions
    network_size: tuple[int, int]
    """Height and width of the network's input."""
    window_hu: tuple[int, int] | None = None
    """HU that slices are clipped to before they are resampled, as in training; None if the model does not say it."""
    unknown_value: int | None = None
    """Value that marks network outputs that are not labels; None if the network outputs labels only."""
    range_rule: RangeRule | None = None
    """How the slices to label are found; None if all are labeled."""

    @property
    def averages(self) -> bool:
        """Return whether several predictions of a pixel are averaged."""
        return self.predict.mirror or self.predict.overlap

    @property
    def passes_slices_unchanged(self) -> bool:
        """Return whether the network takes the slices unchanged: not resampled, padded, cut or mirrored."""
        return self.resampling is None and self.resampled_shape == self.network_size and len(self.tiles) == 1

    @cached_property
    def weights(self) -> dict[SliceTile, Maps]:
        """Return the weight of each tile's kept pixels, float32[y, x]; the weights of a pixel add up to 1."""
        total = np.zeros(self.resampled_shape, dtype=np.float32)
        for tile in self.tiles:
            total[tile.kept] += tile.weights(self.network_size)
        return {tile: tile.weights(self.network_size) / total[tile.kept] for tile in self.tiles}

    @property
    def resampled_shape(self) -> tuple[int, int]:
        """Return rows and columns of the slices that are cut into tiles."""
        return self.shape[1:] if self.resampling is None else self.resampling.shape

    def window(self, z: int) -> list[int]:
        """Return the indices of the context slices of the slice at `z`, itself included."""
        return neighbors(z, self.shape[0], self.context, self.neighbor_step)

    def resample(self, volume: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
        """Return slices int16[z, y, x], HU, at the network's pixel size.

        They are clipped to the model's window first, as training does: a mean of bone and air is no soft tissue.
        """
        if self.resampling is None:
            return volume
        out = np.empty((len(volume), *self.resampling.shape), dtype=np.int16)
        for section, row in zip(volume, out, strict=True):
            row[...] = self.resampling.image_to_network(
                section if self.window_hu is None else np.clip(section, *self.window_hu)
            )
        return out


def select_outputs(info: ModelInfo, predict: PredictOptions = PLAIN) -> tuple[str, ...]:
    """Return the names of the outputs to request from a model.

    ``probability`` of all classes is requested only to average, to keep it, to resample labels to the scan's pixels, or
    in place of a missing output ``tumor``.

    Raises
    ------
    ConfigError
        The model outputs no probabilities, but an option needs them.
    """
    options = [name for name in ("mirror", "overlap", "probability") if getattr(predict, name)]
    if options and not info.gives_probability:
        raise ConfigError(
            f"--{options[0]}: {info.name} outputs no probabilities; "
            "export it again with `slicemill export --probability`."
        )
    averages = predict.mirror or predict.overlap
    has_tumor = info.labels.tumor is not None
    tumor = has_tumor and info.gives_tumor and not averages
    maps = info.gives_probability and (options or info.spacing_mm is not None or (has_tumor and not tumor))
    return ("label", *(["tumor"] if tumor else []), *(["probability"] if maps else []))


def plan_scan(
    info: ModelInfo,
    shape: Shape,
    spacing_mm: tuple[float, float, float],
    predict: PredictOptions = PLAIN,
    *,
    in_range: bool = False,
) -> ScanPlan:
    """Plan how a scan of this shape and spacing in mm (both z, y, x) is passed to a model.

    With `in_range`, only the slices around the organ are labeled (`labels_in_range`).

    Raises
    ------
    ScanError
        The spacing cannot be resampled to the model's.
    """
    tumor_value = info.labels.tumor_value()
    label_values = info.labels.table()
    outputs = select_outputs(info, predict)
    resampling = make_resampling(shape[1:], spacing_mm[1:], info.spacing_mm, info.size)
    has_map = tumor_value is not None and len(outputs) > 1
    return ScanPlan(
        shape=shape,
        neighbor_step=neighbor_step(info.context_spacing_mm, spacing_mm[0]),
        context=info.context,
        resampling=resampling,
        tiles=make_tiles(shape[1:] if resampling is None else resampling.shape, info.size, predict),
        label_values=label_values,
        tumor_class=label_values.tolist().index(tumor_value) if has_map else None,
        outputs=outputs,
        predict=predict,
        network_size=info.size,
        window_hu=whole_window(info.card.window_hu),
        unknown_value=info.unknown,
        range_rule=make_range_rule(info.labels, spacing_mm[0]) if in_range else None,
    )


def whole_window(window_hu: tuple[float, float] | None) -> tuple[int, int] | None:
    """Return the whole HU around a window, or None without one.

    >>> whole_window((-200.5, 300.0))
    (-201, 300)
    """
    return None if window_hu is None else (math.floor(window_hu[0]), math.ceil(window_hu[1]))


def labels_in_range(info: ModelInfo, choice: RangeChoice, predict: PredictOptions, *, postprocess: bool) -> bool:
    """Return whether only the slices around the organ are labeled, by the user's choice and the model.

    Raises
    ------
    ConfigError
        The organ's range was chosen, but the labels of this model or these options need every slice.
    """
    why_not = explain_no_range(info.labels, largest_organ=info.rules.largest_organ)
    if not postprocess:
        why_not = "--no-postprocess keeps the labels of all slices"
    elif predict.probability:
        why_not = "--probability keeps the probabilities of all slices"
    if choice == "organ" and why_not:
        raise ConfigError(f"--range organ: {info.name} needs every slice: {why_not}; omit --range.")
    return choice != "all" and not why_not


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A network's result on the scan's grid, before post-processing."""

    label: Uint8s
    """uint8[z, y, x], label values."""
    tumor_probability: Uint8s | None
    """uint8[z, y, x], 255 times the probability of tumor; None if the model outputs no tumor probability."""
    probability: Uint8s | None = None
    """uint8[k, z, y, x], 255 times the probability of every class; None where it is not kept."""
    labeled: int
    """Number of slices that the network labeled; the others are background, with probability 0."""


@dataclass(kw_only=True, slots=True)
class _PartialSlice:
    """A slice on the network's grid of which some tiles are still missing."""

    label: Uint8s
    tumor: Uint8s | None
    maps: Maps | None
    """float32[k, y, x]."""
    missing: int
    """Number of tiles that are still missing."""


class VolumeAssembly:
    """Collects the outputs for a scan's tiles, in any order and from several threads.

    If one tile determines the final value of a pixel on the scan's grid, it is written to the result immediately.
    Otherwise a slice is collected on the network's grid first, and finished when its last tile arrives.
    """

    def __init__(self, plan: ScanPlan, allocate: Allocate = np.empty) -> None:
        """Allocate the result. Every voxel is written before it is read, since tiles cover the slice, or by `blank`."""
        self.plan = plan
        self._label = allocate(plan.shape, np.uint8)
        self._tumor = None if plan.tumor_class is None else allocate(plan.shape, np.uint8)
        keep = plan.predict.probability
        self._probability = allocate((len(plan.label_values), *plan.shape), np.uint8) if keep else None
        self._partial: dict[int, _PartialSlice] = {}
        self._lock = threading.Lock()
        self._blank = 0

    @property
    def label(self) -> Uint8s:
        """Return uint8[z, y, x], label values; a slice that is not labeled yet has any values."""
        return self._label

    def blank(self, slices: Sequence[int]) -> None:
        """Make slices background that the network does not label."""
        self._blank = len(slices)
        for z in slices:
            self._label[z] = 0
            if self._tumor is not None:
                self._tumor[z] = 0

    def targets(self, z: int, count: int) -> dict[str, Uint8s]:
        """Return arrays to which a network may write its outputs of `count` slices from `z` on.

        Returns
        -------
        dict
            Name of an output to uint8[n, H, W]; empty where outputs need further work first.
        """
        if not self.plan.passes_slices_unchanged or "probability" in self.plan.outputs:
            return {}
        kept = {"label": self._label, "tumor": self._tumor}
        return {name: map_[z : z + count] for name, map_ in kept.items() if map_ is not None}

    def put(self, z: int, tile: SliceTile, output: NetworkOutput, index: int) -> None:
        """Store the `index`-th output as a tile of the slice at `z`, unless the network wrote it in place."""
        if output.in_place:
            return
        if self.plan.resampling is None and not self.plan.averages and self._probability is None:
            tumor = None if self._tumor is None else self._tumor[z]
            self._paste(tile, output, index, _PartialSlice(label=self._label[z], tumor=tumor, maps=None, missing=0))
            return
        with self._lock:
            partial = self._partial.get(z) or self._partial.setdefault(z, self._start_slice())
            self._paste(tile, output, index, partial)
            partial.missing -= 1
            if partial.missing:
                return
            del self._partial[z]
        self._finish(z, partial)

    def _start_slice(self) -> _PartialSlice:
        shape, count = self.plan.resampled_shape, len(self.plan.label_values)
        maps = np.zeros((count, *shape), dtype=np.float32) if "probability" in self.plan.outputs else None
        tumor = None if self._tumor is None else np.zeros(shape, dtype=np.uint8)
        label = np.zeros(shape, dtype=np.uint8)
        return _PartialSlice(label=label, tumor=tumor, maps=maps, missing=len(self.plan.tiles))

    def _paste(self, tile: SliceTile, output: NetworkOutput, index: int, out: _PartialSlice) -> None:
        """Copy the kept pixels of the `index`-th output to a slice, or add them where tiles are averaged."""
        if self.plan.averages:
            if output.maps is not None and out.maps is not None:
                part = tile.mirror(output.maps[index])[:, *tile.inside]
                out.maps[:, *tile.kept] += part * self.plan.weights[tile]
            return
        tile.paste(output.label[index], out.label)
        if output.maps is not None and out.maps is not None:
            tile.paste(output.maps[index], out.maps)
        if out.tumor is not None and output.tumor is not None:
            tile.paste(output.tumor[index], out.tumor)
        elif out.tumor is not None and output.maps is not None and self.plan.tumor_class is not None:
            to_bytes(output.maps[index, self.plan.tumor_class][tile.inside], out.tumor[tile.kept])

    def _finish(self, z: int, complete: _PartialSlice) -> None:
        """Write a complete slice to the result, resampled to the scan's grid if the grids differ."""
        plan, resampling, maps = self.plan, self.plan.resampling, complete.maps
        if plan.averages and maps is not None:
            complete.label = plan.label_values[maps.argmax(axis=0)]
            if complete.tumor is not None and plan.tumor_class is not None:
                to_bytes(maps[plan.tumor_class], complete.tumor)
        label, tumor = complete.label, complete.tumor
        self._label[z] = label if resampling is None else resampling.labels_to_scan(label, maps, plan.label_values)
        if self._tumor is not None and tumor is not None:
            self._tumor[z] = tumor if resampling is None else np.rint(resampling.map_to_scan(tumor))
        if self._probability is not None and maps is not None:
            for map_, out in zip(maps, self._probability[:, z], strict=True):
                to_bytes(map_ if resampling is None else resampling.map_to_scan(map_), out)

    def result(self) -> Segmentation:
        """Return the complete result.

        Raises
        ------
        ModelError
            The network output values that are not labels.
        """
        if undeclared := find_undeclared(self._label, self.plan.label_values):
            known = ", ".join(map(str, self.plan.label_values))
            if self.plan.unknown_value is not None:
                raise ModelError(f"the network outputs values other than {known}; correct the labels in its TOML.")
            raise ModelError(
                f"the network outputs the value {undeclared[0]}; the labels of the model's metadata have only {known}. "
                "Correct the metadata, or export the model again."
            )
        return Segmentation(
            label=self._label,
            tumor_probability=self._tumor,
            probability=self._probability,
            labeled=len(self._label) - self._blank,
        )


def find_undeclared(label: Uint8s, values: Uint8s) -> list[int]:
    """Return, in order, the values of uint8[z, y, x] that are not in `values`, of the first slice that has any.

    Most models have the values 0 to k, for which the maximum of each slice decides. Only values with gaps take a look
    at every pixel.

    >>> find_undeclared(np.array([[[0, 1, 5, 3]]], np.uint8), np.array([0, 1, 5], np.uint8))
    [3]
    """
    top, known = int(values.max()), values.tobytes()
    has_gaps = top >= len(np.unique(values))
    for section in label:
        highest = int(section.max(initial=0))
        if highest > top or (has_gaps and highest and section.tobytes().translate(None, known)):
            return sorted(set(section.tobytes().translate(None, known)))
    return []


def to_bytes(map_: npt.NDArray[np.floating], out: Uint8s) -> None:
    """Convert probabilities of 0 to 1, float[y, x], to 0 to 255 in `out`: uint8[y, x].

    Converting `ROWS` rows at a time takes a quarter of the time of whole slices.

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
