"""`slicemill demo --lungs`: its commands, their order, and its summary."""

import csv
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from slicemill import demo, nodule_demo
from slicemill.cli import commands
from slicemill.common.documents import from_document
from slicemill.common.errors import UsageError
from slicemill.demo import DemoOptions, training_limits
from slicemill.infer.tune_classifier import open_tunable
from slicemill.nodule_demo import (
    TEST_SEED,
    DemoAmounts,
    NoduleDemoOptions,
    NoduleSummary,
    describe,
    read_scores,
    run_nodule_demo,
)
from slicemill.train.config import make_config, read_config
from tests.infer.commands import run_command

COMMANDS = typer.main.get_command(commands())
SENSITIVITY = {"0.125": 0.2, "0.25": 0.3, "0.5": 0.4, "1": 0.5, "2": 0.6, "4": 0.7, "8": 0.8}
FROC = {
    "cpm": 0.5,
    "cpm_interval": [0.4, 0.6],
    "rates": [float(rate) for rate in SENSITIVITY],
    "sensitivity_between": list(SENSITIVITY.values()),
    "findings": 9,
    "parts": {"below 6 mm": {"cpm": 0.25}, "10 mm and above": {"cpm": None, "findings": 0}},
}


class Recorded:
    """Stands in for the commands: notes their words, and writes what `froc` would."""

    def __init__(self, countdown, **_):
        self.countdown = countdown
        LINES.clear()

    def run(self, *words):
        self.countdown.begin(words[0])  # raises if the command is not the next step
        LINES.append([str(word) for word in words])
        if words[0] == "froc":
            folder = Path(words[-1])
            folder.mkdir(parents=True)
            cpm = 0.5 if folder.name == "scores" else 0.125
            (folder / "froc.json").write_text(json.dumps(FROC | {"cpm": cpm}))


LINES: list[list[str]] = []


@pytest.fixture
def recorded(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(nodule_demo, "Commands", Recorded)
    summary = run_nodule_demo(NoduleDemoOptions(out=tmp_path, amounts=DemoAmounts(cases=12), seed=3))
    return summary, tmp_path, capsys.readouterr().out


def test_each_command_of_the_demo_is_one_that_slicemill_has(recorded):
    assert [line[0] for line in LINES] == [step.name for step in DemoAmounts().steps_of_demo()]
    for name, *words in LINES:
        command = COMMANDS.commands[name]
        command.make_context(name, list(words))  # raises if an option or a value is unknown


def test_test_chests_are_not_those_of_the_training_and_reach_nothing_but_the_scores(recorded):
    _, out, _ = recorded
    seeds = [line[line.index("--seed") + 1] for line in LINES if line[0] == "phantom"]
    assert seeds == ["3", str(TEST_SEED)]
    assert seeds[1] not in map(str, range(100))
    for line in LINES:
        if line[0] in ("train", "export", "tune"):
            assert not any(word.startswith(str(out / "test")) for word in line)


def test_the_classifier_is_tuned_on_cases_that_neither_network_was_trained_on(recorded):
    splits = [line[line.index("--split") + 1] for line in LINES if "--split" in line]
    runs = [line[2] for line in LINES if line[0] == "train"]
    assert splits == [f"{runs[0]}/split.json"] * 2


def test_both_networks_become_one_file_which_is_tuned_and_judges_the_test_chests(recorded):
    _, out, _ = recorded
    (exported,) = (line for line in LINES if line[0] == "export" and "--segmentation" in line)
    (tuned,) = (line for line in LINES if line[0] == "tune")
    (judged,) = (line for line in LINES if line[0] == "infer" and str(out / "test" / "scans") in line)
    assert exported[2] == tuned[1] == judged[1] == str(out / "lung.nodules")
    assert "--candidates" not in judged


def test_both_ways_are_scored_and_compared(recorded):
    summary, out, text = recorded
    assert (summary.segmentation.cpm, summary.classifier.cpm) == (0.125, 0.5)
    assert summary.classifier.sensitivity == SENSITIVITY
    assert from_document(NoduleSummary, json.loads((out / "summary.json").read_text()), "summary") == summary
    assert "9 nodules in 8 test chests" in text
    assert "say nothing about patients" in text


def test_a_band_without_nodules_has_no_cpm():
    scores = read_scores(FROC)
    assert scores.by_diameter == {"below 6 mm": 0.25, "10 mm and above": None}
    summary = NoduleSummary(
        seed=0,
        cases={"training": 1, "test": 1},
        size=128,
        nodules=1,
        segmentation=scores,
        classifier=scores,
        minutes=1,
        machine={},
    )
    assert any("0.25" in line for line in describe(summary, Path("out")))


def test_the_settings_are_those_of_the_recipe_but_for_few(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text(DemoAmounts(crop=96, steps=7).settings())
    recipe = make_config("nodules")
    config = read_config(path, recipe)
    assert (config.crop, config.steps, config.width, config.validation) == (96, 7, 8, 0.2)
    assert (config.test, config.spacing_mm, config.max_minutes) == (0.0, 0.0, 0.0)
    changed = {name for name, value in asdict(config).items() if value != getattr(recipe, name)}
    assert changed <= {"crop", "steps", "width", "validation", "test", "spacing_mm"}


def test_the_time_grows_with_the_amounts():
    usual = sum(step.seconds for step in DemoAmounts().steps_of_demo())
    assert usual < 8 * 60
    for more in ({"cases": 48}, {"test_cases": 16}, {"steps": 900}, {"epochs": 12}, {"crop_epochs": 48}):
        assert sum(step.seconds for step in DemoAmounts(**more).steps_of_demo()) > usual


def read_rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.slow
def test_the_demo_runs_from_points_to_scores(tmp_path, monkeypatch):
    """The commands of a user, in this process."""

    def run_here(*words, show, may_fail=False):
        done = run_command(*words)
        assert done.exit_code == 0, f"{words}: {done.output}"
        for line in done.stdout.splitlines():
            show(line)

    monkeypatch.setattr(demo, "run_command", run_here)
    amounts = DemoAmounts(
        cases=4, test_cases=2, size=128, validation=0.4, width=8, crop=32, epochs=2, steps=60, crop_epochs=2
    )
    summary = run_nodule_demo(NoduleDemoOptions(out=tmp_path, amounts=amounts, seed=1))
    nodules = len(read_rows(tmp_path / "test" / "annotations.csv"))
    assert summary.nodules == nodules > 0
    assert json.loads((tmp_path / "scores" / "froc.json").read_text())["cpm"] == summary.classifier.cpm
    rows = read_rows(tmp_path / "found" / "candidates.csv")
    assert all(0 < float(row["segmentation_mean"]) <= 1 for row in rows)
    assert [json.loads((tmp_path / name / "froc.json").read_text())["ranked_by"] for name in
            ("scores-segmentation", "scores")] == ["segmentation_mean", "probability"]  # fmt: skip
    assert open_tunable(tmp_path / "lung.nodules", "cpu").card.tuned["cases"] == 2


@pytest.mark.parametrize("words", [("--labels", "a=1"), ("--data", "x"), ("--epochs", "3"), ("--strict-goals",)])
def test_options_that_chests_do_not_have_are_refused(words, tmp_path):
    result = CliRunner().invoke(commands(), ["demo", "--lungs", "--out", str(tmp_path / "out"), *words])
    assert result.exit_code
    assert f"{words[0]}: does not apply to --lungs" in f"{result.output} {result.exception}"
    assert not (tmp_path / "out").exists()


def test_seeds_of_test_chests_are_refused_for_training(tmp_path):
    with pytest.raises(UsageError, match="--seed must be 0 to 99"):
        NoduleDemoOptions(out=tmp_path, seed=100)


def test_the_number_of_epochs_of_the_other_demo_is_in_its_command():
    assert training_limits(DemoOptions(out=Path("demo")))[0] == "--epochs"
