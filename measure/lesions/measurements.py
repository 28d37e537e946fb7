"""Measurements of a case and of its lesions.

RECIST 1.1 (Eisenhauer et al. 2009): a target lesion is at least 10 mm long on a slice, or twice the slice distance
where that is above 5 mm. At most two lesions of an organ are targets: the longest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from slicemill.ct.diameter_lines import Voxel, find_diameters
from slicemill.ct.geometry import voxel_ml
from slicemill.ct.labels import Labels
from slicemill.ct.lesion_masks import isolate_lesions
from slicemill.ct.lesions import Lesion
from slicemill.measure.evaluation.surface import nearest_distances, surface_points
from slicemill.measure.lesions.shape import compute_sphericity, measure_longest_3d, measure_surface_mm2
from slicemill.store.statistics import count_values

Mask = npt.NDArray[np.bool_]
Label = npt.NDArray[np.uint8]
Image = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float64]
Box = tuple[slice, ...]
Record = TypeVar("Record")
RIM_MM = 5.0
"""Width of the rim: voxels within this distance of a lesion, in the organ and not tumor (without organ: not tumor)."""
TARGET_MM = 10.0
THICK_MM = 5.0
MOST_TARGETS = 2
DECIMALS = 4
"""Decimals of the figures that are written."""


@dataclass(frozen=True, kw_only=True)
class Intensities:
    """Statistics of a set of voxels, HU."""

    voxels: int
    mean: float
    sd: float
    """Standard deviation of the voxels (divided by n)."""
    min: int
    max: int
    median: float


@dataclass(frozen=True, kw_only=True)
class LesionMeasurement:
    """One lesion (26-connected). Positions are voxels z, y, x of the array in LPS+ order, or LPS mm."""

    id: int
    """1 for the largest, then in order of decreasing volume."""
    voxels: int
    volume_mm3: float
    volume_ml: float
    max_axial_diameter_mm: float
    perpendicular_mm: float
    """Longest diameter at right angles to the longest, on the same slice."""
    who_product_mm2: float
    """Product of the two diameters (WHO)."""
    diameter_ends_zyx: tuple[Voxel, Voxel]
    perpendicular_ends_zyx: tuple[Voxel, Voxel]
    max_3d_diameter_mm: float
    surface_mm2: float
    sphericity: float
    """1 for a sphere; lesions of a few voxels may be slightly above."""
    first_z: int
    last_z: int
    key_z: int
    """Slice of the longest axial diameter."""
    centroid_zyx: Voxel
    centroid_lps_mm: tuple[float, float, float]
    bbox_zyx: tuple[int, int, int, int, int, int]
    """First voxel and one past the last: z0, y0, x0, z1, y1, x1."""
    hu: Intensities | None = None
    """The lesion's voxels; None without a scan."""
    rim_hu: Intensities | None = None
    """The voxels around the lesion; None without a scan or without such voxels."""
    organ_surface_mm: float | None = None
    """Distance from the lesion's surface to the organ's; 0 if the lesion reaches it, None without an organ."""
    probability_mean: float | None = None
    probability_max: float | None = None


@dataclass(frozen=True, kw_only=True)
class CaseFigures:
    """The figures of a case."""

    volumes_ml: dict[str, float]
    """Label -> volume; the organ with its tumors."""
    organ_ml: float | None
    """Volume of the organ with its tumors."""
    tumor_ml: float | None
    tumor_burden_percent: float | None
    """Tumor in percent of the organ with its tumors."""
    lesion_count: int | None
    """None without a tumor label."""
    target_ids: tuple[int, ...]
    """Ids of the target lesions, the longest first."""
    sum_of_target_diameters_mm: int | float
    """0, an integer, without targets."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A segmentation, its scan and its probability map, on one grid."""

    label: Label
    """uint8[z, y, x], values of the labels."""
    labels: Labels
    affine_lps: Floats
    """float64[4, 4], voxel (x, y, z, 1) to LPS mm."""
    image: Image | None = None
    """int16[z, y, x], HU."""
    probability: Label | None = None
    """uint8[z, y, x], probability of tumor, 255 is certain."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the distance of voxels along z, y, x."""
        x, y, z = np.sqrt((self.affine_lps[:3, :3] ** 2).sum(axis=0))
        return float(z), float(y), float(x)


def measure_lesions(volume: Volume) -> tuple[LesionMeasurement, ...]:
    """Measure all lesions, the largest first; none without a tumor label."""
    organ = find_organ_surface(volume)
    return tuple(
        _measure(volume, lesion, mask, organ)
        for lesion, mask in isolate_lesions(volume.label, volume.labels, volume.affine_lps)
    )


def _measure(volume: Volume, lesion: Lesion, mask: Mask, organ: Floats) -> LesionMeasurement:
    """Measure one lesion from its mask bool[z, y, x] in the lesion's box."""
    z0, y0, x0 = lesion.bbox_zyx[:3]
    longest, perpendicular = find_diameters(mask[lesion.key_z - z0], (lesion.key_z, y0, x0), volume.affine_lps)
    area = measure_surface_mm2(mask, volume.affine_lps)
    volume_mm3 = lesion.volume_ml * 1000
    box = tuple(slice(low, low + count) for low, count in zip((z0, y0, x0), mask.shape, strict=True))
    probability = None if volume.probability is None else volume.probability[box][mask]
    surface = surface_points(mask, volume.spacing_mm) + np.array([z0, y0, x0]) * np.array(volume.spacing_mm)
    return LesionMeasurement(
        id=lesion.id,
        voxels=lesion.voxels,
        volume_mm3=volume_mm3,
        volume_ml=lesion.volume_ml,
        max_axial_diameter_mm=longest.length_mm,
        perpendicular_mm=perpendicular.length_mm,
        who_product_mm2=longest.length_mm * perpendicular.length_mm,
        diameter_ends_zyx=longest.ends,
        perpendicular_ends_zyx=perpendicular.ends,
        max_3d_diameter_mm=measure_longest_3d(mask, volume.affine_lps),
        surface_mm2=area,
        sphericity=compute_sphericity(volume_mm3, area),
        first_z=z0,
        last_z=lesion.bbox_zyx[3] - 1,
        key_z=lesion.key_z,
        centroid_zyx=tuple((np.argwhere(mask).mean(axis=0) + np.array([z0, y0, x0])).tolist()),
        centroid_lps_mm=lesion.centroid_lps_mm,
        bbox_zyx=lesion.bbox_zyx,
        hu=None if volume.image is None else measure_intensities(volume.image[box][mask]),
        rim_hu=None if volume.image is None else measure_rim(volume, volume.image, mask, box),
        organ_surface_mm=float(nearest_distances(surface, organ).min()) if len(organ) else None,
        probability_mean=None if probability is None else float(probability.mean()) / 255,
        probability_max=None if probability is None else float(probability.max()) / 255,
    )


def find_organ_surface(volume: Volume) -> Floats:
    """Return the surface of the organ with its tumors: float64[n, 3], mm along z, y, x; empty without an organ."""
    values = volume.labels.organ_values()
    organ = volume.labels.values[volume.labels.organ] if volume.labels.organ else 0
    if not values or not (volume.label == organ).any():
        return np.empty((0, 3))
    return surface_points(np.isin(volume.label, values), volume.spacing_mm)


def measure_rim(volume: Volume, image: Image, mask: Mask, box: Box) -> Intensities | None:
    """Measure the HU around a lesion, bool[z, y, x] in `box`, up to RIM_MM away; None if no voxel qualifies."""
    from scipy.ndimage import distance_transform_edt

    reach = [math.ceil(RIM_MM / step) for step in volume.spacing_mm]
    wide = tuple(
        slice(max(0, side.start - far), min(count, side.stop + far))
        for side, far, count in zip(box, reach, volume.label.shape, strict=True)
    )
    margins = [(side.start - w.start, w.stop - side.stop) for side, w in zip(box, wide, strict=True)]
    lesion = np.pad(mask, margins)
    near = distance_transform_edt(~lesion, sampling=volume.spacing_mm) <= RIM_MM
    around = volume.label[wide]
    organ = volume.labels.values[volume.labels.organ] if volume.labels.organ else None
    allowed = around != volume.labels.tumor_value() if organ is None else around == organ
    return measure_intensities(image[wide][near & allowed])


def measure_intensities(values: Image) -> Intensities | None:
    """Return statistics of int16[n], HU; None without values.

    >>> measure_intensities(np.array([10, 20, 30], dtype=np.int16)).median
    20.0
    """
    if not len(values):
        return None
    return Intensities(
        voxels=len(values),
        mean=float(values.mean()),
        sd=float(values.std()),
        min=int(values.min()),
        max=int(values.max()),
        median=float(np.median(values)),
    )


def choose_targets(lesions: Sequence[LesionMeasurement], spacing_z_mm: float) -> tuple[int, ...]:
    """Return the ids of the target lesions, the longest first."""
    limit = 2 * spacing_z_mm if spacing_z_mm > THICK_MM else TARGET_MM
    long_enough = [lesion for lesion in lesions if lesion.max_axial_diameter_mm >= limit]
    long_enough.sort(key=lambda lesion: (-lesion.max_axial_diameter_mm, lesion.id))
    return tuple(lesion.id for lesion in long_enough[:MOST_TARGETS])


def measure_case(volume: Volume, lesions: Sequence[LesionMeasurement]) -> CaseFigures:
    """Return volumes, tumor burden, number of lesions, targets and the sum of their diameters, all rounded."""
    ml, labels = voxel_ml(volume.affine_lps), volume.labels
    counts = count_values(volume.label)
    volumes = {name: float(counts[values].sum()) * ml for name, values in labels.regions().items()}
    organ = volumes[labels.organ] if labels.organ else None
    tumor = volumes[labels.tumor] if labels.tumor else None
    target_ids = choose_targets(lesions, volume.spacing_mm[0])
    figures = CaseFigures(
        volumes_ml=volumes,
        organ_ml=organ,
        tumor_ml=tumor,
        tumor_burden_percent=100 * tumor / organ if organ and tumor is not None else None,
        lesion_count=len(lesions) if labels.tumor else None,
        target_ids=target_ids,
        sum_of_target_diameters_mm=sum(one.max_axial_diameter_mm for one in lesions if one.id in target_ids),
    )
    return round_record(figures)


def round_record(record: Record) -> Record:
    """Return a dataclass with all its floats rounded to DECIMALS, as they are written."""
    values = {field.name: _round(getattr(record, field.name)) for field in fields(record)}  # type: ignore[arg-type]
    return replace(record, **values)  # type: ignore[type-var]


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {key: _round(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_round, value))
    return round_record(value) if is_dataclass(value) else value
