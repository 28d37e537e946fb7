"""Splits, draws, batches, the network, and runs that are killed."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from slicemill.common.errors import ConfigError, ModelError, StoreError
from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.ct.window import AIR_HU
from slicemill.ingest.discover import discover
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store.reader import open_store
from slicemill.store.split import Split, read_split, write_split
from slicemill.store.tables import read_table
from slicemill.train.config import Config, read_config, to_toml
from slicemill.train.data.dataset import Batches, View
from slicemill.train.data.sampling import ANYWHERE, Box, Pool, SlicePosition, draw, epoch_places
from slicemill.train.loop import finished, train
from slicemill.train.network.losses import dice_and_cross_entropy
from slicemill.train.network.step import build, class_of_value, learning_rate
from slicemill.train.network.unet import UNet, normalize
from slicemill.train.run.checkpoint import LAST, State, load_weights, read_state
from slicemill.train.run.setup import slice_size
from slicemill.train.split import make_folds, make_split
from tests.conftest import TINY

HERE = Path(__file__).parents[2]


def quiet(_line):
    """Say nothing."""


def checkpoint(run):
    """Return every tensor of a run's last checkpoint as bytes, and its losses."""
    tensors = {name: tensor.numpy().tobytes() for name, tensor in load_file(run / LAST).items()}
    return tensors, [row["loss"] for row in read_state(run).rows]


class TestConfig:
    def test_toml_comes_back_as_it_was(self, tmp_path):
        config = Config(
            context=5, max_minutes=2.5, augment=0.0, device="cpu", ignore='un"sure\\to\ttest\n', compile=True
        )
        (tmp_path / "c.toml").write_text(to_toml(config))
        assert read_config(tmp_path / "c.toml") == config

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("contxt = 3", "contxt: is no setting; the settings are context"),
            ("context = 2", "must be 1, 3, 5 or 7"),
            ("size = 100", "must be a multiple of 16"),
            ('batch = "x"', "must be int"),
            ("tumor_share = 0.9", "must not exceed 1"),
            ("window_low = 500.0", "below the upper one"),
            ("validation = 0.9", "must leave patients to train on"),
            ("context = ", "cannot be read as TOML"),
            ("seed = -1", "must not be negative"),
            ("seed = 1267650600228229401496703205376", "below 2\\*\\*63"),
            ("batch = 1000000", "must lie in 1 to 4096"),
            ("crop = 16", "must be a multiple of 16 from 32 to 4096"),
            ("window_low = -inf", "both ends must be finite"),
            ("hard_share = 0.5", "must not exceed 1 together"),
            ('augmentations = "mirror twist"', "may name mirror, move"),
            ("lesion_balance = 2.0", "must lie in 0 to 1"),
            ("tumor_weight = 0", "must lie above 0"),
            ('precision = "fp8"', "must be auto, fp32, bf16 or fp16"),
            ("steps = -1", "must not be negative"),
            ("max_minutes = -1", "must not be negative"),
            ("learning_rate = nan", "must be above 0"),
            ("tumor_share = -0.5", "must not be negative"),
            ("depth = 20000", "must lie in 1 to 6"),
            ('optimizer = "adam"', "must be adamw or sgd"),
            ('decay = "linear"', "must be cosine or poly"),
            ('norm = "group"', "must be batch or instance"),
            ("patience = -1", "must not be negative"),
            ("window_low = 400", "the lower end must be below the upper one"),
        ],
    )
    def test_a_setting_that_cannot_work_is_one_clear_error(self, text, message, tmp_path):
        (tmp_path / "c.toml").write_text(text)
        with pytest.raises(ConfigError, match=f"c.toml: .*{message}"):
            read_config(tmp_path / "c.toml")


def row(case_id, patient=None, tumor=False, sha=None, mask="m"):
    return {
        "case_id": case_id,
        "patient_id": patient or case_id,
        "has_tumor": tumor,
        "tumor_volume_ml": float(tumor),
        "source_sha256": sha or case_id,
        "mask_path": mask,
    }


class TestRecipe:
    def test_a_run_ends_when_it_has_not_become_better_for_so_many_epochs(self):
        config = Config(epochs=100, patience=3)
        assert not finished(State(epoch=5, best_epoch=3), config)
        assert finished(State(epoch=6, best_epoch=3), config)
        assert not finished(State(epoch=6, best_epoch=3), replace(config, patience=0))

    def test_instance_norm_looks_at_each_slice_alone(self):
        torch.manual_seed(0)
        network = build(LITS_LABELS, Config(context=1, width=4, depth=2, norm="instance")).train()
        image = torch.randn(3, 1, 16, 16)
        alone, together = network(image[:1]), network(image)
        assert torch.allclose(alone[0], together[0], atol=1e-5)


class TestFolds:
    def rows(self):
        return [
            {**row(f"c{i}", patient=f"p{i // 2}", sha=f"s{i}"), "tumor_volume_ml": None if i % 7 == 0 else float(i * i)}
            for i in range(40)
        ]

    def test_every_patient_is_tested_once_and_none_is_on_two_sides(self):
        rows = self.rows()
        patient = {r["case_id"]: r["patient_id"] for r in rows}
        for seed in range(20):
            splits = make_folds(rows, folds=4, validation=0.2, seed=seed)
            tested = [case_id for split in splits for case_id in split.test]
            assert sorted(tested) == sorted(patient)
            for split in splits:
                sides = [{patient[case_id] for case_id in part} for part in (split.train, split.validation, split.test)]
                assert all(sides)
                assert sum(map(len, sides)) == len(set.union(*sides))
                assert len(sides[1]) == 4

    def test_the_same_voxels_in_another_file_are_on_one_side(self, collection, tmp_path):
        """3D-IRCADb lies in LiTS: the same scans under other names, compressed otherwise."""
        import gzip
        import shutil

        folder = tmp_path / "scans"
        shutil.copytree(collection, folder)
        for kind in ("volume", "segmentation"):
            (folder / f"{kind}-77.nii.gz").write_bytes(gzip.compress((collection / f"{kind}-0.nii").read_bytes(), 3))
        report = ingest(discover(folder), tmp_path / "store", Params(labels=LITS_LABELS), IngestOptions(workers=1))
        assert report.count("done") == 7
        rows = read_table(tmp_path / "store", "manifest")
        hashes = {r["case_id"]: (r["source_sha256"], r["fingerprint"]) for r in rows}
        assert hashes["volume-0"][0] != hashes["volume-77"][0]
        assert hashes["volume-0"][1] == hashes["volume-77"][1]
        assert len({fingerprint for _, fingerprint in hashes.values()}) == 6
        for seed in range(10):
            for split in [
                *make_folds(rows, folds=3, validation=0.2, seed=seed),
                make_split(rows, validation=0.2, test=0.3, seed=seed),
            ]:
                for part in (split.train, split.validation, split.test):
                    assert ("volume-0" in part) == ("volume-77" in part)

    def test_burdens_are_dealt_out_evenly(self):
        rows = self.rows()
        burden = {r["case_id"]: r["tumor_volume_ml"] or 0.0 for r in rows}
        for seed in range(20):
            means = [
                np.mean([burden[case_id] for case_id in split.test])
                for split in make_folds(rows, folds=4, validation=0.2, seed=seed)
            ]
            assert max(means) < 2.2 * min(means)

    def test_the_same_seed_gives_the_same_folds(self):
        assert make_folds(self.rows(), folds=5, validation=0.1, seed=3) == make_folds(
            self.rows(), folds=5, validation=0.1, seed=3
        )
        assert make_folds(self.rows(), folds=5, validation=0.1, seed=3) != make_folds(
            self.rows(), folds=5, validation=0.1, seed=4
        )

    def test_too_few_patients_are_said(self):
        with pytest.raises(StoreError, match="5 folds need at least 5 patients"):
            make_folds(self.rows()[:6], folds=5, validation=0.1, seed=0)

    def test_the_command_writes_files_that_training_takes(self, stored, tmp_path):
        words = [sys.executable, "-m", "slicemill", "split", str(stored), str(tmp_path), "--folds", "3"]
        done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True)
        assert done.stdout.count("fold-") == 3
        known = open_store(stored).case_ids
        tested = [case_id for fold in range(3) for case_id in read_split(tmp_path / f"fold-{fold}.json", known).test]
        assert sorted(tested) == sorted(known)


class TestSplit:
    def test_no_patient_and_no_copy_of_a_scan_is_on_two_sides(self):
        rows = [
            row(
                f"c{i}",
                patient=f"p{i // 2}",
                sha=f"s{max(i, 2 * (i // 3))}" if i % 5 else f"s{i - i % 2}",
                tumor=i % 3 == 0,
            )
            for i in range(40)
        ]
        rows += [row("copy-a", patient="pa", sha="s3"), row("copy-b", patient="pa", sha="s21")]
        for seed in range(20):
            split = make_split(rows, validation=0.2, test=0.3, seed=seed)
            sides = [set(split.train), set(split.validation), set(split.test)]
            assert sum(map(len, sides)) == 42 == len(set.union(*sides))
            for name in ("patient_id", "source_sha256"):
                of_side = [{r[name] for r in rows if r["case_id"] in side} for side in sides]
                assert sum(map(len, of_side)) == len(set.union(*of_side)), name

    def test_a_part_that_would_be_empty_is_given_a_whole_patient(self):
        rows = [row(f"c{i}", patient=f"p{i // 2}") for i in range(6)]
        for seed in range(10):
            split = make_split(rows, validation=0.05, test=0.05, seed=seed)
            patients = [
                {int(case_id[1:]) // 2 for case_id in side} for side in (split.train, split.validation, split.test)
            ]
            assert patients[0]
            assert patients[1]
            assert sum(map(len, patients)) == 3

    def test_tumor_and_no_tumor_are_shared_out_alike(self):
        rows = [row(f"c{i}", tumor=i < 20) for i in range(40)]
        split = make_split(rows, validation=0.25, test=0.25, seed=0)
        for side in (split.validation, split.test):
            assert len(side) == 10
            assert sum(int(case_id[1:]) < 20 for case_id in side) == 5

    def test_burdens_are_shared_out_alike(self):
        rows = [{**row(f"c{i}", tumor=i >= 10), "tumor_volume_ml": 1.5**i if i >= 10 else None} for i in range(50)]
        of = {r["case_id"]: r["tumor_volume_ml"] for r in rows}
        chosen = set()
        for seed in range(20):
            split = make_split(rows, validation=0.2, test=0.2, seed=seed)
            for part in (split.validation, split.test):
                burdens = [of[case_id] for case_id in part]
                assert burdens.count(None) == 2
                quarters = [sum(1.5**low <= b < 1.5 ** (low + 10) for b in burdens if b) for low in (10, 20, 30, 40)]
                assert quarters == [2, 2, 2, 2]
            chosen.add(split.test)
        assert len(chosen) == 20

    def test_the_seed_decides(self):
        rows = [row(f"c{i}") for i in range(20)]
        assert make_split(rows, validation=0.2, test=0.2, seed=1) == make_split(rows, validation=0.2, test=0.2, seed=1)
        assert make_split(rows, validation=0.2, test=0.2, seed=1) != make_split(rows, validation=0.2, test=0.2, seed=2)

    def test_three_patients_give_three_parts_and_two_are_too_few(self):
        split = make_split([row("a"), row("b"), row("c")], validation=0.15, test=0.2, seed=0)
        assert all(map(len, (split.train, split.validation)))
        with pytest.raises(StoreError, match="at least 3 patients with a mask"):
            make_split([row("a"), row("b"), row("c", mask=None)], validation=0.15, test=0.2, seed=0)

    def test_a_split_file_is_checked(self, tmp_path):
        path = tmp_path / "split.json"
        split = Split(train=("a",), validation=("b",), test=("c",))
        write_split(path, split)
        assert read_split(path, ["a", "b", "c"]) == split
        with pytest.raises(ConfigError, match="cases that the store does not have: c"):
            read_split(path, ["a", "b"])
        write_split(path, Split(train=("a",), validation=("a",), test=()))
        with pytest.raises(ConfigError, match="stands in two parts"):
            read_split(path, ["a"])
        for text in ('{"train": [["a"]], "validation": ["b"]}', '{"train": ["a"], "validation": [2]}', "[1]", '"x"'):
            path.write_text(text)
            with pytest.raises(ConfigError, match="lists train, validation and test"):
                read_split(path, ["a", "b"])
        path.write_text('{"train": 1}')
        with pytest.raises(ConfigError, match="lists train, validation and test"):
            read_split(path, [])
        write_split(path, Split(train=(), validation=("a",), test=()))
        with pytest.raises(ConfigError, match="must each name at least one case"):
            read_split(path, ["a"])


class TestSampling:
    def pool(self, stored, config=None):
        return Pool(read_table(stored, "slices"), read_table(stored, "lesions"), LITS_LABELS, config or Config())

    def test_the_stated_share_holds_tumor(self, stored):
        tumor = {(r["case_id"], r["z"]) for r in read_table(stored, "slices") if r["has_tumor"]}
        config = Config(batch=10, steps=20, tumor_share=0.5, organ_share=0.0)
        places = epoch_places(self.pool(stored), config, 1)
        assert len(places) == 200
        assert sum((place.case_id, place.z) in tumor for place in places) >= 100
        aimed = [place for place in places if place.aim not in (None, ANYWHERE)]
        assert len(aimed) == 100
        boxes = {
            (r["case_id"], z, Box(r["bbox_y0"], r["bbox_x0"], r["bbox_y1"], r["bbox_x1"]))
            for r in read_table(stored, "lesions")
            for z in range(r["bbox_z0"], r["bbox_z1"])
        }
        assert all(tuple(place) in boxes for place in aimed)

    def test_it_is_a_function_of_seed_and_epoch(self, stored):
        pool, config = self.pool(stored), Config(batch=4, steps=5)
        assert epoch_places(pool, config, 3) == epoch_places(pool, config, 3)
        assert epoch_places(pool, config, 3) != epoch_places(pool, config, 4)
        assert epoch_places(pool, config, 3) != epoch_places(pool, replace(config, seed=1), 3)

    def test_without_any_tumor_every_slice_may_come(self, stored):
        rows = [r for r in read_table(stored, "slices") if not r["has_tumor"]]
        config = Config(batch=len(rows), steps=1, organ_share=0.0)
        places = epoch_places(Pool(rows, [], LITS_LABELS, config), config, 1)
        assert len(set(places)) == len(rows)

    @pytest.mark.parametrize(("balance", "share"), [(0.0, 3 / 63), (1.0, 0.5), (0.5, 3**0.5 / (3**0.5 + 60**0.5))])
    def test_small_lesions_are_not_drowned_by_large_ones(self, balance, share):
        slices = [{"case_id": "c", "z": z, "has_tumor": z < 60 or 70 <= z < 73, "voxels_tumor": 1} for z in range(80)]
        box = {"bbox_y0": 0, "bbox_x0": 0, "bbox_y1": 9, "bbox_x1": 9, "case_id": "c"}
        lesions = [{**box, "bbox_z0": 0, "bbox_z1": 60}, {**box, "bbox_z0": 70, "bbox_z1": 73}]
        config = Config(batch=100, steps=10, tumor_share=1.0, organ_share=0.0, lesion_balance=balance)
        places = epoch_places(Pool(slices, lesions, LITS_LABELS, config), config, 1)
        assert sum(place.z >= 70 for place in places) / 1000 == pytest.approx(share, abs=0.005)

    def test_hard_slices_come_as_often_as_their_loss_says(self, stored):
        pool = self.pool(stored)
        config = Config(batch=50, steps=40, tumor_share=0.0, organ_share=0.0, hard_share=1.0)
        losses = np.full(len(pool.places), 0.01, np.float32)
        losses[7] = losses.sum()
        losses[9] = np.nan
        places = epoch_places(pool, config, 1, losses)
        assert sum(tuple(place[:2]) == pool.places[7] for place in places) == pytest.approx(1000, rel=0.05)
        assert any(tuple(place[:2]) == pool.places[9] for place in places)
        never = epoch_places(pool, config, 1, np.full(len(pool.places), np.nan, np.float32))
        assert {place[:2] for place in never} == set(pool.places)

    def test_nothing_comes_again_before_all_of_its_weight_came(self):
        for count in (3, 10, 25):
            drawn = np.bincount(draw(np.ones(10), count, np.random.default_rng(count)), minlength=10)
            assert drawn.sum() == count
            assert drawn.max() - drawn.min() <= 1


class TestBatches:
    @pytest.mark.parametrize("threads", [1, 3, 16])
    def test_a_batch_is_the_stored_slices_with_their_neighbours(self, threads, stored):
        store = open_store(stored)
        places = [SlicePosition("volume-1", z) for z in (0, 20, len(store["volume-1"].image) - 1)] + [
            SlicePosition("volume-3", 7)
        ]
        batches = Batches(store, View(size=(64, 64), context=5), 4, threads)
        with batches.over(places, (0, 0)) as stream:
            (batch,) = list(stream)
        for index, (case_id, z, _) in enumerate(places):
            image, label = store[case_id].image, store[case_id].label
            around = np.clip(np.arange(z - 2, z + 3), 0, len(image) - 1)
            assert np.array_equal(batch.image[index], np.stack([image[int(n)] for n in around]))
            assert np.array_equal(batch.label[index, 0], label[z])

    def test_neighbors_may_be_chosen_in_millimetres(self, stored):
        store = open_store(stored)
        case = store["volume-1"]
        step = case.info.spacing_mm[0]
        with Batches(store, View(size=(64, 64), context=3, context_spacing_mm=2.4 * step), 1).over(
            [SlicePosition("volume-1", 10)], (0, 0)
        ) as stream:
            (batch,) = list(stream)
        assert np.array_equal(batch.image[0], np.stack([case.image[z] for z in (8, 10, 12)]))

    def test_label_values_become_class_indices(self):
        table = class_of_value(make_labels({"liver": 7, "tumor": 200}), torch.device("cpu"))
        assert table[torch.tensor([0, 7, 200, 3])].tolist() == [0, 1, 2, 0]

    @pytest.mark.parametrize("size", [(64, 64), (48, 32), (80, 96)])
    def test_batches_do_not_depend_on_the_number_of_threads(self, size, stored):
        store = open_store(stored)
        places = [SlicePosition(row["case_id"], row["z"]) for row in read_table(stored, "slices")][:90]
        found = []
        for threads in (1, 2, 7):
            with Batches(store, View(size=size, context=3), 4, threads).over(places, (3, 5)) as stream:
                found.append([(batch.image.copy(), batch.label.copy(), list(batch.places)) for batch in stream])
        assert len(found[0]) == 22
        for other in found[1:]:
            for one, two in zip(found[0], other, strict=True):
                assert np.array_equal(one[0], two[0])
                assert np.array_equal(one[1], two[1])
                assert one[2] == two[2]

    def test_a_stream_that_is_left_early_leaves_no_thread(self, stored):
        import threading

        store = open_store(stored)
        with Batches(store, View(size=(64, 64), context=1), 2, 3).over(
            [SlicePosition("volume-1", z % 20) for z in range(200)], (0, 0)
        ) as stream:
            next(stream)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("slice loader")]

    def test_small_slices_are_padded_with_air(self, stored):
        store = open_store(stored)
        batches = Batches(store, View(size=(80, 80), context=1), 1)
        tumor = next(r for r in read_table(stored, "slices") if r["has_tumor"] and r["case_id"] == "volume-1")
        with batches.over([SlicePosition("volume-1", tumor["z"])], (0, 0)) as stream:
            (batch,) = list(stream)
        assert np.array_equal(batch.label[0, 0, 8:72, 8:72], store["volume-1"].label[tumor["z"]])
        assert (batch.image[0, 0, :8] == AIR_HU).all()

    def test_crops_hold_what_they_aim_at(self, stored):
        store = open_store(stored)
        lesions = read_table(stored, "lesions")
        aims = [
            (row["case_id"], row["key_z"], Box(*(row[f"bbox_{end}"] for end in ("y0", "x0", "y1", "x1"))))
            for row in lesions
        ]
        places = [SlicePosition(*aim) for aim in aims for _ in range(8)]
        batches = Batches(store, View(size=(16, 16)), len(places))
        with batches.over(places, (0, 0)) as stream:
            (batch,) = list(stream)
        corners = []
        for place, label, image in zip(places, batch.label[:, 0], batch.image[:, 0], strict=True):
            whole = store[place.case_id].image[place.z]
            found = [
                (y, x)
                for y in range(whole.shape[0] - 15)
                for x in range(whole.shape[1] - 15)
                if np.array_equal(whole[y : y + 16, x : x + 16], image)
            ]
            ((y, x),) = found
            assert place.aim.y0 - 16 < y < place.aim.y1
            assert place.aim.x0 - 16 < x < place.aim.x1
            assert np.array_equal(store[place.case_id].label[place.z][y : y + 16, x : x + 16], label)
            corners.append((y, x))
        assert len(set(corners[:8])) > 3

    def test_a_crop_without_an_aim_holds_a_labelled_pixel(self, stored):
        rows = [row for row in read_table(stored, "slices") if row["voxels_liver"]]
        batches = Batches(open_store(stored), View(size=(16, 16)), len(rows))
        with batches.over([SlicePosition(row["case_id"], row["z"]) for row in rows], (0, 0)) as stream:
            (batch,) = list(stream)
        assert batch.label.any(axis=(1, 2, 3)).all()

    def test_an_epoch_may_begin_anywhere_and_be_shared_out(self, stored):
        store = open_store(stored)
        places = [SlicePosition(row["case_id"], row["z"], ANYWHERE) for row in read_table(stored, "slices")][:60]
        view = View(size=(32, 32), context=3)

        def all_of(count, **how):
            with Batches(store, view, count, 2).over(places, (1, 2), **how) as stream:
                return [(batch.image.copy(), batch.label.copy(), list(batch.places)) for batch in stream]

        whole = all_of(4)
        for one, other in zip(whole[5:], all_of(4, first=5), strict=True):
            assert np.array_equal(one[0], other[0])
            assert np.array_equal(one[1], other[1])
            assert one[2] == other[2]
        halves = all_of(2, share=(0, 2)), all_of(2, share=(1, 2))
        for one, first, second in zip(whole, *halves, strict=True):
            assert np.array_equal(one[0], np.concatenate([first[0], second[0]]))
            assert one[2] == first[2] + second[2]

    def test_slabs_for_tilted_planes_hold_images_and_labels(self, stored):
        store = open_store(stored)
        case = store["volume-1"]
        with Batches(store, View(size=(64, 64), context=3, reach=2), 1).over(
            [SlicePosition("volume-1", 10)], (0, 0)
        ) as stream:
            (batch,) = list(stream)
        assert np.array_equal(batch.image[0], np.stack([case.image[z] for z in range(7, 14)]))
        assert np.array_equal(batch.label[0], np.stack([case.label[z] for z in range(8, 13)]))

    def test_slices_to_be_resampled_come_with_their_zoom_and_room_around(self, stored):
        store = open_store(stored)
        case = store["volume-1"]
        own = case.info.spacing_mm[1]
        view = View(size=(32, 32), spacing_mm=own / 2, stored=(20, 20))
        with Batches(store, view, 1).over([SlicePosition("volume-1", 10, ANYWHERE)], (0, 0)) as stream:
            (batch,) = list(stream)
        assert batch.zoom.tolist() == [[2.0, 2.0]]
        assert batch.image.shape == (1, 1, 20, 20)
        whole = case.image[10]
        assert any(
            np.array_equal(whole[y : y + 16, x : x + 16], batch.image[0, 0, 2:18, 2:18])
            for y in range(49)
            for x in range(49)
        )

    def test_a_damaged_slice_stops_the_stream_with_its_name(self, stored, tmp_path):
        import shutil

        copy = shutil.copytree(stored, tmp_path / "copy")
        (copy / "scans.zarr/volume-1/image/c/0/0/0").write_bytes(b"short")
        batches = Batches(open_store(copy), View(size=(64, 64)), 1)
        with (
            batches.over([SlicePosition("volume-1", 0)], (0, 0)) as stream,
            pytest.raises(StoreError, match="volume-1"),
        ):
            list(stream)


class TestNetwork:
    def test_it_keeps_the_size_and_has_a_logit_per_class(self):
        network = UNet(channels=3, classes=4, width=4, depth=3)
        assert network(torch.zeros(2, 3, 32, 48)).shape == (2, 4, 32, 48)

    def test_the_window_maps_to_minus_one_and_one(self):
        assert normalize(torch.tensor([-9000, -200, 50, 300, 9000], dtype=torch.int16), -200, 300).tolist() == [
            -1,
            -1,
            0,
            1,
            1,
        ]

    def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_much(self):
        label = torch.zeros(2, 8, 8, dtype=torch.long)
        label[:, 2:6, 2:6] = 1
        right = F.one_hot(label, 3).movedim(-1, 1).float() * 50
        assert dice_and_cross_entropy(right, label, torch.ones(3))[0] < 0.05
        assert dice_and_cross_entropy(-right, label, torch.ones(3))[0] > 5

    def test_a_batch_without_labels_has_a_finite_loss_and_gradient(self):
        logits = torch.zeros(1, 3, 8, 8, requires_grad=True)
        loss, _ = dice_and_cross_entropy(logits, torch.zeros(1, 8, 8, dtype=torch.long), torch.ones(3))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()

    def test_the_learning_rate_rises_and_falls_to_nothing(self):
        config = Config(learning_rate=1.0)
        rates = [learning_rate(config, done) for done in np.linspace(0, 1, 101)]
        assert rates[0] == pytest.approx(0.1)
        assert max(rates) == pytest.approx(1.0)
        assert rates[-1] == pytest.approx(0.0, abs=1e-9)

    def test_slices_are_brought_to_a_multiple_that_holds_the_largest(self, stored):
        cases = list(open_store(stored))
        assert {case.image.shape[1:] for case in cases} == {(64, 64), (48, 64)}
        assert slice_size(cases, Config(depth=4)) == (64, 64)
        assert slice_size(cases, Config(depth=5, size=96)) == (96, 96)


class TestRun:
    def test_a_run_folder_explains_itself(self, trained):
        names = {path.name for path in trained.iterdir()}
        assert {
            "config.toml",
            "split.json",
            "model.json",
            "best.safetensors",
            "last.safetensors",
            "metrics.csv",
            "curves.png",
            "environment.json",
            "cases.csv",
            "worst.png",
            "best.png",
            "report.html",
        } <= names
        assert any(name.startswith("events.out.tfevents") for name in names)
        assert (trained / "metrics.csv").read_text().count("\n") == 1 + TINY.epochs
        assert (trained / "curves.png").read_bytes()[:4] == b"\x89PNG"

    def test_the_loss_falls(self, trained):
        first, last = read_state(trained).rows[0], read_state(trained).rows[-1]
        assert last["loss"] < first["loss"]

    def test_a_finished_run_is_left_alone(self, stored, trained):
        before = (trained / "last.safetensors").read_bytes()
        assert train(stored, trained, TINY, tell=quiet).epoch == TINY.epochs
        assert (trained / "last.safetensors").read_bytes() == before

    def test_other_settings_in_the_same_folder_are_refused(self, stored, trained):
        with pytest.raises(ConfigError, match=r"run of other settings \(context 3 -> 5\)"):
            train(stored, trained, replace(TINY, context=5), tell=quiet)

    def test_another_split_for_a_run_that_was_begun_is_refused(self, stored, trained, tmp_path):
        split = read_split(trained / "split.json", open_store(stored).case_ids)
        write_split(tmp_path / "other.json", Split(train=split.train, validation=split.test, test=split.validation))
        with pytest.raises(ConfigError, match="begun with another split"):
            train(stored, trained, TINY, split_file=tmp_path / "other.json", tell=quiet)

    def test_overwrite_with_a_wrong_setting_removes_nothing(self, stored, trained, tmp_path):
        import shutil

        run = shutil.copytree(trained, tmp_path / "run")
        words = [sys.executable, "-m", "slicemill", "train", str(stored), str(run), "--overwrite", "--context", "4"]
        done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "must be 1, 3, 5 or 7" in done.stderr
        assert (run / "best.safetensors").exists()

    def test_overwrite_removes_a_run_and_nothing_beside_it(self, trained, tmp_path):
        import shutil

        from slicemill.train.run.setup import remove_run

        run = shutil.copytree(trained, tmp_path / "run")
        (run / "thesis.txt").write_text("mine")
        remove_run(run)
        assert [path.name for path in run.iterdir()] == ["thesis.txt"]
        with pytest.raises(ConfigError, match="is not the folder of a run"):
            remove_run(run)

    @pytest.mark.slow
    def test_a_run_killed_at_twenty_random_moments_ends_as_an_undisturbed_one(self, stored, tmp_path):
        config = replace(TINY, epochs=5, steps=40, batch=4, seed=3, hard_share=0.2, save_minutes=1e-6)
        (tmp_path / "c.toml").write_text(to_toml(config))
        words = [sys.executable, "-c", KILLED, str(stored), str(tmp_path)]
        done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True)
        moments = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
        assert len(moments) == 20
        assert len(set(moments)) > 5  # it got on, within epochs
        assert checkpoint(tmp_path / "killed") == checkpoint(tmp_path / "whole")

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_run_that_is_asked_to_stop_keeps_what_it_did(self, number, stored, tmp_path):
        config = replace(TINY, epochs=400, steps=50, batch=4)
        (tmp_path / "c.toml").write_text(to_toml(config))
        run = tmp_path / "run"
        words = [
            sys.executable,
            "-m",
            "slicemill",
            "train",
            str(stored),
            str(run),
            "--config",
            str(tmp_path / "c.toml"),
        ]
        process = subprocess.Popen(words, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.time() + 120
        while not (run / LAST).exists() and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        if number == signal.SIGTERM:
            process.send_signal(number)  # a scheduler sends one, and torchrun another
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "the same command goes on from there" in said
        state = read_state(run)
        assert state.epoch >= 1
        assert state.tally is not None

    def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(self, stored, tmp_path, monkeypatch):
        import errno

        import slicemill.train.run.checkpoint as module

        run = tmp_path / "run"
        train(stored, run, replace(TINY, epochs=1), tell=quiet)
        (run / "config.toml").write_text(to_toml(replace(TINY, epochs=2)))
        before = checkpoint(run)

        def full(_tensors, aside, metadata=None):
            Path(aside).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(module, "save_file", full)
            with pytest.raises(OSError, match="No space left"):
                train(stored, run, replace(TINY, epochs=2), tell=quiet)
        assert checkpoint(run) == before
        assert not [path.name for path in run.iterdir() if path.name.startswith(".")]
        train(stored, run, replace(TINY, epochs=2), tell=quiet)
        assert read_state(run).epoch == 2

    def test_another_store_for_a_run_that_was_begun_is_refused(self, stored, trained, tmp_path):
        import shutil

        copy = shutil.copytree(stored, tmp_path / "copy")
        shutil.rmtree(copy / "scans.zarr" / "volume-5")
        with pytest.raises(ConfigError, match="was begun on other cases"):
            train(copy, trained, TINY, tell=quiet)

    def test_a_damaged_checkpoint_is_one_clear_error(self, trained, tmp_path):
        network = build(_labels(), TINY)
        (tmp_path / "best.safetensors").write_bytes(b"nonsense")
        with pytest.raises(ModelError, match="is not a checkpoint"):
            load_weights(tmp_path / "best.safetensors", network)
        with pytest.raises(ModelError, match="is not a checkpoint"):
            load_weights(trained / "best.safetensors", build(_labels(), replace(TINY, width=8)))
        with pytest.raises(ModelError, match="holds no checkpoint"):
            read_state(tmp_path)

    def test_a_run_without_a_finished_epoch_is_not_exported(self, stored, trained, tmp_path):
        import shutil

        from slicemill.train.export.model_file import export

        run = shutil.copytree(trained, tmp_path / "run")
        state = read_state(run)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                "slicemill.train.export.model_file.read_state",
                lambda _run: replace(state, epoch=0, best_epoch=0, rows=[]),
            )
            with pytest.raises(ModelError, match="no epoch of it is finished yet"):
                export(run, tmp_path / "m.onnx")
        (run / "model.json").write_text('{"size": [1000000000, 1000000000], "store": "x", "store_sha256": "y"}')
        with pytest.raises(ModelError, match="is not what a run writes"):
            export(run, tmp_path / "m.onnx")
        assert not (tmp_path / "m.onnx").exists()

    def test_a_state_that_no_run_has_written_is_refused(self):
        for damage in ({"epoch": "3"}, {"rows": 1}, {"tally": {"losses": []}}, {"seconds": None}):
            with pytest.raises(TypeError):
                State(**damage)

    def test_what_a_kill_kept_from_being_written_is_written_by_the_next_run(self, stored, tmp_path):
        """Killed right after the checkpoint of its best and last epoch: weights, table and report follow."""
        from slicemill.train import loop

        run, config = tmp_path / "run", replace(TINY, epochs=1)
        with pytest.MonkeyPatch.context() as patched:

            def killed(*_given):
                raise KeyboardInterrupt

            patched.setattr(loop, "save_weights", killed)
            with pytest.raises(KeyboardInterrupt):
                train(stored, run, config, tell=quiet)
        assert not (run / "best.safetensors").exists()
        assert train(stored, run, config, tell=quiet).epoch == 1
        assert (run / "metrics.csv").read_text().count("\n") == 2
        assert (run / "report.html").exists()
        best = load_file(run / "best.safetensors")
        last = load_file(run / LAST)
        assert all(torch.equal(tensor, last[f"average.module.{name}"]) for name, tensor in best.items())

    def test_a_store_without_tumors_trains_on_what_it_has(self, stored, tmp_path):
        config = replace(TINY, epochs=1, steps=2, ignore="tumor", hard_share=0.2)
        state = train(stored, tmp_path / "run", config, tell=quiet)
        assert "train_dice_tumor" not in state.rows[0]
        assert np.isfinite(state.rows[0]["loss"])

    def test_a_store_without_masks_is_one_clear_error(self, tmp_path, collection):
        from slicemill.ingest.discover import from_patterns
        from slicemill.ingest.params import Params
        from slicemill.ingest.pipeline import IngestOptions, ingest

        ingest(
            from_patterns(f"{collection}/volume-*.nii", None),
            tmp_path / "store",
            Params(labels=None),
            IngestOptions(workers=1),
        )
        with pytest.raises(StoreError, match="no case has a mask"):
            train(tmp_path / "store", tmp_path / "run", TINY, tell=quiet)

    def test_a_device_that_is_not_there_is_named(self, stored, tmp_path):
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        with pytest.raises(ConfigError, match="device cuda: cannot be used here"):
            train(stored, tmp_path / "run", replace(TINY, device="cuda"), tell=quiet)

    def test_time_is_a_limit(self, stored, tmp_path):
        start = time.time()
        state = train(stored, tmp_path / "run", replace(TINY, epochs=10_000, max_minutes=0.05), tell=quiet)
        assert state.epoch < 1000
        assert time.time() - start < 60


KILLED = """
import os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path
from torch.utils.tensorboard import SummaryWriter
from slicemill.train.run.checkpoint import LAST, read_state
from slicemill.train.config import read_config
from slicemill.train.loop import train

store, folder = map(Path, sys.argv[1:])
run, config = folder / "killed", read_config(folder / "c.toml")
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

def go(run, config):
    pid = os.fork()
    if not pid:
        train(store, run, config, tell=lambda line: None)
        os._exit(0)
    return pid

dice = random.Random(5)
for kill in range(20):
    before = (run / LAST).stat().st_mtime_ns if (run / LAST).exists() else 0
    pid = go(run, config)
    deadline = time.time() + 60
    while kill % 4 and time.time() < deadline:  # every fourth is killed whether it got on or not
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break  # on a fast machine the run has ended
        if (run / LAST).exists() and (run / LAST).stat().st_mtime_ns != before:
            break
        time.sleep(0.001)
    time.sleep(dice.uniform(0, 0.5))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    state = read_state(run) if (run / LAST).exists() else None
    print(state.epoch if state else 0, len(state.tally["losses"]) if state and state.tally else 0)
assert os.waitpid(go(run, config), 0)[1] == 0
assert os.waitpid(go(folder / "whole", replace(config, save_minutes=0.0)), 0)[1] == 0
"""


def _labels():
    from slicemill.ct.labels import LITS_LABELS

    return LITS_LABELS
