"""Surface distances of a case as large as LiTS's largest, compared with distance transforms of the complete scan.

Bottleneck: nearest neighbors of surface points. The case is a liver with lesions in a scan of 512x512x600 voxels,
and a prediction whose surfaces are off by a few voxels. medpy computes an erosion and two distance transforms of the
complete scan per object. One object takes it a minute, so only some are measured, and their median is used for all.
Times are CPU seconds of one core, which a busy machine hardly changes. Command: `slicemill bench measure`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from slicemill.bench.harness.clock import Timing, Work, ratio, time_rounds
from slicemill.bench.harness.headline import Record, check, headline, with_amount
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.networks import MeasureRecord
from slicemill.common.terminal import peak_mib
from slicemill.measure.evaluation.surface import (
    Spacing,
    SurfaceDistances,
    nearest_distances,
    surface_distances,
    surface_points,
)

Mask = npt.NDArray[np.bool_]
Label = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
Box = tuple[slice, ...]
Result = TypeVar("Result")
SPACING: Spacing = (1.0, 0.75, 0.75)
SLICEMILL, QUERIES, BOXES, MEDPY = "ours", "nearest neighbors alone", "boxes", "whole scan, as medpy"
SAME_MM = 1e-6
ORGAN = 0
"""Value of the liver with all its lesions; the other values are single lesions."""
CENTER, RADII = (0.5, 0.5, 0.4), (0.2, 0.22, 0.25)
"""Center and radii of the liver, as fractions of the scan along z, y, x."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Reference and prediction, uint8[z, y, x]: 1 is liver, 2 and above a lesion each."""

    reference: Label
    prediction: Label
    values: list[int]
    """The objects to measure: ORGAN and the lesions."""

    def for_each_object(self, measure: Callable[[Mask, Mask, Spacing], Result]) -> Iterator[Result]:
        """Yield the result of `measure` for each object, in the box around both of its masks."""
        from scipy.ndimage import find_objects

        boxes = [find_objects(volume) for volume in (self.prediction, self.reference)]
        for value in self.values:
            box = union_box([union_box(sides) if value == ORGAN else sides[value - 1] for sides in boxes])
            yield measure(mask_of(self.prediction[box], value), mask_of(self.reference[box], value), SPACING)


def run(*, slices: int, side: int, lesions: int, rounds: int, by_medpy: int) -> Record:
    """Measure one case and return the record; `by_medpy` objects are also measured as medpy does."""
    case = make_case((slices, side, side), lesions)
    before = peak_mib()
    distances = list(case.for_each_object(surface_distances))
    memory_mib = peak_mib() - before
    points = list(case.for_each_object(points_of_both_surfaces))
    contenders: dict[str, Work] = {
        QUERIES: lambda: [(nearest_distances(one, other), nearest_distances(other, one)) for one, other in points],
        SLICEMILL: lambda: list(case.for_each_object(surface_distances)),
        BOXES: lambda: list(case.for_each_object(distances_in_boxes)),
    }
    times = time_rounds(contenders, rounds=rounds, warm_up=0, clock=time.process_time)
    seconds, difference = time_medpy(case, distances[:by_medpy])
    check("both methods give the same distances", holds=difference < SAME_MM)
    medpy = Timing(name=MEDPY, seconds=(float(np.median(seconds)) * len(case.values),) * rounds)
    return MeasureRecord(
        **origin(),
        unit="slices of a case, all distances of all objects",
        clock="CPU time of one core",
        slices=slices,
        results={name: timing.rate(slices) for name, timing in times.items()},
        headline=headline(
            with_amount({**times, MEDPY: medpy}, slices),
            contender=SLICEMILL,
            limit=QUERIES,
            bound="nearest neighbors of surface points, trees made",
            peers={
                BOXES: "the same distances by transforms of the box around both masks",
                MEDPY: "erosion and two transforms of the whole scan an object; counted up from a few objects",
            },
            verified=f"largest difference of any distance {difference:.1g} mm",
        ),
        shape_zyx=(slices, side, side),
        objects=len(case.values),
        rounds=rounds,
        seconds_ours=round(times[SLICEMILL].median, 3),
        seconds_boxes=round(times[BOXES].median, 3),
        seconds_medpy_an_object=tuple(round(value, 1) for value in seconds),
        times_boxes=round(ratio(times[BOXES], times[SLICEMILL]), 1),
        times_medpy=round(medpy.median / times[SLICEMILL].median, 1),
        largest_difference_mm=difference,
        scan_mib=round(case.reference.nbytes / 2**20, 1),
        memory_mib=round(memory_mib, 1),
        peak_mib=round(peak_mib(), 1),
    ).as_json()


def time_medpy(case: Case, expected: Sequence[SurfaceDistances]) -> tuple[list[float], float]:
    """Measure the first objects as medpy does; return CPU seconds of each, and the largest difference, mm."""
    seconds, differences = [], []
    for value, distances in zip(case.values, expected, strict=False):
        start = time.process_time()
        result = distances_by_transforms(mask_of(case.prediction, value), mask_of(case.reference, value))
        seconds.append(time.process_time() - start)
        differences.append(float(np.abs(distances.both - result.both).max()))
    return seconds, max(differences)


def union_box(boxes: Iterable[Box | None]) -> Box:
    """Return the smallest box around all boxes."""
    present = [box for box in boxes if box is not None]
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*present, strict=True))


def mask_of(volume: Label, value: int) -> Mask:
    """Return the mask of a lesion or of the organ."""
    return volume > 0 if value == ORGAN else volume == value


def points_of_both_surfaces(one: Mask, other: Mask, spacing: Spacing) -> tuple[Points, Points]:
    """Return the surface points of both masks."""
    return surface_points(one, spacing), surface_points(other, spacing)


def distances_by_transforms(prediction: Mask, reference: Mask, spacing: Spacing = SPACING) -> SurfaceDistances:
    """Return the distances as medpy computes them: erosions and distance transforms of the complete masks."""
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(3, 2)
    predicted, expected = (mask ^ ndimage.binary_erosion(mask, structure) for mask in (prediction, reference))
    to_prediction = ndimage.distance_transform_edt(~predicted, sampling=spacing)[expected]
    to_reference = ndimage.distance_transform_edt(~expected, sampling=spacing)[predicted]
    return SurfaceDistances(to_reference=to_reference, to_prediction=to_prediction)


def distances_in_boxes(prediction: Mask, reference: Mask, spacing: Spacing) -> SurfaceDistances:
    """Return the distances by transforms of the box around both masks, with a border of air."""
    return distances_by_transforms(np.pad(prediction, 1), np.pad(reference, 1), spacing)


def make_case(shape: tuple[int, int, int], lesions: int) -> Case:
    """Return a liver with lesions, all ellipsoids, and a prediction that is slightly off."""
    rng = np.random.default_rng(0)
    reference, prediction = np.zeros((2, *shape), dtype=np.uint8)
    fill_ellipsoid(reference, np.multiply(CENTER, shape), np.multiply(RADII, shape), 1)
    fill_ellipsoid(prediction, np.multiply((0.505, 0.5, 0.403), shape), np.multiply((0.198, 0.223, 0.252), shape), 1)
    for value in range(2, lesions + 2):
        direction = rng.normal(size=3)
        direction *= rng.uniform(0.2, 0.7) / np.linalg.norm(direction)
        center = np.multiply(CENTER, shape) + direction * np.multiply(RADII, shape)
        radii = rng.uniform(3, 16, 3) * shape[1] / 512
        fill_ellipsoid(reference, center, radii, value)
        fill_ellipsoid(prediction, center + rng.uniform(-1, 1, 3), radii * rng.uniform(0.8, 1.2, 3), value)
    return Case(reference=reference, prediction=prediction, values=[ORGAN, *range(2, lesions + 2)])


def fill_ellipsoid(volume: Label, center: npt.NDArray[np.float64], radii: npt.NDArray[np.float64], value: int) -> None:
    """Set the voxels of an ellipsoid to a value; center and radii in voxels along z, y, x."""
    reach = np.maximum(radii, 1.0)
    low, high = np.floor(center - reach).astype(int), np.ceil(center + reach).astype(int) + 1
    box = tuple(slice(max(0, int(a)), int(b)) for a, b in zip(low, high, strict=True))
    axes = np.ogrid[box]
    inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, center, reach, strict=True)) <= 1
    volume[box][inside[tuple(slice(pixels) for pixels in volume[box].shape)]] = value
