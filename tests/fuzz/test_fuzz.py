"""Damaged inputs of every kind end in a result or in one clear error. `python -m tests.fuzz` tries more of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slicemill.ct.labels import LITS_LABELS
from slicemill.ingest.params import Params
from tests.fuzz import __main__ as runner
from tests.fuzz import dicom, scans, volumes

ROOT = Path(__file__).parents[2]


def fuzz(*words):
    command = [sys.executable, "-m", "tests.fuzz", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ)


@pytest.mark.parametrize("kind", scans.KINDS)
def test_the_samples_are_sound_before_they_are_damaged(kind):
    scans.check({role: scans.SAMPLES[role, kind] for role in ("image", "mask")}, Params(labels=LITS_LABELS))


@pytest.mark.parametrize("kind", volumes.KINDS)
def test_the_samples_of_other_formats_are_sound_too(kind):
    scans.check({role: volumes.SAMPLES[role, kind] for role in ("image", "mask")}, Params(labels=LITS_LABELS))


@pytest.mark.parametrize("kind", [*dicom.KINDS])
def test_the_samples_of_dicom_are_sound_too(kind):
    files = dicom.sample(kind)
    assert dicom.check(files, Params(labels=LITS_LABELS)) == 1
    assert dicom.has_mask(files) == (kind in dicom.MASKS)


def test_quick_kinds_hold():
    done = fuzz("--count", 12, "--kinds", "scan", "volume", "dicom", "table", "toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "attempts: scan 12, volume 12, dicom 12, table 12, toml 12" in done.stdout


@pytest.mark.slow
def test_all_kinds_hold_for_most_of_a_minute():
    done = fuzz("--minutes", 0.7)
    assert done.returncode == 0, done.stdout + done.stderr


def crash(_rng, _folder):
    signal.raise_signal(signal.SIGKILL)


def raise_error(_rng, _folder):
    raise KeyError("here")


def hang(_rng, _folder):
    import time

    time.sleep(60)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("fault", "found"), [(crash, "ended by SIGKILL"), (raise_error, "KeyError: 'here'"), (hang, "no end after 1 s")]
)
def test_crashes_errors_and_hangs_are_findings(fault, found, monkeypatch):
    monkeypatch.setitem(runner.ATTEMPTS, "fault", fault)
    monkeypatch.setattr(runner, "HANG_SECONDS", 1)
    assert found in runner.try_seed("fault", 0)
    assert runner.try_seed("toml", 0) == ""
