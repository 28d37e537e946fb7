"""Model files and providers: what is refused, and why."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from slicemill.common.errors import ModelError, ProviderError, UsageError
from slicemill.infer.network.external_weights import EXTERNAL_DATA
from slicemill.infer.network.model import open_model
from slicemill.infer.parity_check import check_agreement
from slicemill.infer.runtime import providers


def changed(model, path, change):
    """Write a copy of a model with other metadata."""
    opened = onnx.load(model)
    entry = opened.metadata_props[0]
    metadata = json.loads(entry.value)
    change(metadata)
    entry.value = json.dumps(metadata)
    onnx.save(opened, path)
    return path


class TestModel:
    def test_a_truncated_or_foreign_file_is_one_clear_error(self, model, tmp_path):
        (tmp_path / "short.onnx").write_bytes(model.read_bytes()[:1000])
        (tmp_path / "text.onnx").write_text("no model")
        for name in ("short.onnx", "text.onnx"):
            with pytest.raises(ModelError, match=f"{name}: is not an ONNX model"):
                open_model(tmp_path / name, "cpu")
        with pytest.raises(ModelError, match="No such file"):
            open_model(tmp_path / "none.onnx", "cpu")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda m: m.update(contract=2), "has contract 2"),
            (lambda m: m.update(input="pairs"), "input pairs; this version of slicemill supports"),
            (lambda m: m.update(input="bytes"), "do not fit context 3"),
            (lambda m: m.pop("context"), "metadata are incomplete"),
            (lambda m: m.update(context=1), "do not fit context 1"),
            (lambda m: m.update(labels="liver"), "Expected `object`, got `str` - at `\\$.labels`"),
            (lambda m: m.update(context=9), "do not fit context 9"),
            (lambda m: m.update(postprocess=[]), "Expected `object`, got `array` - at `\\$.postprocess`"),
            (lambda m: m.update(postprocess={"smooth": 1}), "m.onnx: its post-processing has rules"),
        ],
    )
    def test_metadata_that_do_not_fit_are_refused(self, change, message, model, tmp_path):
        from slicemill.common.errors import InputError

        with pytest.raises(InputError, match=message):
            open_model(changed(model, tmp_path / "m.onnx", change), "cpu")

    def test_a_model_of_absurd_size_is_refused_before_any_memory_is_taken(self, model, tmp_path):
        opened = onnx.load(model)
        opened.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 200_000
        onnx.save(opened, tmp_path / "m.onnx")
        with pytest.raises(ModelError, match=r"200000|is not an ONNX model"):
            open_model(tmp_path / "m.onnx", "cpu")

    def test_a_model_without_our_metadata_is_refused(self, model, tmp_path):
        opened = onnx.load(model)
        del opened.metadata_props[:]
        onnx.save(opened, tmp_path / "m.onnx")
        with pytest.raises(ModelError, match="has no slicemill metadata"):
            open_model(tmp_path / "m.onnx", "cpu")

    def test_weights_in_another_folder_are_never_followed(self, model, tmp_path):
        onnx.save(
            onnx.load(model), tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
        )
        (tmp_path / "in").mkdir()
        content = (tmp_path / "m.onnx").read_bytes().replace(b"weights.bin", b"../weig.bin")
        (tmp_path / "in" / "m.onnx").write_bytes(content)
        (tmp_path / "weights.bin").rename(tmp_path / "weig.bin")
        with pytest.raises(ModelError, match="only files in the folder of the model are read"):
            open_model(tmp_path / "in" / "m.onnx", "cpu")

    @pytest.mark.parametrize("location", ["secret.bin", "../secret.bin", "link.bin", "{tmp_path}/secret.bin"])
    def test_nor_when_protobuf_is_written_in_another_way(self, location, tmp_path, monkeypatch):
        (tmp_path / "in").mkdir()
        monkeypatch.chdir(tmp_path / "in")
        for path in (tmp_path / "secret.bin", Path("secret.bin")):
            path.write_bytes(b"S" * 64)
        Path("link.bin").symlink_to("../secret.bin")
        content = following(location.format(tmp_path=tmp_path))
        assert EXTERNAL_DATA not in content
        Path("m.onnx").write_bytes(content)
        with pytest.raises(ModelError, match="m.onnx: is not an ONNX model that onnxruntime can run"):
            open_model(Path("m.onnx"), "cpu")

    def test_a_provider_that_labels_differently_is_an_error(self, model):
        opened = open_model(model, "cpu")
        label = np.zeros((2, 64, 64), np.uint8)
        other = label.copy()
        other[0, 0, :40] = 1
        assert check_agreement(opened, label, other, None) == 40 / 8192
        other[0, 1] = 1
        with pytest.raises(
            ModelError, match=r"labels on cpu differ from those on the CPU in 1.27% of .*nothing was segmented"
        ):
            check_agreement(opened, label, other, None)
        logits = np.zeros((2, 3, 64, 64), np.float16)
        logits[:, 1], logits[:, 2] = 1, 0.995
        assert check_agreement(opened, label + 2, label + 1, logits) == 0, "ties"
        logits[:, 2] = 0.98
        with pytest.raises(ModelError, match="in 100.00% of the pixels"):
            check_agreement(opened, label + 2, label + 1, logits)


def following(location):
    """Return a model whose labels are the bytes of another file, with lengths in more bytes than they need."""
    make, types = onnx.helper, onnx.TensorProto
    graph = make.make_graph(
        [
            make.make_node("Cast", ["image"], ["bytes"], to=types.UINT8),
            make.make_node("Max", ["bytes", "w"], ["label"]),
        ],
        "g",
        [make.make_tensor_value_info("image", types.INT16, ["n", 8, 8])],
        [make.make_tensor_value_info("label", types.UINT8, ["n", 8, 8])],
    )
    whole = make.make_model(graph, opset_imports=[make.make_opsetid("", 14)], ir_version=8)
    metadata = {"contract": 1, "input": "int16", "context": 1, "labels": {"x": 1}, "postprocess": {}}
    make.set_model_props(whole, {"slicemill": json.dumps(metadata)})

    def field(number, content):
        return bytes([number << 3 | 2, len(content) & 127 | 128, len(content) >> 7]) + content

    tensor = onnx.TensorProto(name="w", dims=[8, 8], data_type=types.UINT8, data_location=types.EXTERNAL)
    entry = field(13, field(1, b"location") + field(2, location.encode()))
    return whole.SerializeToString() + field(7, field(5, tensor.SerializeToString() + entry))


class TestProviders:
    def test_a_provider_that_cannot_run_is_an_error_and_never_the_cpu(self, model):
        if providers.has_nvidia_driver():
            pytest.skip("there is a GPU")
        for name in ("cuda", "tensorrt"):
            with pytest.raises(ProviderError, match=f"--provider {name}"):
                open_model(model, name)
        with pytest.raises(UsageError, match="choose one of auto, cpu, cuda, tensorrt, openvino"):
            open_model(model, "tpu")

    def test_auto_says_what_it_chose_and_why(self, model):
        opened = open_model(model, "auto")
        assert opened.provider in ("cpu", "cuda")
        assert opened.reason

    def test_a_session_that_fell_back_is_an_error(self, model, monkeypatch):
        class Fallen:
            def get_providers(self):
                return ["CPUExecutionProvider"]

            def run(self, names, feed):
                return []

        import onnxruntime

        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
        monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_a, **_k: Fallen())
        with pytest.raises(ProviderError, match="fell back to CPUExecutionProvider"):
            open_model(model, "cuda")

    def test_both_packages_at_once_are_named_with_the_repair(self, monkeypatch):
        folder = Path("site-packages", "onnxruntime")
        monkeypatch.setattr(providers, "installed_runtimes", lambda: {"onnxruntime": folder, "onnxruntime-gpu": folder})
        with pytest.raises(
            ProviderError, match=r"overwrite each other's files. Repair: pip uninstall -y onnxruntime onnxruntime-gpu"
        ):
            providers.import_onnxruntime()

    def test_a_half_removed_package_is_named_with_the_repair(self, monkeypatch):
        import onnxruntime

        monkeypatch.delattr(onnxruntime, "get_available_providers")
        with pytest.raises(ProviderError, match="half removed. Repair: pip install --force-reinstall"):
            providers.import_onnxruntime()
