"""Each case of a store is an OME-Zarr image: the attribute ``ome`` of its groups, by which other programs place it.

1. The case's group is an image of one resolution, whose array is ``image``.
2. Its group ``labels`` lists one segmentation, ``segmentation``, whose array is ``0``. The segmentation names its
   values and refers to the image.
3. Version 0.5 has a scale and a translation, in mm, and no rotation or shear. So a straight grid is placed exactly, in
   LPS mm. Of an oblique or sheared one only the first voxel is, and ``metadata`` states the largest distance of a
   corner from its true position. The attribute ``slicemill`` has the whole affine.
4. The axes carry the direction in which they grow (RFC 4). Readers of 0.5 that don't know it ignore it.

Specification: https://ngff.openmicroscopy.org/0.5/
"""

from itertools import product
from typing import Any, Final

import numpy as np

from slicemill.ct.geometry import voxel_to_mm
from slicemill.ct.labels import Labels
from slicemill.ct.pictures import label_colors
from slicemill.ct.window import AIR_HU, DEFAULT_WINDOW
from slicemill.store.case import CaseInfo
from slicemill.store.layout import ARRAY_PATHS, FORMAT, IMAGE, LABEL, LABELS_GROUP, SEGMENTATION_GROUP

OME: Final = "ome"
VERSION: Final = "0.5"
DIRECTIONS = {"z": "inferior-to-superior", "y": "anterior-to-posterior", "x": "right-to-left"}
"""Where each stored axis grows to, in the words of RFC 4; https://ngff.openmicroscopy.org/rfc/4/."""
MAX_HU = 3071
"""Upper end of a viewer's contrast slider, as 12-bit scanners have it."""
PLACED_WITHIN_MM = 0.01
"""Largest distance of the corners of a straight grid from their true positions; below a tenth of any voxel."""


def describe_image(info: CaseInfo) -> dict[str, Any]:
    """Return the attribute ``ome`` of a case's group."""
    window = {"min": AIR_HU, "max": MAX_HU, "start": DEFAULT_WINDOW.low, "end": DEFAULT_WINDOW.high}
    channel = {"label": "HU", "color": "FFFFFF", "active": True, "window": window}
    return _with_version(
        {
            "multiscales": [_describe_grid(info, info.case_id, ARRAY_PATHS[FORMAT][IMAGE])],
            "omero": {"channels": [channel]},
        }
    )


def list_label_groups(info: CaseInfo) -> dict[str, dict[str, Any]]:
    """Return the attributes of the groups of a case's segmentation, by their paths; empty without a mask."""
    if info.labels is None:
        return {}
    name = SEGMENTATION_GROUP.removeprefix(f"{LABELS_GROUP}/")
    array = ARRAY_PATHS[FORMAT][LABEL].removeprefix(f"{SEGMENTATION_GROUP}/")
    segmentation = {"multiscales": [_describe_grid(info, name, array)], "image-label": _describe_labels(info.labels)}
    return {LABELS_GROUP: _with_version({"labels": [name]}), SEGMENTATION_GROUP: _with_version(segmentation)}


def placement_error_mm(info: CaseInfo) -> float:
    """Return how far scale and translation move a corner of the grid from its true position, mm."""
    corners = list(product(*((0, extent - 1) for extent in info.shape)))
    placed = np.array(corners) * info.spacing_mm + _first_voxel_zyx(info)
    true = np.array([voxel_to_mm(info.affine_lps, corner)[::-1] for corner in corners])
    return float(np.linalg.norm(placed - true, axis=1).max())


def _with_version(content: dict[str, Any]) -> dict[str, Any]:
    return {OME: {"version": VERSION, **content}}


def _describe_grid(info: CaseInfo, name: str, path: str) -> dict[str, Any]:
    axes = [
        {
            "name": axis,
            "type": "space",
            "unit": "millimeter",
            "orientation": {"type": "anatomical", "value": direction},
        }
        for axis, direction in DIRECTIONS.items()
    ]
    transforms = [
        {"type": "scale", "scale": [float(step) for step in info.spacing_mm]},
        {"type": "translation", "translation": _first_voxel_zyx(info)},
    ]
    error = placement_error_mm(info)
    oblique = {"metadata": {"placement": "first voxel", "largest_error_mm": round(error, 3)}}
    return {
        "name": name,
        "axes": axes,
        "datasets": [{"path": path, "coordinateTransformations": transforms}],
        **(oblique if error > PLACED_WITHIN_MM else {}),
    }


def _first_voxel_zyx(info: CaseInfo) -> list[float]:
    """Return the position of the first voxel in LPS mm, along z, y and x."""
    return [float(step) for step in info.affine_lps[2::-1, 3]]


def _describe_labels(labels: Labels) -> dict[str, Any]:
    """Return names and colors of the label values, and the path of the image from the segmentation's group."""
    colors = {value: color for values, color in label_colors(labels) for value in values}
    return {
        "version": VERSION,
        "colors": [{"label-value": value, "rgba": [*color, 255]} for value, color in sorted(colors.items())],
        "properties": [{"label-value": value, "name": name} for name, value in labels.values.items()],
        "source": {"image": "../../"},
    }
