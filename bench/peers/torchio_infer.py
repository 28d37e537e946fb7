"""TorchIO's way from scans to masks: a grid of slices out of a scan in memory, batches of them, and what puts them together."""

import json
import sys
from pathlib import Path

import torch
import torchio
import turns
from network import Loaded


def main() -> None:
    """Segment the scans named on the command line."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    network = Loaded(given["network"])
    transform = torchio.Compose(
        [
            torchio.ToCanonical(),
            torchio.RescaleIntensity((-1, 1), in_min_max=(given["low"], given["high"])),
            torchio.Clamp(-1, 1),
        ]
    )

    def segment(path: str) -> int:
        subject = transform(torchio.Subject(image=torchio.ScalarImage(path)))
        sampler = torchio.GridSampler(subject, (*subject.spatial_shape[:2], 1))
        aggregator = torchio.GridAggregator(sampler)
        for batch in torchio.SubjectsLoader(sampler, batch_size=given["batch"], num_workers=0):
            logits = network(batch["image"][torchio.DATA][..., 0])
            label = logits.argmax(dim=1, keepdim=True).to(torch.uint8)
            aggregator.add_batch(label[..., None], batch[torchio.LOCATION])
        label = torchio.LabelMap(tensor=aggregator.get_output_tensor(), affine=subject.image.affine)
        label.save(Path(given["folder"]) / Path(path).name)
        return int(subject.spatial_shape[2])

    def work() -> int:
        with torch.inference_mode():
            return sum(segment(path) for path in given["scans"])

    work()
    turns.take_turns(work)


if __name__ == "__main__":
    main()
