"""Other tools segment scans with the same network: MONAI, nnU-Net, TorchIO and the usual script.

The benchmark `peers_inference` runs this script with the interpreter of a peer's environment. So a function imports
only the standard library, torch and the packages of its peer. It loads the network and returns the work of one round.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import rounds
import torch
from torch import Tensor, nn

Work = Callable[[], int]
"""Writes the masks of all scans, and returns their number of slices."""


@dataclass(frozen=True)
class Request:
    """Request of the benchmark: JSON on the command line."""

    way: str
    """A key of WAYS."""
    folder: str
    """An empty folder for the masks."""
    scans: list[str]
    slices: int
    """Slices of all scans."""
    side: list[int]
    """Pixels of a slice, along y and x."""
    spacing_mm: list[float]
    """Distance of pixel centers along y and x."""
    network: str
    """File that `torch.export` wrote."""
    batch: int
    """Slices per batch."""
    low: float
    """Lower end of the window, HU."""
    high: float
    """Upper end of the window, HU."""
    min_lesion_ml: float
    threads: int

    def mask(self, scan: str) -> Path:
        """Return the path of a scan's mask."""
        return Path(self.folder) / Path(scan).name


class Network(nn.Module):
    """An exported network, its convolutions channels last: float32[b, 1, y, x], -1 to 1 -> logits float32[b, k, y, x].

    Peers call `eval`, which the exported module does not support. A tuple hides it from `nn.Module`.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._hidden = (torch.export.load(path).module().to(memory_format=torch.channels_last),)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self._hidden[0](x.contiguous(memory_format=torch.channels_last))


def segment_with_monai(request: Request) -> Work:
    """Segment as inference.json of MONAI's bundles does: a Compose, an inferer slice by slice, a Compose."""
    from monai import transforms
    from monai.data import DataLoader, Dataset, decollate_batch
    from monai.inferers import SliceInferer

    before = transforms.Compose(
        [
            transforms.LoadImaged("image"),
            transforms.EnsureChannelFirstd("image"),
            transforms.Orientationd("image", axcodes="LPS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            transforms.ScaleIntensityRanged("image", request.low, request.high, -1.0, 1.0, clip=True),
            transforms.EnsureTyped("image"),
        ]
    )
    options = {"output_postfix": "", "separate_folder": False, "output_dtype": "uint8", "print_log": False}
    after = transforms.Compose(
        [
            transforms.AsDiscreted("pred", argmax=True),
            transforms.Invertd("pred", transform=before, orig_keys="image", nearest_interp=True),
            transforms.SaveImaged("pred", output_dir=request.folder, **options),
        ]
    )
    loader = DataLoader(Dataset([{"image": scan} for scan in request.scans], before), batch_size=1, num_workers=1)
    inferer = SliceInferer(roi_size=tuple(request.side), spatial_dim=2, sw_batch_size=request.batch, overlap=0)
    network = Network(request.network)

    @torch.inference_mode()
    def work() -> int:
        count = 0
        for batch in loader:
            batch["pred"] = inferer(batch["image"], network)
            count += batch["pred"].shape[-1]
            for case in decollate_batch(batch):
                after(case)
        return count

    return work


def segment_with_torchio(request: Request) -> Work:
    """Segment with TorchIO: a grid of slices from a scan in memory, batches of them, and an aggregator."""
    import torchio

    network = Network(request.network)
    transform = torchio.Compose(
        [
            torchio.ToCanonical(),
            torchio.RescaleIntensity((-1, 1), in_min_max=(request.low, request.high)),
            torchio.Clamp(-1, 1),
        ]
    )

    @torch.inference_mode()
    def segment(path: str) -> int:
        subject = transform(torchio.Subject(image=torchio.ScalarImage(path)))
        sampler = torchio.GridSampler(subject, (*subject.spatial_shape[:2], 1))
        aggregator = torchio.GridAggregator(sampler)
        for batch in torchio.SubjectsLoader(sampler, batch_size=request.batch, num_workers=0):
            logits = network(batch["image"][torchio.DATA][..., 0])
            label = logits.argmax(dim=1, keepdim=True).to(torch.uint8)
            aggregator.add_batch(label[..., None], batch[torchio.LOCATION])
        label = torchio.LabelMap(tensor=aggregator.get_output_tensor(), affine=subject.image.affine)
        label.save(request.mask(path))
        return int(subject.spatial_shape[2])

    return lambda: sum(segment(path) for path in request.scans)


def segment_with_nnunet(request: Request) -> Work:
    """Segment with nnU-Net's predictor. Mirroring, overlapping tiles and Gaussian weights are off.

    The plans define its preprocessing. CTNormalization with the window's middle as mean and its half width as
    deviation gives the same -1 to 1. Pixels stay as they are, and a patch is a complete slice.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(_nnunet_plans(request))
    predictor = nnUNetPredictor(
        tile_step_size=1,
        use_gaussian=False,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumor": 2},
        "file_ending": ".nii.gz",
    }
    network = Network(request.network)
    predictor.manual_initialization(
        network, plans, plans.get_configuration("2d"), [network.state_dict()], dataset, "nnUNetTrainer", None
    )
    masks = [str(request.mask(scan)).removesuffix(".nii.gz") for scan in request.scans]

    def work() -> int:
        predictor.predict_from_files_sequential([[scan] for scan in request.scans], masks)
        return request.slices

    return work


def _nnunet_plans(request: Request) -> dict:
    """Return plans of a 2D configuration that resamples nothing and has the window of all contenders."""
    low, high = request.low, request.high
    resampling = "resample_data_or_seg_to_shape"
    orders = {"force_separate_z": None, "order_z": 0}
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": request.batch,
        "patch_size": request.side,
        "median_image_size_in_voxels": request.side,
        "spacing": request.spacing_mm,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resampling,
        "resampling_fn_seg": resampling,
        "resampling_fn_probabilities": resampling,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **orders},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **orders},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **orders},
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
        "batch_dice": True,
    }
    middle, half = (low + high) / 2, (high - low) / 2
    window = {"max": high, "min": low, "percentile_00_5": low, "percentile_99_5": high}
    return {
        "dataset_name": "Dataset001_peers",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NibabelIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": window | {"median": middle, "mean": middle, "std": half}},
    }


def segment_with_eager_script(request: Request) -> Work:
    """Segment with the usual script in eager torch."""
    return _segment_with_script(request, Network(request.network))


def segment_with_compiled_script(request: Request) -> Work:
    """Segment with the usual script and `torch.compile`."""
    network = Network(request.network)
    network.compile(dynamic=False)
    return _segment_with_script(request, network)


def _segment_with_script(request: Request, network: Network) -> Work:
    """Segment as most scripts do: nibabel, numpy, torch, scipy's components, nib.save."""
    import nibabel
    import numpy as np

    @torch.inference_mode()
    def segment(path: str) -> int:
        picture = nibabel.load(path)
        volume = picture.get_fdata(dtype=np.float32)
        clipped = np.clip(volume, request.low, request.high)
        normal = (clipped - request.low) / (request.high - request.low) * 2 - 1
        slices = torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 1, 0))[:, None])
        labels = [network(batch).argmax(dim=1).to(torch.uint8) for batch in slices.split(request.batch)]
        label = torch.cat(labels).numpy().transpose(2, 1, 0)
        voxel_ml = float(np.prod(picture.header.get_zooms()[:3])) / 1000
        cleaned = _remove_specks(label, request.min_lesion_ml / voxel_ml)
        nibabel.save(nibabel.Nifti1Image(cleaned, picture.affine), request.mask(path))
        return len(slices)

    return lambda: sum(segment(path) for path in request.scans)


def _remove_specks(label, min_voxels: float):
    """Return labels with only the largest organ, and tumors of fewer than `min_voxels` voxels as organ."""
    import numpy as np
    from scipy import ndimage

    neighbors = np.ones((3, 3, 3))
    label = np.ascontiguousarray(label)
    components, count = ndimage.label(label > 0, structure=neighbors)
    if count:
        label[components != 1 + np.argmax(np.bincount(components.ravel())[1:])] = 0
    components, count = ndimage.label(label == 2, structure=neighbors)
    if count:
        small = np.bincount(components.ravel()) < min_voxels
        small[0] = False
        label[small[components]] = 1
    return label


WAYS = {
    "monai": segment_with_monai,
    "torchio": segment_with_torchio,
    "nnunet": segment_with_nnunet,
    "script-eager": segment_with_eager_script,
    "script-compiled": segment_with_compiled_script,
}


def main() -> None:
    """Load the network for the requested method, run one warm-up round, then serve rounds."""
    request = Request(**json.loads(sys.argv[1]))
    torch.set_num_threads(request.threads)
    work = WAYS[request.way](request)
    work()
    rounds.serve_rounds(work)


if __name__ == "__main__":
    main()
