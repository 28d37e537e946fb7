"""Splits, draws, batches, augmentation, the network, and runs that are killed."""

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

from ingest.discover import discover
from ingest.params import Params
from ingest.pipeline import Options, ingest
from store.errors import ConfigError, ModelError, StoreError
from store.labels import LITS_LABELS, make_labels
from store.layout import AIR_HU
from store.manifest import read_table
from store.reader import open_store
from tests.conftest import TINY
from train.augment import augment, move, shade
from train.checkpoint import LAST, State, load_weights, read_state
from train.config import Config, read_config, to_toml
from train.dataset import Batches
from train.loop import finished, train
from train.losses import dice_and_cross_entropy
from train.sampling import epoch_places
from train.setup import slice_size
from train.split import Split, make_folds, make_split, read_split, write_split
from train.step import build, class_of_value, learning_rate
from train.unet import UNet, normalize

HERE = Path(__file__).parents[2]


def quiet(_line):
    """Say nothing."""


class TestConfig:
    def test_toml_comes_back_as_it_was(self, tmp_path):
        config = Config(context=5, max_minutes=2.5, augment=0.0, device="cpu")
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
            ("steps = -1", "must not be negative"),
            ("max_minutes = -1", "must not be negative"),
            ("learning_rate = nan", "must be above 0"),
            ("tumor_share = -0.5", "must not be negative"),
            ("depth = 20000", "must lie in 1 to 6"),
            ('optimizer = "adam"', "must be adamw or sgd"),
            ('decay = "linear"', "must be cosine or poly"),
            ('norm = "group"', "must be batch or instance"),
            ("patience = -1", "must not be negative"),
        ],
    )
    def test_a_setting_that_cannot_work_is_one_clear_error(self, text, message, tmp_path):
        (tmp_path / "c.toml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_config(tmp_path / "c.toml")


def row(case_id, patient=None, tumor=False, sha=None, mask="m"):
    return {
        "case_id": case_id,
        "patient_id": patient or case_id,
        "has_tumor": tumor,
        "source_sha256": sha or case_id,
        "mask_path": mask,
    }


class TestRecipe:
    def test_a_run_ends_when_it_has_not_become_better_for_so_many_epochs(self):
        config = Config(epochs=100, patience=3)
        assert not finished(State(epoch=5, best_epoch=3), config)
        assert finished(State(epoch=6, best_epoch=3), config)
        assert not finished(State(epoch=6, best_epoch=3), replace(config, patience=0))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "changes", [{"optimizer": "sgd", "decay": "poly", "learning_rate": 1e-2}, {"norm": "instance"}]
    )
    def test_a_stopped_run_of_any_recipe_goes_on_bit_for_bit(self, changes, stored, tmp_path):
        from train.loop import one_epoch

        config = replace(TINY, epochs=2, steps=3, **changes)
        train(stored, tmp_path / "whole", config, tell=lambda _: None)

        def stop_after_one(setup, learner, state):
            if state.epoch == 1:
                raise KeyboardInterrupt
            return one_epoch(setup, learner, state)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("train.loop.one_epoch", stop_after_one)
            with pytest.raises(KeyboardInterrupt):
                train(stored, tmp_path / "stopped", config, tell=lambda _: None)
        train(stored, tmp_path / "stopped", config, tell=lambda _: None)
        whole, gone_on = load_file(tmp_path / "whole" / LAST), load_file(tmp_path / "stopped" / LAST)
        assert whole.keys() == gone_on.keys()
        assert all(torch.equal(whole[name], gone_on[name]) for name in whole)

    def test_instance_norm_looks_at_each_slice_alone(self):
        torch.manual_seed(0)
        network = build(LITS_LABELS, Config(context=1, width=4, depth=2, norm="instance")).train()
        image = torch.randn(3, 1, 16, 16)
        alone, together = network(image[:1]), network(image)
        assert torch.allclose(alone[0], together[0], atol=1e-5)


class TestGallery:
    def test_it_shows_every_change_of_slices_with_labels(self, stored, tmp_path):
        from PIL import Image

        words = [
            sys.executable,
            "-m",
            "slicemill",
            "gallery",
            str(stored),
            "--out",
            str(tmp_path / "g.png"),
            "--augment",
            "1",
        ]
        done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True)
        assert done.stdout == f"gallery: {tmp_path / 'g.png'}\n"
        with Image.open(tmp_path / "g.png") as picture:
            width, height = picture.size
            rows = np.asarray(picture.convert("RGB")).reshape(height, width, 3)
        assert width > height > 4 * 64
        quarters = [rows[part * height // 4 : (part + 1) * height // 4] for part in range(4)]
        for part in quarters:  # tumor and liver are outlined in every row
            assert (np.ptp(part.astype(int), axis=2) > 60).any()
        assert not np.array_equal(quarters[0][: min(map(len, quarters))], quarters[1][: min(map(len, quarters))])


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
        report = ingest(discover(folder), tmp_path / "store", Params(labels=LITS_LABELS), Options(workers=1))
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
        path.write_text('{"train": 1}')
        with pytest.raises(ConfigError, match="lists train, validation and test"):
            read_split(path, [])
        write_split(path, Split(train=(), validation=("a",), test=()))
        with pytest.raises(ConfigError, match="must each name at least one case"):
            read_split(path, ["a"])


class TestSampling:
    def rows(self, stored):
        return read_table(stored, "slices")

    def test_the_stated_share_holds_tumor(self, stored):
        rows = self.rows(stored)
        tumor = {(r["case_id"], r["z"]) for r in rows if r["has_tumor"]}
        places = epoch_places(rows, Config(batch=10, steps=20, tumor_share=0.5, organ_share=0.0), 1)
        assert len(places) == 200
        assert sum(place in tumor for place in places) >= 100

    def test_it_is_a_function_of_seed_and_epoch(self, stored):
        rows, config = self.rows(stored), Config(batch=4, steps=5)
        assert epoch_places(rows, config, 3) == epoch_places(rows, config, 3)
        assert epoch_places(rows, config, 3) != epoch_places(rows, config, 4)
        assert epoch_places(rows, config, 3) != epoch_places(rows, replace(config, seed=1), 3)

    def test_without_any_tumor_every_slice_may_come(self, stored):
        rows = [r for r in self.rows(stored) if not r["has_tumor"]]
        places = epoch_places(rows, Config(batch=len(rows), steps=1, organ_share=0.0), 1)
        assert len(set(places)) == len(rows)


class TestBatches:
    @pytest.mark.parametrize("threads", [1, 3, 16])
    def test_a_batch_is_the_stored_slices_with_their_neighbours(self, threads, stored):
        store = open_store(stored)
        places = [("volume-1", 0), ("volume-1", 20), ("volume-3", 7), ("volume-1", len(store["volume-1"].image) - 1)]
        batches = Batches(store, (64, 64), (5, None), 4, threads)
        with batches.over(places, (0, 0)) as stream:
            (batch,) = list(stream)
        for index, (case_id, z) in enumerate(places):
            image, label = store[case_id].image, store[case_id].label
            around = np.clip(np.arange(z - 2, z + 3), 0, len(image) - 1)
            assert np.array_equal(batch.image[index], np.stack([image[int(n)] for n in around]))
            assert np.array_equal(batch.label[index], label[z])

    def test_neighbors_may_be_chosen_in_millimetres(self, stored):
        store = open_store(stored)
        case = store["volume-1"]
        step = case.info.spacing_mm[0]
        with Batches(store, (64, 64), (3, 2.4 * step), 1).over([("volume-1", 10)], (0, 0)) as stream:
            (batch,) = list(stream)
        assert np.array_equal(batch.image[0], np.stack([case.image[z] for z in (8, 10, 12)]))

    def test_label_values_become_class_indices(self):
        table = class_of_value(make_labels({"liver": 7, "tumor": 200}), torch.device("cpu"))
        assert table[torch.tensor([0, 7, 200, 3])].tolist() == [0, 1, 2, 0]

    @pytest.mark.parametrize("size", [(64, 64), (48, 32), (80, 96)])
    def test_batches_do_not_depend_on_the_number_of_threads(self, size, stored):
        store = open_store(stored)
        places = [(row["case_id"], row["z"]) for row in read_table(stored, "slices")][:90]
        found = []
        for threads in (1, 2, 7):
            with Batches(store, size, (3, None), 4, threads).over(places, (3, 5)) as stream:
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
        with Batches(store, (64, 64), (1, None), 2, 3).over(
            [("volume-1", z % 20) for z in range(200)], (0, 0)
        ) as stream:
            next(stream)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("slice loader")]

    def test_small_slices_are_padded_with_air(self, stored):
        store = open_store(stored)
        batches = Batches(store, (80, 80), (1, None), 1)
        tumor = next(r for r in read_table(stored, "slices") if r["has_tumor"] and r["case_id"] == "volume-1")
        with batches.over([("volume-1", tumor["z"])], (0, 0)) as stream:
            (batch,) = list(stream)
        assert np.array_equal(batch.label[0, 8:72, 8:72], store["volume-1"].label[tumor["z"]])
        assert (batch.image[0, 0, :8] == AIR_HU).all()

    def test_large_slices_are_cropped_around_their_highest_label(self, stored):
        store = open_store(stored)
        rows = [r for r in read_table(stored, "slices") if r["has_tumor"]]
        batches = Batches(store, (16, 16), (1, None), len(rows))
        with batches.over([(r["case_id"], r["z"]) for r in rows], (0, 0)) as stream:
            (batch,) = list(stream)
        assert all((label == 2).any() for label in batch.label)

    def test_a_damaged_slice_stops_the_stream_with_its_name(self, stored, tmp_path):
        import shutil

        copy = shutil.copytree(stored, tmp_path / "copy")
        (copy / "scans.zarr/volume-1/image/c/0/0/0").write_bytes(b"short")
        batches = Batches(open_store(copy), (64, 64), (1, None), 1)
        with batches.over([("volume-1", 0)], (0, 0)) as stream, pytest.raises(StoreError, match="volume-1"):
            list(stream)


class TestAugment:
    def batch(self):
        generator = torch.Generator().manual_seed(0)
        label = torch.zeros(8, 48, 48, dtype=torch.long)
        label[:, 20:30, 12:26] = 1
        label[:, 22:26, 15:20] = 2
        image = label[:, None].float().repeat(1, 3, 1, 1) - 1
        return image, label, generator

    def test_image_and_label_move_together(self):
        image, label, generator = self.batch()
        moved, labels = move(image, label, 0.5, generator)
        assert not torch.equal(labels, label)
        for value in (0, 1, 2):
            assert (moved[:, 1][labels == value] - (value - 1)).abs().mean() < 0.25

    def test_a_turn_keeps_a_disc_round_on_slices_that_are_not_square(self):
        y, x = torch.meshgrid(torch.arange(64.0) - 31.5, torch.arange(192.0) - 95.5, indexing="ij")
        disc = (x**2 + y**2 < 20**2).long().repeat(40, 1, 1)
        _, turned = move(disc[:, None].float() - 1, disc, 1.0, torch.Generator().manual_seed(3))
        for one in turned:
            tall, wide = one.any(dim=1).sum(), one.any(dim=0).sum()
            border = torch.cat([one[0], one[-1], one[:, 0], one[:, -1]])
            if not border.any():
                assert abs(int(tall) - int(wide)) <= 3

    def test_neighbouring_slices_move_together(self):
        image, label, generator = self.batch()
        moved, _ = move(image, label, 0.5, generator)
        assert torch.equal(moved[:, 0], moved[:, 2])

    def test_it_is_a_function_of_the_batch_and_the_generator(self):
        image, label, _ = self.batch()
        first = augment(image, label, 0.5, torch.Generator().manual_seed(7))
        again = augment(image, label, 0.5, torch.Generator().manual_seed(7))
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])

    def test_shading_leaves_the_shape_of_things(self):
        image, _, generator = self.batch()
        assert (shade(image, 0.5, generator) - image).abs().max() < 0.6


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
        assert dice_and_cross_entropy(right, label) < 0.05
        assert dice_and_cross_entropy(-right, label) > 5

    def test_a_batch_without_labels_has_a_finite_loss_and_gradient(self):
        logits = torch.zeros(1, 3, 8, 8, requires_grad=True)
        loss = dice_and_cross_entropy(logits, torch.zeros(1, 8, 8, dtype=torch.long))
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
        assert done.returncode == 1
        assert "must be 1, 3, 5 or 7" in done.stderr
        assert (run / "best.safetensors").exists()

    def test_overwrite_removes_a_run_and_nothing_beside_it(self, trained, tmp_path):
        import shutil

        from train.setup import remove_run

        run = shutil.copytree(trained, tmp_path / "run")
        (run / "thesis.txt").write_text("mine")
        remove_run(run)
        assert [path.name for path in run.iterdir()] == ["thesis.txt"]
        with pytest.raises(ConfigError, match="is not the folder of a run"):
            remove_run(run)

    @pytest.mark.slow
    def test_a_run_that_is_killed_and_started_again_ends_as_an_undisturbed_one(self, stored, tmp_path):
        config = replace(TINY, epochs=4, seed=3)
        (tmp_path / "config.toml").write_text(to_toml(config))
        words = [
            sys.executable,
            "-m",
            "slicemill",
            "train",
            str(stored),
            str(tmp_path / "killed"),
            "--config",
            str(tmp_path / "config.toml"),
        ]
        process = subprocess.Popen(words, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 120
        while (
            not (tmp_path / "killed" / "last.safetensors").exists()
            and time.time() < deadline
            and process.poll() is None
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert 1 <= read_state(tmp_path / "killed").epoch < 4
        subprocess.run(words, cwd=HERE, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(
            [*words[:5], str(tmp_path / "whole"), *words[6:]], cwd=HERE, check=True, stdout=subprocess.DEVNULL
        )
        one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("killed", "whole"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        losses = [[r["loss"] for r in read_state(tmp_path / name).rows] for name in ("killed", "whole")]
        assert losses[0] == losses[1]

    def test_a_damaged_checkpoint_is_one_clear_error(self, trained, tmp_path):
        network = build(_labels(), TINY)
        (tmp_path / "best.safetensors").write_bytes(b"nonsense")
        with pytest.raises(ModelError, match="is not a checkpoint"):
            load_weights(tmp_path / "best.safetensors", network)
        with pytest.raises(ModelError, match="is not a checkpoint"):
            load_weights(trained / "best.safetensors", build(_labels(), replace(TINY, width=8)))
        with pytest.raises(ModelError, match="holds no checkpoint"):
            read_state(tmp_path)

    def test_a_store_without_masks_is_one_clear_error(self, tmp_path, collection):
        from ingest.discover import from_patterns
        from ingest.params import Params
        from ingest.pipeline import Options, ingest

        ingest(
            from_patterns(f"{collection}/volume-*.nii", None),
            tmp_path / "store",
            Params(labels=None),
            Options(workers=1),
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


def _labels():
    from store.labels import LITS_LABELS

    return LITS_LABELS
