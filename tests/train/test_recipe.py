"""Recipes other than the default one: what they train, how they continue, and what cannot work."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from slicemill.common.errors import ConfigError, LabelError
from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.store.reader import open_store
from slicemill.train.config import Config, to_toml
from slicemill.train.loop import train
from slicemill.train.network.step import train_step
from slicemill.train.run import epoch
from slicemill.train.run.checkpoint import LAST, read_state
from slicemill.train.run.memory import explain_out_of_memory, fitting_batch
from slicemill.train.run.setup import prepare, slice_size, trained_labels
from slicemill.train.run.validate import predict_case
from tests.conftest import TINY
from tests.train.helpers import checkpoint, no_log

CPU = torch.device("cpu")


class TestRuns:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "changes",
        [
            {"crop": 32, "oblique": 2, "hard_share": 0.2, "deep_supervision": True},
            {"spacing_mm": 1.1, "crop": 32, "tumor_weight": 4.0, "context": 5},
            {"precision": "fp16", "optimizer": "sgd", "decay": "poly", "learning_rate": 1e-2},
            {"ignore": "liver", "norm": "instance"},
            {"mining": 1, "hard_share": 0.5, "tumor_share": 0.2, "organ_share": 0.2, "crop": 32},
            {"precision": "fp16", "optimizer": "adamw"},
        ],
    )
    def test_it_goes_on_bit_for_bit_from_within_an_epoch(self, changes, stored, tmp_path, monkeypatch):
        config = replace(TINY, epochs=2, steps=3, save_minutes=1e-6, **changes)
        train(stored, tmp_path / "whole", config, log=no_log)
        steps = []

        def fifth(*given):
            steps.append(given)
            if len(steps) == 5:
                raise KeyboardInterrupt
            return train_step(*given)

        with monkeypatch.context() as patched:
            patched.setattr(epoch, train_step.__name__, fifth)
            with pytest.raises(KeyboardInterrupt):
                train(stored, tmp_path / "stopped", config, log=no_log)
        stopped = read_state(tmp_path / "stopped")
        assert (stopped.epoch, len(stopped.tally.losses)) == (1, 1)
        train(stored, tmp_path / "stopped", config, log=no_log)
        assert checkpoint(tmp_path / "whole") == checkpoint(tmp_path / "stopped")
        assert all(np.isfinite(metrics.loss) for metrics in read_state(tmp_path / "whole").history)

    def test_fp16_keeps_where_its_scaler_stands(self, stored, tmp_path):
        config = replace(TINY, epochs=1, steps=2, precision="fp16")
        train(stored, tmp_path, config, log=no_log)
        assert read_state(tmp_path).scaler["scale"] > 0
        assert (tmp_path / LAST).exists()


class TestIgnoredLabel:
    def test_it_is_no_class_and_its_voxels_do_not_count(self, stored, tmp_path):
        setup = prepare(stored, tmp_path, replace(TINY, ignore="liver"), None)
        assert dict(setup.labels.values) == {"tumor": 2}
        assert setup.ignored == 1

    def test_a_label_called_ignore_is_ignored_without_the_setting(self, stored, monkeypatch):
        labels = make_labels({"liver": 1, "tumor": 2, "ignore": 3})
        monkeypatch.setattr("slicemill.train.run.setup.common_labels", lambda store: labels)
        assert trained_labels(open_store(stored), TINY) == (make_labels({"liver": 1, "tumor": 2}), 3)
        trained, ignored = trained_labels(open_store(stored), replace(TINY, ignore="liver"))
        assert (list(trained.values), ignored) == (["tumor", "ignore"], 1)

    def test_a_name_that_the_store_does_not_have_is_refused_with_those_it_has(self, stored, tmp_path):
        with pytest.raises(
            LabelError, match="ignore = spleen: must be one of several labels; they are liver=1, tumor=2"
        ):
            train(stored, tmp_path, replace(TINY, ignore="spleen"), log=no_log)


class Threshold(nn.Module):
    """Calls tumor what lies above the middle of the window, in the middle slice."""

    def forward(self, x):
        """Return logits float[b, 2, y, x]."""
        middle = x[:, x.shape[1] // 2]
        return torch.stack([-9 * middle, 9 * middle], dim=1)


class TestPixelSize:
    def test_slices_are_measured_in_the_networks_pixels(self, stored):
        cases = list(open_store(stored).values())
        largest = max(case.image.shape[1] * case.info.spacing_mm[1] for case in cases)
        size = slice_size(cases, Config(depth=3, spacing_mm=0.7))
        assert size[0] - 8 < largest / 0.7 <= size[0]
        assert size[0] % 8 == 0

    @pytest.mark.parametrize("factor", [0.6, 1.0, 1.7])
    def test_labels_come_back_on_the_slices_own_grid(self, factor, stored, tmp_path):
        cases = open_store(stored).values()
        square = next(case for case in cases if case.info.spacing_mm[1] == case.info.spacing_mm[2])
        spacing_mm = square.info.spacing_mm[1] * factor
        setup = prepare(stored, tmp_path, replace(TINY, spacing_mm=spacing_mm), None)
        case = setup.store[square.info.case_id]
        predicted = predict_case(case, Threshold(), setup)
        expected = np.stack([section > 50 for section in case.image])
        assert predicted.shape == case.image.shape
        agree = (predicted > 0) == expected
        if factor == 1.0:
            assert agree.all()
        inner = np.abs(np.stack(list(case.image)).astype(int) - 50) > 60  # away from the threshold and its noise
        assert agree[inner].mean() > 0.9


class TestMemory:
    def test_a_batch_is_measured_on_gpus_only(self):
        with pytest.raises(ConfigError, match="needs a GPU, whose memory it measures; on cpu, set a number"):
            fitting_batch(LITS_LABELS, Config(), (64, 64), CPU, torch.float32)

    def test_a_step_that_does_not_fit_is_one_sentence(self, monkeypatch):
        config = Config(batch=64)
        with (
            pytest.raises(ConfigError, match="batch = 64: a step does not fit into the memory of this machine"),
            explain_out_of_memory(LITS_LABELS, config, (64, 64), CPU, torch.float32),
        ):
            torch.empty(1 << 52)
        monkeypatch.setattr("slicemill.train.run.memory.fitting_batch", lambda *_: 12)
        with (
            pytest.raises(ConfigError, match="the largest batch is 12 slices per GPU. Set batch, or --batch auto"),
            explain_out_of_memory(LITS_LABELS, config, (64, 64), CPU, torch.float32),
        ):
            raise torch.OutOfMemoryError("CUDA out of memory")

    def test_other_errors_stay_what_they_are(self):
        with (
            pytest.raises(RuntimeError, match="size of tensor"),
            explain_out_of_memory(LITS_LABELS, Config(), (64, 64), CPU, torch.float32),
        ):
            torch.zeros(2) + torch.zeros(3)


def test_batch_auto_goes_on_with_the_batch_that_was_chosen(stored, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    assert train(stored, run, replace(TINY, batch=0), log=no_log).epoch == TINY.epochs
    (run / "config.toml").write_text(to_toml(replace(TINY, width=8)))
    with pytest.raises(ConfigError, match="width 8 -> 4"):
        train(stored, run, replace(TINY, batch=0), log=no_log)
