"""nnU-Net's way from scans to masks: its predictor around the network that all contenders run.

The plans say what its preprocessing does: CTNormalization with the window's middle and half width for mean and deviation gives the same
-1 to 1, pixels stay as they are, and a patch is a whole slice. Mirroring, tiles that overlap and weights of a tile's middle are off.
"""

import json
import sys
from pathlib import Path

import torch
import turns
from network import Loaded
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

RESAMPLING = "resample_data_or_seg_to_shape"


def main() -> None:
    """Segment the scans named on the command line."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    plans = PlansManager(plans_of(given))
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
    network = Loaded(given["network"])
    predictor.manual_initialization(
        network, plans, plans.get_configuration("2d"), [network.state_dict()], dataset, "nnUNetTrainer", None
    )
    masks = [str(Path(given["folder"]) / Path(scan).name.removesuffix(".nii.gz")) for scan in given["scans"]]

    def work() -> int:
        predictor.predict_from_files_sequential([[scan] for scan in given["scans"]], masks)
        return int(given["slices"])

    work()
    turns.take_turns(work)


def plans_of(given: dict) -> dict:
    """Return plans of a 2D configuration in which nothing is resampled and the window is that of all contenders."""
    low, high = given["low"], given["high"]
    sizes = {"force_separate_z": None, "order_z": 0}
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": given["batch"],
        "patch_size": given["side"],
        "median_image_size_in_voxels": given["side"],
        "spacing": given["spacing_mm"],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": RESAMPLING,
        "resampling_fn_seg": RESAMPLING,
        "resampling_fn_probabilities": RESAMPLING,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **sizes},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **sizes},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **sizes},
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
        "batch_dice": True,
    }
    window = {
        "max": high,
        "min": low,
        "median": (low + high) / 2,
        "mean": (low + high) / 2,
        "std": (high - low) / 2,
        "percentile_00_5": low,
        "percentile_99_5": high,
    }
    return {
        "dataset_name": "Dataset001_peers",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NibabelIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": window},
    }


if __name__ == "__main__":
    main()
