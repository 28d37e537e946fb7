"""MONAI's way to 2-D slices of 3-D scans, as its tutorial 2d_slices_from_3d_training has it: volumes from a cache, slices cut out.

``CacheDataset`` holds every preprocessed volume in memory, ``PersistentDataset`` on disk; a volume gives as many random slices as
it has, and batches of 16 come through its DataLoader in this process.
"""

import json
import sys

import turns
from monai.data import CacheDataset, DataLoader, PatchDataset, PersistentDataset, set_track_meta
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    RandSpatialCropSamplesd,
    ScaleIntensityRanged,
    SqueezeDimd,
)

KEYS = ("image", "label")


def main() -> None:
    """Load the cases named on the command line, in the way named there."""
    given = json.loads(sys.argv[1])
    set_track_meta(False)  # plain tensors, as its guide to fast training has it
    volumes = Compose(
        [
            LoadImaged(KEYS),
            EnsureChannelFirstd(KEYS, channel_dim="no_channel"),
            ScaleIntensityRanged("image", given["low"], given["high"], -1.0, 1.0, clip=True),
            EnsureTyped(KEYS),
        ]
    )
    cases = [{"image": image, "label": label} for image, label in given["cases"]]
    if given["way"] == "memory":
        source = CacheDataset(cases, volumes, progress=False)
    else:
        source = PersistentDataset(cases, volumes, cache_dir=given["folder"])
    cut = RandSpatialCropSamplesd(KEYS, roi_size=[-1, -1, 1], num_samples=given["slices"], random_size=False)
    slices = PatchDataset(source, cut, samples_per_image=given["slices"], transform=SqueezeDimd(KEYS, dim=-1))
    loader = DataLoader(slices, batch_size=given["batch"], shuffle=False, num_workers=0)

    def work() -> int:
        return sum(len(batch["image"]) for batch in loader)

    work()
    turns.take_turns(work)


if __name__ == "__main__":
    main()
