"""Training on crops: samples, augmentation, runs that continue, and malignancy on top of a run."""

import csv
import dataclasses
import hashlib
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import ConfigError, ModelError, StoreError, UsageError
from slicemill.common.files import read_json, write_json
from slicemill.ct.crops import SIDE, cut_crop
from slicemill.ct.points import Point
from slicemill.store.reader import open_store
from slicemill.store.split import Split, read_split, write_split
from slicemill.store.tables import points_sha256
from slicemill.train.config import Config
from slicemill.train.crops.augment import MARGIN, STORED_SIDE, SYMMETRIES, _warp, augment_crop, cut_middle
from slicemill.train.crops.folder import (
    CROPS,
    CropData,
    check_base_split,
    choose_crop_split,
    find_samples,
    load_base,
)
from slicemill.train.crops.loop import CropState, CropTraining, describe_start, train_crops
from slicemill.train.crops.metrics import LEAST_PAIRS, area_among_alike, measure_epoch, measure_lump
from slicemill.train.crops.network import VIEW_SIDE, CropNetwork, halve, split_views
from slicemill.train.crops.samples import (
    Sample,
    Samples,
    are_rated,
    draw_epoch,
    find_malignancy_samples,
    find_nodule_samples,
    join_samples,
    keep_negatives,
)
from slicemill.train.crops.settings import CropConfig
from slicemill.train.export.crop_model import read_classifier
from slicemill.train.run.checkpoint import BEST, LAST
from slicemill.train.run.setup import choose_split
from tests.train.crop_store import make_crop_store

QUICK = CropConfig(batch=4, epochs=2, validation=0.3, test=0.0, device="cpu")


class FakeCase:
    """A case that has points and candidates only."""

    def __init__(self, points, candidates):
        self.case_id, self.points = "one", tuple(points)
        self.candidates = None if candidates is None else np.array(candidates, dtype=np.float64).reshape(-1, 5)


class FakeStore(dict):
    """Cases by id, as a store has them."""

    @property
    def case_ids(self):
        return list(self)


def nodule(number, xyz, diameter=10.0, kind="nodule", malignancy=None):
    return Point(id=f"p{number}", kind=kind, xyz_mm=xyz, diameter_mm=diameter, malignancy=malignancy)


def quiet(_line):
    pass


def read_rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_samples_follow_from_points_and_candidates():
    case = FakeCase(
        [nodule(1, (0.0, 0, 0)), nodule(2, (50.0, 0, 0), kind="excluded")],
        [
            (0, 0, 0, 1, 2),  # the nodule itself
            (3, 0, 0, 0, 3),  # class 0 inside the nodule
            (30, 0, 0, 1, 4),  # class 1 in no nodule
            (52, 0, 0, 0, 5),  # in an excluded finding
            (100, 0, 0, 0, 6),
            (101, 0, 0, 0, 7),  # within 2 mm of line 6
            (110, 0, 0, 0, 8),
        ],
    )
    samples = find_nodule_samples(case)
    assert [one.xyz_mm for one in samples.of(positive=True)] == [(0, 0, 0)]
    assert [one.xyz_mm[0] for one in samples.of(positive=False)] == [100, 110]
    assert {(one.what, one.reason) for one in samples.left_out} == {
        ("candidates, line 3", "class 0, but inside a nodule"),
        ("candidates, line 4", "class 1, but in no nodule"),
        ("candidates, line 5", "inside an excluded finding"),
        ("candidates, line 7", "within 2 mm of another candidate"),
    }


def test_every_candidate_is_a_sample_or_a_nodule_or_left_out_once():
    rng = np.random.default_rng(3)
    places = rng.uniform(-20, 20, (400, 3)) * (1, 0.2, 0.2)
    table = np.column_stack([places, rng.random(400) < 0.3, np.arange(2, 402)])
    case = FakeCase([nodule(1, (0.0, 0, 0)), nodule(2, (9.0, 0, 0), kind="excluded")], table)
    samples = find_nodule_samples(case)
    inside = np.linalg.norm(places, axis=1) < 5
    lines = [one.what for one in samples.left_out]
    assert len(lines) == len(set(lines))
    assert len(samples.of(positive=False)) + len(lines) == 400 - (inside & (table[:, 3] == 1)).sum()
    assert len({one.reason for one in samples.left_out}) == 4


def test_a_negative_beside_an_excluded_finding_is_a_sample():
    case = FakeCase([nodule(1, (0.0, 0, 0), kind="excluded")], [(4.5, 0, 0, 0, 2), (5.5, 0, 0, 0, 3)])
    assert [one.xyz_mm[0] for one in find_nodule_samples(case).used] == [5.5]


@pytest.mark.parametrize(
    ("values", "positive", "left_out"),
    [((0.0, 0.4, 0.5, 1.0, None), [False, False, True, True], 1), ((1, 3, 4, 2.5), [False, True, False], 1)],
)
def test_malignancy_is_a_probability_or_a_rating(values, positive, left_out):
    case = FakeCase([nodule(i, (i * 30.0, 0, 0), malignancy=value) for i, value in enumerate(values)], None)
    samples = find_malignancy_samples([case], ratings=are_rated([case]))
    assert [one.positive for one in samples.used] == positive
    assert len(samples.left_out) == left_out


def test_a_rating_of_one_is_benign_in_a_part_that_has_no_other():
    case = FakeCase([nodule(1, (0.0, 0, 0), malignancy=1)], None)
    other = FakeCase([nodule(1, (0.0, 0, 0), malignancy=5)], None)
    (sample,) = find_malignancy_samples([case], ratings=are_rated([case, other])).used
    assert not sample.positive
    (sample,) = find_malignancy_samples([case], ratings=are_rated([case])).used
    assert sample.positive


def test_malignancy_that_is_neither_is_refused():
    case = FakeCase([nodule(1, (0.0, 0, 0), malignancy=4), nodule(2, (9.0, 0, 0), malignancy=0.3)], None)
    with pytest.raises(StoreError, match=r"malignancy of p2 of case one is 0.3"):
        find_malignancy_samples([case], ratings=are_rated([case]))


def test_an_epoch_is_balanced_by_class_and_by_diameter():
    sizes = [4.0] * 12 + [8.0] * 3 + [20.0]
    positives = [Sample(case_id="a", xyz_mm=(0, 0, 0), positive=True, diameter_mm=size) for size in sizes]
    samples = [*positives, *[Sample(case_id="a", xyz_mm=(0, 0, 0), positive=False)] * 50]
    drawn = draw_epoch(samples, 12, np.random.default_rng(0))
    assert drawn.shape == (3, 12)
    truth = np.array([one.positive for one in samples])[drawn]
    assert truth.sum(axis=1).tolist() == [6, 6, 6]
    bands = [samples[index].band for index in drawn[truth]]
    assert [bands.count(band) for band in range(3)] == [6, 6, 6]
    negatives = drawn[~truth]
    assert len(set(negatives.tolist())) == len(negatives)
    again = draw_epoch(samples, 12, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn, again)


def test_only_some_negatives_are_kept():
    samples = [Sample(case_id=str(i), xyz_mm=(0, 0, 0), positive=i % 10 == 0) for i in range(100)]
    kept = keep_negatives(Samples(used=tuple(samples)), 3, np.random.default_rng(0))
    assert (len(kept.of(positive=True)), len(kept.of(positive=False)), kept.surplus) == (10, 30, 60)
    assert join_samples([kept, kept]).surplus == 120
    assert [int(one.case_id) for one in kept.used] == sorted(int(one.case_id) for one in kept.used)


def test_the_log_counts_the_negatives_that_are_not_used():
    drawn = keep_negatives(
        Samples(used=tuple(Sample(case_id="a", xyz_mm=(0, 0, 0), positive=i == 0) for i in range(9))),
        3,
        np.random.default_rng(0),
    )
    training = CropTraining(
        config=dataclasses.replace(QUICK, negatives=3),
        malignancy=False,
        data=CropData(train=drawn, validation=dataclasses.replace(drawn, surplus=0), crops=np.zeros(0, np.int16)),
        network=CropNetwork(),
        optimizer=None,
        device=torch.device("cpu"),
        sizes=np.zeros(0),
    )
    train, validation, _ = describe_start(training, CropState())
    assert train == "train: 1 nodules, 3 others; 0 left out (left_out.csv); 5 of the others not used (negatives = 3)"
    assert validation == "validation: 1 nodules, 3 others; 0 left out (left_out.csv)"


def test_malignancy_is_chosen_by_its_auc_among_like_sizes():
    """The size tells malignancy, and the output of an untrained network follows the size."""
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(4), np.log(25), 400))
    truth = rng.random(400) < (sizes - 4) / 21
    samples = [Sample(case_id="a", xyz_mm=(0, 0, 0), positive=bool(one)) for one in truth]
    by_size, by_look = sizes / 30, np.where(truth, 0.8, 0.2) * rng.uniform(0.2, 1, 400)
    untrained, trained = (
        measure_epoch((1, 0.5, 0.1, 9), samples, one, sizes) for one in (by_size, by_look * 4 / sizes)
    )
    assert untrained.validation_auc > trained.validation_auc
    training = CropTraining(
        config=QUICK, malignancy=True, data=None, network=None, optimizer=None, device=None, sizes=sizes
    )
    assert training.rate(untrained) == pytest.approx(0.5, abs=0.1)
    assert training.rate(trained) > training.rate(untrained) + 0.2
    assert dataclasses.replace(training, malignancy=False).rate(untrained) == untrained.validation_auc
    pair = np.array([True, False])
    for first, second, expected in ((5.0, 9.0, None), (8.0, 9.0, 0.5), (0.0, 0.0, 0.5)):
        crops = np.repeat(pair, LEAST_PAIRS), np.zeros(2 * LEAST_PAIRS), np.repeat([first, second], LEAST_PAIRS)
        assert area_among_alike(*crops) == expected
    assert area_among_alike(pair, np.zeros(2), np.array([8.0, 9.0])) is None
    assert training.rate(dataclasses.replace(trained, validation_auc_alike=None)) == trained.validation_auc


def test_augmentation_without_a_change_is_one_of_48_symmetries_of_what_inference_sees():
    still = dataclasses.replace(CropConfig(), shift_mm=0, rotation_degrees=0, scale=0, noise_hu=0, offset_hu=0)
    stored = torch.from_numpy(np.random.default_rng(0).integers(-1000, 400, [STORED_SIDE] * 3).astype(np.int16))
    inferred = [view[0] for view in split_views(cut_middle(stored)[None])]
    assert len(SYMMETRIES) == 48
    sparse = (slice(None, None, 5),) * 3
    symmetric = [[view.permute(order).flip(flips)[sparse] for view in inferred] for order, flips in SYMMETRIES]
    seen = set()
    for seed in range(40):
        views = augment_crop(stored, still, seed)
        matches = [
            index
            for index, one in enumerate(symmetric)
            if all(torch.allclose(view[sparse], expected, atol=0.1) for view, expected in zip(views, one, strict=True))
        ]
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) > 15


def test_the_views_of_a_crop_are_its_middle_and_its_means():
    crop = np.random.default_rng(0).integers(-1000, 400, [2, SIDE, SIDE, SIDE]).astype(np.int16)
    fine, coarse = split_views(torch.from_numpy(crop))
    np.testing.assert_array_equal(fine, crop[:, 12:36, 12:36, 12:36])
    np.testing.assert_allclose(coarse, crop.reshape(2, 24, 2, 24, 2, 24, 2).mean((2, 4, 6)), atol=0.01)


def test_a_warp_is_that_of_the_scan():
    """A shift, rotation and scale of the stored crop equals a crop cut from a scan with the changed affine."""
    z, y, x = np.indices((70, 70, 70)).astype(np.float64)
    field = 300 * np.sin(x / 9) + 200 * np.cos(y / 7 + z / 11)
    image = np.rint(field).astype(np.int16)
    center = (34.5, 34.5, 34.5)
    stored = torch.from_numpy(cut_crop(image, np.eye(4), center, STORED_SIDE))
    angle, scale, shift = np.radians(10), 1.05, np.array([1.5, -2.0, 0.5])
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = torch.from_numpy(np.hstack([scale * turn, shift[:, None]]).astype(np.float32))
    fine = _warp(stored.float(), matrix, 1)
    coarse = _warp(halve(stored.float()[None])[0], matrix, 2)
    # crop offset u -> voxel c + M u + shift; so an affine that maps this voxel to u + c gives the same crop
    back = np.eye(4)
    back[:3, :3] = np.linalg.inv(scale * turn)
    back[:3, 3] = center - back[:3, :3] @ (np.array(center) + shift)
    expected_fine, expected_coarse = split_views(torch.from_numpy(cut_crop(image, back, center))[None])
    np.testing.assert_allclose(fine, expected_fine[0], atol=2)
    # at the corners the warp reaches beyond the margin, where the border of the stored crop repeats; between samples
    # of 2 mm the field is smoothed
    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(coarse[inner], expected_coarse[0][inner], atol=5)


def test_a_shift_reaches_three_millimeters_and_no_farther():
    still = dataclasses.replace(CropConfig(), rotation_degrees=0, scale=0, noise_hu=0, offset_hu=0)
    stored = torch.full([STORED_SIDE] * 3, -1000, dtype=torch.int16)
    stored[30, 30, 30] = 1000
    views = [augment_crop(stored, still, seed)[0] for seed in range(60)]
    places = [np.unravel_index(int(view.argmax()), view.shape) for view in views]
    offsets = np.abs(np.array(places) - (VIEW_SIDE - 1) / 2)
    assert 2.5 <= offsets.max() <= 3.5
    assert MARGIN >= 3


def test_the_lump_in_the_middle_is_measured():
    z, y, x = np.indices([48] * 3) - 23.5
    crop = np.full([48] * 3, -850, dtype=np.int16)
    crop[z**2 + y**2 + x**2 <= 25] = 40
    crop[:, :4] = 40
    assert measure_lump(crop) == pytest.approx(10, abs=0.4)
    assert measure_lump(np.full([48] * 3, -850, dtype=np.int16)) == 0


def test_the_network_has_0_4_million_weights_and_malignancy_has_its_own():
    network = CropNetwork(malignancy=True)
    assert 3e5 < sum(weight.numel() for weight in CropNetwork().parameters()) < 5e5
    nodule_logits, malignancy = network.eval()(torch.zeros(2, 24, 24, 24), torch.zeros(2, 24, 24, 24))
    assert nodule_logits.shape == malignancy.shape == (2,)


@pytest.fixture(scope="module")
def crop_store(tmp_path_factory):
    return make_crop_store(tmp_path_factory.mktemp("crop-store"))


@pytest.fixture(scope="module")
def nodule_run(crop_store, tmp_path_factory):
    run = tmp_path_factory.mktemp("crop-run") / "run"
    train_crops(crop_store, run, QUICK, log=quiet)
    return run


def test_a_run_has_its_metrics_and_samples(crop_store, nodule_run):
    rows = read_rows(nodule_run / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    last = rows[-1]
    for name in ("precision", "recall", "f1", "auc", "auc_size", "positive_correct", "negative_total"):
        assert f"validation_{name}" in last
    samples = read_rows(nodule_run / "samples.csv")
    by_part = {part: {row["case_id"] for row in samples if row["part"] == part} for part in ("train", "validation")}
    assert not by_part["train"] & by_part["validation"]
    assert len(samples) == len(open_store(crop_store)) * 8
    crops = np.load(nodule_run / CROPS, mmap_mode="r")
    assert crops.shape == (len(samples), *[STORED_SIDE] * 3)
    case = open_store(crop_store)[samples[0]["case_id"]]
    point = [float(samples[0][f"{axis}_mm"]) for axis in "xyz"]
    middle = cut_middle(torch.from_numpy(np.array(crops[0]))).numpy()
    np.testing.assert_array_equal(middle, cut_crop(case.image[:], case.affine, point))


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(crop_store, nodule_run, tmp_path, monkeypatch):
    from slicemill.train.crops import loop

    run, steps = tmp_path / "run", []
    take = loop._take_step

    def stop_in_the_second_epoch(training, chosen, place):
        steps.append(place)
        if place[0] == 2:
            raise KeyboardInterrupt
        return take(training, chosen, place)

    monkeypatch.setattr(loop, "_take_step", stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train_crops(crop_store, run, QUICK, log=quiet)
    monkeypatch.undo()
    lines = []
    train_crops(crop_store, run, QUICK, log=lines.append)
    assert lines[0].startswith("continuing after epoch 1")
    one, other = load_file(run / LAST), load_file(nodule_run / LAST)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (run / BEST).read_bytes() == (nodule_run / BEST).read_bytes()


@pytest.mark.slow
def test_malignancy_changes_nothing_of_nodules(crop_store, nodule_run, tmp_path):
    run = tmp_path / "malignancy"
    train_crops(crop_store, run, dataclasses.replace(QUICK, epochs=3), base=nodule_run, log=quiet)
    before, after = load_file(nodule_run / BEST), load_file(run / LAST)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[f"network.{name}"]), name
    own = [name for name in after if name.startswith("network.malignancy.") and name.endswith("weight")]
    assert len(own) == len([name for name in before if name.endswith("weight")])
    for name in own:
        start = name.removeprefix("network.malignancy.").replace("block.", "nodule.")
        assert not torch.equal(after[name], before[start]), name
    assert (run / "split.json").read_text() == (nodule_run / "split.json").read_text()


def test_malignancy_starts_from_no_answer_and_what_is_known_of_nodules(nodule_run):
    """From the answer that all nodules are nodules, its hidden units died in the first steps."""
    views = torch.linspace(-1, 1, 2 * 24**3).reshape(2, 24, 24, 24), torch.zeros(2, 24, 24, 24)
    with torch.no_grad():
        nodule, malignant = load_base(nodule_run, malignancy=True).eval()(*views)
        (before,) = load_base(nodule_run, malignancy=False).eval()(*views)
    assert torch.equal(nodule, before)
    assert malignant.tolist() == [0, 0]


def test_a_folder_of_other_settings_or_points_is_refused(crop_store, nodule_run, tmp_path):
    with pytest.raises(ConfigError, match=r"other settings \(seed 0 -> 7\)"):
        train_crops(crop_store, nodule_run, dataclasses.replace(QUICK, seed=7), log=quiet)
    with pytest.raises(ConfigError, match="another kind"):
        train_crops(crop_store, nodule_run, QUICK, base=shutil.copytree(nodule_run, tmp_path / "copy"), log=quiet)
    with pytest.raises(ConfigError, match="cases or points .* have changed"):
        train_crops(make_crop_store(tmp_path, cases=5), nodule_run, QUICK, log=quiet)
    with pytest.raises(ModelError, match="is not the run of a classifier"):
        train_crops(crop_store, tmp_path / "new", QUICK, base=tmp_path / "nothing", log=quiet)


@pytest.mark.parametrize("seed", range(6))
def test_a_classifier_has_the_split_of_a_segmentation(crop_store, seed):
    """Also where diameters, which a segmentation does not know, are in another order than the masks' volumes."""
    store = FakeStore(open_store(crop_store))
    for number, case in enumerate(list(store.values())):
        size = (3.0, 30.0, 9.0)[number % 3]
        points = [dataclasses.replace(point, diameter_mm=size) for point in case.points]
        store[case.case_id] = SimpleNamespace(case_id=case.case_id, info=case.info, points=points)
    shares = {"validation": 0.3, "test": 0.3, "seed": seed}
    split = choose_crop_split(store, None, dataclasses.replace(CropConfig(), **shares))
    assert split == choose_split(store, None, None, Config(**shares))
    assert split.test


def deal_anew(before, changes):
    """Return a split in which some cases of an earlier one are in another part: case id -> part."""
    parts = {
        part: [one for one in getattr(before, part) if one not in changes] for part in ("train", "validation", "test")
    }
    for case_id, part in changes.items():
        parts[part].append(case_id)
    return Split(**{part: tuple(ids) for part, ids in parts.items()})


def test_malignancy_is_not_judged_on_cases_that_its_base_learned_from(crop_store, nodule_run, tmp_path):
    store = open_store(crop_store)
    before = read_split(nodule_run / "split.json", store.case_ids)
    learned, chose = before.train[0], before.validation[0]
    check_base_split(nodule_run, before, store)
    check_base_split(nodule_run, deal_anew(before, {chose: "train"}), store)  # may be learned now
    for changes, what in (
        ({learned: "validation"}, "who trained this run"),
        ({learned: "test"}, "who trained this run"),
        ({chose: "test"}, "who chose the checkpoint"),
    ):
        with pytest.raises(ConfigError, match=what):
            check_base_split(nodule_run, deal_anew(before, changes), store)
    path = tmp_path / "split.json"
    write_split(path, deal_anew(before, {learned: "validation"}))
    with pytest.raises(ConfigError, match=rf"such as {learned}.*Leave out --split"):
        train_crops(crop_store, tmp_path / "run", QUICK, base=nodule_run, split_file=path, log=quiet)


def test_a_patient_of_the_base_is_known_by_name_bytes_and_voxels_in_another_store(crop_store, nodule_run):
    store = open_store(crop_store)
    before = read_split(nodule_run / "split.json", store.case_ids)
    info = store[before.train[0]].info
    fresh = {
        "patient_id": "new",
        "image": dataclasses.replace(info.image, sha256="0" * 64),
        "fingerprint": "1" * 64,
        "points_sha256": None,
    }

    def check(**same):
        other = dataclasses.replace(info, **{**fresh, **same})
        cases = FakeStore(one=SimpleNamespace(case_id="one", info=other))
        check_base_split(nodule_run, Split(train=("one",), validation=(), test=("one",)), cases)

    check()
    for name in ("patient_id", "image", "fingerprint"):
        with pytest.raises(ConfigError, match="who trained this run, such as one"):
            check(**{name: getattr(info, name)})


def test_a_base_of_malignancy_keeps_its_split(crop_store, nodule_run, tmp_path):
    store = open_store(crop_store)
    base = shutil.copytree(nodule_run, tmp_path / "base")
    write_json(base / "model.json", {**read_json(base / "model.json"), "malignancy": True, "base_sha256": "0" * 64})
    before = read_split(base / "split.json", store.case_ids)
    check_base_split(base, before, store)
    with pytest.raises(ConfigError, match="has malignancy already"):
        check_base_split(base, deal_anew(before, {before.validation[0]: "train"}), store)


def test_cases_without_points_give_no_samples(crop_store):
    store = open_store(crop_store)
    first, second = list(store.values())[:2]
    bare = SimpleNamespace(case_id="bare", points=None, candidates=np.array([[0, 0, 0, 0, 2]], dtype=np.float64))
    cases = {first.case_id: first, second.case_id: second, "bare": bare}
    samples = find_samples(cases, list(cases), QUICK, malignancy=False)
    assert {one.case_id for one in samples.used} == {first.case_id, second.case_id}


def test_an_export_writes_no_crops_into_the_run(crop_store, nodule_run, tmp_path):
    """Whether the run's crops are used, cut again, or cut from a store with other scans under the same names."""
    run = shutil.copytree(nodule_run, tmp_path / "run")
    before = (run / CROPS).read_bytes()
    expected = read_classifier(run, None).crops
    (run / CROPS).unlink()
    assert torch.equal(read_classifier(run, None).crops, expected)
    other = shutil.copytree(crop_store, tmp_path / "other")
    for path in other.rglob("zarr.json"):
        text = path.read_text()
        path.write_text(re.sub(r'("points_sha256": ?")[0-9a-f]{64}', rf"\g<1>{'0' * 64}", text))
    assert points_sha256(open_store(other)) != points_sha256(open_store(crop_store))
    read_classifier(run, other)
    assert not (run / CROPS).exists()
    np.save(run / CROPS, np.zeros_like(np.load(nodule_run / CROPS)))
    assert torch.equal(read_classifier(run, other).crops, expected)  # not those of the run, which has other points
    (run / CROPS).unlink()
    train_crops(crop_store, run, QUICK, log=quiet)
    assert (run / CROPS).read_bytes() == before


def test_crops_of_an_earlier_run_are_not_taken_for_those_of_a_new_one(crop_store, nodule_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(nodule_run / CROPS, run)
    with pytest.raises(ConfigError, match="contains other files of a run"):
        train_crops(crop_store, run, QUICK, log=quiet)


def test_info_describes_a_run_of_a_classifier(nodule_run):
    from slicemill.info import describe, summarize

    lines = "\n".join(describe(summarize(nodule_run)))
    assert "nodule or not" in lines
    assert "2 of 2 epochs" in lines
    assert "validation AUC" in lines


def test_info_names_the_epoch_of_malignancy_that_export_takes(nodule_run, tmp_path):
    from slicemill.info import describe, summarize

    run = tmp_path / "run"
    shutil.copytree(nodule_run, run)
    about = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps(about | {"malignancy": True}))
    (run / "metrics.csv").write_text("epoch,validation_auc,validation_auc_alike\n1,0.9,0.5\n2,0.8,0.7\n")
    assert "0.8000 in epoch 2, 0.7000 among like sizes" in "\n".join(describe(summarize(run)))
    (run / "metrics.csv").write_text("epoch,validation_auc,validation_auc_alike\n1,0.9,\n2,0.8,\n")
    assert "0.9000 in epoch 1" in "\n".join(describe(summarize(run)))


def test_a_store_without_points_is_refused(stored, tmp_path):
    with pytest.raises(StoreError, match="at least 3 patients with points"):
        train_crops(stored, tmp_path / "run", QUICK, log=quiet)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crops", "--width", "8"], "--width: it is an option for slices"),
        (["--malignancy"], "add --crops"),
        (["--crops", "--malignancy"], "needs --from RUN"),
        (["--crops", "--from", "run"], "applies to --crops --malignancy"),
        (["--crops", "--batch", "auto"], "must be a number of crops"),
        (["--crops", "--epochs", "0"], "epochs = 0: must be between 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, tmp_path):
    result = CliRunner().invoke(commands(), ["train", str(tmp_path), str(tmp_path / "run"), *options])
    assert result.exit_code
    assert message in " ".join(f"{result.output} {result.exception}".split())


def test_settings_are_checked_by_name():
    with pytest.raises(UsageError, match=r"shift_mm = 4.0: must be between 0 and 3"):
        CropConfig().replace(shift_mm=4)
    with pytest.raises(UsageError, match="colour: is not a setting of --crops"):
        CropConfig().replace(colour=1)


def run_command(*arguments):
    result = CliRunner().invoke(commands(), [str(one) for one in arguments])
    return result.exit_code, " ".join(f"{result.output} {result.exception or ''}".split())


@pytest.mark.slow
def test_an_exported_classifier_gives_the_networks_probabilities(nodule_run, crop_store, model, tmp_path):
    from slicemill.infer.calibration import NotCalibrated
    from slicemill.infer.network.classifier import open_classifier
    from slicemill.infer.tune_classifier import ChosenThreshold, ClassifierTuning, write_tuning
    from slicemill.store.nodules_file import read_bundle
    from slicemill.train.crops.network import CropGraph

    base, run = nodule_run, tmp_path / "malignancy"
    train_crops(crop_store, run, QUICK, base=base, log=quiet)
    path = tmp_path / "cls.onnx"
    code, text = run_command("export", run, path, "--segmentation", model)
    assert code == 0, text
    assert "(limit 0.001)" in text
    opened = open_classifier(path, "cpu")
    assert opened.gives_malignancy
    assert opened.card.window_hu == (-1000, 400)
    assert opened.card.segmentation_sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert opened.card.mirror is False
    assert opened.card.training["epochs"] == 2
    crops = np.random.default_rng(1).integers(-1100, 900, (5, 48, 48, 48)).astype(np.int16)
    with torch.no_grad():
        expected = CropGraph(load_base(run, malignancy=True), (-1000.0, 400.0)).eval()(torch.from_numpy(crops))
    scores = opened.run(crops)
    np.testing.assert_allclose(scores.nodule, expected[0], atol=1e-3)
    np.testing.assert_allclose(scores.malignancy, expected[1], atol=1e-3)
    assert "thresholds: none; choose them" in text
    chosen = ChosenThreshold(rate=1, threshold=0.5, false_alarms=0, detected=1, nodules=1)
    tuning = ClassifierTuning(calibration=NotCalibrated(reason=""), thresholds=(chosen,))
    write_tuning(path, opened.card, tuning, None)
    code, text = run_command("export", run, path, "--segmentation", model)
    assert "thresholds: those of the replaced file" in text
    kept = open_classifier(path, "cpu").card
    assert (kept.thresholds, kept.sensitivity) == ({"1": 0.5}, {"1": 1.0})
    assert run_command("export", run, path, "--check")[0] == 0
    code, text = run_command("export", base, path, "--check")
    assert code
    assert "the run's network ['nodule']" in text
    bundle = tmp_path / "both.nodules"
    assert run_command("export", base, bundle, "--segmentation", model)[0] == 0
    assert read_bundle(bundle).segmentation == model.read_bytes()


def test_options_of_the_other_kind_are_refused_at_export(nodule_run, model, tmp_path):
    code, text = run_command("export", nodule_run, tmp_path / "c.onnx", "--fp16")
    assert code
    assert "--fp16: it is an option for slices" in text
    code, text = run_command("export", nodule_run, tmp_path / "both.nodules")
    assert code
    assert "pass --segmentation" in text
    code, text = run_command("export", nodule_run, tmp_path / "c.onnx", "--mirror")
    assert code
    assert "pass --segmentation" in text
    code, text = run_command("export", nodule_run, tmp_path / "c.onnx", "--segmentation", model, "--mirror")
    assert code
    assert "outputs no probabilities, which --mirror averages" in text
    for words in (["--segmentation", model], ["--mirror"]):
        code, text = run_command("export", tmp_path, tmp_path / "c.onnx", *words)
        assert code
        assert f"{words[0]}: applies to a run of `slicemill train --crops`" in text


@pytest.mark.slow
def test_a_network_that_differs_is_not_written(nodule_run, tmp_path, monkeypatch):
    from slicemill.train.export import crop_model

    monkeypatch.setattr(crop_model, "MAX_DIFFERENCE", -1.0)
    with pytest.raises(ModelError, match="no model was written"):
        crop_model.export_crops(nodule_run, tmp_path / "c.onnx")
    assert not (tmp_path / "c.onnx").exists()
