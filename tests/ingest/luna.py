"""Collections in LUNA16's form: MetaImage scans named by their series, with spheres in lung, and tables of points."""

import csv
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 (its own documentation's name)

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.{}"
SPACING = (0.8, 0.8, 1.25)
"""Along x, y, z, mm."""
ORIGIN = (-20.0, -30.0, -400.0)
SHAPE = (24, 40, 44)
"""z, y, x."""


def place(zyx, spacing=SPACING):
    """Return x, y, z in LPS mm of a voxel position z, y, x."""
    return tuple(float(o + s * v) for o, s, v in zip(ORIGIN, spacing, zyx[::-1], strict=True))


def make_scan(path, nodules=(), spacing=SPACING, orientation="LPS", hu=40, shape=SHAPE):
    """Write lung of -850 HU with spheres: (voxel z, y, x; diameter in mm) each."""
    rng = np.random.default_rng(sum(path.name.encode()))
    voxels = rng.normal(-850, 15, shape)
    z, y, x = np.indices(shape)
    for (cz, cy, cx), diameter in nodules:
        squares = ((z - cz) * spacing[2]) ** 2 + ((y - cy) * spacing[1]) ** 2 + ((x - cx) * spacing[0]) ** 2
        voxels[squares <= (diameter / 2) ** 2] = hu
    return write(path, voxels.astype(np.int16), spacing, orientation)


def write(path, voxels, spacing=SPACING, orientation="LPS"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetOrigin(ORIGIN)
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path))
    return path


def write_table(path, header, rows, separator=",", **options):
    with Path(path).open("w", newline="", **options) as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(header)
        writer.writerows(rows)
    return path


HEADER = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
CENTERS = {1: ((10, 18, 20), 9.0), 2: ((12, 25, 15), 12.0)}
"""One nodule of each scan: voxel z, y, x, and diameter."""


def make_collection(root):
    """Two scans with a nodule each and one without, in two subsets; lungs of all three; and their table."""
    for number in (1, 2, 3):
        nodules = [CENTERS[number]] if number in CENTERS else []
        make_scan(root / f"subset{number % 2}" / f"{UID.format(number)}.mhd", nodules)
        lungs = np.full(SHAPE, 3, dtype=np.uint8)
        lungs[:, :, 22:] = 4
        lungs[:, :5] = 5
        lungs[:, 35:] = 0
        write(root.parent / "seg-lungs" / f"{UID.format(number)}.mhd", lungs)
    rows = [(UID.format(number), *place(center), size) for number, (center, size) in CENTERS.items()]
    return write_table(root / "annotations.csv", HEADER, rows)
