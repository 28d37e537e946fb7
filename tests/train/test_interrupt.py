"""Kills, signals and a full disk cost at most the steps since the last checkpoint, and damage is one clear error."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from slicemill.common.errors import ModelError
from slicemill.ct.labels import LITS_LABELS
from slicemill.train import loop
from slicemill.train.config import to_toml
from slicemill.train.loop import train
from slicemill.train.network.step import build_network, make_learner
from slicemill.train.run import checkpoint as checkpoint_module
from slicemill.train.run import mining, validate
from slicemill.train.run.checkpoint import LAST, load_weights, read_state, save_progress
from tests.conftest import TINY
from tests.train.helpers import checkpoint, no_log

HERE = Path(__file__).parents[2]


class TestInterruptions:
    @pytest.mark.slow
    def test_a_run_killed_at_eight_random_moments_ends_as_an_undisturbed_one(self, stored, tmp_path):
        config = replace(TINY, epochs=4, steps=40, batch=4, seed=3, hard_share=0.2, save_minutes=1e-6)
        (tmp_path / "c.toml").write_text(to_toml(config))
        words = [sys.executable, "-c", KILLED, str(stored), str(tmp_path)]
        done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True)
        moments = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
        assert len(moments) == 8
        assert len(set(moments)) > 3  # it got on, within epochs
        assert checkpoint(tmp_path / "killed") == checkpoint(tmp_path / "whole")

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_run_that_is_signaled_to_stop_keeps_what_it_did(self, number, stored, tmp_path):
        config = replace(TINY, epochs=400, steps=50, batch=4)
        (tmp_path / "c.toml").write_text(to_toml(config))
        run = tmp_path / "run"
        words = [sys.executable, "-m", "slicemill", "train", stored, run, "--config", tmp_path / "c.toml"]
        process = subprocess.Popen(words, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.time() + 120
        while not (run / LAST).exists() and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        if number == signal.SIGTERM:
            process.send_signal(number)  # a scheduler sends one, and torchrun another
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Run the same command again to continue" in errors
        state = read_state(run)
        assert state.epoch >= 1
        assert state.tally is not None

    @pytest.mark.slow
    @pytest.mark.parametrize(("module", "name"), [(validate, "normalize"), (mining, "read_reference")])
    def test_a_stop_within_validation_or_mining_keeps_every_step(self, module, name, stored, tmp_path, monkeypatch):
        config = replace(TINY, epochs=2, steps=3, mining=1, hard_share=0.3, tumor_share=0.3, organ_share=0.2)
        train(stored, tmp_path / "whole", config, log=no_log)
        work, requested = getattr(module, name), threading.Event()

        def stop_and_work(*given):
            requested.set()
            return work(*given)

        with monkeypatch.context() as patched:
            patched.setattr(loop, "catch_stop_signals", lambda: nullcontext(requested))
            patched.setattr(module, name, stop_and_work)
            with pytest.raises(KeyboardInterrupt):
                train(stored, tmp_path / "stopped", config, log=no_log)
        stopped = read_state(tmp_path / "stopped")
        assert (stopped.epoch, len(stopped.tally.losses)) == (0, 3)
        train(stored, tmp_path / "stopped", config, log=no_log)
        assert checkpoint(tmp_path / "whole") == checkpoint(tmp_path / "stopped")

    @pytest.mark.slow
    def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(self, stored, trained, tmp_path, monkeypatch):
        run, config = shutil.copytree(trained, tmp_path / "run"), replace(TINY, epochs=TINY.epochs + 1)
        (run / "config.toml").write_text(to_toml(config))
        before = checkpoint(run)

        def full(_tensors, aside, metadata=None):
            Path(aside).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(checkpoint_module, "save_file", full)
            with pytest.raises(OSError, match="No space left"):
                train(stored, run, config, log=no_log)
        assert checkpoint(run) == before
        assert not [path.name for path in run.iterdir() if path.name.startswith(".") and path.name != ".claims"]
        train(stored, run, config, log=no_log)
        assert read_state(run).epoch == config.epochs

    def test_what_a_kill_kept_from_being_written_is_written_by_the_next_run(self, stored, tmp_path):
        """Killed right after the checkpoint of its best and last epoch: weights, table and report follow."""
        run, config = tmp_path / "run", replace(TINY, epochs=1)
        with pytest.MonkeyPatch.context() as patched:

            def killed(*_given):
                raise KeyboardInterrupt

            patched.setattr(loop, "save_weights", killed)
            with pytest.raises(KeyboardInterrupt):
                train(stored, run, config, log=no_log)
        assert not (run / "best.safetensors").exists()
        assert train(stored, run, config, log=no_log).epoch == 1
        assert (run / "metrics.csv").read_text().count("\n") == 2
        assert (run / "report.html").exists()
        best = load_file(run / "best.safetensors")
        last = load_file(run / LAST)
        assert all(torch.equal(tensor, last[f"average.module.{name}"]) for name, tensor in best.items())


class TestCheckpoint:
    def test_a_damaged_checkpoint_is_one_clear_error(self, trained, tmp_path):
        network = build_network(LITS_LABELS, TINY)
        (tmp_path / "best.safetensors").write_bytes(b"nonsense")
        with pytest.raises(ModelError, match="is not a checkpoint"):
            load_weights(tmp_path / "best.safetensors", network)
        with pytest.raises(ModelError, match="is not a checkpoint"):
            load_weights(trained / "best.safetensors", build_network(LITS_LABELS, replace(TINY, width=8)))
        with pytest.raises(ModelError, match="has no checkpoint"):
            read_state(tmp_path)

    def test_a_state_that_no_run_has_written_is_refused(self, trained, tmp_path):
        tensors = load_file(trained / LAST)
        with safe_open(trained / LAST, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
        row = state["rows"][0]
        for damage, message in (
            ({"epoch": "3"}, r"Expected `int`, got `str` - at `\$.epoch`"),
            ({"rows": 1}, r"at `\$.rows`"),
            ({"rows": [row | {"loss": None}]}, "a row of metrics has no loss"),
            ({"tally": {"losses": []}}, r"missing required field `seconds` - at `\$.tally`"),
            ({"seconds": None}, r"at `\$.seconds`"),
        ):
            save_file(tensors, tmp_path / LAST, metadata={"state": json.dumps(state | damage)})
            with pytest.raises(ModelError, match=message):
                read_state(tmp_path)

    def test_a_state_is_written_as_it_was_read(self, trained, tmp_path):
        """The columns of the metrics and the keys of the document keep their names and their order."""
        with safe_open(trained / LAST, framework="pt") as file:
            before = file.metadata()["state"]
        learner = make_learner(LITS_LABELS, TINY, torch.device("cpu"))
        save_progress(tmp_path, read_state(trained), learner.modules(), learner.optimizer)
        with safe_open(tmp_path / LAST, framework="pt") as file:
            assert file.metadata()["state"] == before
        names = ["epoch", "seconds", "best_score", "best_epoch", "rows", "tally", "scaler"]
        assert list(json.loads(before)) == names
        assert list(json.loads(before)["rows"][0]) == (trained / "metrics.csv").read_text().splitlines()[0].split(",")


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
        train(store, run, config, log=lambda line: None)
        os._exit(0)
    return pid

def written(run):
    return (run / LAST).stat().st_mtime_ns if (run / LAST).exists() else 0

dice = random.Random(5)
for kill in range(8):
    before, checkpoints = written(run), 0
    pid = go(run, config)
    deadline = time.time() + 60
    # every fourth is killed whether it took a step or not; the first checkpoint comes before the first step
    while kill % 4 and checkpoints < 2 and time.time() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break  # on a fast machine the run has ended
        if written(run) != before:
            before, checkpoints = written(run), checkpoints + 1
        time.sleep(0.001)
    time.sleep(dice.uniform(0, 0.5))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    state = read_state(run) if (run / LAST).exists() else None
    print(state.epoch if state else 0, len(state.tally.losses) if state and state.tally else 0)
assert os.waitpid(go(run, config), 0)[1] == 0
assert os.waitpid(go(folder / "whole", replace(config, save_minutes=0.0)), 0)[1] == 0
"""
