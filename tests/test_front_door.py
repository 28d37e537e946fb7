"""The demo, its baseline, the doctor, and the start of commands."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill import commands, demo
from slicemill.baseline import HIGH, LOW, HuHistograms, fit_band, hu_histograms, score_band, score_baseline
from slicemill.bench.command import slicemill_command
from slicemill.bench.records.demo_scores import BandScores, DemoSummary, TumorComparison
from slicemill.cli import commands as commands_of_slicemill
from slicemill.common.errors import ConfigError, InputError
from slicemill.common.extras import PACKAGES
from slicemill.demo import (
    DATA_MINUTES,
    PHANTOM_EPOCHS,
    PHANTOM_SECONDS,
    DemoOptions,
    demo_steps,
    epoch_share,
    run_command,
    run_demo,
    training_limits,
)
from slicemill.demo_summary import FILES, describe_goals, missed_goals
from slicemill.doctor import examine
from slicemill.infer.runtime.providers import Provider
from slicemill.store.reader import open_store

HERE = Path(__file__).parents[1]


def test_doctor_runs_the_cpu_provider_and_finds_nothing_to_repair():
    examination = examine()
    assert "provider   cpu: runs" in examination.lines
    assert examination.repairs == ()
    assert any(line.startswith("privacy") for line in examination.lines)


def test_the_demo_counts_epochs_of_phantoms_and_minutes_of_other_data():
    out, data = Path("demo"), Path("scans")
    assert training_limits(DemoOptions(out=out)) == ["--epochs", PHANTOM_EPOCHS]
    assert training_limits(DemoOptions(out=out, epochs=3)) == ["--epochs", 3]
    assert training_limits(DemoOptions(out=out, data=data)) == ["--epochs", 1000, "--max-minutes", DATA_MINUTES]
    assert training_limits(DemoOptions(out=out, data=data, epochs=3)) == ["--epochs", 3]
    assert training_limits(DemoOptions(out=out, minutes=0.2)) == ["--epochs", 1000, "--max-minutes", 0.2]
    assert training_limits(DemoOptions(out=out, minutes=0.2, epochs=3)) == ["--epochs", 3, "--max-minutes", 0.2]
    shown = CliRunner().invoke(commands_of_slicemill(), ["demo", "--help"]).output
    assert f"default {PHANTOM_EPOCHS} epochs of phantoms, or {DATA_MINUTES:g} minutes" in " ".join(
        shown.replace("│", " ").split()
    )


def test_the_steps_of_the_demo_grow_with_its_phantoms_and_epochs_but_not_a_time_limit():
    def seconds(**options):
        return {
            step.name: (step.seconds, step.limited) for step in demo_steps(DemoOptions(out=Path("demo"), **options))
        }

    assert seconds() == {name: (value, False) for name, value in PHANTOM_SECONDS.items()}
    assert sum(PHANTOM_SECONDS.values()) <= 720, "at most 12 minutes on two idle cores"
    assert seconds(cases=72)["infer"] == (2 * PHANTOM_SECONDS["infer"], False)
    assert seconds(epochs=2 * PHANTOM_EPOCHS)["train"] == (2 * PHANTOM_SECONDS["train"], False)
    assert seconds(data=Path("scans"))["train"] == (60 * DATA_MINUTES, True)
    assert "phantom" not in seconds(data=Path("scans"))


def test_a_line_of_the_training_tells_the_share_of_its_epochs():
    assert epoch_share("epoch   9  loss 0.412  Dice (liver): training 0.9, validation 0.9 *  60 slices/s", 18) == 0.5
    assert epoch_share("epoch  99  loss 0.412  Dice", 18) == 1.0
    assert epoch_share("best: epoch 9 of 18, mean Dice 0.8", 18) is None


def test_the_band_is_the_best_there_is(rng):
    """Compared with every band."""
    cases = []
    for _ in range(3):
        tumor, rest = np.zeros(HIGH - LOW, np.int64), np.zeros(HIGH - LOW, np.int64)
        tumor[200:230], rest[195:260] = rng.integers(0, 50, 30), rng.integers(0, 50, 65)
        cases.append(HuHistograms(tumor=tumor, rest=rest, tumor_voxels=int(tumor.sum()) + 5))
    low, high = fit_band(cases)
    best = max(
        (np.mean([score_band(case, a, b).dice for case in cases]), -a, -b)
        for a in range(-10, 70)
        for b in range(a + 1, 71)
    )
    assert np.mean([score_band(case, low, high).dice for case in cases]) == pytest.approx(best[0])


def test_the_baseline_scores_the_voxels_of_its_band(stored):
    store = open_store(stored)
    baseline = score_baseline(store, ["volume-0", "volume-1", "volume-2"], ["volume-4", "volume-3"])
    case = store["volume-4"]
    image, label = case.image[:], case.label[:]
    low, high = baseline.band_hu
    predicted, truth = (label > 0) & (image >= low) & (image < high), label == 2
    dice = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
    assert baseline.by_case["volume-4"] == pytest.approx(dice)
    assert hu_histograms(case).tumor_voxels == truth.sum()


def make_summary(tumor, liver, band):
    return DemoSummary(
        collection="phantoms",
        cases={"train": 1, "validation": 1, "test": 1},
        seed=0,
        training_minutes=4.0,
        config=None,
        minutes=5.0,
        scores={"regions": {"liver": {"dice_per_case": liver}}},
        baseline=BandScores(band_hu=(0, 50), dice_per_case=band, dice_global=band, by_case={}),
        where_there_is_tumor=TumorComparison(cases=1, network=tumor, baseline=band),
        machine={},
    )


def test_the_demo_names_the_goal_that_it_missed():
    assert missed_goals(make_summary(0.5, 0.95, 0.3)) == []
    assert missed_goals(make_summary(0.4, 0.95, 0.3)) == ["tumor Dice 0.400 is not 0.15 above the threshold's 0.300"]
    assert missed_goals(make_summary(0.5, 0.85, 0.3)) == ["liver Dice 0.850 is below 0.9"]
    assert describe_goals(make_summary(0.5, 0.95, 0.3)).startswith("\ngoals met: tumor Dice at least 0.15 above")
    described = describe_goals(make_summary(0.4, 0.85, 0.3))
    assert "Every step ran. 2 goals missed:" in described
    assert "goal missed: liver Dice 0.850 is below 0.9" in described


@pytest.mark.parametrize("liver", [0.95, 0.85])
def test_a_missed_goal_is_a_note_unless_goals_are_strict(monkeypatch, liver):
    monkeypatch.setattr("slicemill.demo.run_demo", lambda options: make_summary(0.5, liver, 0.3))
    for words, status in ((["demo"], 0), (["demo", "--strict-goals"], 0 if liver == 0.95 else 1)):
        done = CliRunner().invoke(commands_of_slicemill(), words)
        assert done.exit_code == status
        assert ("goals met" if liver == 0.95 else "goal missed: liver") in done.output


def test_the_demo_without_its_extras_names_the_installation(monkeypatch, tmp_path):
    monkeypatch.setitem(PACKAGES, "train", ("torch", "no_such_module"))
    with pytest.raises(ConfigError, match=r"not installed: no_such_module\. Run: pip install 'slicemill\[train\]'"):
        run_demo(DemoOptions(out=tmp_path / "demo"))
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_the_demo_of_a_collection_without_masks_says_so(collection, tmp_path, capsys):
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in sorted(collection.glob("volume-[01].*")):
        shutil.copy(path, scans)
    with pytest.raises(ConfigError, match="none of its scans has a mask"):
        run_demo(DemoOptions(out=tmp_path / "demo", data=scans))
    assert "[1/8 ingest: about" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="there is no such folder"):
        run_demo(DemoOptions(out=tmp_path / "demo", data=tmp_path / "none"))


def test_commands_start_without_the_working_folder_on_the_import_path(tmp_path, monkeypatch):
    monkeypatch.chdir(HERE)
    assert slicemill_command("demo") == [sys.executable, "-m", "slicemill", "demo"], "it may not be installed"
    monkeypatch.chdir(tmp_path)
    assert slicemill_command("demo") == [sys.executable, "-P", "-m", "slicemill", "demo"]
    (tmp_path / "typer.py").write_text("raise SystemExit('a file of the user ran')")
    run_command("phantom", "--help")
    with pytest.raises(InputError, match="slicemill ingest ended with exit status 1"):
        run_command("ingest", "nowhere", "store")


def test_the_demo_takes_the_providers_of_infer():
    assert get_args(commands.Provider) == get_args(Provider)
    done = CliRunner().invoke(commands_of_slicemill(), ["demo", "--provider", "gpu"])
    assert done.exit_code == 2
    assert "'tensorrt'" in done.output


def test_a_command_of_the_demo_is_shown_line_by_line(tmp_path):
    shown = []
    run_command("phantom", tmp_path / "scans", "--cases", 1, "--size", 32, show=shown.append)
    assert shown == [f"1 synthetic CTs with masks (1 liver, 2 tumor): {tmp_path / 'scans'}"]


def test_an_error_while_a_command_runs_ends_the_command(tmp_path):
    def fail(line):
        raise ValueError(line)

    with pytest.raises(ValueError, match="Usage"):
        run_command("ingest", "--help", show=lambda line: fail(line) if "Usage" in line else None)


def stop_demo(words, folder, number):
    """Start a demo, send it a signal while it trains, and return its exit status once none of its commands runs."""
    with subprocess.Popen(words, cwd=HERE, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        for line in process.stdout:
            if line.startswith("24 cases to train") or " to validate, " in line:
                break
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        process.communicate(timeout=120)
    deadline = time.monotonic() + 30
    while any(str(folder) in command for command in running_commands()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [command for command in running_commands() if str(folder) in command] == []
    return process.returncode


def running_commands():
    """Return the command lines of the processes of this machine."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")


@pytest.mark.slow
def test_a_stopped_demo_is_continued_by_the_same_words_runs_every_command_and_lists_its_output_files(tmp_path):
    """A short training: every command runs and writes its files. `make demo STRICT=1` checks the goals.

    Ctrl-C reaches the whole group of a terminal; SIGTERM only the demo.
    """
    words = slicemill_command("demo", "--out", tmp_path, "--cases", "12", "--epochs", "1")
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        assert stop_demo(words, tmp_path, number) == status
        assert (tmp_path / "run" / "split.json").exists()
    done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "goal missed: liver Dice" in done.stdout, "one epoch is not enough, and that is a note"
    places = re.findall(r"^\[(\d)/9 (\w+): about .* left in all\]$", done.stdout, re.MULTILINE)
    assert places == [(str(number), name) for number, name in enumerate(PHANTOM_SECONDS, 1)]
    for _, name in FILES:
        assert (tmp_path / name).exists()
        assert str(tmp_path / name) in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert sum(summary["cases"].values()) == 12
    assert " ".join(summary) == (
        "collection cases seed training_minutes config minutes scores baseline where_there_is_tumor machine"
    )
    assert list(summary["baseline"]) == ["band_hu", "dice_per_case", "dice_global", "by_case"]


def test_the_demo_on_scans_without_masks_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "run_command", lambda *words, **settings: None)
    monkeypatch.setattr(demo, "open_store", lambda path: {})
    with pytest.raises(ConfigError, match="none of its scans has a mask"):
        run_demo(DemoOptions(out=tmp_path / "out", data=tmp_path))
