import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slicemill.baseline import HIGH, LOW, fit_band, histograms, score_band, threshold_baseline
from slicemill.bench.harness.clock import Timing, ratio, time_rounds
from slicemill.common.machine import machine_info
from slicemill.demo import goals
from slicemill.doctor import examine
from slicemill.store.reader import open_store

HERE = Path(__file__).parents[2]


def test_rounds_are_interleaved_after_a_warm_up():
    calls = []
    timings = time_rounds({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=9, warm_up=1)
    rounds = ["".join(calls[start : start + 3]) for start in range(0, 30, 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) > 3, "who runs before whom changes"
    assert len(timings["a"].seconds) == 9


def test_a_ratio_is_the_median_of_pairs():
    slow = Timing(name="slow", seconds=(2.0, 30.0, 4.0))
    fast = Timing(name="fast", seconds=(1.0, 10.0, 2.0))
    assert ratio(slow, fast) == 2.0
    assert slow.as_json(8)["per_second"] == 2.0


def test_the_machine_card_is_json_and_names_what_matters():
    machine = json.loads(json.dumps(machine_info()))
    assert machine["cores"] >= 1
    assert {"numpy", "zarr", "onnxruntime"} & set(machine["versions"])


def test_doctor_starts_the_cpu_provider_and_finds_nothing_to_repair():
    lines, repairs = examine()
    assert "provider   cpu: starts" in lines
    assert repairs == []
    assert any(line.startswith("privacy") for line in lines)


def test_the_band_is_the_best_there_is(rng):
    """Against every band, tried one by one."""
    parts = []
    for _ in range(3):
        tumor, rest = np.zeros(HIGH - LOW, np.int64), np.zeros(HIGH - LOW, np.int64)
        tumor[200:230], rest[195:260] = rng.integers(0, 50, 30), rng.integers(0, 50, 65)
        parts.append((tumor, rest, int(tumor.sum()) + 5))
    low, high = fit_band(parts)
    best = max(
        (np.mean([score_band(part, a, b).dice for part in parts]), -a, -b)
        for a in range(-10, 70)
        for b in range(a + 1, 71)
    )
    assert np.mean([score_band(part, low, high).dice for part in parts]) == pytest.approx(best[0])


def test_the_baseline_scores_what_its_band_takes_in(stored):
    store = open_store(stored)
    baseline = threshold_baseline(store, ["volume-0", "volume-1", "volume-2"], ["volume-4", "volume-3"])
    case = store["volume-4"]
    image, label = case.image[:], case.label[:]
    predicted = (label > 0) & (image >= baseline.low) & (image < baseline.high)
    truth = label == 2
    assert baseline.by_case["volume-4"] == pytest.approx(
        2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
    )
    assert histograms(case)[2] == truth.sum()


def test_the_demo_says_which_goal_it_missed():
    def summary(tumor, liver, band):
        there = {"network": tumor, "baseline": band}
        return {"scores": {"regions": {"liver": {"dice_per_case": liver}}}, "where_there_is_tumor": there}

    assert goals(summary(0.5, 0.95, 0.3)) == []
    assert goals(summary(0.4, 0.95, 0.3)) == ["tumor Dice 0.400 is not 0.15 above the threshold's 0.300"]
    assert goals(summary(0.5, 0.85, 0.3)) == ["liver Dice 0.850 is below 0.9"]


@pytest.mark.slow
def test_the_demo_goes_the_whole_way_and_says_what_to_look_at(tmp_path):
    """Too short to learn much: the goals are for `make demo`, here every stage must run and write its files."""
    words = [sys.executable, "-m", "slicemill", "demo", "--out", str(tmp_path), "--cases", "12", "--max-minutes", "0.2"]
    done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
    assert "goals met" in done.stdout or "goal missed" in done.stdout, done.stderr
    assert done.returncode == (0 if "goals met" in done.stdout else 1)
    for name in (
        "store/manifest.csv",
        "preview.png",
        "run/curves.png",
        "run/report.html",
        "montage.png",
        "segmented",
        "scores",
        "summary.json",
    ):
        assert (tmp_path / name).exists()
        assert str(tmp_path / name) in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cases"]["train"] + summary["cases"]["validation"] + summary["cases"]["test"] == 12
