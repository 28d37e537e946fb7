"""Thresholds and crops at the export of a classifier."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from slicemill.infer.calibration import fit_calibration
from slicemill.infer.malignancy import JudgedNodules, fit_malignancy
from slicemill.infer.tune_classifier import ChosenThreshold, ClassifierTuning, write_tuning
from slicemill.store.crop_card import UNKNOWN, CropCard, Finder, decode_crop_metadata
from slicemill.store.nodules_file import write_bundle
from slicemill.train.crops.network import CropGraph, CropNetwork, _layer
from slicemill.train.export.earlier import describe_thresholds, keep_thresholds, read_earlier_card
from slicemill.train.export.planar import Planar, to_planar
from tests.infer.networks import CROP_CARD, write_classifier

WEIGHTS, OTHER = "a" * 64, "b" * 64
FITTED = fit_calibration(
    np.append(np.linspace(0.3, 1, 20), np.linspace(0, 0.6, 20)), np.linspace(0.2, 0.9, 40), np.arange(40) < 20
)
NODULES = JudgedNodules(
    output=np.linspace(0.1, 0.9, 24), diameter_mm=np.linspace(4, 20, 24), malignant=np.arange(24) % 2 == 0
)
MALIGNANCY = fit_malignancy(NODULES)
CHOSEN = ClassifierTuning(
    calibration=FITTED,
    malignancy=MALIGNANCY,
    thresholds=(ChosenThreshold(rate=1, threshold=0.75, false_alarms=0.5, detected=3, nodules=4),),
)
TUNED = {"cases": 3, "part": "validation", "nodules": 4}


@pytest.fixture(params=["c.onnx", "lung.nodules"])
def tuned_file(request, tmp_path):
    """A classifier, alone and in a file of both models, with thresholds."""
    path = classifier = write_classifier(tmp_path / "c.onnx", card={**CROP_CARD, "weights_sha256": WEIGHTS})
    if request.param.endswith(".nodules"):
        path = tmp_path / request.param
        write_bundle(path, classifier, classifier)
    write_tuning(path, read_earlier_card(path), CHOSEN, TUNED)
    return path


def test_thresholds_of_the_replaced_file_are_kept_for_equal_weights_and_candidates(tuned_file):
    earlier = read_earlier_card(tuned_file)
    kept = keep_thresholds(earlier, WEIGHTS, UNKNOWN)
    assert (kept.thresholds, kept.tuned, kept.calibration) == ({"1": 0.75}, TUNED, FITTED)
    assert kept.malignancy_calibration == MALIGNANCY
    named = dataclasses.replace(earlier, segmentation_sha256=WEIGHTS)
    assert keep_thresholds(named, WEIGHTS, Finder(sha256=WEIGHTS)).thresholds == {"1": 0.75}
    assert keep_thresholds(earlier, WEIGHTS, Finder(sha256=OTHER)).thresholds == {"1": 0.75}
    plain = dataclasses.replace(earlier, mirror=False)
    assert keep_thresholds(plain, WEIGHTS, Finder(mirror=False)).thresholds == {"1": 0.75}
    for changed in (
        keep_thresholds(earlier, OTHER, UNKNOWN),
        keep_thresholds(named, WEIGHTS, Finder(sha256=OTHER)),
        keep_thresholds(plain, WEIGHTS, Finder(mirror=True)),
    ):
        assert (changed.thresholds, changed.tuned, changed.calibration) == ({}, None, None)
        assert changed.malignancy_calibration is None


def test_dropped_thresholds_are_named(tuned_file):
    earlier = read_earlier_card(tuned_file)
    fresh = CropCard(window_hu=(-1000, 400))
    assert "those of the replaced file were of other weights" in describe_thresholds(tuned_file, earlier, fresh)
    assert "those of the replaced file, which" in describe_thresholds(tuned_file, earlier, earlier)
    line = describe_thresholds(tuned_file, None, fresh)
    assert line.startswith("thresholds: none; choose them with `slicemill tune")


def test_files_of_other_kinds_have_no_thresholds_to_keep(tmp_path):
    assert read_earlier_card(tmp_path / "absent.onnx") is None
    for name in ("text.onnx", "text.nodules"):
        (tmp_path / name).write_bytes(b"\xff no model")
        assert read_earlier_card(tmp_path / name) is None
    assert read_earlier_card(write_classifier(tmp_path / "bare.onnx", card=False)) is None


def test_the_metadata_name_the_cases_of_the_thresholds():
    card = CropCard(window_hu=(-1000, 400), thresholds={"1": 0.5}, tuned=TUNED)
    from slicemill.common.files import to_json

    assert decode_crop_metadata(to_json(card.as_json()), "c.onnx") == card


def make_trained(channels_in, channels_out, kernel, stride):
    """Return a layer of the network with statistics as after a training."""
    torch.manual_seed(kernel)
    layer = _layer(channels_in, channels_out, kernel, stride).eval()
    layer[1].running_mean.normal_()
    layer[1].running_var.uniform_(0.2, 3)
    nn.init.normal_(layer[1].weight)
    nn.init.normal_(layer[1].bias)
    return layer


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 6), (6, 2, 12), (3, 1, 3), (1, 1, 4)])
@torch.no_grad()
def test_a_layer_in_planes_is_the_layer_in_3d(kernel, stride, side):
    layer = make_trained(5, 7, kernel, stride)
    x = torch.randn(3, 5, side, side + 2, side + 4)
    expected = layer(x)
    found = Planar([layer])(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    pooled = nn.MaxPool3d(2)
    if side % 2 == 0:
        torch.testing.assert_close(Planar([pooled])(x), pooled(x))


@pytest.mark.parametrize("malignancy", [False, True])
@torch.no_grad()
def test_the_graph_in_planes_has_no_3d_convolution_and_the_same_probabilities(malignancy):
    torch.manual_seed(0)
    network = CropNetwork(malignancy=malignancy)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    graph = CropGraph(network, (-1000, 400)).eval()
    planar = to_planar(graph)
    assert not any(isinstance(module, nn.Conv3d | nn.BatchNorm3d) for module in planar.modules())
    assert any(isinstance(module, nn.Conv3d) for module in graph.modules()), "a copy was changed"
    crops = torch.randint(-1100, 500, (3, 48, 48, 48), dtype=torch.int16)
    for found, expected in zip(planar(crops), graph(crops), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
