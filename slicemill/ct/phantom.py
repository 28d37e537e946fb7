"""Synthetic abdominal CTs with liver and liver tumors, for demos, tests and benchmarks.

The phantom is drawn in millimeters, for any spacing and slice count: air, table, body with fat and
muscle, spine, ribs, lungs, heart, aorta, kidneys, spleen, stomach, and a liver with vessels, cysts and tumors, with
correlated noise. No threshold separates the tumors: they differ from liver by 20 to 60 HU, the noise is 15 to 25 HU,
and cysts and vessels have the same values. They differ in shape, edge and texture: tumors are blurred and irregular,
cysts are smooth with sharp edges, vessels are tubes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError
from slicemill.common.files import atomic_write, read_json, write_json
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom_canvas import Canvas, Floats, Mask, PhantomSpec, Point
from slicemill.ct.phantom_trunk import draw_trunk

LIVER_HU, SPLEEN_HU, KIDNEY_HU, AORTA_HU, MUSCLE_HU, FAT_HU, LUNG_HU = 105, 118, 165, 170, 55, -100, -830
AXCODES = ("RAS", "LPS", "LAS", "RPI", "LSP", "PIR")
"""Axis orders of the scans of a collection, repeated in this order; the last two cannot be streamed."""


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """A synthetic scan with its reference."""

    image: npt.NDArray[np.int16]
    """int16[z, y, x], HU."""
    label: npt.NDArray[np.uint8]
    """uint8[z, y, x], 0 background, 1 liver, 2 tumor."""
    spacing_mm: Point
    """z, y, x."""


def make_phantom(spec: PhantomSpec) -> Phantom:
    """Draw a phantom."""
    rng = np.random.default_rng(spec.seed)
    canvas = Canvas(spec, rng)
    draw_body(canvas)
    if spec.trunk:
        draw_trunk(canvas)
    draw_organs(canvas)
    liver = draw_liver(canvas)
    draw_vessels(canvas, liver)
    draw_cysts(canvas, liver)
    tumor = draw_tumors(canvas, liver, spec)
    label = liver.astype(np.uint8)
    label[tumor] = 2
    return Phantom(image=canvas.simulate_scan(), label=label, spacing_mm=spec.spacing_mm)


def draw_body(canvas: Canvas) -> None:
    """Draw air, table, fat, muscle, ribs, spine and lungs."""
    g = canvas.girth
    table = (np.abs(canvas.y - (126 * g - 0.0012 * canvas.x**2)) < 3) & (np.abs(canvas.x) < 140)
    canvas.paint(np.broadcast_to(table, canvas.shape), 20)
    wobble = 0.03 * canvas.smooth_field(60)
    body = canvas.ellipsoid((0, 0, 0), (158 * g, 112 * g, 1e6)) + wobble
    canvas.paint(body < 1, FAT_HU)
    canvas.paint(body < 0.80, MUSCLE_HU)
    canvas.paint(body < 0.66, -75)
    angle = np.arctan2(canvas.y, canvas.x)
    ribs = (np.abs(body - 0.73) < 0.035) & (np.sin(9 * angle + 0.09 * canvas.z) > 0.55)
    canvas.paint(ribs, 320)
    spine = canvas.ellipsoid((0, 62 * g, 0), (21, 18, 1e6))
    disc = np.abs(np.mod(canvas.z, 34) - 17) < 4
    canvas.paint(np.broadcast_to(spine < 1, canvas.shape), 190)
    canvas.paint((spine < 1) & (spine > 0.72), 420)
    canvas.paint((spine < 1) & disc, 85)
    canvas.paint(np.broadcast_to(canvas.ellipsoid((0, 88 * g, 0), (9, 8, 1e6)) < 1, canvas.shape), 30)
    for side in (-1, 1):
        canvas.paint(
            np.broadcast_to(canvas.ellipsoid((side * 34, 72 * g, 0), (22, 20, 1e6)) < 1, canvas.shape), MUSCLE_HU + 8
        )
        lung = canvas.ellipsoid((side * 72 * g, 5, 105), (55 * g, 78 * g, 62)) + 0.5 * wobble
        canvas.paint(lung < 1, LUNG_HU)
    canvas.paint(canvas.ellipsoid((10, -25, 112), (42, 48, 40)) < 1, 90)


def draw_organs(canvas: Canvas) -> None:
    """Draw aorta, vena cava, kidneys, spleen, stomach with gas, and bowel."""
    g, rng = canvas.girth, canvas.rng
    canvas.paint(np.broadcast_to(canvas.ellipsoid((8, 34 * g, 0), (11, 11, 1e6)) < 1, canvas.shape), AORTA_HU)
    canvas.paint(np.broadcast_to(canvas.ellipsoid((-16, 32 * g, 0), (12, 9, 1e6)) < 1, canvas.shape), 125)
    for side in (-1, 1):
        kidney = canvas.ellipsoid((side * 58 * g, 42 * g, -45 + 8 * side), (25, 22, 48))
        canvas.paint(kidney < 1, KIDNEY_HU)
        canvas.paint(kidney < 0.25, 95)
    uneven = 0.12 * canvas.smooth_field(35)
    canvas.paint(canvas.ellipsoid((92 * g, 28 * g, 20), (30, 42, 45)) + uneven < 1, SPLEEN_HU + rng.uniform(-6, 6))
    stomach = canvas.ellipsoid((58 * g, -38 * g, 22), (42, 32, 38)) + uneven
    canvas.paint(stomach < 1, 22)
    canvas.paint((stomach < 0.7) & (canvas.y < -50 * g), -900)
    for _ in range(7):
        center = (rng.uniform(-80, 90) * g, rng.uniform(-70, 0) * g, rng.uniform(-110, -45))
        loop = canvas.ellipsoid(center, (rng.uniform(14, 26), rng.uniform(12, 20), rng.uniform(14, 30)))
        canvas.paint(loop < 1, float(rng.choice([30.0, 45.0, 60.0, 140.0])))


def draw_liver(canvas: Canvas) -> Mask:
    """Draw two lobes with irregular surface and texture; return the mask of the liver with its inclusions."""
    g, rng = canvas.girth, canvas.rng
    shift = rng.uniform(-8, 8, 3)
    right = canvas.ellipsoid((-62 * g + shift[0], -2 + shift[1], 18 + shift[2]), (66 * g, 72 * g, 76))
    left = canvas.ellipsoid((5 * g + shift[0], -48 * g + shift[1], 32 + shift[2]), (62 * g, 30 * g, 40))
    liver: Mask = np.minimum(right, left) + 0.13 * canvas.smooth_field(40) < 1
    body = canvas.ellipsoid((0, 0, 0), (158 * g, 112 * g, 1e6))
    liver &= (
        (body < 0.69)
        & (canvas.ellipsoid((-52 * g, 48 * g, -50), (32, 28, 52)) > 1)
        & (canvas.ellipsoid((8, 34 * g, 0), (26, 16, 1e6)) > 1)
    )
    base = LIVER_HU + rng.uniform(-8, 8)
    canvas.blend(liver.astype(np.float32), base + 3 * canvas.smooth_field(12))
    return liver


def draw_vessels(canvas: Canvas, liver: Mask) -> None:
    """Draw winding tubes in the liver, some brighter (portal) and some darker (not yet enhanced) than it."""
    rng = canvas.rng
    inside = np.argwhere(liver)
    if not len(inside):
        return
    distance = np.zeros(canvas.shape, dtype=np.float32)
    for _ in range(9):
        offset = float(rng.uniform(25, 60) if rng.random() < 0.45 else -rng.uniform(25, 60))
        point = canvas_point(canvas, inside[rng.integers(len(inside))])
        direction = rng.standard_normal(3)
        radius = float(rng.uniform(3.5, 6.0))
        distance[...] = np.inf
        for _ in range(int(rng.integers(16, 34))):
            direction = direction / np.linalg.norm(direction) + 0.35 * rng.standard_normal(3)
            point = point + direction / np.linalg.norm(direction) * radius * 0.9
            _lower(canvas, distance, point, radius)
            radius = max(radius * 0.97, 2.2)
        tube = (distance < 1) & liver
        canvas.hu[tube] += offset


def draw_cysts(canvas: Canvas, liver: Mask) -> None:
    """Draw round, even inclusions with sharp edges: fluid with partial volume, as dark as many tumors."""
    rng = canvas.rng
    inside = np.argwhere(liver)
    for _ in range(int(rng.integers(0, 4)) if len(inside) else 0):
        x, y, z = canvas_point(canvas, inside[rng.integers(len(inside))])
        radius = float(rng.uniform(5, 12))
        cyst = (canvas.ellipsoid((x, y, z), (radius, radius, radius)) < 1) & liver
        canvas.paint(cyst, float(rng.uniform(15, 60)))


def draw_tumors(canvas: Canvas, liver: Mask, spec: PhantomSpec) -> Mask:
    """Draw irregular blobs with soft edges, 20 to 60 HU below (four in five) or above liver; return their mask."""
    rng = canvas.rng
    tumor = np.zeros(canvas.shape, dtype=bool)
    inside = np.argwhere(liver)
    if not len(inside):
        return tumor
    ragged = 0.30 * canvas.smooth_field(14)
    texture = canvas.smooth_field(6)
    for _ in range(spec.tumors):
        x, y, z = canvas_point(canvas, inside[rng.integers(len(inside))])
        radii = [rng.uniform(8, 14), rng.uniform(14, 28)]
        if spec.small_tumors:
            radii += [rng.uniform(4, 8)] * 2
        radius = float(rng.choice(radii))
        stretch = rng.uniform(0.8, 1.25, 3)
        distance = canvas.ellipsoid((x, y, z), (radius * stretch[0], radius * stretch[1], radius * stretch[2])) + ragged
        blob = (distance < 1) & liver
        offset = float(rng.uniform(20, 60)) * (-1 if rng.random() < 0.8 else 1)
        edge = np.clip((1.15 - distance) / 0.3, 0, 1) * liver
        canvas.hu += edge * (offset + 7 * texture - 0.5 * (canvas.hu - LIVER_HU) * (np.abs(canvas.hu - LIVER_HU) < 80))
        tumor |= blob
    return tumor


def canvas_point(canvas: Canvas, voxel: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the position x, y, z in mm of a voxel z, y, x."""
    position = [
        (index - (count - 1) / 2) * step for index, count, step in zip(voxel, canvas.shape, canvas.spacing, strict=True)
    ]
    position[0] += canvas.middle_mm
    return np.array(position[::-1])


def _lower(canvas: Canvas, distance: Floats, point: npt.NDArray[np.float64], radius: float) -> None:
    """Lower `distance` to the scaled distance from a sphere around `point`, in the sphere's box only."""
    box = []
    for axis, position_mm in enumerate(point[::-1]):
        offset_mm = position_mm - (canvas.middle_mm if axis == 0 else 0)
        middle = offset_mm / canvas.spacing[axis] + (canvas.shape[axis] - 1) / 2
        reach = radius / canvas.spacing[axis] + 1
        box.append(slice(max(0, int(middle - reach)), max(0, int(middle + reach) + 2)))
    z, y, x = tuple(box)
    near = (
        ((canvas.x[:, :, x] - point[0]) / radius) ** 2
        + ((canvas.y[:, y] - point[1]) / radius) ** 2
        + ((canvas.z[z] - point[2]) / radius) ** 2
    )
    distance[z, y, x] = np.minimum(distance[z, y, x], near)


def collection_specs(
    cases: int, size: int, seed: int, *, trunk: bool = False, small_tumors: bool = False
) -> Iterator[tuple[int, PhantomSpec, str]]:
    """Yield number, spec and axis codes of a collection; sizes, slice counts, spacings and orientations vary.

    With `trunk`, scans reach from the pelvis to the shoulders, with the liver in about a third of their slices.
    """
    rng = np.random.default_rng(seed)
    for number in range(cases):
        ny, nx = (size, size) if number % 4 else (size - 16, size)
        tumors = 0 if number % 5 == 3 else int(rng.integers(1, 6))
        depth = int(rng.integers(30, 52) * max(1.0, size / 256))
        height_mm = float(rng.uniform(165, 200))
        spec = PhantomSpec(
            seed=seed * 1000 + number,
            shape=(depth, ny, nx),
            height_mm=height_mm,
            tumors=tumors,
            small_tumors=small_tumors,
        )
        if trunk:
            longer, middle_mm = float(rng.uniform(2.4, 3.0)), float(rng.uniform(20, 60))
            shape = (round(depth * longer), ny, nx)
            spec = replace(spec, shape=shape, height_mm=height_mm * longer, middle_mm=middle_mm, trunk=True)
        yield number, spec, AXCODES[number % len(AXCODES)]


def write_collection(
    folder: Path, *, cases: int, size: int, seed: int, trunk: bool = False, small_tumors: bool = False
) -> Iterator[tuple[Path, Path]]:
    """Write a collection with LiTS names; yield the paths of each image and mask once they exist.

    Scans that are there are not drawn again.

    Raises
    ------
    InputError
        The folder has other files, or phantoms that were drawn with other options.
    """
    options = {"size": size, "seed": seed, "trunk": trunk, "small_tumors": small_tumors}
    _begin_collection(folder, options)
    for number, spec, axcodes in collection_specs(cases, size, seed, trunk=trunk, small_tumors=small_tumors):
        suffix = ".nii.gz" if number % 3 == 1 else ".nii"
        image, mask = folder / f"volume-{number}{suffix}", folder / f"segmentation-{number}{suffix}"
        if not (image.exists() and mask.exists()):
            phantom = make_phantom(spec)
            write_nifti(mask, phantom.label, phantom.spacing_mm, axcodes)
            write_nifti(image, phantom.image, phantom.spacing_mm, axcodes)
        yield image, mask


def _begin_collection(folder: Path, options: dict[str, Any]) -> None:
    """Write the description of a collection of phantoms, unless the folder has anything else."""
    document, name = folder / "dataset.json", "slicemill phantoms"
    there = read_json(document) if document.exists() else {}
    if there.get("name") != name and any(not path.name.startswith(".") for path in folder.glob("*")):
        raise InputError("has files that are no phantoms of ours. Choose another folder.", where=folder)
    before = there.get("phantom", options)
    if before != options:
        before = before if isinstance(before, dict) else {}
        pairs = [(key, before.get(key), value) for key, value in options.items()]
        differing = ", ".join(f"{key} {old}, not {new}" for key, old, new in pairs if old != new)
        raise InputError(
            f"its phantoms were drawn with other options ({differing}). Choose another folder.", where=folder
        )
    labels = {str(value): label for label, value in LITS_LABELS.values.items()}
    write_json(document, {"name": name, "labels": labels, "phantom": options})


def write_nifti(path: Path, volume: npt.NDArray[np.generic], spacing_mm: Point, axcodes: str = "LPS") -> None:
    """Write any[z, y, x] in LPS+ order as NIfTI in another axis order, by nibabel: a reference for the reader."""
    import nibabel as nib
    from nibabel.orientations import axcodes2ornt, ornt_transform

    sz, sy, sx = spacing_mm
    nz, ny, nx = volume.shape
    affine = np.diag([-sx, -sy, sz, 1.0])
    affine[:3, 3] = (nx - 1) / 2 * sx, (ny - 1) / 2 * sy, -(nz - 1) / 2 * sz
    picture = nib.Nifti1Image(volume.transpose(2, 1, 0), affine)
    picture = picture.as_reoriented(ornt_transform(axcodes2ornt(tuple("LPS")), axcodes2ornt(tuple(axcodes))))
    picture.set_sform(picture.affine, code=1)
    picture.set_qform(picture.affine, code=1)
    with atomic_write(path) as aside:
        nib.save(picture, aside)
