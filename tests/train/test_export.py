"""Model files: exported once per flavor and compared with torch; failures leave no file."""

import json
import logging
import re
import shutil
import warnings
from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import ModelError
from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.train.export import onnx_graph
from slicemill.train.export.audit import find_tensorrt_breaches
from slicemill.train.export.graph import ExportGraph, Flavor, from_bytes
from slicemill.train.export.model_file import FLAVORS, check, export
from slicemill.train.export.onnx_graph import load_checked_onnx, quiet_exporter, split_transpose_bias, write_onnx
from slicemill.train.export.parity import measure_parity
from slicemill.train.export.trained import read_trained
from slicemill.train.loop import train
from slicemill.train.network.step import build_network
from slicemill.train.network.unet import normalize
from slicemill.train.run.checkpoint import BEST, load_weights
from slicemill.train.run.setup import prepare
from slicemill.train.run.validate import predict_case
from tests.conftest import TINY

WINDOW = np.array([[0, 1, 2]], np.int32)
INSIDE = "inside.onnx"
"""Name of the copy whose biases are still in the transposed convolutions."""
SLOW = pytest.mark.slow
TELLING = tuple(replace(flavor, probability=True) for flavor in FLAVORS)


@pytest.fixture(scope="module")
def file_of(trained, model, tmp_path_factory):
    """Return the run's model file of a flavor; each is exported once."""

    def copy_and_split(written):
        shutil.copy(written, written.with_name(INSIDE))
        split_transpose_bias(written)

    @cache
    def make(flavor):
        if flavor == Flavor():
            return model
        with pytest.MonkeyPatch.context() as patch:  # the fixture `exported_before` may have replaced it
            patch.setattr("slicemill.train.export.model_file.write_onnx", write_onnx)
            patch.setattr(onnx_graph, "split_transpose_bias", copy_and_split)
            (path,) = export(trained, tmp_path_factory.mktemp("flavor") / "m.onnx", flavors=[flavor])
        return path

    return make


@pytest.fixture
def exported_before(file_of, monkeypatch):
    """Let `export` copy files that were exported before, instead of calling torch's exporter."""
    monkeypatch.setattr(
        "slicemill.train.export.model_file.write_onnx", lambda graph, _, path: shutil.copy(file_of(graph.flavor), path)
    )


@pytest.fixture(scope="module")
def best(trained):
    """The run's best network, with slices for the parity check."""
    return read_trained(trained, None)


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_the_file_is_raw_hu_in_and_labels_out(model):
    opened = session(model)
    given = {item.name: (item.type, item.shape) for item in opened.get_inputs()}
    got = {item.name: item.type for item in opened.get_outputs()}
    assert given["image"][0] == "tensor(int16)"
    assert given["image"][1][1:] == [64, 64]
    assert given["neighbors"][0] == "tensor(int32)"
    assert got == {"label": "tensor(uint8)", "tumor": "tensor(uint8)"}


def test_the_metadata_is_the_contract(model):
    metadata = json.loads(session(model).get_modelmeta().custom_metadata_map["slicemill"])
    assert set(metadata) == {
        "contract", "labels", "organ", "tumor", "window_hu", "context", "context_spacing_mm", "spacing_mm",
        "size_multiple", "input", "precision", "postprocess", "parity", "training", "store_sha256", "license",
        "weights_sha256", "versions",
    }  # fmt: skip
    assert {"slicemill", "torch", "onnx", "onnxruntime"} == set(metadata["versions"])
    assert metadata["contract"] == 1
    assert metadata["labels"] == {"liver": 1, "tumor": 2}
    assert metadata["parity"]["labels_differing"] == 0


def test_the_graph_is_valid_in_one_file_and_holds_no_path_of_this_machine(model, trained):
    whole = onnx.load(model)
    onnx.checker.check_model(whole, full_check=True)
    assert "BatchNormalization" not in {node.op_type for node in whole.graph.node}, "folded into the convolutions"
    assert str(trained.parent).encode() not in model.read_bytes()
    assert b"site-packages" not in model.read_bytes()


@pytest.mark.parametrize("flavor", [pytest.param(one, marks=SLOW) for one in FLAVORS[:3]] + [*TELLING], ids=str)
def test_every_flavor_labels_as_torch_does_for_any_number_of_slices(flavor, file_of, best, rng):
    """The oracle is the bare network: torch's own softmax and argmax."""
    graph, opened = best.graph(flavor), session(file_of(flavor))
    for count, wanted in ((1, 1), (5, 3), (9, 9)):
        image = rng.integers(-32768, 32768, (count, 64, 64)).astype(np.int16)
        window = rng.integers(0, count, (wanted, 3), dtype=np.int32)
        label, tumor, *maps = opened.run(graph.outputs, graph.feed(image, window))
        with torch.no_grad():
            normal = normalize(torch.from_numpy(image), TINY.window_low, TINY.window_high)
            expected = best.network(normal[torch.from_numpy(window).long()]).softmax(dim=1).numpy()
        sure = np.sort(expected, axis=1)[:, -1] - np.sort(expected, axis=1)[:, -2] > (0.02 if flavor.half else 1e-5)
        assert sure.mean() > 0.9
        assert np.array_equal(label[sure], expected.argmax(axis=1)[sure])
        assert np.abs(tumor / 255 - expected[:, 2]).max() < (0.02 if flavor.half else 0.003)
        for map_ in maps:
            assert np.abs(map_ - expected).max() < (0.02 if flavor.half else 1e-4)
            assert np.allclose(map_.astype(float).sum(axis=1), 1, atol=0.005 if flavor.half else 1e-5)


def test_bytes_are_the_same_hu_for_every_int16():
    every = np.arange(-32768, 32768).astype(np.int16).reshape(1, 256, 256)
    pairs = torch.from_numpy(every.view(np.uint8).reshape(1, 1, 256, 256, 2))
    assert np.array_equal(from_bytes(pairs).numpy(), every.astype(np.float32))


@pytest.mark.slow
def test_label_values_need_not_follow_each_other(tmp_path, rng):
    labels = make_labels({"a": 3, "b": 200, "c": 7})
    torch.manual_seed(0)
    network = build_network(labels, TINY).eval()
    torch.nn.init.normal_(network.head.weight, std=5.0)
    torch.nn.init.zeros_(network.head.bias)
    image = rng.integers(-200, 300, (3, 32, 32), dtype=np.int16)
    window = WINDOW
    found = []
    for flavor in (Flavor(probability=True), Flavor(probability=True, bytes_in=True)):
        graph = ExportGraph(network, TINY, labels, flavor).eval()
        write_onnx(graph, [(image, window)], tmp_path / "m.onnx")
        label, probability = session(tmp_path / "m.onnx").run(graph.outputs, graph.feed(image, window))
        assert np.array_equal(label, labels.table()[probability.argmax(axis=1)])
        found.append(label)
    assert np.array_equal(*found)
    assert len(np.unique(found[0])) > 1


class TestAudit:
    @pytest.mark.slow
    @pytest.mark.parametrize("flavor", TELLING[2:], ids=str)
    def test_bytes_keep_the_rules_of_tensorrt(self, flavor, file_of):
        assert find_tensorrt_breaches(file_of(flavor)) == []

    def test_other_flavors_break_them_and_the_breach_is_named(self, file_of):
        broken = find_tensorrt_breaches(file_of(Flavor()))
        assert "image is INT16" in broken
        assert "ArgMax is slow" in broken
        assert any("INT64 and computed in the run" in rule for rule in broken)
        assert find_tensorrt_breaches(file_of(Flavor(half=True))) == ["image is INT16"]


class TestFiles:
    @pytest.mark.slow
    def test_every_flavor_is_compared_and_runs_with_the_same_labels(
        self, trained, collection, exported_before, tmp_path
    ):
        from slicemill.infer.inputs.jobs import Job, load_scan
        from slicemill.infer.network.model import open_model
        from slicemill.infer.single import segment

        written = export(trained, tmp_path / "m.onnx", flavors=FLAVORS[:3])
        assert [path.name for path in written] == ["m.onnx", "m.fp16.onnx", "m.bytes.fp16.onnx"]
        assert [card.precision for card in written.values()] == ["fp32", "fp16", "fp16"]
        assert [card.input for card in written.values()] == ["int16", "int16", "bytes"]
        assert [card.parity["limit"] for card in written.values()] == [1e-5, 1e-3, 1e-3]
        for path, card in written.items():
            read = open_model(path, "cpu").info.card
            assert {**read.as_json(), "window_hu": list(read.window_hu)} == json.loads(json.dumps(card.as_json()))
        loaded = load_scan(Job(name="a", path=collection / "volume-2.nii"))
        first, *others = (segment(open_model(path, "cpu"), loaded, "a")[0].label for path in written)
        assert np.array_equal(*others), "int16 and bytes go through the same network"
        assert np.mean(first != others[0]) < 2e-3

    def test_check_compares_existing_files_and_rejects_another_networks_file(self, trained, model, tmp_path):
        path = shutil.copy(model, tmp_path / "m.onnx")
        assert list(check(trained, path)) == [path]
        other = onnx.load(path)
        (head,) = (tensor for tensor in other.graph.initializer if tensor.name == "network.head.bias")
        head.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 0, 100], np.float32), head.name))
        onnx.save(other, path)
        with pytest.raises(ModelError, match="onnxruntime's labels differ from torch's"):
            check(trained, path)
        with pytest.raises(ModelError, match=r"none.onnx: does not exist; write it with"):
            check(trained, tmp_path / "none.onnx")

    @pytest.mark.slow
    def test_a_file_of_another_size_takes_slices_of_it_and_is_compared(self, trained, model, collection, tmp_path):
        from slicemill.infer.inputs.jobs import Job, load_scan
        from slicemill.infer.network.model import open_model
        from slicemill.infer.single import segment

        path = tmp_path / "m.onnx"
        assert list(export(trained, path, size=(96, 80))) == [path]
        assert session(path).get_inputs()[0].shape[1:] == [96, 80]
        assert check(trained, path)[path]["labels_differing"] == 0
        loaded = load_scan(Job(name="a", path=collection / "volume-2.nii"))
        large, own = (segment(open_model(file, "cpu"), loaded, "a")[0].label for file in (path, model))
        assert large.shape == own.shape
        for size in ((63, 64), (64, 2), (0, 64), (8192, 64)):
            with pytest.raises(ModelError, match=rf"slices of {size[0]}x{size[1]}: the network of .* multiples of 8"):
                export(trained, tmp_path / "no.onnx", size=size)
        assert not (tmp_path / "no.onnx").exists()

    @pytest.mark.slow
    def test_the_command_reports_the_files_and_their_parity(self, trained, tmp_path):
        def command(*words):
            return CliRunner().invoke(commands(), ["export", str(trained), *map(str, words)])

        path = tmp_path / "m.onnx"
        made = command(path, "--size", "32x48", "--bytes")
        checked = command(path, "--check")
        for done in (made, checked):
            assert done.exit_code == 0, done.output
            for name in ("m.onnx", "m.bytes.fp16.onnx"):
                (line,) = re.findall(rf"^.*{name}: .*label pixels differ.*$", done.output, re.MULTILINE)
                differing = r"\d+" if "fp16" in name else "0"
                assert re.search(
                    rf"[\d.]+ MB, [\d.]+ GFLOP a slice; {differing} of 18,432 label pixels differ on 12 slices", line
                )
                assert "onnx checker: passed" in line
            assert "m.bytes.fp16.onnx: passes the static TensorRT checks" in done.output
        for words, message in (
            ((path, "--check", "--size", "32"), "--check takes the size from the file"),
            ((path, "--size", "large"), "--size large: expected HEIGHTxWIDTH"),
        ):
            done = command(*words)
            assert done.exit_code == 2
            assert message in done.output

    def test_of_several_files_none_appears_when_one_fails(self, trained, exported_before, tmp_path, monkeypatch):
        def fail(graph, *given):
            if graph.flavor.bytes_in:
                raise ModelError("labels differ")
            return measure_parity(graph, *given)

        monkeypatch.setattr("slicemill.train.export.model_file.measure_parity", fail)
        with pytest.raises(ModelError, match="labels differ"):
            export(trained, tmp_path / "m.onnx", flavors=FLAVORS[:3])
        assert list(tmp_path.iterdir()) == []

    def test_a_byte_flavor_that_breaks_a_rule_of_tensorrt_does_not_appear(
        self, trained, exported_before, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("slicemill.train.export.model_file.find_tensorrt_breaches", lambda _: ["ArgMax is slow"])
        with pytest.raises(
            ModelError, match=r"m.bytes.fp16.onnx: does not pass the static TensorRT checks \(ArgMax is slow\)"
        ):
            export(trained, tmp_path / "m.onnx", flavors=FLAVORS[:3])
        assert list(tmp_path.iterdir()) == []


def test_a_graph_that_labels_differently_is_not_written(model, best):
    graph = best.graph()
    assert measure_parity(graph, model, best.parity_slices)["labels_differing"] == 0
    other = deepcopy(graph)
    torch.nn.init.constant_(other.network.head.bias, 0.0)
    other.network.head.bias.data[2] = 100.0
    with pytest.raises(ModelError, match="onnxruntime's labels differ from torch's"):
        measure_parity(other, model, best.parity_slices)


def test_the_exporters_log_and_warnings_are_hidden_only_while_it_runs():
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with quiet_exporter():
        assert logger.level == logging.ERROR
        warnings.warn("within torch", FutureWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="of the network"):
            warnings.warn("of the network", UserWarning, stacklevel=1)
    assert logger.level == level


def swapped(graph):
    """Return the graph with its first and last class exchanged."""
    other = deepcopy(graph)
    head = other.network.head
    head.weight.data[[0, 2]], head.bias.data[[0, 2]] = head.weight.data[[2, 0]], head.bias.data[[2, 0]]
    return other


@pytest.mark.slow
def test_pixels_in_which_two_classes_tie_are_counted_and_not_held_against_the_file(tmp_path, rng):
    """Two classes that differ by less than a rounding: the label of nearly every pixel is chance."""
    torch.manual_seed(0)
    graph = ExportGraph(build_network(LITS_LABELS, TINY).eval(), TINY, LITS_LABELS).eval()
    weight, bias = graph.network.head.weight.data, graph.network.head.bias.data
    weight[1], bias[1] = weight[0], bias[0]
    weight[2], bias[2] = weight[0], bias[0] - 1
    slices = [(rng.integers(-200, 300, (3, 32, 32), dtype=np.int16), WINDOW)]
    write_onnx(graph, slices, tmp_path / "m.onnx")
    weight[1] *= 1 + 1e-6
    parity = measure_parity(graph, tmp_path / "m.onnx", slices)
    assert parity["labels_differing"] == 0
    assert parity["ties"] > 1e-2 * parity["pixels"]
    bias[2] = bias[0] - 1e3
    with pytest.raises(ModelError, match="onnxruntime's labels differ from torch's"):
        measure_parity(swapped(graph), tmp_path / "m.onnx", slices)
    weight[1] *= 1.1
    with pytest.raises(ModelError, match="onnxruntime's labels differ from torch's"):
        measure_parity(graph, tmp_path / "m.onnx", slices)


@pytest.mark.slow
@pytest.mark.parametrize("flavor", [flavor for flavor in TELLING if flavor.for_gpu], ids=lambda flavor: flavor.suffix)
def test_for_gpus_the_bias_of_transposed_convolutions_is_an_addition_and_changes_no_output(flavor, file_of, best, rng):
    """onnxruntime on CUDA fuses biases into convolutions, and fails where it fuses one into a ConvTranspose."""
    graph, path = best.graph(flavor), file_of(flavor)
    files = (path, next(path.parent.rglob(INSIDE)))
    graphs = [load_checked_onnx(file).graph for file in files]
    for found, inputs in zip(graphs, (2, 3), strict=True):
        assert [len(node.input) for node in found.node if node.op_type == "ConvTranspose"] == [inputs] * TINY.depth
    assert len({len(found.initializer) for found in graphs}) == 1, "no weight is left over"
    image = rng.integers(-200, 300, (6, 64, 64), dtype=np.int16)
    feed = graph.feed(image, np.array([[0, 1, 2], [3, 4, 5]], np.int32))
    outputs = [session(file).run(graph.outputs, feed) for file in files]
    assert np.ptp(outputs[0][-1]) > 0
    for name, one, other in zip(graph.outputs, *outputs, strict=True):
        assert np.array_equal(one, other), name


def test_for_processors_the_bias_stays_in_the_convolution(model):
    nodes = load_checked_onnx(model).graph.node
    assert {len(node.input) for node in nodes if node.op_type == "ConvTranspose"} == {3}


def test_when_the_parity_check_fails_no_file_appears(trained, exported_before, tmp_path, monkeypatch):
    def fail(*_arguments):
        raise ModelError("labels differ")

    monkeypatch.setattr("slicemill.train.export.model_file.measure_parity", fail)
    with pytest.raises(ModelError, match="labels differ"):
        export(trained, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_network_is_one_clear_error(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    (copy / "best.safetensors").unlink()
    with pytest.raises(ModelError, match="has no trained network"):
        export(copy, tmp_path / "m.onnx")


@pytest.mark.slow
def test_one_context_slice_has_no_neighbours_input(tmp_path, rng):
    config = replace(TINY, context=1)
    graph = ExportGraph(build_network(LITS_LABELS, config).eval(), config, LITS_LABELS).eval()
    image = rng.integers(-200, 300, (1, 32, 32), dtype=np.int16)
    write_onnx(graph, [(image, np.zeros((1, 1), np.int32))], tmp_path / "m.onnx")
    assert [item.name for item in session(tmp_path / "m.onnx").get_inputs()] == ["image"]


@pytest.mark.slow
def test_a_network_with_instance_norm_is_exported_with_its_parity_check(stored, tmp_path):
    train(stored, tmp_path / "run", replace(TINY, norm="instance", epochs=1), log=lambda _: None)
    (card,) = export(tmp_path / "run", tmp_path / "m.onnx").values()
    assert card.parity["limit"] == 1e-3
    assert card.parity["labels_differing"] <= 1e-3 * card.parity["pixels"]


@pytest.mark.slow
def test_a_network_with_a_stem_labels_a_case_as_it_does_in_training(stored, tmp_path):
    from slicemill.infer.network.model import open_model
    from slicemill.infer.single import segment_volume

    config = replace(TINY, stem=2, epochs=6, steps=20)
    train(stored, tmp_path / "run", config, log=lambda _: None)
    (card,) = export(tmp_path / "run", tmp_path / "m.onnx").values()
    assert card.size_multiple == 2 * 2**config.depth
    assert card.parity["labels_differing"] == 0
    setup = prepare(stored, tmp_path / "run", config, None)
    network = build_network(setup.labels, config)
    load_weights(tmp_path / "run" / BEST, network)
    case = setup.store["volume-1"]
    with torch.no_grad():
        expected = setup.labels.table()[predict_case(case, network.eval(), setup)]
    assert len(np.unique(expected)) > 1
    found = segment_volume(open_model(tmp_path / "m.onnx", "cpu"), case.image[:], case.info.spacing_mm)
    assert np.mean(found.label != expected) < 1e-4
