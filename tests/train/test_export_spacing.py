"""Exported models of a pixel size, or of neighbors in millimetres, label a whole case as the trained network does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from slicemill.infer.network.model import open_model
from slicemill.infer.single import segment_volume
from slicemill.store.reader import open_store
from slicemill.train.export.model_file import export
from slicemill.train.loop import train
from slicemill.train.network.step import build_network
from slicemill.train.network.unet import normalize
from slicemill.train.run.checkpoint import BEST, load_weights
from slicemill.train.run.setup import network_size, prepare
from slicemill.train.run.validate import compute_zoom, neighbors, predict_case, resample_slices
from tests.conftest import TINY


@pytest.mark.slow
def test_a_model_of_neighbors_in_millimetres_labels_as_the_network_does(stored, tmp_path):
    """Train, export and infer choose the same slices: labels equal to the network's on a whole case."""
    config = replace(TINY, context=3, context_spacing_mm=15.0, epochs=1)
    train(stored, tmp_path / "run", config, log=lambda _: None)
    export(tmp_path / "run", tmp_path / "m.onnx")
    model = open_model(tmp_path / "m.onnx", "cpu")
    assert model.info.context_spacing_mm == 15.0
    setup = prepare(stored, tmp_path / "run", config, None)
    network = build_network(setup.labels, config)
    load_weights(tmp_path / "run" / BEST, network)
    case = setup.store["volume-1"]
    assert case.info.spacing_mm[0] < 10  # so that neighbors are not adjacent slices
    with torch.no_grad():
        expected = setup.labels.table()[predict_case(case, network.eval(), setup)]
    found = segment_volume(model, case.image[:], case.info.spacing_mm)
    assert np.mean(found.label != expected) < 1e-4
    adjacent = segment_volume(model, case.image[:], (15.0, *case.info.spacing_mm[1:]))
    assert not np.array_equal(adjacent.tumor_probability, found.tumor_probability)


@torch.no_grad()
def margins(network, case, setup):
    """Return the distance of the two highest probabilities of each voxel, float32[z, y, x], at the scan's pixels."""
    config, volume = setup.config, case.image[:]
    zoom = compute_zoom(case.info.spacing_mm, config.network_spacing_mm)
    windows = torch.from_numpy(volume[[neighbors(z, len(volume), config.context, 1) for z in range(len(volume))]])
    image = normalize(windows, config.window_low, config.window_high)
    logits = network(resample_slices(image, zoom, network_size(case, config)))
    probability = resample_slices(logits.softmax(dim=1), (1 / zoom[0], 1 / zoom[1]), volume.shape[1:])
    top = probability.topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]).numpy()


@pytest.mark.slow
def test_a_model_of_one_pixel_size_labels_as_validation_does(stored, tmp_path):
    """Slices are brought to the network's pixels and labels back alike in training's torch and in infer's numpy."""
    spacing = open_store(stored)["volume-1"].info.spacing_mm[1]
    config = replace(TINY, spacing_mm=round(1.3 * spacing, 3), epochs=10, steps=20)
    train(stored, tmp_path / "run", config, log=lambda _: None)
    (card,) = export(tmp_path / "run", tmp_path / "m.onnx").values()
    assert card.spacing_mm == config.spacing_mm
    model = open_model(tmp_path / "m.onnx", "cpu")
    setup = prepare(stored, tmp_path / "run", config, None)
    network = build_network(setup.labels, config)
    load_weights(tmp_path / "run" / BEST, network)
    case = setup.store["volume-1"]
    expected = setup.labels.table()[predict_case(case, network.eval(), setup)]
    found = segment_volume(model, case.image[:], case.info.spacing_mm).label
    assert found.shape == case.image.shape
    assert len(np.unique(expected)) > 1, "a network that tells nothing apart"
    # infer keeps probabilities in steps of 1/255, so what training's torch calls nearly equal may go either way
    decided = margins(network, case, setup) > 3 / 255
    assert decided.mean() > 0.5
    assert np.mean((found != expected)[decided]) < 1e-3
