"""Foreign networks: torch.onnx and a TOML, and the labels are those of torch's own argmax."""

import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch

from slicemill.common.errors import ConfigError, ModelError
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.gather import gather
from slicemill.infer.network.description import read_description
from slicemill.infer.network.foreign import wrap_network
from slicemill.infer.network.model import open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from slicemill.train.export.onnx_graph import quiet_exporter

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "other-models.md").read_text()
CARD = (
    'labels = {liver = 1, tumor = 5}\nwindow_hu = [-150, 250]\nmean = 40\nstd = 120.5\noutput = "logits"\ncontext = 3\n'
)
LOW, HIGH, MEAN, STD = -150, 250, 40, 120.5


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(2)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(6, 3, 3, padding=1)
    ).eval()


def exported(network, path, shape=(2, 3, 48, 56), **options):
    options = {"dynamic_shapes": ({0: torch.export.Dim("b")},), **options}
    with quiet_exporter():
        torch.onnx.export(
            network, (torch.zeros(shape),), path, dynamo=True, external_data=False, verbose=False, **options
        )
    return path


@pytest.fixture(scope="module")
def plain(network, tmp_path_factory):
    """The network as torch writes it, without a TOML."""
    return exported(network, tmp_path_factory.mktemp("foreign") / "net.onnx")


def with_toml(plain, folder, card=CARD):
    path = Path(shutil.copy(plain, folder / "net.onnx"))
    path.with_suffix(".toml").write_text(card)
    return path


def windows(volume, context):
    """Channels float32[z, c, y, x] of a volume, edges repeated, normalized as the TOML says."""
    normal = (np.clip(volume.astype(np.float32), LOW, HIGH) - MEAN) / np.float32(STD)
    half = context // 2
    padded = np.pad(normal, ((half, half), (0, 0), (0, 0)), mode="edge")
    return torch.from_numpy(np.stack([padded[i : i + len(volume)] for i in range(context)], axis=1))


def test_the_labels_are_those_of_torchs_argmax(network, plain, tmp_path):
    rng = np.random.default_rng(1)
    volume = rng.integers(-1000, 1000, (7, 48, 56), dtype=np.int16)
    write_nifti(tmp_path / "a-1.nii.gz", volume, (3.0, 1.0, 1.0), "LPS")
    opened = open_model(with_toml(plain, tmp_path), "cpu")
    assert infer(opened, gather([tmp_path / "a-1.nii.gz"])[0], tmp_path / "out").count("done") == 1
    with torch.no_grad():
        logits = network(windows(volume, 3))
    expected = np.array([0, 1, 5], dtype=np.uint8)[logits.argmax(1).numpy()]
    found = np.asarray(nib.load(tmp_path / "out" / "a-1.nii.gz").dataobj).transpose(2, 1, 0)
    assert len(np.unique(expected)) == 3
    assert np.count_nonzero(found != expected) <= 1e-4 * found.size
    window = np.clip(np.arange(3) + np.arange(7)[:, None] - 1, 0, 6).astype(np.int32)
    output = opened.run(volume, window, ("label", "tumor", "probability"))
    share = torch.softmax(logits, 1).numpy()
    assert np.abs(output.maps - share).max() < 1e-5
    assert np.abs(output.tumor - 255 * share[:, 2]).max() <= 0.51


@pytest.mark.parametrize("squeezed", [True, False])
def test_a_network_that_gives_labels_and_takes_one_slice_with_open_sides(squeezed, tmp_path):
    class Threshold(torch.nn.Module):
        def forward(self, image):
            label = (image[:, 0] > 0.25).to(torch.int64) + (image[:, 0] > 1).to(torch.int64)
            return label if squeezed else label[:, None]

    sides = {2: torch.export.Dim("y", min=2), 3: torch.export.Dim("x", min=2)}
    path = exported(Threshold().eval(), tmp_path / "net.onnx", (1, 1, 16, 16), dynamic_shapes=({**sides},))
    card = CARD.replace("context = 3", "").replace('"logits"', '"label"').replace("5", "2", 1)
    path.with_suffix(".toml").write_text(card)
    with pytest.raises(ModelError, match=r"net.onnx: leaves height and width open; add size = \[512, 512\]"):
        open_model(path, "cpu")
    path.with_suffix(".toml").write_text(f"{card}size = [32, 40]\n")
    opened = open_model(path, "cpu")
    assert (opened.info.size, opened.info.one_slice) == ((32, 40), True)
    volume = np.random.default_rng(1).integers(-1000, 1000, (3, 32, 40), dtype=np.int16)
    write_nifti(tmp_path / "a-1.nii", volume, (3.0, 1.0, 1.0), "LPS")
    jobs = gather([tmp_path / "a-1.nii"])[0]
    assert infer(opened, jobs, tmp_path / "out").count("done") == 1
    normal = (np.clip(volume, LOW, HIGH) - MEAN) / STD
    found = np.asarray(nib.load(tmp_path / "out" / "a-1.nii").dataobj).transpose(2, 1, 0)
    assert np.array_equal(found, (normal > 0.25).astype(int) + (normal > 1))
    with pytest.raises(ConfigError, match="--batch 4: net.onnx takes one slice at a time"):
        infer(opened, jobs, tmp_path / "other", InferOptions(batch=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("std = 120.5", ""), "net.toml: does not describe .*Object missing required field `std`"),
        (("std = 120.5", "std = 0"), r"net.toml: .*>= 1.* - at `\$.std`"),
        (("std = 120.5", "std = inf"), r"net.toml: .*<= 1000000.* - at `\$.std`"),
        (("std = 120.5", "std = 1e-50"), r"net.toml: .*>= 1e-06 - at `\$.std`"),
        (("mean = 40", "mean = nan"), r"net.toml: .* - at `\$.mean`"),
        (("mean = 40", 'mean = "x"'), r"net.toml: .*Expected `int \| float`, got `str` - at `\$.mean`"),
        (("mean = 40", "mean = 2020-01-01"), r"net.toml: .*got `date` - at `\$.mean`"),
        (("mean = 40", f"mean = 1{'0' * 400}"), r"net.toml: .* - at `\$.mean`"),
        (("[-150, 250]", '["a", "b"]'), r"net.toml: .*got `str` - at `\$.window_hu\[0\]`"),
        (("[-150, 250]", "[-inf, inf]"), r"net.toml: .*>= -1000000.* - at `\$.window_hu"),
        (("[-150, 250]", "5"), r"net.toml: .*Expected `array`, got `int` - at `\$.window_hu`"),
        (("{liver = 1, tumor = 5}", "5"), r"net.toml: .*Expected `object`, got `int` - at `\$.labels`"),
        (("{liver = 1, tumor = 5}", '["liver"]'), r"net.toml: .*Expected `object`, got `array` - at `\$.labels`"),
        (("tumor = 5", 'tumor = "5"'), r"net.toml: .*Expected `int`, got `str` - at `\$.labels\[...\]`"),
        (("tumor = 5", "tumor = 1.5"), r"net.toml: .*Expected `int`, got `float` - at `\$.labels\[...\]`"),
        (("context = 3", "context = true"), r"net.toml: .*Expected `int`, got `bool` - at `\$.context`"),
        (
            ("context = 3", "context = 3\nsize = [8.0, 8.0]"),
            r"net.toml: .*Expected `int`, got `float` - at `\$.size\[0\]`",
        ),
        (("context = 3", "context = 3\norgan = 5"), r"net.toml: .*Expected `str \| null`, got `int` - at `\$.organ`"),
        (("context = 3", "context = 3\nspacing_mm = 2020-01-01"), r"net.toml: .*got `date` - at `\$.spacing_mm`"),
        (
            ("context = 3", 'context = 3\npostprocess = "x"'),
            r"net.toml: .*Expected `object`, got `str` - at `\$.postprocess`",
        ),
        (
            ("context = 3", "context = 3\npostprocess = {fill_holes = 2020-01-01}"),
            r"net.toml: .*got `date` - at `\$.postprocess\[...\]`",
        ),
        (
            ("context = 3", "context = 3\npostprocess = {min_lesion_ml = 2020-01-01}"),
            r"net.toml: .*got `date` - at `\$.postprocess\[...\]`",
        ),
        (("std = 120.5", "std = 1\nsigma = 2"), "net.toml: sigma is not a setting; choose from labels, window_hu"),
        (("std = 120.5", "std = = 1"), "net.toml: does not describe the network .*cannot be read as TOML"),
        (("[-150, 250]", "[250, -150]"), "expected two numbers of HU, the lower first"),
        (('"logits"', '"softmax"'), "output = 'softmax': choose one of logits, label"),
        (("context = 3", "context = 4"), "context = 4: choose one of 1, 3, 5, 7"),
        (("context = 3", "context = 5"), "net.onnx: takes 3 channels, but context = 5"),
        (("context = 3", "context = 3\nsize = [64, 64]"), r"takes slices of 48x56, but size = \[64, 64\]"),
        (("tumor = 5", "tumor = 300"), "net.toml: label tumor=300: a label value must be between 1 and 255"),
        (("tumor = 5", "tumor = 5, vessel = 6"), "logits of background and 3 labels are"),
        (("context = 3", 'context = 3\noutput_name = "mask"'), "has the outputs .*; name one of them as output_name"),
        (("context = 3", "context = 3\npostprocess = {smooth = 1}"), "post-processing has rules that this version"),
    ],
)
def test_a_toml_that_does_not_fit_is_one_clear_error(change, message, plain, tmp_path):
    with pytest.raises(ModelError, match=message):
        open_model(with_toml(plain, tmp_path, CARD.replace(*change)), "cpu")


def numbers(folder, kind):
    """Write a network of the given type whose output is its input: the HU themselves, as labels."""
    make = onnx.helper
    given, taken = (
        make.make_tensor_value_info(name, type_, ["b", 1, 16, 16])
        for name, type_ in (("x", onnx.TensorProto.FLOAT), ("y", kind))
    )
    graph = make.make_graph([make.make_node("Cast", ["x"], ["y"], to=kind)], "g", [given], [taken])
    network = make.make_model(graph, opset_imports=[make.make_opsetid("", 14)], ir_version=8)
    (folder / "net.onnx").write_bytes(network.SerializeToString())
    card = CARD.replace("[-150, 250]", "[-1000, 1000]").replace("mean = 40\nstd = 120.5", "mean = 0\nstd = 2")
    (folder / "net.toml").write_text(card.replace('"logits"', '"label"').replace("context = 3\n", ""))
    return open_model(folder / "net.onnx", "cpu")


@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT16])
def test_a_scan_with_a_value_that_is_no_label_fails_and_the_others_go_on(kind, tmp_path):
    opened = numbers(tmp_path, kind)
    whole = kind == onnx.TensorProto.INT64
    odd = {"low": -2, "free": 4, "many": 514, "most": 2000} | ({} if whole else {"half": 1})
    for name, value in {"fine": 10, **odd}.items():
        volume = np.zeros((2, 16, 16), dtype=np.int16)
        volume[1, 3:5, 7] = 2, value
        write_nifti(tmp_path / "in" / f"{name}-1.nii", volume, (3.0, 1.0, 1.0), "LPS")
    summary = infer(opened, gather([tmp_path / "in"])[0], tmp_path / "out")
    failed = {outcome.name: outcome.reason for outcome in summary.outcomes if outcome.status == "failed"}
    assert sorted(failed) == sorted(f"{name}-1.nii" for name in odd)
    assert all(
        reason.endswith("-1.nii: the network outputs values other than 0, 1, 5; correct the labels in its TOML.")
        for reason in failed.values()
    )
    found = np.asarray(nib.load(tmp_path / "out" / "fine-1.nii").dataobj)
    assert np.unique(found).tolist() == [0, 1, 5]
    assert found[7, 4, 1] == 5


def test_what_is_no_number_is_no_label(tmp_path):
    numbers(tmp_path, onnx.TensorProto.FLOAT)
    network = onnx.load(tmp_path / "net.onnx")
    node = network.graph.node[0]
    network.graph.node.insert(0, onnx.helper.make_node("Sqrt", [node.input[0]], ["root"]))
    network.graph.node[1].input[0] = "root"
    (tmp_path / "net.onnx").write_bytes(network.SerializeToString())
    opened = open_model(tmp_path / "net.onnx", "cpu")
    image = np.full((1, 16, 16), -8, dtype=np.int16)
    image[0, 0, 0] = 2
    label = opened.run(image, np.zeros((1, 1), dtype=np.int32)).label
    assert (label[0, 0, 0], set(label.ravel()[1:].tolist())) == (1, {opened.info.unknown})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.Clear(), "net.onnx: is not an ONNX model .it contains no network"),
        (
            lambda net: net.ClearField("opset_import"),
            "net.onnx: is of opset None; export it with opset_version=13 or more",
        ),
        (lambda net: net.graph.ClearField("output"), "net.onnx: has the outputs none"),
    ],
)
def test_a_network_that_lacks_a_part_is_one_clear_error(change, message, plain, tmp_path):
    net = onnx.load(plain)
    change(net)
    path = with_toml(plain, tmp_path)
    path.write_bytes(net.SerializeToString())
    with pytest.raises(ModelError, match=message):
        open_model(path, "cpu")


def test_without_a_toml_the_way_out_is_named(plain):
    with pytest.raises(
        ModelError, match=r"no slicemill metadata; .*or describe the network in net.toml in the same folder"
    ):
        open_model(plain, "cpu")


def test_a_toml_that_changes_is_another_model(plain, tmp_path):
    first = open_model(with_toml(plain, tmp_path), "cpu").info.sha256
    assert open_model(with_toml(plain, tmp_path), "cpu").info.sha256 == first
    assert open_model(with_toml(plain, tmp_path, CARD.replace("40", "41")), "cpu").info.sha256 != first


def test_the_metadata_of_a_wrapped_network_never_change_a_byte(plain, tmp_path):
    """They are part of its hash, by which finished scans are recognized."""
    (tmp_path / "net.toml").write_text(
        f"{CARD}spacing_mm = 1\npostprocess = {{min_lesion_ml = 1, fill_holes = true}}\n"
    )
    content = wrap_network(plain.read_bytes(), tmp_path / "net.onnx", tmp_path / "net.toml")
    (entry,) = onnx.load_from_string(content).metadata_props
    assert entry.value == (
        '{"contract": 1, "input": "int16", "precision": "fp32", "foreign": {"labels": {"liver": 1, "tumor": 5}, '
        '"window_hu": [-150, 250], "mean": 40, "std": 120.5, "output": "logits", "size": null, "context": 3, '
        '"context_spacing_mm": null, "spacing_mm": 1, "organ": null, "tumor": null, "input_name": null, '
        '"output_name": null, "postprocess": {"min_lesion_ml": 1, "fill_holes": true}}, "window_hu": [-150, 250], '
        '"context": 3, "context_spacing_mm": null, "spacing_mm": 1, "postprocess": {"min_lesion_ml": 1, '
        '"fill_holes": true}, "unknown": null, "one_slice": false, "labels": {"liver": 1, "tumor": 5}, '
        '"organ": "liver", "tumor": "tumor"}'
    )


def test_a_model_of_ours_needs_no_toml_and_ignores_one(model, tmp_path):
    path = with_toml(model, tmp_path)
    assert open_model(path, "cpu").info.sha256 == open_model(model, "cpu").info.sha256


def test_a_file_that_is_no_onnx_or_too_old_is_named(plain, tmp_path):
    path = with_toml(plain, tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ModelError, match="net.onnx: is not an ONNX model"):
        open_model(path, "cpu")
    old = onnx.load(plain)
    old.opset_import[0].version = 11
    onnx.save(old, path)
    with pytest.raises(ModelError, match="is of opset 11; export it with opset_version=13 or more"):
        open_model(path, "cpu")


def test_the_example_of_the_documentation_is_one(tmp_path):
    (text,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "net.toml").write_text(text)
    described, labels = read_description(tmp_path / "net.toml")
    assert (described.window_hu, described.mean, described.std) == ((-200, 300), -200, 500)
    assert described.context == 3
    assert labels == LITS_LABELS


@pytest.mark.timeout(20)
def test_a_description_is_a_regular_file_of_a_limited_size(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(ModelError, match=r"pipe\.toml: .*is not a regular file"):
        read_description(tmp_path / "pipe.toml")
    monkeypatch.setattr("slicemill.common.files.MAX_DOCUMENT_BYTES", 10)
    (tmp_path / "x.toml").write_text("labels = {tumor = 1}")
    with pytest.raises(ModelError, match=r"x\.toml: .*has 20 bytes"):
        read_description(tmp_path / "x.toml")
