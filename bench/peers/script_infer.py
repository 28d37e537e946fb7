"""The usual script from scans to masks: nibabel, numpy, torch eager or compiled, scipy's components, nib.save."""

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import torch
import turns
from network import Loaded
from scipy import ndimage

AROUND = np.ones((3, 3, 3))


def main() -> None:
    """Segment the scans named on the command line."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    network = Loaded(given["network"])
    if given["way"] == "compiled":
        network.compile(dynamic=False)

    def segment(path: str) -> int:
        picture = nibabel.load(path)
        volume = picture.get_fdata(dtype=np.float32)
        normal = (np.clip(volume, given["low"], given["high"]) - given["low"]) / (given["high"] - given["low"]) * 2 - 1
        slices = torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 1, 0))[:, None])
        labels = [network(batch).argmax(dim=1).to(torch.uint8) for batch in slices.split(given["batch"])]
        label = torch.cat(labels).numpy().transpose(2, 1, 0)
        voxel_ml = float(np.prod(picture.header.get_zooms()[:3])) / 1000
        cleaned = without_specks(label, given["min_lesion_ml"] / voxel_ml)
        nibabel.save(nibabel.Nifti1Image(cleaned, picture.affine), Path(given["folder"]) / Path(path).name)
        return len(slices)

    def work() -> int:
        with torch.inference_mode():
            return sum(segment(path) for path in given["scans"])

    work()
    turns.take_turns(work)


def without_specks(label: np.ndarray, least: float) -> np.ndarray:
    """Return labels with the largest organ only, and tumors of fewer than `least` voxels as organ."""
    label = np.ascontiguousarray(label)
    found, count = ndimage.label(label > 0, structure=AROUND)
    if count:
        label[found != 1 + np.argmax(np.bincount(found.ravel())[1:])] = 0
    found, count = ndimage.label(label == 2, structure=AROUND)
    if count:
        sizes = np.bincount(found.ravel())
        small = sizes < least
        small[0] = False
        label[small[found]] = 1
    return label


if __name__ == "__main__":
    main()
