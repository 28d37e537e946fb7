"""MONAI's way from scans to masks, as its bundles' inference.json has it: a Compose before, an inferer slice by slice, a Compose after."""

import json
import sys
from pathlib import Path

import torch
import turns
from monai.data import DataLoader, Dataset, decollate_batch
from monai.inferers import SliceInferer
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    Invertd,
    LoadImaged,
    Orientationd,
    SaveImaged,
    ScaleIntensityRanged,
)
from network import Loaded


def main() -> None:
    """Segment the scans named on the command line."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    before = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="LPS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            ScaleIntensityRanged("image", given["low"], given["high"], -1.0, 1.0, clip=True),
            EnsureTyped("image"),
        ]
    )
    after = Compose(
        [
            AsDiscreted("pred", argmax=True),
            Invertd("pred", transform=before, orig_keys="image", nearest_interp=True),
            SaveImaged(
                "pred",
                output_dir=given["folder"],
                output_postfix="",
                separate_folder=False,
                output_dtype="uint8",
                print_log=False,
            ),
        ]
    )
    scans = Dataset([{"image": scan} for scan in given["scans"]], before)
    loader = DataLoader(scans, batch_size=1, num_workers=1)
    inferer = SliceInferer(roi_size=tuple(given["side"]), spatial_dim=2, sw_batch_size=given["batch"], overlap=0)
    network = Loaded(given["network"])

    def work() -> int:
        count = 0
        with torch.inference_mode():
            for batch in loader:
                batch["pred"] = inferer(batch["image"], network)
                count += batch["pred"].shape[-1]
                for one in decollate_batch(batch):
                    after(one)
        return count

    Path(given["folder"]).mkdir(exist_ok=True)
    work()
    turns.take_turns(work)


if __name__ == "__main__":
    main()
