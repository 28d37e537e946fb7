"""nnU-Net's way: cases as its preprocessing keeps them, through its own dataset class, a slice out of a freshly opened case each.

Its loader does the same for every slice of a batch, and then crops and augments, which is left out here.
"""

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import turns
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2 as Dataset


def main() -> None:
    """Keep the cases named on the command line as nnU-Net does, then read their slices."""
    given = json.loads(sys.argv[1])
    center, half = (given["low"] + given["high"]) / 2, (given["high"] - given["low"]) / 2
    places = []
    for number, names in enumerate(given["cases"]):
        image, label = (np.asarray(nibabel.load(name).dataobj).transpose(2, 1, 0)[None] for name in names)
        label = label.astype(np.int16)
        data = ((np.clip(image, given["low"], given["high"]) - center) / half).astype(np.float32)
        blocks, chunks = comp_blosc2_params(data.shape, image.shape[2:], data.itemsize)
        blocks_seg, chunks_seg = comp_blosc2_params(label.shape, image.shape[2:], label.itemsize)
        Dataset.save_case(
            data,
            label,
            {},
            str(Path(given["folder"]) / str(number)),
            chunks=chunks,
            blocks=blocks,
            chunks_seg=chunks_seg,
            blocks_seg=blocks_seg,
        )
        places += [(str(number), z) for z in range(image.shape[1])]
    dataset = Dataset(given["folder"])
    rng = np.random.default_rng(0)

    def work() -> int:
        rng.shuffle(places)
        count = 0
        for start in range(0, len(places), given["batch"]):
            pairs = []
            for number, z in places[start : start + given["batch"]]:
                data, label, _, _ = dataset.load_case(number)
                pairs.append((data[:, int(z)], label[:, int(z)]))
            image = np.stack([data for data, _ in pairs])
            np.stack([label for _, label in pairs])
            count += len(image)
        return count

    work()
    turns.take_turns(work)


if __name__ == "__main__":
    main()
