"""Blobs: balls are found where they are, with their size; vessels and edges are not; and which runs look for them."""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import ConfigError
from slicemill.ct.geometry import Grid
from slicemill.ct.phantom import write_nifti
from slicemill.ct.points import LOWEST_LUMP
from slicemill.infer.candidates.blobs import add_blobs, find_blobs
from slicemill.infer.candidates.find import Lump
from slicemill.infer.tune_classifier import choose_judged_cases
from slicemill.store.crop_card import CropCard
from slicemill.store.reader import open_store
from tests.infer.networks import CROP_CARD, write_classifier, write_lung_model
from tests.train.crop_store import make_crop_store

LUNG, TISSUE = -870, 40


def make_lung(shape, spacing, noise=0.0):
    """Return a lung without anything in it, with chest wall around, and its mask."""
    rng = np.random.default_rng(0)
    volume = np.full(shape, TISSUE, dtype=np.float64)
    inside = np.zeros(shape, dtype=bool)
    margin = [max(1, round(4 / step)) for step in spacing]
    inside[tuple(slice(size, -size) for size in margin)] = True
    volume[inside] = LUNG
    return volume + rng.normal(0, noise, shape), inside


def draw_ball(volume, spacing, center_mm, diameter, hu=TISSUE):
    """Draw a ball at z, y, x in mm, with voxels at its edge in part."""
    axes = np.meshgrid(*(np.arange(n) * step for n, step in zip(volume.shape, spacing, strict=True)), indexing="ij")
    away = np.sqrt(sum((axis - at) ** 2 for axis, at in zip(axes, center_mm, strict=True)))
    share = np.clip((diameter / 2 - away) / np.mean(spacing) + 0.5, 0, 1)
    volume += share * (hu - volume)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.7), (0.7, 1.3, 1.3), (1.25, 0.6, 0.6)])
@pytest.mark.parametrize("diameter", [4.0, 6.0, 10.0, 14.0])
def test_a_ball_is_the_best_blob_where_it_is_and_with_its_size(spacing, diameter):
    shape = [round(60 / step) for step in spacing]
    volume, inside = make_lung(shape, spacing, noise=25)
    center = np.array([31.3, 27.2, 33.9])
    draw_ball(volume, spacing, center, diameter)
    best = find_blobs(np.rint(volume).astype(np.int16), inside, spacing, 20)[0]
    assert np.linalg.norm(np.array(best.center) * spacing - center) < max(0.8, 0.4 * spacing[0])
    assert 0.6 * diameter <= best.diameter_mm <= 1.6 * diameter


def test_a_vessel_and_the_chest_wall_are_less_than_a_ball_of_the_same_section():
    spacing = (1.0, 1.0, 1.0)
    volume, inside = make_lung((60, 60, 60), spacing)
    y, x = np.mgrid[:60, :60]
    volume += (np.clip(3.5 - np.hypot(y - 20, x - 20), 0, 1) * inside) * (TISSUE - LUNG)  # along z
    draw_ball(volume, spacing, (30, 40, 40), 6)
    blobs = find_blobs(np.rint(volume).astype(np.int16), inside, spacing, 50)
    ball = blobs[0]
    np.testing.assert_allclose(ball.center, (30, 40, 40), atol=0.5)
    assert all(blob.score < ball.score / 5 for blob in blobs[1:])


def test_nothing_outside_of_the_lungs_is_a_blob_and_nothing_is_found_in_nothing():
    spacing = (1.0, 1.0, 1.0)
    volume, inside = make_lung((40, 60, 60), spacing)
    draw_ball(volume, spacing, (20, 30, 30), 8)
    image = np.rint(volume).astype(np.int16)
    inside[:, :, 20:] = False
    assert find_blobs(image, inside, spacing, 50) == []
    assert find_blobs(image, np.zeros_like(inside), spacing, 50) == []
    assert find_blobs(image[:2], np.ones_like(inside[:2]), spacing, 50) == []
    assert find_blobs(np.zeros((1, 1, 1), np.int16), np.ones((1, 1, 1), bool), (1.0, 1.0, 1.0), 50) == []


def test_at_most_so_many_are_kept_the_best_first_and_apart():
    spacing = (1.0, 1.0, 1.0)
    volume, inside = make_lung((60, 90, 90), spacing, noise=60)
    blobs = find_blobs(np.rint(volume).astype(np.int16), inside, spacing, 40)
    assert len(blobs) == 40
    scores = [blob.score for blob in blobs]
    assert scores == sorted(scores, reverse=True)
    centers = np.array([blob.center for blob in blobs])
    gaps = np.linalg.norm(centers[:, None] - centers[None], axis=-1) + 99 * np.eye(len(centers))
    assert gaps.min() >= 2.0, "places in voxels are 2.5 mm apart before they are refined"


def lump_at(x, y, z, diameter):
    return Lump(xyz_mm=(x, y, z), slice=round(z), peak=1.0, mean=0.9, volume_ml=1.0, diameter_mm=diameter)


def test_a_blob_in_a_lump_is_none_and_the_others_have_the_probability_in_their_ball():
    spacing = (1.0, 1.0, 1.0)
    volume, inside = make_lung((50, 60, 60), spacing)
    for center in ((15, 20, 20), (30, 40, 40)):
        draw_ball(volume, spacing, center, 8)
    probability = np.zeros(volume.shape, dtype=np.uint8)
    probability[28:33, 38:43, 38:43] = 51
    grid = Grid(shape=volume.shape[::-1], affine=np.diag([-1.0, -1.0, 1.0, 1.0]))
    image = np.rint(volume).astype(np.int16)
    first, second = add_blobs([], image, inside, probability, grid)[:2]
    assert {round(first.xyz_mm[2]), round(second.xyz_mm[2])} == {15, 30}
    upper = max(first, second, key=lambda one: one.xyz_mm[2])
    np.testing.assert_allclose(upper.xyz_mm, (40, 40, 30), atol=0.5)
    assert upper.slice == 30
    assert upper.peak == 0.2
    assert 0.02 < upper.mean < 0.2
    assert upper.volume_ml == pytest.approx(np.pi / 6 * upper.diameter_mm**3 / 1000)
    near = [lump_at(40.0, 40.0, 33.5, 8.0)]
    rest = add_blobs(near, image, inside, probability, grid)
    assert all(np.linalg.norm(np.subtract(one.xyz_mm, near[0].xyz_mm)) >= 4 for one in rest)
    assert round(rest[0].xyz_mm[2]) == 15


@pytest.fixture(scope="module")
def faint(tmp_path_factory):
    """Scans of lung with a ball that the segmentation marks, and one that is too faint for it."""
    folder = tmp_path_factory.mktemp("faint")
    for number in range(2):
        voxels = np.full((40, 64, 64), -850.0)
        draw_ball(voxels, (1.0, 1.0, 1.0), (12, 20, 20), 9)
        draw_ball(voxels, (1.0, 1.0, 1.0), (26, 42, 30 + number), 8, hu=-620)
        write_nifti(folder / f"scan-{number}.nii.gz", voxels.astype(np.int16), (1.0, 1.0, 1.0))
    return folder


def test_a_run_without_a_classifier_or_with_one_that_knows_blobs_finds_them(faint, tmp_path):
    lung = write_lung_model(tmp_path / "lung.onnx")
    knows = write_classifier(tmp_path / "knows.onnx", card={**CROP_CARD, "blobs": True})
    blind = write_classifier(tmp_path / "blind.onnx")
    places = {}
    for name, classifier in (("alone", None), ("knows", knows), ("blind", blind)):
        words = ["infer", str(lung), str(faint), "--out", str(tmp_path / name), "--provider", "cpu"]
        words += ["--candidates"] if classifier is None else ["--classifier", str(classifier)]
        result = CliRunner().invoke(commands(), words)
        assert result.exit_code == 0, result.output
        rows = list(csv.DictReader((tmp_path / name / "candidates.csv").read_text().splitlines()))
        places[name] = {(row["seriesuid"], row["coordX"], row["coordY"], row["coordZ"]) for row in rows}
        found = json.loads((tmp_path / name / "candidates.json").read_text())["scans"]
        assert [one["blobs"] for one in found] == ([0, 0] if name == "blind" else [1, 1])
        assert [len(one["candidates"]) for one in found] == [1 + one["blobs"] for one in found]
        if classifier is None:
            lumps, blobs = zip(*(one["candidates"] for one in found), strict=True)
            assert all(one["segmentation_mean"] >= LOWEST_LUMP for one in lumps)
            assert all(one["segmentation_mean"] < LOWEST_LUMP for one in blobs)
            assert all(5 < one["diameter_mm"] < 12 for one in blobs)
            page = (tmp_path / name / "scan-0.candidates.html").read_text()
            assert "1 of the candidates are round bright spots" in page
    assert places["alone"] == places["knows"] > places["blind"]


@pytest.fixture(scope="module")
def crop_store(tmp_path_factory):
    return make_crop_store(tmp_path_factory.mktemp("store"), cases=2)


@pytest.mark.parametrize("blobs", [False, True])
def test_thresholds_are_chosen_on_candidates_of_the_kind_that_it_judges(crop_store, blobs):
    store = open_store(crop_store)
    card = CropCard(window_hu=(-1000, 400), blobs=blobs)
    if not blobs:
        assert len(choose_judged_cases(store, None, card)) == 2
        return
    with pytest.raises(ConfigError, match="the classifier judges blobs, too"):
        choose_judged_cases(store, None, card)


def test_the_lowest_lump_is_the_threshold_of_lumps():
    assert LOWEST_LUMP <= 26 / 255 < LOWEST_LUMP + 1 / 255


def test_the_card_says_it(tmp_path):
    path = write_classifier(tmp_path / "c.onnx", card={**CROP_CARD, "blobs": True})
    shown = CliRunner().invoke(commands(), ["info", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "and round bright spots" in " ".join(shown.output.split())
