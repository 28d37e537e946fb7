"""A run from its start to its report: its files, what it refuses, and when it ends."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import ConfigError, ModelError, StoreError
from slicemill.ingest.params import Params
from slicemill.ingest.patterns import from_patterns
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store.reader import open_store
from slicemill.store.split import Split, read_split, write_split
from slicemill.store.tables import read_table
from slicemill.train.config import Config
from slicemill.train.export.model_file import export
from slicemill.train.loop import is_finished, train
from slicemill.train.run.checkpoint import State, read_state
from slicemill.train.run.setup import prepare, remove_run
from tests.conftest import TINY
from tests.train.helpers import no_log


class TestEnd:
    def test_a_run_ends_when_it_has_not_become_better_for_so_many_epochs(self):
        config = Config(epochs=100, patience=3)
        assert not is_finished(State(epoch=5, best_epoch=3), config)
        assert is_finished(State(epoch=6, best_epoch=3), config)
        assert not is_finished(State(epoch=6, best_epoch=3), replace(config, patience=0))


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
        history = read_state(trained).history
        assert history[-1].loss < history[0].loss

    def test_a_finished_run_is_left_alone(self, stored, own_run):
        before = (own_run / "last.safetensors").read_bytes()
        assert train(stored, own_run, TINY, log=no_log).epoch == TINY.epochs
        assert (own_run / "last.safetensors").read_bytes() == before

    def test_other_settings_in_the_same_folder_are_refused(self, stored, own_run):
        with pytest.raises(ConfigError, match=r"run with other settings \(context 3 -> 5\)"):
            train(stored, own_run, replace(TINY, context=5), log=no_log)

    def test_another_split_for_a_run_that_was_begun_is_refused(self, stored, own_run, tmp_path):
        split = read_split(own_run / "split.json", open_store(stored).case_ids)
        write_split(tmp_path / "other.json", Split(train=split.train, validation=split.test, test=split.validation))
        with pytest.raises(ConfigError, match="started with another split"):
            train(stored, own_run, TINY, split_file=tmp_path / "other.json", log=no_log)

    def test_overwrite_with_a_wrong_setting_removes_nothing(self, stored, trained, tmp_path):
        run = shutil.copytree(trained, tmp_path / "run")
        done = CliRunner().invoke(commands(), ["train", str(stored), str(run), "--overwrite", "--context", "4"])
        assert done.exit_code == 2
        assert "context = 4: must be 1, 3, 5 or 7" in done.output
        assert (run / "best.safetensors").exists()

    def test_overwrite_removes_a_run_and_nothing_beside_it(self, trained, tmp_path):
        run = shutil.copytree(trained, tmp_path / "run")
        (run / "thesis.txt").write_text("mine")
        remove_run(run)
        assert {path.name for path in run.iterdir()} - {".claims"} == {"thesis.txt"}
        with pytest.raises(ConfigError, match="is not the folder of a run"):
            remove_run(run)

    def test_another_store_for_a_run_that_was_begun_is_refused(self, stored, own_run, tmp_path):
        copy = shutil.copytree(stored, tmp_path / "copy")
        shutil.rmtree(copy / "scans.zarr" / "volume-5")
        with pytest.raises(ConfigError, match="have changed since the run started"):
            train(copy, own_run, TINY, log=no_log)

    def test_a_run_without_a_finished_epoch_is_not_exported(self, stored, trained, tmp_path):
        run = shutil.copytree(trained, tmp_path / "run")
        state = read_state(run)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                "slicemill.train.export.model_file.read_state",
                lambda _run: replace(state, epoch=0, best_epoch=0, history=[]),
            )
            with pytest.raises(ModelError, match="has no finished epoch"):
                export(run, tmp_path / "m.onnx")
        model = json.loads((run / "model.json").read_text())
        (run / "model.json").write_text(json.dumps(model | {"size": [1000000000, 1000000000]}))
        with pytest.raises(ModelError, match=r"size = \(1000000000, 1000000000\): sides must be between"):
            export(run, tmp_path / "m.onnx")
        assert not (tmp_path / "m.onnx").exists()

    def test_a_store_without_tumors_trains_on_what_it_has(self, stored, tmp_path):
        config = replace(TINY, epochs=1, steps=2, ignore="tumor", hard_share=0.2)
        state = train(stored, tmp_path / "run", config, log=no_log)
        assert list(state.history[0].regions) == ["liver"]
        assert np.isfinite(state.history[0].loss)

    def test_tables_of_an_earlier_version_of_a_case_change_nothing(self, stored, tmp_path):
        stale = shutil.copytree(stored, tmp_path / "stale")
        for name in ("manifest", "slices", "lesions"):
            rows = [row | {"has_tumor": False, "patient_id": "0"} for row in read_table(stale, name)]
            pq.write_table(pa.Table.from_pylist(rows), stale / f"{name}.parquet")
        expected = prepare(stored, tmp_path / "expected", TINY, None)
        setup = prepare(stale, tmp_path / "run", TINY, None)
        assert setup.pool.tumor.any()
        assert setup.split == expected.split
        assert setup.pool.slices == expected.pool.slices
        assert np.array_equal(setup.pool.tumor, expected.pool.tumor)

    def test_a_store_without_masks_is_one_clear_error(self, tmp_path, collection):
        ingest(
            from_patterns(f"{collection}/volume-*.nii", None),
            tmp_path / "store",
            Params(labels=None),
            IngestOptions(workers=1),
        )
        with pytest.raises(StoreError, match="no case has a mask"):
            train(tmp_path / "store", tmp_path / "run", TINY, log=no_log)

    def test_a_device_that_is_not_there_is_named(self, stored, tmp_path):
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        with pytest.raises(ConfigError, match="device cuda: cannot be used here"):
            train(stored, tmp_path / "run", replace(TINY, device="cuda"), log=no_log)

    @pytest.mark.slow
    def test_time_is_a_limit(self, stored, tmp_path):
        start = time.time()
        state = train(stored, tmp_path / "run", replace(TINY, epochs=10_000, max_minutes=0.05), log=no_log)
        assert state.epoch < 1000
        assert time.time() - start < 60

    def test_the_threads_of_torch_are_what_they_were(self, stored, own_run):
        before = torch.get_num_threads()
        torch.set_num_threads(before + 3)
        try:
            train(stored, own_run, TINY, log=no_log)
            assert torch.get_num_threads() == before + 3
        finally:
            torch.set_num_threads(before)
