"""Phantoms, and the results of MONAI and panoptica for them in oracles.json, for comparison on any machine.

`python -m tests.measure.oracles` writes the file again, in an environment with `monai`, `panoptica`, scipy and
numcodecs. Spacings are z, y, x in mm; masks bool[z, y, x].
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy import ndimage

FILE = Path(__file__).with_name("oracles.json")
COMMAND = "python -m tests.measure.oracles"
SPACING = (2.5, 0.8, 0.7)
TOLERANCE_MM = 2.0


def ellipsoid(shape, center_mm, radii_mm):
    """Return an ellipsoid under SPACING, bool[z, y, x]."""
    axes = np.meshgrid(*(np.arange(count) * step for count, step in zip(shape, SPACING, strict=True)), indexing="ij")
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, center_mm, radii_mm, strict=True)) <= 1


def box(*corner, side=5, shape=(16, 16, 16)):
    """Return a cube of voxels, bool[z, y, x]."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(start, start + side) for start in corner)] = True
    return mask


def blobs(seed, shape=(20, 30, 30), sigma=1.5, above=0.5):
    """Return noise, smoothed and cut, bool[z, y, x]."""
    return ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), sigma) > above


def surfaces():
    """Return name -> prediction and reference, for distances."""
    shape = (30, 60, 60)
    return {
        "boxes": (box(3, 4, 5), box(4, 4, 7)),
        "boxes at the edge": (box(0, 0, 0), box(11, 11, 9)),
        "ellipsoids": (
            ellipsoid(shape, (35, 24, 20), (14, 12, 12)),
            ellipsoid(shape, (40, 22, 24), (14, 12, 12)),
        ),
        "blobs": (blobs(0), blobs(1)),
    }


def instances():
    """Return name -> prediction and reference, for matching."""
    shape = (12, 40, 40)

    def several(*boxes):
        return np.logical_or.reduce([box(*corner, side=side, shape=shape) for *corner, side in boxes])

    return {
        "found, missed and invented": (several((2, 2, 2, 6), (2, 30, 30, 5)), several((2, 3, 2, 6), (2, 20, 5, 4))),
        "two in one": (several((2, 2, 2, 9)), several((2, 2, 2, 4), (2, 7, 2, 4))),
        "one in two": (several((2, 2, 2, 4), (2, 7, 2, 4)), several((2, 2, 2, 9))),
        "a corner is enough": (several((2, 2, 2, 3), (5, 5, 5, 3)), several((2, 2, 2, 3), (5, 5, 5, 3))),
        "blobs": (blobs(2, (20, 40, 40), above=0.55), blobs(2, (20, 40, 40), above=0.56)),
        "other blobs": (blobs(3, (20, 40, 40), above=0.54), blobs(4, (20, 40, 40), above=0.54)),
        "none predicted": (np.zeros(shape, bool), several((2, 2, 2, 4))),
    }


def of_monai(prediction, reference):
    """Return MONAI's distances of two masks, mm; surface Dice by counts of surface voxels, as ours."""
    import torch
    from monai import metrics

    pair = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (prediction, reference)]
    whole = {"include_background": True, "spacing": SPACING}
    found = {
        "mssd": metrics.compute_hausdorff_distance(*pair, **whole),
        "hd95": metrics.compute_hausdorff_distance(*pair, percentile=95, **whole),
        "assd": metrics.compute_average_surface_distance(*pair, symmetric=True, **whole),
        "surface_dice": metrics.compute_surface_dice(*pair, class_thresholds=[TOLERANCE_MM], **whole),
    }
    return {name: round(float(value), 6) for name, value in found.items()}


def of_panoptica(prediction, reference):
    """Return panoptica's counts: pairs with an IoU above 0.5, and one-to-one pairs that share a voxel."""
    from panoptica import (
        ConnectedComponentsInstanceApproximator,
        InputType,
        NaiveThresholdMatching,
        Panoptica_Evaluator,
    )
    from panoptica.instance_matcher import MaxBipartiteMatching
    from panoptica.metrics import Metric

    matchers = {
        "overlap_above_0": MaxBipartiteMatching(Metric.IOU, 0.0, strict_threshold=True),
        "overlap_above_0.5": NaiveThresholdMatching(Metric.IOU, 0.5, strict_threshold=True),
    }
    found = {}
    for name, matcher in matchers.items():
        evaluator = Panoptica_Evaluator(
            expected_input=InputType.SEMANTIC,
            instance_approximator=ConnectedComponentsInstanceApproximator(),
            instance_matcher=matcher,
            instance_metrics=[Metric.IOU],
        )
        (result,) = evaluator.evaluate(prediction.astype(np.uint8), reference.astype(np.uint8)).values()
        found[name] = {
            "true_positive": int(result.tp),
            "false_positive": int(result.fp),
            "false_negative": int(result.fn),
            "f1": round(float(result.rq), 6),
            "mean_jaccard": round(float(result.sq), 6) if result.tp else None,
        }
    return found


def record():
    """Return what both say of all phantoms, with their versions."""
    return {
        "command": COMMAND,
        "versions": {name: version(name) for name in ("monai", "panoptica", "torch", "scipy", "numpy")},
        "monai": {name: of_monai(*pair) for name, pair in surfaces().items()},
        "panoptica": {name: of_panoptica(*pair) for name, pair in instances().items()},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
