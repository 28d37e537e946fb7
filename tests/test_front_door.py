"""The demo, its baseline, the doctor, and the start of commands."""

import json
import subprocess
import sys
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
from slicemill.demo import (
    DATA_MINUTES,
    FILES,
    PHANTOM_EPOCHS,
    DemoOptions,
    missed_goals,
    run_command,
    run_demo,
    training_limits,
)
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
    assert training_limits(DemoOptions(out=out, data=data))[:2] == ["--max-minutes", DATA_MINUTES]
    assert training_limits(DemoOptions(out=out, minutes=0.2))[:2] == ["--max-minutes", 0.2]
    shown = CliRunner().invoke(commands_of_slicemill(), ["demo", "--help"]).output
    assert f"default {PHANTOM_EPOCHS} epochs of phantoms, or {DATA_MINUTES:g} minutes" in " ".join(
        shown.replace("│", " ").split()
    )


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


@pytest.mark.slow
def test_the_demo_runs_every_command_and_lists_its_output_files(tmp_path):
    """A short training: every command runs and writes its files. `make demo` checks the goals."""
    words = [sys.executable, "-m", "slicemill", "demo", "--out", str(tmp_path), "--cases", "12", "--max-minutes", "0.2"]
    done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
    assert "goals met" in done.stdout or "goal missed" in done.stdout, done.stderr
    assert done.returncode == (0 if "goals met" in done.stdout else 1)
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
    with pytest.raises(ConfigError, match="no case with a mask was ingested"):
        run_demo(DemoOptions(out=tmp_path / "out", data=tmp_path))
