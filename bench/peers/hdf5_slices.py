"""HDF5's way: int16 and uint8 volumes in one file, a chunk a slice, shuffled and gzip 4 (what h5py documents), read at random.

Its cache of chunks, 8 MB a dataset by default, is off: it would hold a few short scans whole, and of a collection next to nothing.
"""

import json
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import turns


def main() -> None:
    """Write the cases named on the command line into one file, then read their slices."""
    given = json.loads(sys.argv[1])
    path = Path(given["folder"]) / "scans.h5"
    with h5py.File(path, "w") as file:
        for number, names in enumerate(given["cases"]):
            for key, name, kind in zip(("image", "label"), names, (np.int16, np.uint8), strict=True):
                volume = np.ascontiguousarray(np.asarray(nibabel.load(name).dataobj).transpose(2, 1, 0), dtype=kind)
                chunks = (1, *volume.shape[1:])
                file.create_dataset(
                    f"{number}/{key}", data=volume, chunks=chunks, shuffle=True, compression="gzip", compression_opts=4
                )
    opened = h5py.File(path, "r", rdcc_nbytes=0)
    pairs = [(opened[f"{number}/image"], opened[f"{number}/label"]) for number in range(len(given["cases"]))]
    places = [(number, z) for number, (image, _) in enumerate(pairs) for z in range(len(image))]
    rng = np.random.default_rng(0)

    def work() -> int:
        rng.shuffle(places)
        count = 0
        for start in range(0, len(places), given["batch"]):
            some = places[start : start + given["batch"]]
            image = np.stack([pairs[number][0][z] for number, z in some])
            np.stack([pairs[number][1][z] for number, z in some])
            count += len(image)
        return count

    work()
    turns.take_turns(work)


if __name__ == "__main__":
    main()
