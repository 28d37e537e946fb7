"""Two commands in one run folder: the second one is refused before it writes a file."""

import os
from contextlib import ExitStack
from dataclasses import replace

import pytest

from slicemill.common.errors import ConfigError, InputError, ModelError
from slicemill.common.files import sha256_of_file
from slicemill.train.config import read_config
from slicemill.train.export.model_file import check, export
from slicemill.train.loop import train
from slicemill.train.run.checkpoint import BEST, LAST
from slicemill.train.run.claim import claim_to_read, claim_to_train
from slicemill.train.run.setup import CONFIG, SPLIT
from tests.conftest import TINY
from tests.train.helpers import no_log

SHORT = replace(TINY, epochs=1, steps=2)


def contents(run):
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "overwrite"), [(SHORT, False), (replace(SHORT, seed=7, window_low=-1000.0, window_high=1000.0), True)]
)
def test_a_second_training_is_refused_before_the_firsts_epoch_ends_and_changes_no_file(
    other, overwrite, stored, tmp_path
):
    run, refused = tmp_path / "run", []

    def train_too(_line):
        before = contents(run)
        with pytest.raises(ConfigError, match="run: another command is training in this folder") as error:
            train(stored, run, other, overwrite=overwrite, log=no_log)
        assert contents(run) == before
        refused.append(error.value)

    train(stored, run, SHORT, log=train_too)
    assert len(refused) >= 2  # before the first epoch, and after it
    assert read_config(run / CONFIG) == SHORT
    card = export(run, tmp_path / "a.onnx")[tmp_path / "a.onnx"]
    assert (card.window_hu, card.weights_sha256) == ((SHORT.window_low, SHORT.window_high), sha256_of_file(run / BEST))


@pytest.mark.slow
def test_a_run_in_training_is_not_exported_and_exports_do_not_refuse_each_other(stored, own_run, model, tmp_path):
    def export_too(line):
        if line.startswith("epoch"):  # the weights are there
            with pytest.raises(ConfigError, match="run: a command is training in this folder, so its weights change"):
                export(tmp_path / "run", tmp_path / "a.onnx")
        else:
            with pytest.raises(InputError):
                export(tmp_path / "run", tmp_path / "a.onnx")

    train(stored, tmp_path / "run", SHORT, log=export_too)
    assert not (tmp_path / "a.onnx").exists()
    with claim_to_train(own_run), pytest.raises(ConfigError, match="training in this folder"):
        check(own_run, model)
    check(own_run, model)  # the claim ended with its block
    with claim_to_read(own_run), claim_to_train(tmp_path / "other"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_only_be_read_is_exported(trained, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name, content in contents(trained).items():
        (run / name).write_bytes(content)
    run.chmod(0o555)
    with ExitStack() as stack:
        stack.callback(run.chmod, 0o755)
        assert export(run, tmp_path / "a.onnx")


def test_a_claimed_run_is_neither_trained_nor_exported(stored, tmp_path):
    run = tmp_path / "run"
    with claim_to_train(run):
        with pytest.raises(ConfigError, match="run: another command is training in this folder"):
            train(stored, run, SHORT, log=no_log)
        assert contents(run) == {}
        (run / BEST).touch()
        with pytest.raises(ConfigError, match="run: a command is training in this folder, so its weights change"):
            export(run, tmp_path / "a.onnx")


def test_errors_of_the_file_system_other_than_a_lack_of_rights_are_raised(monkeypatch, tmp_path):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slicemill.train.run.claim.wait_for_claim", full)
    with pytest.raises(OSError, match="No space"), claim_to_read(tmp_path):
        pass
    monkeypatch.setattr("slicemill.train.run.claim.wait_for_claim", lambda *_: _raise(OSError(30, "Read-only")))
    with claim_to_read(tmp_path):
        pass


def _raise(error):
    raise error


@pytest.mark.slow
def test_a_training_that_cannot_start_makes_no_folder_and_a_new_folder_may_be_overwritten(stored, tmp_path):
    with pytest.raises(InputError):
        train(tmp_path / "no-store", tmp_path / "run", SHORT, log=no_log)
    assert not (tmp_path / "run").exists()
    train(stored, tmp_path / "run", SHORT, overwrite=True, log=no_log)
    assert (tmp_path / "run" / BEST).exists()


@pytest.mark.slow
def test_weights_without_a_checkpoint_still_belong_to_their_settings(stored, tmp_path):
    run = tmp_path / "run"
    train(stored, run, SHORT, log=no_log)
    (run / LAST).unlink()
    before = (run / CONFIG).read_bytes(), (run / SPLIT).read_bytes()
    with pytest.raises(ConfigError, match="contains a run with other settings"):
        train(stored, run, replace(SHORT, window_low=-1000.0), log=no_log)
    assert ((run / CONFIG).read_bytes(), (run / SPLIT).read_bytes()) == before
    with pytest.raises(ModelError, match="has no checkpoint"):
        export(run, tmp_path / "a.onnx")
