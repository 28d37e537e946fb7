"""Export of a classifier to an ONNX file, written only after its probabilities were compared with the network's."""

import math
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slicemill.common.errors import ModelError
from slicemill.common.files import atomic_write, sha256_of_file
from slicemill.common.machine import versions
from slicemill.common.progress import progress
from slicemill.common.telemetry import turn_off_telemetry
from slicemill.ct.crops import cut_crop
from slicemill.ct.pictures import pick_evenly
from slicemill.store.crop_card import INPUT, MALIGNANCY, NODULE, UNKNOWN, CropCard, CropParity, CropTraining, Finder
from slicemill.store.reader import Store, open_store
from slicemill.store.split import read_split
from slicemill.store.tables import points_sha256
from slicemill.train.crops.augment import cut_middle
from slicemill.train.crops.folder import (
    CONFIG,
    CROPS,
    SPLIT,
    CropRunModel,
    find_samples,
    load_base,
    open_crops,
    read_crop_run,
    to_tensor,
)
from slicemill.train.crops.loop import read_crop_state
from slicemill.train.crops.network import CropGraph
from slicemill.train.crops.samples import Samples, join_samples
from slicemill.train.crops.settings import CropConfig, read_crop_config
from slicemill.train.export.earlier import keep_thresholds
from slicemill.train.export.model_file import LICENSE, VERSIONED, add_metadata
from slicemill.train.export.onnx_graph import OPSET, quiet_exporter
from slicemill.train.export.parity import open_cpu_session
from slicemill.train.export.planar import to_planar
from slicemill.train.run.checkpoint import BEST
from slicemill.train.run.claim import claim_to_read

PARITY_CROPS = 64
MAX_DIFFERENCE = 1e-3
"""Largest difference of a probability between onnxruntime and torch."""
MAX_BATCH = 65536
"""Upper bound of the dynamic axis, crops."""


@dataclass(frozen=True, kw_only=True)
class TrainedClassifier:
    """A run's best classifier, with everything needed to export it."""

    config: CropConfig
    model: CropRunModel
    graph: CropGraph
    crops: torch.Tensor
    """int16[n, 48, 48, 48], HU: crops of the validation part."""
    training: CropTraining
    weights_sha256: str

    @property
    def outputs(self) -> list[str]:
        """Return the names of the graph's outputs."""
        return [NODULE, *([MALIGNANCY] if self.model.malignancy else [])]


def read_classifier(run: Path, store_path: Path | None) -> TrainedClassifier:
    """Read a run's best classifier, and crops for the parity check.

    Raises
    ------
    ModelError
        There is no trained network.
    ConfigError
        The run is being trained.
    """
    model = read_crop_run(run)
    with claim_to_read(run):
        config = read_crop_config(run / CONFIG)
        network = load_base(run, malignancy=model.malignancy).eval()
        training, weights = summarize_crop_training(run), sha256_of_file(run / BEST)
        store = open_store(store_path or model.store)
        split = read_split(run / SPLIT, store.case_ids)
        parts = [
            find_samples(store, part, config, malignancy=model.malignancy) for part in (split.train, split.validation)
        ]
        crops = _read_parity_crops(run, model, store, (parts[0], parts[1]))
    graph = CropGraph(network, (config.window_low, config.window_high)).eval()
    return TrainedClassifier(
        config=config, model=model, graph=graph, crops=crops, training=training, weights_sha256=weights
    )


def _read_parity_crops(run: Path, model: CropRunModel, store: Store, parts: tuple[Samples, Samples]) -> torch.Tensor:
    """Return int16[n, 48, 48, 48], HU: crops of validation samples, from the run's file or else from the store.

    Nothing is written into the run. Its file is used only if the store still has the cases and points of the run.
    """
    first, joined = len(parts[0].used), join_samples(parts)
    rows = pick_evenly(range(first, len(joined.used)), PARITY_CROPS)
    if (run / CROPS).exists() and model.store_sha256 == points_sha256(store):
        stored = open_crops(run / CROPS, store, joined)
        return torch.stack([cut_middle(to_tensor(stored[row])) for row in rows])
    samples = [joined.used[row] for row in rows]
    crops: list[torch.Tensor] = []
    with progress("cut crops", len(samples), "crops") as advance:
        for case_id, members in groupby(samples, key=attrgetter("case_id")):
            case = store[case_id]
            volume = case.image[:]
            for sample in members:
                crops.append(torch.from_numpy(cut_crop(volume, case.affine, sample.xyz_mm)))
                advance(1, case_id)
    return torch.stack(crops)


def summarize_crop_training(run: Path) -> CropTraining:
    """Return a summary of the training of a run's best classifier.

    Raises
    ------
    ModelError
        No epoch of the run is finished.
    """
    state = read_crop_state(run)
    best = next((one for one in state.history if one.epoch == state.best_epoch), None)
    if best is None:
        raise ModelError("has no finished epoch; run `slicemill train --crops` again.", where=run)
    scores = {
        "precision": best.validation_precision,
        "recall": best.validation_recall,
        "f1": best.validation_f1,
        "auc": best.validation_auc,
        "auc_size": best.validation_auc_size,
        "auc_alike": best.validation_auc_alike,
    }
    return {
        "epochs": state.epoch,
        "minutes": round(state.seconds / 60, 2),
        "best_epoch": state.best_epoch,
        "validation": {name: one for name, one in scores.items() if one is not None and math.isfinite(one)},
    }


def export_crops(
    run: Path,
    path: Path,
    *,
    store_path: Path | None = None,
    finder: Finder = UNKNOWN,
    earlier: CropCard | None = None,
) -> CropCard:
    """Write a run's best classifier as ONNX, and return its metadata.

    Parameters
    ----------
    store_path
        Store with the crops for the parity check, if the run's file of crops was deleted; by default the run's.
    finder
        What found the candidates that it was trained on.
    earlier
        Metadata of the file that is replaced, whose thresholds are taken over if they hold (`keep_thresholds`).

    Raises
    ------
    ModelError
        There is no trained network, or onnxruntime's probabilities differ from torch's.
    ConfigError
        The run is being trained.
    """
    turn_off_telemetry()
    import onnxruntime

    trained = read_classifier(run, store_path)
    kept = keep_thresholds(earlier, trained.weights_sha256, finder)
    with atomic_write(path) as aside:
        _write_onnx(trained, aside)
        card = CropCard(
            window_hu=(trained.config.window_low, trained.config.window_high),
            **vars(kept),
            segmentation_sha256=finder.sha256,
            mirror=finder.mirror,
            parity=measure_crop_parity(trained, aside),
            training=trained.training,
            store_sha256=trained.model.store_sha256,
            license=LICENSE,
            weights_sha256=trained.weights_sha256,
            versions=_list_versions() | {"onnxruntime": onnxruntime.__version__},
        )
        add_metadata(aside, card.as_json())
    return card


def _list_versions() -> dict[str, str]:
    return {name: number for name, number in versions().items() if name in VERSIONED}


def _write_onnx(trained: TrainedClassifier, path: Path) -> None:
    """Export the graph in planes, with a dynamic number of crops."""
    crops = trained.crops[:2] if len(trained.crops) > 1 else torch.cat([trained.crops] * 2)
    with quiet_exporter():
        torch.onnx.export(
            to_planar(trained.graph),
            (crops,),
            path,
            input_names=[INPUT],
            output_names=trained.outputs,
            dynamic_shapes=({0: torch.export.Dim("n", min=1, max=MAX_BATCH)},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@torch.no_grad()
def measure_crop_parity(trained: TrainedClassifier, path: Path) -> CropParity:
    """Compare onnxruntime with torch on crops of the validation part, in batches of several sizes.

    Raises
    ------
    ModelError
        A probability differs by more than MAX_DIFFERENCE.
    """
    session = open_cpu_session(path)
    worst = 0.0
    for crops in (trained.crops[:1], trained.crops):
        found: list[Any] = session.run(trained.outputs, {INPUT: crops.numpy()})
        expected = trained.graph(crops)
        worst = max([worst, *(float(np.abs(a - b.numpy()).max()) for a, b in zip(found, expected, strict=True))])
    if not worst <= MAX_DIFFERENCE:
        raise ModelError(
            f"{path.name}: onnxruntime's probabilities differ from torch's by up to {worst:.2g} (limit "
            f"{MAX_DIFFERENCE:g}); no model was written. Please report this with the versions that `slicemill doctor` "
            "prints."
        )
    return {"crops": len(trained.crops), "max_probability_difference": worst, "limit": MAX_DIFFERENCE}


def check_crops(run: Path, path: Path, *, store_path: Path | None = None) -> CropParity:
    """Compare a file with a run's network, and return the parity.

    Raises
    ------
    ModelError
        There is no such file, or it is not the network of this run.
    """
    if not path.exists():
        raise ModelError(f"does not exist; write it with `slicemill export {run} {path}`.", where=path)
    trained = read_classifier(run, store_path)
    names = [one.name for one in open_cpu_session(path).get_outputs()]
    if names != trained.outputs:
        raise ModelError(f"has the outputs {names}, and the run's network {trained.outputs}.", where=path)
    return measure_crop_parity(trained, path)
