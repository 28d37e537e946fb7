"""What a person wants to know of a segmented scan: volumes, lesions, the yes or no, and a picture to check it by."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from slicemill.ct.geometry import Grid, voxel_ml
from slicemill.ct.labels import Labels
from slicemill.ct.lesions import BATCH_SLICES, LesionTracker
from slicemill.ct.pictures import Tile, draw_labels, evenly_spaced, gray, label_colors, montage
from slicemill.infer.postprocess import Box, extent
from slicemill.infer.slices.assembly import Segmented
from slicemill.store.model_card import ModelCard

DISCLAIMER = "research software, not a medical device; not for diagnosis"
STRONGEST = 20
"""Voxels that a slice's tumor score is the mean of: about the smallest lesion that readers report (5 mm across at 1 mm)."""
OVERLAY_SLICES = 8
OVERLAY_COLUMNS = 4
OVERLAY_PX = 320
"""Of a slice's longer side at most, or every second or third pixel is shown, since drawing and packing whole slices takes longest in short scans."""


def make_report(name: str, grid: Grid, segmented: Segmented, info: ModelCard) -> dict[str, Any]:
    """Return the JSON report of a scan; `segmented` holds labels after post-processing.

    ``tumor.confidence`` is the mean probability of the tumor voxels where a tumor was found, else one minus the
    highest slice score. It is the network's own figure, not calibrated.
    """
    label, box = segmented.label, extent(segmented.label)
    per_voxel = voxel_ml(grid.affine_lps)
    voxels = {
        value: 0 if box is None else int(np.count_nonzero(label[box] == value)) for value in info.labels.values.values()
    }
    volumes = {
        region: round(sum(voxels[value] for value in values) * per_voxel, 3)
        for region, values in info.labels.regions().items()
    }
    report: dict[str, Any] = {
        "scan": name,
        "model": info.name,
        "model_sha256": info.sha256,
        **info.labels.as_json(),
        "shape_zyx": list(grid.stored_shape),
        "spacing_mm_zyx": [round(step, 6) for step in grid.spacing_mm],
        "volumes_ml": volumes,
        "tumor_found": None,
        "tumor_volume_ml": None,
        "tumor_confidence": None,
        "tumor_score": None,
        "lesions": None,
        "slice_tumor_scores": None,
        "note": DISCLAIMER,
    }
    if info.labels.tumor is not None:
        report |= tumor_findings(grid, segmented, box, info.labels)
        report["tumor_volume_ml"] = volumes[info.labels.tumor]
    return report


def tumor_findings(grid: Grid, segmented: Segmented, box: Box | None, labels: Labels) -> dict[str, Any]:
    """Return the report's answers about tumor, which lies within `box`."""
    tracker = LesionTracker()
    if box is not None:
        tumor = segmented.label[box] == labels.tumor_value()
        for z in range(0, len(tumor), BATCH_SLICES):
            tracker.add(box[0].start + z, tumor[z : z + BATCH_SLICES], (box[1].start, box[2].start))
    lesions = tracker.lesions(grid.affine_lps)
    found = {"tumor_found": bool(lesions), "lesions": [lesion.as_json() for lesion in lesions]}
    probability = segmented.tumor_probability
    if probability is None:
        return found
    scores = [slice_score(section, STRONGEST) for section in probability]
    confidence = float(probability[box][tumor].mean()) / 255 if box is not None and lesions else 1 - max(scores)
    return {
        **found,
        "tumor_confidence": round(confidence, 4),
        "tumor_score": max(scores),
        "slice_tumor_scores": scores,
    }


def slice_score(probability: npt.NDArray[np.uint8], strongest: int) -> float:
    """Return the mean of the `strongest` highest tumor probabilities of a slice uint8[y, x], 0 to 1.

    Only voxels above a threshold are sorted; it is lowered until there are enough of them.
    """
    highest = int(probability.max())
    count = min(strongest, probability.size)
    top = probability[:0, :0].ravel()
    for threshold in (highest - highest // 8, highest // 2, highest // 8, 0):
        top = probability[probability >= threshold] if highest else top
        if len(top) >= count:
            break
    strong = np.partition(top, len(top) - count)[len(top) - count :] if len(top) else top
    return round(float(strong.sum(dtype=np.int64)) / count / 255, 4)


def answer(report: dict[str, Any]) -> str:
    """Return the yes or no that people ask first, as one line."""
    if report["tumor_found"] is None:
        return ", ".join(f"{name} {volume:.1f} ml" for name, volume in report["volumes_ml"].items())
    sure = "" if report["tumor_confidence"] is None else f" (confidence {report['tumor_confidence']:.2f})"
    if not report["tumor_found"]:
        return f"tumor: no{sure}"
    count = len(report["lesions"])
    return f"tumor: yes, {report['tumor_volume_ml']:.1f} ml in {count} lesion{'s' * (count > 1)}{sure}"


def overlay(
    image: npt.NDArray[np.int16],
    label: npt.NDArray[np.uint8],
    labels: Labels,
    lesions: Sequence[dict[str, Any]] | None,
    title: str,
) -> Image.Image:
    """Return slices of a scan int16[z, y, x], HU, with organ (blue) and tumor (red) outlined.

    Shown are the slices in which lesions are longest, then slices spread over the labelled part.
    """
    filled = [z for z, section in enumerate(label) if section.max()]
    chosen = dict.fromkeys(lesion["key_z"] for lesion in (lesions or [])[: OVERLAY_SLICES // 2])
    for z in evenly_spaced(filled or range(len(label)), OVERLAY_SLICES):
        if len(chosen) < OVERLAY_SLICES:
            chosen[z] = None
    colors = label_colors(labels)
    step = -(-max(image.shape[1:]) // OVERLAY_PX)
    tiles = [
        Tile(picture=draw_labels(gray(image[z, ::step, ::step]), label[z, ::step, ::step], colors), caption=f"z={z}")
        for z in sorted(chosen)
    ]
    return montage(tiles, min(OVERLAY_COLUMNS, len(tiles)), f"{title}   ({DISCLAIMER})")
