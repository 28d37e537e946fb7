"""What is measured of the lesions of a case, and of the case.

RECIST 1.1 (Eisenhauer et al. 2009): a target is at least 10 mm long on a slice, and twice the distance of slices where these
are more than 5 mm apart; at most two targets an organ. Targets are chosen by length alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.ct.geometry import voxel_ml
from slicemill.ct.labels import Labels
from slicemill.ct.lesions import Lesion, bounding_box, check_parts, components, measure_lesion, measured_parts
from slicemill.measure.evaluation.surface import nearest, surface_points
from slicemill.measure.lesions.shape import Voxel, chords, longest_3d, sphericity, surface_mm2
from slicemill.store.statistics import value_counts

Mask = npt.NDArray[np.bool_]
Label = npt.NDArray[np.uint8]
Image = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float64]
Box = tuple[slice, ...]
RIM_MM = 5.0
"""How far the rim reaches: voxels that near to a lesion, in the organ and no tumor (anything but tumor, without an organ)."""
TARGET_MM = 10.0
THICK_MM = 5.0
MOST_TARGETS = 2


@dataclass(frozen=True, kw_only=True)
class Intensities:
    """HU of some voxels."""

    voxels: int
    mean: float
    sd: float
    min: int
    max: int
    median: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One lesion (26-connected); positions are voxels z, y, x of the array in LPS+ order, and LPS mm."""

    id: int
    """1 for the largest, then by falling volume."""
    voxels: int
    volume_mm3: float
    volume_ml: float
    max_axial_diameter_mm: float
    perpendicular_mm: float
    who_product_mm2: float
    """Longest axial diameter times the longest at right angles on the same slice."""
    diameter_ends_zyx: tuple[Voxel, Voxel]
    perpendicular_ends_zyx: tuple[Voxel, Voxel]
    max_3d_diameter_mm: float
    surface_mm2: float
    sphericity: float
    """1 for a ball; a lesion of a few voxels may pass it a little."""
    first_z: int
    last_z: int
    key_z: int
    """Slice of the longest axial diameter."""
    centroid_zyx: Voxel
    centroid_lps_mm: tuple[float, float, float]
    bbox_zyx: tuple[int, int, int, int, int, int]
    """First voxel and one past the last: z0, y0, x0, z1, y1, x1."""
    hu: Intensities | None = None
    rim_hu: Intensities | None = None
    organ_surface_mm: float | None = None
    """From its surface to the organ's nearest surface voxel; 0 where it reaches the surface, None without an organ."""
    probability_mean: float | None = None
    probability_max: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fields, rounded to what counts."""
        return {key: rounded(value) for key, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A segmentation with what is known beside it, on one grid."""

    label: Label
    """uint8[z, y, x], values of the labels."""
    labels: Labels
    affine_lps: Floats
    image: Image | None = None
    """int16[z, y, x], HU."""
    probability: Label | None = None
    """uint8[z, y, x], of tumor, 255 is certain."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the distance of voxels along z, y, x."""
        x, y, z = np.sqrt((self.affine_lps[:3, :3] ** 2).sum(axis=0))
        return float(z), float(y), float(x)


def lesion_masks(volume: Volume) -> Iterator[tuple[Lesion, Mask]]:
    """Yield every lesion with its mask bool[z, y, x] in its own box, the largest first; none where no tumor is named.

    Raises
    ------
    LabelError
        There are more than `slicemill.ct.lesions.MAX_PARTS`.
    """
    if volume.labels.tumor is None:
        return
    tumor = np.asarray(volume.label == volume.labels.tumor_value())
    box = bounding_box(tumor)
    if box is None:
        return
    corner = (box[0].start, box[1].start, box[2].start)
    numbers = components(tumor[box])
    check_parts(int(numbers.max()))
    parts = measured_parts(numbers, corner)
    order = sorted(range(len(parts)), key=lambda index: (-parts[index].voxels, parts[index].box))
    for place, index in enumerate(order, start=1):
        lesion = measure_lesion(place, [parts[index]], volume.affine_lps)
        sides = zip(lesion.bbox_zyx[:3], lesion.bbox_zyx[3:], corner, strict=True)
        yield lesion, numbers[tuple(slice(low - start, high - start) for low, high, start in sides)] == index + 1


def measure_lesions(volume: Volume) -> tuple[Measured, ...]:
    """Measure every lesion, the largest first; none where no tumor is named."""
    organ = organ_points(volume)
    return tuple(_measure(volume, lesion, mask, organ) for lesion, mask in lesion_masks(volume))


def _measure(volume: Volume, lesion: Lesion, mask: Mask, organ: Floats) -> Measured:
    """Measure one lesion: bool[z, y, x] in its own box."""
    z0, y0, x0 = lesion.bbox_zyx[:3]
    longest, perpendicular = chords(mask[lesion.key_z - z0], (lesion.key_z, y0, x0), volume.affine_lps)
    area = surface_mm2(mask, volume.affine_lps)
    cubic = lesion.volume_ml * 1000
    box = tuple(slice(low, low + count) for low, count in zip((z0, y0, x0), mask.shape, strict=True))
    probable = None if volume.probability is None else volume.probability[box][mask]
    edge = surface_points(mask, volume.spacing_mm) + np.array([z0, y0, x0]) * np.array(volume.spacing_mm)
    return Measured(
        id=lesion.id,
        voxels=lesion.voxels,
        volume_mm3=cubic,
        volume_ml=lesion.volume_ml,
        max_axial_diameter_mm=longest.length_mm,
        perpendicular_mm=perpendicular.length_mm,
        who_product_mm2=longest.length_mm * perpendicular.length_mm,
        diameter_ends_zyx=longest.ends,
        perpendicular_ends_zyx=perpendicular.ends,
        max_3d_diameter_mm=longest_3d(mask, volume.affine_lps),
        surface_mm2=area,
        sphericity=sphericity(cubic, area),
        first_z=z0,
        last_z=lesion.bbox_zyx[3] - 1,
        key_z=lesion.key_z,
        centroid_zyx=tuple((np.argwhere(mask).mean(axis=0) + np.array([z0, y0, x0])).tolist()),
        centroid_lps_mm=lesion.centroid_lps_mm,
        bbox_zyx=lesion.bbox_zyx,
        hu=None if volume.image is None else intensities(volume.image[box][mask]),
        rim_hu=None if volume.image is None else rim(volume, mask, box),
        organ_surface_mm=float(nearest(edge, organ).min()) if len(organ) else None,
        probability_mean=None if probable is None else float(probable.mean()) / 255,
        probability_max=None if probable is None else float(probable.max()) / 255,
    )


def organ_points(volume: Volume) -> Floats:
    """Return the surface of the organ with its tumors, mm along z, y, x from the first voxel; empty without an organ."""
    values = volume.labels.organ_values()
    organ = volume.labels.values[volume.labels.organ] if volume.labels.organ else 0
    if not values or not (volume.label == organ).any():
        return np.empty((0, 3))
    return surface_points(np.isin(volume.label, values), volume.spacing_mm)


def rim(volume: Volume, mask: Mask, box: Box) -> Intensities | None:
    """Return the HU of what lies around a lesion, bool[z, y, x] in `box`, no farther than RIM_MM; None where nothing does."""
    from scipy.ndimage import distance_transform_edt

    assert volume.image is not None  # noqa: S101 (asked for with an image only)
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
    return intensities(volume.image[wide][near & allowed])


def intensities(values: Image) -> Intensities | None:
    """Return what some HU amount to; the SD is that of all of them (divided by n); None without any.

    >>> intensities(np.array([10, 20, 30], dtype=np.int16)).median
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


def targets(lesions: Sequence[Measured], spacing_z_mm: float) -> tuple[int, ...]:
    """Return the ids of the target lesions, the longest first."""
    limit = 2 * spacing_z_mm if spacing_z_mm > THICK_MM else TARGET_MM
    long_enough = [lesion for lesion in lesions if lesion.max_axial_diameter_mm >= limit]
    long_enough.sort(key=lambda lesion: (-lesion.max_axial_diameter_mm, lesion.id))
    return tuple(lesion.id for lesion in long_enough[:MOST_TARGETS])


def case_figures(volume: Volume, lesions: Sequence[Measured]) -> dict[str, Any]:
    """Return volumes in ml, tumor burden in percent of the organ with its tumors, count, targets and the sum of their diameters."""
    ml, labels = voxel_ml(volume.affine_lps), volume.labels
    counts = value_counts(volume.label)
    volumes = {name: float(counts[values].sum()) * ml for name, values in labels.regions().items()}
    organ = volumes[labels.organ] if labels.organ else None
    tumor = volumes[labels.tumor] if labels.tumor else None
    chosen = targets(lesions, volume.spacing_mm[0])
    figures = {
        "volumes_ml": volumes,
        "organ_ml": organ,
        "tumor_ml": tumor,
        "tumor_burden_percent": 100 * tumor / organ if organ and tumor is not None else None,
        "lesion_count": len(lesions) if labels.tumor else None,
        "target_ids": list(chosen),
        "sum_of_target_diameters_mm": sum(one.max_axial_diameter_mm for one in lesions if one.id in chosen),
    }
    return {key: rounded(value) for key, value in figures.items()}


def rounded(value: Any) -> Any:
    """Return a record with its floats to four places."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value
