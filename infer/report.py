"""What a person wants to know of a segmented scan: volumes, lesions, the yes or no, and a picture to check it by."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from infer.canvas import Segmented
from infer.model import ModelInfo
from store.geometry import Grid, voxel_ml
from store.labels import Labels
from store.lesions import find_lesions
from store.picture import Tile, draw_labels, gray, montage, spread
from store.preview import label_colors

DISCLAIMER = "research software, not a medical device; not for diagnosis"
STRONGEST = 20
"""Voxels that a slice's tumor score is the mean of: about the smallest lesion that readers report (5 mm across at 1 mm)."""
OVERLAY_SLICES = 8
OVERLAY_COLUMNS = 4


def make_report(name: str, grid: Grid, segmented: Segmented, info: ModelInfo) -> dict[str, Any]:
    """Return the JSON report of a scan; `segmented` holds labels after post-processing.

    ``tumor.confidence`` is the mean probability of the tumor voxels where a tumor was found, else one minus the
    highest slice score. It is the network's own figure, not calibrated.
    """
    label = segmented.label
    per_voxel = voxel_ml(grid.affine_lps)
    volumes = {
        region: round(int(np.isin(label, values).sum()) * per_voxel, 3)
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
        report |= tumor_findings(grid, segmented, info.labels, volumes)
    return report


def tumor_findings(grid: Grid, segmented: Segmented, labels: Labels, volumes: dict[str, float]) -> dict[str, Any]:
    """Return the report's answers about tumor."""
    assert labels.tumor is not None  # noqa: S101 (the caller asks only then)
    tumor = segmented.label == labels.tumor_value()
    lesions = find_lesions(tumor, grid.affine_lps)
    found = {
        "tumor_found": bool(lesions),
        "tumor_volume_ml": volumes[labels.tumor],
        "lesions": [lesion.as_json() for lesion in lesions],
    }
    probability = segmented.tumor_probability
    if probability is None:
        return found
    scores = slice_scores(probability, STRONGEST)
    confidence = float(probability[tumor].mean()) / 255 if lesions else 1 - max(scores)
    return {
        **found,
        "tumor_confidence": round(confidence, 4),
        "tumor_score": max(scores),
        "slice_tumor_scores": scores,
    }


def slice_scores(tumor_probability: npt.NDArray[np.uint8], strongest: int) -> list[float]:
    """Return for each slice the mean of its `strongest` highest tumor probabilities, 0 to 1."""
    flat = tumor_probability.reshape(len(tumor_probability), -1)
    count = min(strongest, flat.shape[1])
    top = np.partition(flat, flat.shape[1] - count, axis=1)[:, -count:]
    return [round(float(score), 4) for score in top.mean(axis=1) / 255]


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
    filled = [z for z in range(len(label)) if label[z].any()]
    chosen = dict.fromkeys(lesion["key_z"] for lesion in (lesions or [])[: OVERLAY_SLICES // 2])
    for z in spread(filled or range(len(label)), OVERLAY_SLICES):
        if len(chosen) < OVERLAY_SLICES:
            chosen[z] = None
    colors = label_colors(labels)
    tiles = [Tile(picture=draw_labels(gray(image[z]), label[z], colors), caption=f"z={z}") for z in sorted(chosen)]
    return montage(tiles, min(OVERLAY_COLUMNS, len(tiles)), f"{title}   ({DISCLAIMER})")
