import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from store.errors import ModelError
from store.labels import LITS_LABELS, make_labels
from store.reader import open_store
from tests.conftest import TINY
from train.export import Exported, export, prove, to_onnx
from train.step import build


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_the_file_is_raw_hu_in_and_labels_out(model):
    opened = session(model)
    given = {item.name: (item.type, item.shape) for item in opened.get_inputs()}
    got = {item.name: item.type for item in opened.get_outputs()}
    assert given["image"][0] == "tensor(int16)"
    assert given["image"][1][1:] == [64, 64]
    assert given["neighbors"][0] == "tensor(int32)"
    assert got == {"label": "tensor(uint8)", "probability": "tensor(float)"}


def test_the_metadata_is_the_contract(model):
    metadata = json.loads(session(model).get_modelmeta().custom_metadata_map["slicemill"])
    assert set(metadata) == {
        "contract", "labels", "organ", "tumor", "window_hu", "context", "context_spacing_mm", "spacing_mm", "size_multiple", "input", "precision",
        "postprocess", "parity", "training", "store_sha256", "license", "versions",
    }  # fmt: skip
    assert metadata["contract"] == 1
    assert metadata["labels"] == {"liver": 1, "tumor": 2}
    assert metadata["parity"]["labels_differing"] == 0


def test_the_graph_is_valid_in_one_file_and_holds_no_path_of_this_machine(model, trained):
    onnx.checker.check_model(onnx.load(model), full_check=True)
    assert str(trained.parent).encode() not in model.read_bytes()
    assert b"site-packages" not in model.read_bytes()


def test_it_labels_as_torch_does_for_any_number_of_slices(model, trained, rng):
    from train.checkpoint import load_weights

    network = build(LITS_LABELS, TINY)
    load_weights(trained / "best.safetensors", network)
    graph = Exported(network.eval(), TINY, LITS_LABELS).eval()
    for count, wanted in ((1, 1), (5, 3), (9, 9)):
        image = rng.integers(-1024, 1500, (count, 64, 64), dtype=np.int16)
        window = rng.integers(0, count, (wanted, 3), dtype=np.int32)
        label, probability = session(model).run(["label", "probability"], {"image": image, "neighbors": window})
        with torch.no_grad():
            expected, expected_probability = graph(torch.from_numpy(image), torch.from_numpy(window))
        assert np.array_equal(label, expected.numpy())
        assert np.abs(probability - expected_probability.numpy()).max() < 1e-4
        assert np.allclose(probability.sum(axis=1), 1, atol=1e-5)
        assert np.array_equal(label, LITS_LABELS.table()[probability.argmax(axis=1)])


def test_label_values_need_not_follow_each_other(tmp_path, rng):
    labels = make_labels({"a": 3, "b": 200})
    torch.manual_seed(0)
    graph = Exported(build(labels, TINY).eval(), TINY, labels).eval()
    image = rng.integers(-200, 300, (3, 32, 32), dtype=np.int16)
    window = np.array([[0, 1, 2]], np.int32)
    to_onnx(graph, [(image, window)], tmp_path / "m.onnx")
    label, probability = session(tmp_path / "m.onnx").run(None, {"image": image, "neighbors": window})
    assert set(np.unique(label)) <= {0, 3, 200}
    assert np.array_equal(label, labels.table()[probability.argmax(axis=1)])


def test_a_graph_that_labels_differently_is_not_written(tmp_path, rng):
    torch.manual_seed(0)
    one, other = (Exported(build(LITS_LABELS, TINY).eval(), TINY, LITS_LABELS).eval() for _ in range(2))
    proof = [(rng.integers(-200, 300, (3, 32, 32), dtype=np.int16), np.array([[0, 1, 2]], np.int32))]
    to_onnx(one, proof, tmp_path / "m.onnx")
    assert prove(one, tmp_path / "m.onnx", proof)["labels_differing"] == 0
    torch.nn.init.constant_(other.network.head.bias, 0.0)
    other.network.head.bias.data[2] = 100.0
    with pytest.raises(ModelError, match="onnxruntime's labels differ from torch's"):
        prove(other, tmp_path / "m.onnx", proof)


def test_when_the_proof_fails_no_file_appears(trained, tmp_path, monkeypatch):
    def fail(*_arguments):
        raise ModelError("labels differ")

    monkeypatch.setattr("train.export.prove", fail)
    with pytest.raises(ModelError, match="labels differ"):
        export(trained, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_network_is_one_clear_error(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    (copy / "best.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no trained network"):
        export(copy, tmp_path / "m.onnx")


def test_one_context_slice_has_no_neighbours_input(tmp_path, rng):
    from dataclasses import replace

    config = replace(TINY, context=1)
    graph = Exported(build(LITS_LABELS, config).eval(), config, LITS_LABELS).eval()
    image = rng.integers(-200, 300, (1, 32, 32), dtype=np.int16)
    to_onnx(graph, [(image, np.zeros((1, 1), np.int32))], tmp_path / "m.onnx")
    assert [item.name for item in session(tmp_path / "m.onnx").get_inputs()] == ["image"]


@pytest.mark.slow
def test_a_model_of_neighbors_in_millimetres_labels_as_the_network_does(stored, tmp_path):
    """Train, export and infer choose the same slices: labels equal to the network's on a whole case."""
    from dataclasses import replace

    import torch

    from infer.model import open_model
    from infer.single import segment_volume
    from train.checkpoint import BEST, load_weights
    from train.loop import train
    from train.setup import prepare
    from train.step import build
    from train.validate import predict_case

    config = replace(TINY, context=3, context_spacing_mm=15.0, epochs=1)
    train(stored, tmp_path / "run", config, tell=lambda _: None)
    export(tmp_path / "run", tmp_path / "m.onnx")
    model = open_model(tmp_path / "m.onnx", "cpu")
    assert model.info.context_spacing_mm == 15.0
    setup = prepare(stored, tmp_path / "run", config, None)
    network = build(setup.labels, config)
    load_weights(tmp_path / "run" / BEST, network)
    case = setup.store["volume-1"]
    assert case.info.spacing_mm[0] < 10  # so that neighbors are not those beside each other
    with torch.no_grad():
        expected = setup.labels.table()[predict_case(case, network.eval(), setup)]
    found = segment_volume(model, case.image[:], case.info.spacing_mm)
    assert np.mean(found.label != expected) < 1e-4
    beside = segment_volume(model, case.image[:], (15.0, *case.info.spacing_mm[1:]))
    assert not np.array_equal(beside.tumor_probability, found.tumor_probability)


@pytest.mark.slow
def test_a_model_of_one_pixel_size_labels_as_validation_does(stored, tmp_path):
    """Slices are brought to the network's pixels and labels back alike in training's torch and in infer's numpy."""
    from dataclasses import replace

    from infer.model import open_model
    from infer.single import segment_volume
    from train.checkpoint import BEST, load_weights
    from train.loop import train
    from train.setup import prepare
    from train.step import build
    from train.validate import predict_case

    spacing = open_store(stored)["volume-1"].info.spacing_mm[1]
    config = replace(TINY, spacing_mm=round(1.3 * spacing, 3), epochs=3, steps=20)
    train(stored, tmp_path / "run", config, tell=lambda _: None)
    assert export(tmp_path / "run", tmp_path / "m.onnx")["spacing_mm"] == config.spacing_mm
    model = open_model(tmp_path / "m.onnx", "cpu")
    setup = prepare(stored, tmp_path / "run", config, None)
    network = build(setup.labels, config)
    load_weights(tmp_path / "run" / BEST, network)
    case = setup.store["volume-1"]
    expected = setup.labels.table()[predict_case(case, network.eval(), setup)]
    found = segment_volume(model, case.image[:], case.info.spacing_mm).label
    assert found.shape == case.image.shape
    assert (expected > 0).any()
    assert np.mean(found != expected) < 2e-3


@pytest.mark.slow
def test_a_network_with_instance_norm_is_exported_with_its_proof(stored, tmp_path):
    from dataclasses import replace

    from train.loop import train

    train(stored, tmp_path / "run", replace(TINY, norm="instance", epochs=1), tell=lambda _: None)
    metadata = export(tmp_path / "run", tmp_path / "m.onnx")
    assert metadata["parity"]["limit"] == 1e-3
    assert metadata["parity"]["labels_differing"] <= 1e-3 * metadata["parity"]["pixels"]
