"""TorchIO's way: a queue of random slices out of whole volumes, which are read and normalized anew in every epoch."""

import json
import sys

import torch
import torchio
import turns


def main() -> None:
    """Load the cases named on the command line."""
    given = json.loads(sys.argv[1])
    transform = torchio.Compose(
        [
            torchio.Clamp(given["low"], given["high"]),
            torchio.RescaleIntensity((-1, 1), in_min_max=(given["low"], given["high"])),
        ]
    )
    subjects = [
        torchio.Subject(image=torchio.ScalarImage(image), label=torchio.LabelMap(label))
        for image, label in given["cases"]
    ]
    dataset = torchio.SubjectsDataset(subjects, transform=transform)
    first = subjects[0].spatial_shape
    sampler = torchio.UniformSampler((first[0], first[1], 1))
    queue = torchio.Queue(dataset, given["slices"] * len(subjects), given["slices"], sampler, num_workers=0)
    loader = torchio.SubjectsLoader(queue, batch_size=given["batch"], num_workers=0)

    def work() -> int:
        return sum(len(batch["image"][torchio.DATA]) for batch in loader)

    torch.set_num_threads(1)
    work()
    turns.take_turns(work)


if __name__ == "__main__":
    main()
