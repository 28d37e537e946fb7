"""Several processes train one network: the same losses as one process."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slicemill.common.errors import ConfigError
from slicemill.train.config import to_toml
from slicemill.train.loop import train
from slicemill.train.network.processes import Processes, local_batch
from slicemill.train.run.checkpoint import LAST, read_state
from slicemill.train.run.claim import is_empty
from tests.conftest import TINY

HERE = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TOLERANCE = 1e-4
"""Of the loss: sums in another order, through a few dozen steps."""


def together(stored, run, config, *more):
    """Run `slicemill train` in two processes."""
    toml = run.parent / f"{run.name}.toml"
    toml.write_text(to_toml(config))
    return subprocess.run(
        [
            *TORCHRUN,
            *("-m", "slicemill", "train", str(stored), str(run), "--config", str(toml), *more),
        ],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
class TestTwoProcesses:
    def test_two_give_the_losses_of_one(self, stored, tmp_path):
        config = replace(TINY, norm="instance", augment=0.0, epochs=2, steps=5, hard_share=0.2, tumor_weight=3.0)
        done = together(stored, tmp_path / "two", config)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("batch 8 over 2 processes") == 1
        assert done.stdout.count("epoch   2") == 1
        one, two = train(stored, tmp_path / "one", config, log=lambda _: None), read_state(tmp_path / "two")
        for alone, shared in zip(one.history, two.history, strict=True):
            assert shared.regions.keys() == alone.regions.keys()
            assert shared.loss == pytest.approx(alone.loss, rel=TOLERANCE)
            assert shared.validation_dice == pytest.approx(alone.validation_dice, abs=1e-2)
            for name, dice in alone.regions.items():
                assert shared.regions[name].train == pytest.approx(dice.train, abs=1e-2)

    def test_two_go_on_where_two_were_stopped(self, stored, tmp_path):
        config = replace(TINY, norm="instance", augment=0.0, epochs=2, steps=4, save_minutes=1e-6)
        assert together(stored, tmp_path / "whole", config).returncode == 0
        (tmp_path / "stopped").mkdir()
        state = read_state(tmp_path / "whole")
        done = together(stored, tmp_path / "stopped", replace(config, epochs=1))
        assert done.returncode == 0
        (tmp_path / "stopped" / "config.toml").write_text(to_toml(config))
        assert together(stored, tmp_path / "stopped", config).returncode == 0
        assert (tmp_path / "stopped" / LAST).exists()
        assert read_state(tmp_path / "stopped").epoch == 2 == state.epoch

    def test_they_end_at_the_same_time_and_may_be_overwritten(self, stored, tmp_path):
        config = replace(TINY, norm="instance", epochs=10_000, steps=2, max_minutes=0.1)
        done = together(stored, tmp_path / "run", config)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("best: epoch") == 1
        again = together(stored, tmp_path / "run", replace(config, epochs=1, max_minutes=0.0), "--overwrite")
        assert again.returncode == 0, again.stderr
        assert read_state(tmp_path / "run").epoch == 1
        assert "Warning" not in again.stderr

    @pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="Linux names the threads of a process")
    def test_no_thread_of_theirs_is_left_for_the_end_of_python(self, stored, tmp_path):
        """It would be killed in the middle of what it gives back, and the process with it."""
        config, script = tmp_path / "c.toml", tmp_path / "threads.py"
        config.write_text(to_toml(replace(TINY, norm="instance", epochs=1, steps=2)))
        script.write_text(
            "import sys\n"
            "from pathlib import Path\n"
            "from slicemill.train.config import read_config\n"
            "from slicemill.train.loop import train\n"
            "train(Path(sys.argv[1]), Path(sys.argv[2]), read_config(Path(sys.argv[3])), log=lambda _: None)\n"
            "threads = Path('/proc/self/task').glob('*/comm')\n"
            "print('left', *(path.read_text().strip() for path in threads), flush=True)\n"
        )
        words = [*TORCHRUN, str(script), str(stored), str(tmp_path / "run"), str(config)]
        environment = {**os.environ, "PYTHONPATH": str(HERE)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("left ") == 2
        assert "gloo" not in done.stdout

    def test_batch_norm_on_cpus_is_refused(self, stored, tmp_path):
        done = together(stored, tmp_path / "run", replace(TINY, norm="batch"))
        assert done.returncode == 1
        assert "With several processes on CPUs use norm = instance" in done.stderr
        assert is_empty(tmp_path / "run")


class TestShare:
    def test_a_batch_is_shared_out_evenly_or_refused(self):
        two, cpu = Processes(rank=1, count=2), torch.device("cpu")
        assert local_batch(8, "instance", two, cpu) == 4
        with pytest.raises(ConfigError, match="must be a multiple of the 2 processes"):
            local_batch(7, "instance", two, cpu)
