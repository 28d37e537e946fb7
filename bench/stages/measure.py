"""Surface distances of a case as large as LiTS's largest: ours beside distance transforms of the whole scan.

The case: a liver of 512x512x600 voxels' scan with so many lesions, and a prediction whose surfaces are moved by a few
voxels here and there. medpy's way makes, for each object, the erosion and two distance transforms of the whole scan;
since one object takes it a minute, it does only some of them, and their median is counted up for all.
Times are CPU seconds of one core, which a busy machine hardly changes.
"""

import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from slicemill.bench.harness.clock import Timing, interleaved, ratio
from slicemill.bench.harness.headline import Record, Timed, check, headline
from slicemill.common.machine import machine_info
from slicemill.common.terminal import peak_mib
from slicemill.measure.evaluation.surface import Spacing, SurfaceDistances, nearest, surface_distances, surface_points

Mask = npt.NDArray[np.bool_]
Label = npt.NDArray[np.uint8]
Box = tuple[slice, ...]
Found = TypeVar("Found")
SPACING: Spacing = (1.0, 0.75, 0.75)
QUERIES, MEDPY = "nearest neighbors alone", "whole scan, as medpy"
SAME_MM = 1e-6


def run(*, slices: int, side: int, lesions: int, rounds: int, by_medpy: int) -> Record:
    """Measure one case and return the record; `by_medpy` objects are done in medpy's way, too."""
    reference, prediction = make_case((slices, side, side), lesions)
    values = [0, *range(2, lesions + 2)]
    before = peak_mib()
    found = list(each_object(prediction, reference, values, surface_distances))
    added = peak_mib() - before
    points = list(
        each_object(
            prediction,
            reference,
            values,
            lambda one, other, spacing: tuple(surface_points(m, spacing) for m in (one, other)),
        )
    )
    contenders: dict[str, Callable[[], object]] = {
        QUERIES: lambda: [(nearest(one, other), nearest(other, one)) for one, other in points],
        "ours": lambda: list(each_object(prediction, reference, values, surface_distances)),
        "boxes": lambda: list(each_object(prediction, reference, values, in_boxes)),
    }
    timings = interleaved(contenders, rounds=rounds, warm_up=0, timer=time.process_time)
    seconds, differences = [], []
    for index in range(by_medpy):
        start = time.process_time()
        peer = by_transforms(whole(prediction, values[index]), whole(reference, values[index]))
        seconds.append(time.process_time() - start)
        differences.append(float(np.abs(found[index].both - peer.both).max()))
    check("both ways give the same distances", holds=max(differences) < SAME_MM)
    own, counted_up = timings["ours"].median, float(np.median(seconds)) * len(values)
    medpy = Timing(name="medpy", seconds=(counted_up,) * rounds)
    told = {name: Timed(timing=timing, amount=slices) for name, timing in {**timings, MEDPY: medpy}.items()}
    return {
        "benchmark": "measure",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "unit": "slices of a case, all distances of all objects",
        "clock": "CPU time of one core",
        "slices": slices,
        "results": {name: timing.as_json(slices) for name, timing in timings.items()},
        "headline": headline(
            told,
            ours="ours",
            limit=QUERIES,
            bound="nearest neighbors of surface points, trees made",
            peers={
                "boxes": "the same distances by transforms of the box around both masks",
                MEDPY: "erosion and two transforms of the whole scan an object; counted up from a few objects",
            },
            verified=f"largest difference of any distance {max(differences):.1g} mm",
        ),
        "machine": machine_info(),
        "shape_zyx": [slices, side, side],
        "objects": len(values),
        "rounds": rounds,
        "seconds_ours": round(own, 3),
        "seconds_boxes": round(timings["boxes"].median, 3),
        "seconds_medpy_an_object": [round(value, 1) for value in seconds],
        "times_boxes": round(ratio(timings["boxes"], timings["ours"]), 1),
        "times_medpy": round(counted_up / own, 1),
        "largest_difference_mm": max(differences),
        "scan_mib": round(reference.nbytes / 2**20, 1),
        "memory_mib": round(added, 1),
        "peak_mib": round(peak_mib(), 1),
    }


def each_object(
    prediction: Label, reference: Label, values: Sequence[int], measure: Callable[[Mask, Mask, Spacing], Found]
) -> Iterator[Found]:
    """Yield what is measured of the liver with all in it (0), and of the lesions of other values, each in the box around both masks."""
    from scipy.ndimage import find_objects

    boxes = [find_objects(volume) for volume in (prediction, reference)]
    for value in values:
        found = [joint(sides) if value == 0 else sides[value - 1] for sides in boxes]
        box = joint(found)
        yield measure(whole(prediction[box], value), whole(reference[box], value), SPACING)


def joint(boxes: Iterable[Box | None]) -> Box:
    """Return the box around boxes."""
    there = [box for box in boxes if box is not None]
    return tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*there, strict=True))


def whole(volume: Label, value: int) -> Mask:
    """Return the mask of a lesion, or of the liver with all in it (0)."""
    return volume == value if value else volume > 0


def by_transforms(prediction: Mask, reference: Mask, spacing: Spacing = SPACING) -> SurfaceDistances:
    """Return the distances in medpy's way: erosions and distance transforms of all that is given."""
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(3, 2)
    edges = [mask ^ ndimage.binary_erosion(mask, structure) for mask in (prediction, reference)]
    back = ndimage.distance_transform_edt(~edges[0], sampling=spacing)[edges[1]]
    forth = ndimage.distance_transform_edt(~edges[1], sampling=spacing)[edges[0]]
    return SurfaceDistances(to_reference=forth, to_prediction=back)


def in_boxes(prediction: Mask, reference: Mask, spacing: Spacing) -> SurfaceDistances:
    """Return the distances by transforms of the box around both masks, with a border of air."""
    return by_transforms(np.pad(prediction, 1), np.pad(reference, 1), spacing)


def make_case(shape: tuple[int, int, int], lesions: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return reference and prediction, uint8[z, y, x]: 1 liver, 2 and up a lesion each; the prediction is a little off."""
    rng = np.random.default_rng(0)
    volumes = np.zeros((2, *shape), dtype=np.uint8)
    nz, ny, nx = shape
    draw(volumes[0], (0.5 * nz, 0.5 * ny, 0.4 * nx), (0.2 * nz, 0.22 * ny, 0.25 * nx), 1)
    draw(volumes[1], (0.505 * nz, 0.5 * ny, 0.403 * nx), (0.198 * nz, 0.223 * ny, 0.252 * nx), 1)
    for number in range(lesions):
        direction = rng.normal(size=3)
        direction *= rng.uniform(0.2, 0.7) / np.linalg.norm(direction)
        center = np.array([0.5, 0.5, 0.4]) * shape + direction * np.array([0.2, 0.22, 0.25]) * shape
        radii = rng.uniform(3, 16, 3) * shape[1] / 512
        draw(volumes[0], center, radii, number + 2)
        draw(volumes[1], center + rng.uniform(-1, 1, 3), radii * rng.uniform(0.8, 1.2, 3), number + 2)
    return volumes[0], volumes[1]


def draw(volume: npt.NDArray[np.uint8], center: npt.ArrayLike, radii: npt.ArrayLike, value: int) -> None:
    """Give the voxels of an ellipsoid a value; center and radii in voxels along z, y, x."""
    middle, reach = np.asarray(center, dtype=np.float64), np.maximum(np.asarray(radii, dtype=np.float64), 1.0)
    low, high = np.floor(middle - reach).astype(int), np.ceil(middle + reach).astype(int) + 1
    box = tuple(slice(max(0, int(a)), int(b)) for a, b in zip(low, high, strict=True))
    axes = np.ogrid[box]
    inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, middle, reach, strict=True)) <= 1
    volume[box][inside[: volume[box].shape[0], : volume[box].shape[1], : volume[box].shape[2]]] = value
