"""Resampling to the network's pixel size and back: torch and scipy as oracles."""

import json

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional

import slicemill
from slicemill.common.errors import ModelError, ScanError
from slicemill.ct.phantom import write_nifti
from slicemill.infer.network.model import open_model
from slicemill.infer.slices.resample import MAX_EXTENT, interpolate, make_resampling
from tests.infer.test_parts import changed

sides = st.integers(3, 40)
spacings = st.floats(0.3, 3.0)


@given(sides, sides, spacings, spacings, st.floats(0.5, 2.0), st.integers(0, 99))
def test_resampled_slices_equal_torchs_grid_sample(ny, nx, sy, sx, target, seed):
    section = np.random.default_rng(seed).integers(-1000, 1000, (ny, nx)).astype(np.int16)
    way = make_resampling((ny, nx), (sy, sx), target, (8, 8))
    if way is None:
        return
    height, width = way.shape
    scale = torch.tensor(
        [[[width * target / (nx * sx), 0, 0], [0, height * target / (ny * sy), 0]]], dtype=torch.float64
    )
    grid = functional.affine_grid(scale, (1, 1, height, width), align_corners=False)
    expected = functional.grid_sample(
        torch.from_numpy(section)[None, None].double(), grid, padding_mode="border", align_corners=False
    )
    assert np.abs(interpolate(section, way.to_network) - expected[0, 0].numpy()).max() < 0.01
    assert np.abs(way.image_to_network(section) - expected[0, 0].numpy()).max() <= 0.51


@given(sides, sides, st.sampled_from([(8, 8), (9, 8), (33, 64)]), spacings, st.floats(0.5, 2.0))
def test_the_extent_covers_the_scan_and_has_the_center_of_the_network(ny, nx, size, spacing, target):
    way = make_resampling((ny, nx), (spacing, spacing), target, size)
    if way is None:
        assert abs(spacing / target - 1) < 1e-3
        return
    for count, extent, side in zip((ny, nx), way.shape, size, strict=True):
        assert (extent - side) % 2 == 0
        assert -0.51 * target <= extent * target - count * spacing <= 1.51 * target


@given(st.integers(2, 4), sides, sides, spacings, st.floats(0.5, 2.0), st.integers(0, 99))
def test_labels_are_the_largest_interpolated_probability(classes, ny, nx, spacing, target, seed):
    """Every pixel computed by scipy, not only those along borders."""
    way = make_resampling((ny, nx), (spacing, spacing), target, (8, 8))
    if way is None:
        return
    rng = np.random.default_rng(seed)
    maps = ndimage.gaussian_filter(rng.random((classes, *way.shape)), (0, 1.5, 1.5))
    maps = (maps / maps.sum(axis=0)).astype(np.float32)
    table = np.array([0, 5, 9, 200][:classes], np.uint8)
    found = way.labels_to_scan(table[maps.argmax(axis=0)], maps, table)
    lines = [
        ((np.arange(count) + 0.5 - count / 2) * spacing / target + extent / 2 - 0.5)
        for count, extent in zip((ny, nx), way.shape, strict=True)
    ]
    places = np.meshgrid(*lines, indexing="ij")
    expected = np.stack([ndimage.map_coordinates(map_.astype(float), places, order=1, mode="nearest") for map_ in maps])
    best, second = np.sort(expected, axis=0)[-1:-3:-1]
    clear = best - second > 1e-5
    assert np.array_equal(found[clear], table[expected.argmax(axis=0)][clear])


def test_without_probabilities_labels_are_those_of_the_nearest_pixel():
    way = make_resampling((4, 4), (1.0, 1.0), 2.0, (2, 2))
    label = np.array([[1, 2], [3, 4]], np.uint8)
    assert way.labels_to_scan(label, None, np.arange(5, dtype=np.uint8)).tolist() == [
        [1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4],
    ]  # fmt: skip


def test_a_scan_with_the_models_spacing_is_not_resampled():
    assert make_resampling((512, 512), (0.7, 0.7), None, (512, 512)) is None
    assert make_resampling((512, 512), (0.7, 0.70001), 0.7, (512, 512)) is None
    assert make_resampling((512, 512), (0.7, 0.71), 0.7, (512, 512)) is not None


def test_pixels_of_absurd_size_are_refused_before_memory_is_taken():
    with pytest.raises(ScanError, match=f"more than {MAX_EXTENT:,} pixels a side"):
        make_resampling((512, 512), (900.0, 900.0), 0.5, (512, 512))


@pytest.mark.parametrize("spacing", [0, -1.0, 200.0, "1 mm", [1.0, 1.0]])
def test_a_model_of_absurd_spacing_is_refused(spacing, model, tmp_path):
    with pytest.raises(ModelError, match=r"`\$.spacing_mm`"):
        open_model(changed(model, tmp_path / "m.onnx", lambda metadata: metadata.update(spacing_mm=spacing)), "cpu")


def bright_network(path, side, spacing_mm):
    """A model whose label is 1 where HU are above 0, with a soft probability; its pixels have a size in mm."""
    from onnx import TensorProto, helper

    def number(value, name):
        return helper.make_tensor(name, TensorProto.FLOAT, [], [value])

    nodes = [
        helper.make_node("Cast", ["image"], ["hu"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["hu", "slope"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["bright"]),
        helper.make_node("Sub", ["one", "bright"], ["dark"]),
        helper.make_node("Unsqueeze", ["bright", "axis"], ["b"]),
        helper.make_node("Unsqueeze", ["dark", "axis"], ["d"]),
        helper.make_node("Concat", ["d", "b"], ["probability"], axis=1),
        helper.make_node("Greater", ["bright", "dark"], ["more"]),
        helper.make_node("Cast", ["more"], ["label"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "bright",
        [helper.make_tensor_value_info("image", TensorProto.INT16, ["n", side, side])],
        [
            helper.make_tensor_value_info("label", TensorProto.UINT8, ["n", side, side]),
            helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", 2, side, side]),
        ],
        [number(0.01, "slope"), number(1.0, "one"), helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    entry = made.metadata_props.add()
    entry.key = "slicemill"
    entry.value = json.dumps(
        {"contract": 1, "labels": {"bright": 1}, "organ": None, "tumor": None, "context": 1, "spacing_mm": spacing_mm,
         "input": "int16", "precision": "fp32", "postprocess": {"largest_organ": False, "min_lesion_ml": 0.0}}
    )  # fmt: skip
    onnx.save(made, path)
    return path


@pytest.mark.parametrize(("side", "axcodes"), [(128, "LPS"), (64, "RAS"), (32, "PIR")])
def test_a_scan_of_other_spacing_gets_labels_on_its_own_grid(side, axcodes, tmp_path):
    """Smooth discs: at the network's pixel size, padded or tiled, and back, the label is where the scan is bright."""
    y, x = np.mgrid[:120, :140]
    section = 300 - 6 * np.hypot((y - 60) * 0.8, (x - 80) * 0.8)
    volume = np.stack([section, -section, section]).astype(np.int16)
    write_nifti(tmp_path / "ct.nii.gz", volume, (5.0, 0.8, 0.8), axcodes)
    model = bright_network(tmp_path / "m.onnx", side, spacing_mm=1.3)
    result = slicemill.segment(tmp_path / "ct.nii.gz", model, provider="cpu")
    label = result.label_lps
    assert label.shape == volume.shape
    assert result.report.spacing_mm_zyx == (5.0, 0.8, 0.8)
    sure = np.abs(volume) > 5
    assert np.array_equal(label[sure], (volume > 0)[sure])
