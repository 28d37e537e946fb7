"""Other tools load random training slices: HDF5, MONAI, nnU-Net and TorchIO, each as its documentation recommends.

The benchmark `peers_loading` runs this script with the interpreter of a peer's environment. So a function imports only
the standard library and the packages of its peer. It prepares the data and returns the work of one round.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import rounds

Work = Callable[[], int]
"""Loads every slice once, in batches, and returns their number."""


@dataclass(frozen=True)
class Request:
    """Request of the benchmark: JSON on the command line."""

    way: str
    """A key of WAYS."""
    folder: str
    """An empty folder for this peer."""
    cases: list[list[str]]
    """Image and mask of each case."""
    slices: int
    """Slices of each case."""
    batch: int
    """Slices per batch."""
    low: float
    """Lower end of the window, HU."""
    high: float
    """Upper end of the window, HU."""


def load_hdf5(request: Request) -> Work:
    """Read from one file of int16 and uint8 volumes, one slice per chunk, shuffle and gzip 4 (as h5py documents).

    The chunk cache, by default 8 MB per dataset, is off. It would hold a few short scans completely, but almost
    nothing of a collection.
    """
    import h5py
    import nibabel
    import numpy as np

    path = Path(request.folder) / "scans.h5"
    with h5py.File(path, "w") as file:
        for number, names in enumerate(request.cases):
            for key, name, kind in zip(("image", "label"), names, (np.int16, np.uint8), strict=True):
                volume = np.ascontiguousarray(np.asarray(nibabel.load(name).dataobj).transpose(2, 1, 0), dtype=kind)
                chunks = (1, *volume.shape[1:])
                file.create_dataset(
                    f"{number}/{key}", data=volume, chunks=chunks, shuffle=True, compression="gzip", compression_opts=4
                )
    opened = h5py.File(path, "r", rdcc_nbytes=0)
    pairs = [(opened[f"{number}/image"], opened[f"{number}/label"]) for number in range(len(request.cases))]
    positions = [(number, z) for number, (image, _) in enumerate(pairs) for z in range(len(image))]
    return _in_random_batches(positions, request.batch, lambda number, z: (pairs[number][0][z], pairs[number][1][z]))


def load_monai_memory(request: Request) -> Work:
    """Cut slices from volumes that ``CacheDataset`` holds in memory after preprocessing."""
    from monai.data import CacheDataset

    return _load_monai(request, lambda cases, transform: CacheDataset(cases, transform, progress=False))


def load_monai_disk(request: Request) -> Work:
    """Cut slices from volumes that ``PersistentDataset`` holds on disk after preprocessing."""
    from monai.data import PersistentDataset

    return _load_monai(request, lambda cases, transform: PersistentDataset(cases, transform, cache_dir=request.folder))


def _load_monai(request: Request, make_source: Callable) -> Work:
    """Cut 2-D slices from cached 3-D volumes, as MONAI's tutorial 2d_slices_from_3d_training does.

    Each volume yields as many random slices as it contains. The DataLoader makes batches in this process.
    """
    from monai import transforms
    from monai.data import DataLoader, PatchDataset, set_track_meta

    keys = ("image", "label")
    set_track_meta(False)  # plain tensors, as MONAI's guide to fast training recommends
    preprocess = transforms.Compose(
        [
            transforms.LoadImaged(keys),
            transforms.EnsureChannelFirstd(keys, channel_dim="no_channel"),
            transforms.ScaleIntensityRanged("image", request.low, request.high, -1.0, 1.0, clip=True),
            transforms.EnsureTyped(keys),
        ]
    )
    source = make_source([dict(zip(keys, case, strict=True)) for case in request.cases], preprocess)
    cut = transforms.RandSpatialCropSamplesd(keys, roi_size=[-1, -1, 1], num_samples=request.slices, random_size=False)
    squeeze = transforms.SqueezeDimd(keys, dim=-1)
    slices = PatchDataset(source, cut, samples_per_image=request.slices, transform=squeeze)
    loader = DataLoader(slices, batch_size=request.batch, shuffle=False, num_workers=0)
    return lambda: sum(len(batch["image"]) for batch in loader)


def load_nnunet(request: Request) -> Work:
    """Read cases as nnU-Net's preprocessing stores them, through its dataset class, which opens a case for every slice.

    Its loader does the same for each slice of a batch. It then crops and augments, which is left out here.
    """
    import nibabel
    import numpy as np
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    center, half = (request.low + request.high) / 2, (request.high - request.low) / 2
    positions = []
    for number, names in enumerate(request.cases):
        image, label = (np.asarray(nibabel.load(name).dataobj).transpose(2, 1, 0)[None] for name in names)
        label = label.astype(np.int16)
        data = ((np.clip(image, request.low, request.high) - center) / half).astype(np.float32)
        blocks, chunks = comp_blosc2_params(data.shape, image.shape[2:], data.itemsize)
        blocks_seg, chunks_seg = comp_blosc2_params(label.shape, image.shape[2:], label.itemsize)
        path = str(Path(request.folder) / str(number))
        layout = {"chunks": chunks, "blocks": blocks, "chunks_seg": chunks_seg, "blocks_seg": blocks_seg}
        nnUNetDatasetBlosc2.save_case(data, label, {}, path, **layout)
        positions += [(number, z) for z in range(image.shape[1])]
    dataset = nnUNetDatasetBlosc2(request.folder)

    def read(number: int, z: int) -> tuple:
        data, label, _, _ = dataset.load_case(str(number))
        return data[:, z], label[:, z]

    return _in_random_batches(positions, request.batch, read)


def load_torchio(request: Request) -> Work:
    """Draw slices from a queue of complete volumes, which TorchIO reads and normalizes in every epoch."""
    import torch
    import torchio

    transform = torchio.Compose(
        [
            torchio.Clamp(request.low, request.high),
            torchio.RescaleIntensity((-1, 1), in_min_max=(request.low, request.high)),
        ]
    )
    subjects = [
        torchio.Subject(image=torchio.ScalarImage(image), label=torchio.LabelMap(label))
        for image, label in request.cases
    ]
    dataset = torchio.SubjectsDataset(subjects, transform=transform)
    sampler = torchio.UniformSampler((*subjects[0].spatial_shape[:2], 1))
    queue = torchio.Queue(dataset, request.slices * len(subjects), request.slices, sampler, num_workers=0)
    loader = torchio.SubjectsLoader(queue, batch_size=request.batch, num_workers=0)
    torch.set_num_threads(1)
    return lambda: sum(len(batch["image"][torchio.DATA]) for batch in loader)


def _in_random_batches(positions: list, batch: int, read: Callable[[int, int], tuple]) -> Work:
    """Return the work that reads every position (case number, z) once, in a new random order, and stacks batches."""
    import numpy as np

    rng = np.random.default_rng(0)

    def work() -> int:
        rng.shuffle(positions)
        count = 0
        for start in range(0, len(positions), batch):
            pairs = [read(number, z) for number, z in positions[start : start + batch]]
            image = np.stack([image for image, _ in pairs])
            np.stack([label for _, label in pairs])
            count += len(image)
        return count

    return work


WAYS = {
    "hdf5": load_hdf5,
    "monai-memory": load_monai_memory,
    "monai-disk": load_monai_disk,
    "nnunet": load_nnunet,
    "torchio": load_torchio,
}


def main() -> None:
    """Prepare the requested method, run one warm-up round, then serve rounds."""
    request = Request(**json.loads(sys.argv[1]))
    work = WAYS[request.way](request)
    work()
    rounds.serve_rounds(work)


if __name__ == "__main__":
    main()
