"""A run's best network, and the real slices on which its files are compared with it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from slicemill.common.errors import ModelError
from slicemill.common.progress import progress
from slicemill.ct.crop import centered_corner, crop_or_pad, neighbor_step, neighbors
from slicemill.ct.labels import Labels, labels_from_json
from slicemill.ct.pictures import pick_evenly
from slicemill.ct.window import AIR_HU
from slicemill.store.model_card import MAX_SIDE
from slicemill.store.reader import Case, Store, open_store
from slicemill.store.split import read_split
from slicemill.store.training_scans import ScanTraits, TrainingScans, describe_scan, join_traits
from slicemill.train.config import Config, read_config
from slicemill.train.export.graph import DEFAULT, ExportGraph, Flavor
from slicemill.train.network.step import build_network
from slicemill.train.run.checkpoint import BEST, load_weights
from slicemill.train.run.setup import CONFIG, SPLIT, read_run_document

SLICE_COUNT = 12
MOST_DESCRIBED = 200
"""Training cases whose traits are written into a model: each costs the reading of a few slices."""
ParitySlices = list[tuple[npt.NDArray[np.int16], npt.NDArray[np.int32]]]
"""Slices int16[c, H, W], HU, and the window int32[1, c] of the one that is labeled."""


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """A run's best network, with everything needed to export it."""

    config: Config
    labels: Labels
    document: Mapping[str, Any]
    """The content of ``model.json``; see `slicemill.train.run.setup.read_run_document`."""
    network: nn.Module
    parity_slices: ParitySlices

    def with_required_outputs(self, flavor: Flavor) -> Flavor:
        """Add the outputs that inference requires.

        A network with a fixed pixel size requires probabilities, which are resampled to the pixels of the scan.
        """
        return replace(flavor, probability=flavor.probability or self.config.network_spacing_mm is not None)

    def graph(self, flavor: Flavor = DEFAULT) -> ExportGraph:
        """Return the graph of a flavor."""
        return ExportGraph(self.network, self.config, self.labels, flavor).eval()


def describe_training_scans(run: Path, store_path: Path | None) -> TrainingScans:
    """Return what the training cases of a run are like; of more than MOST_DESCRIBED, evenly spaced ones are read."""
    store = open_store(store_path or str(read_run_document(run)["store"]))
    cases = pick_evenly(read_split(run / SPLIT, store.case_ids).train, MOST_DESCRIBED)
    traits = []
    with progress("training scans", len(cases), "scans") as advance:
        for case_id in cases:
            traits.append(_describe_case(store[case_id]))
            advance(1, "")
    return join_traits(traits)


def _describe_case(case: Case) -> ScanTraits:
    return describe_scan(case.image.read, len(case.image), case.info.spacing_mm)


def require_trained(run: Path) -> None:
    """Check that a run folder has a trained network.

    Raises
    ------
    ModelError
        There is none.
    """
    if not (run / BEST).exists():
        raise ModelError(f"has no trained network ({BEST}); run `slicemill train` first.", where=run)


def read_trained(run: Path, store_path: Path | None, size: tuple[int, int] | None = None) -> TrainedNetwork:
    """Read a run's best network, and slices for the parity check, of the trained size or of another.

    Raises
    ------
    ModelError
        There is no trained network, or it does not support slices of that size.
    """
    require_trained(run)
    config = read_config(run / CONFIG)
    document = read_run_document(run)
    labels = labels_from_json(document)
    network = build_network(labels, config)
    load_weights(run / BEST, network)
    store = open_store(store_path or str(document["store"]))
    split = read_split(run / SPLIT, store.case_ids)
    size = size or (int(document["size"][0]), int(document["size"][1]))
    multiple = config.size_multiple
    if any(side < multiple or side % multiple or side > MAX_SIDE for side in size):
        raise ModelError(
            f"slices of {size[0]}x{size[1]}: height and width of the network of "
            f"{run} must be multiples of {multiple}, up to {MAX_SIDE}. `slicemill infer` tiles larger scans and pads "
            "smaller ones."
        )
    return TrainedNetwork(
        config=config,
        labels=labels,
        document=document,
        network=network.eval(),
        parity_slices=read_parity_slices(store, split.validation, config, size),
    )


def read_parity_slices(store: Store, cases: tuple[str, ...], config: Config, size: tuple[int, int]) -> ParitySlices:
    """Read slices of the validation cases, evenly spaced, each with its context: int16[c, H, W] and int32[1, c]."""
    positions = [(case_id, z) for case_id in cases for z in range(len(store[case_id].image))]
    slices: ParitySlices = []
    for case_id, z in pick_evenly(positions, SLICE_COUNT):
        array = store[case_id].image
        step = neighbor_step(config.window_spacing_mm, store[case_id].info.spacing_mm[0])
        around = neighbors(z, len(array), config.context, step)
        image = np.empty((config.context, *size), dtype=np.int16)
        for out, neighbor in zip(image, around, strict=True):
            section = array.read(neighbor)
            crop_or_pad(section, centered_corner(section.shape, size), AIR_HU, out)
        slices.append((image, np.arange(config.context, dtype=np.int32)[None]))
    return slices
