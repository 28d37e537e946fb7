"""`bench nodules`: its commands, its splits, what may reach the test chests, and its table."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from slicemill.bench.cli import bench
from slicemill.bench.records.readme import KINDS, format_record
from slicemill.bench.schema.base import read_record
from slicemill.bench.schema.nodules import NodulesRecord
from slicemill.bench.studies import nodule_chests
from slicemill.bench.studies.nodule_chests import ChestStudy, bootstrap_gain, make_splits, plan_chests, plan_seed
from slicemill.cli import commands
from slicemill.common.errors import UsageError
from slicemill.infer.malignancy import JudgedNodules
from slicemill.train.config import make_config, read_config

COMMANDS = typer.main.get_command(commands())


def all_words(out):
    study = ChestStudy(out=out)
    return [[str(word) for word in line] for line in [*plan_chests(study), *plan_seed(study, out / "seed-0", 0)]]


def test_each_command_is_one_that_slicemill_has(tmp_path):
    for name, *words in all_words(tmp_path):
        command = COMMANDS.commands[name]
        command.make_context(name, list(words))  # raises if an option or a value is unknown


def test_no_command_that_learns_reads_a_test_chest(tmp_path):
    for words in all_words(tmp_path):
        if words[0] in ("train", "export", "tune"):
            tested = [str(tmp_path / f"{part}-store") for part in ("test", "malignancy")]
            assert not set(tested) & set(words)
    seeds = [words[words.index("--seed") + 1] for words in all_words(tmp_path) if words[0] == "phantom"]
    assert seeds == ["41", "9006", "9007"]


def test_the_segmentation_does_not_see_the_further_chests_and_no_network_its_validation():
    segmentation, classifier = make_splits(ChestStudy(out=Path("x")))
    assert [len(part) for part in (segmentation.train, segmentation.validation, segmentation.test)] == [48, 4, 28]
    assert [len(part) for part in (classifier.train, classifier.validation, classifier.test)] == [71, 9, 0]
    assert not set(segmentation.train) & set(segmentation.test)
    assert not (set(segmentation.train) | set(classifier.train)) & (
        set(segmentation.validation) | set(classifier.validation)
    )


def test_the_settings_are_known(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text(nodule_chests.SETTINGS)
    config = read_config(path, make_config("nodules"))
    assert (config.crop, config.width, config.steps, config.context) == (64, 8, 2400, 7)


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        ({"chests": 12}, "--chests 12: must be at least 13"),
        ({"unseen": 4}, "--unseen 4"),
        ({"seed": 100}, "at most 99"),
        ({"test_seed": 41}, "at most 99"),
        ({"seeds": ()}, "--seeds: name at least one"),
    ],
)
def test_too_few_chests_and_seeds_of_tests_are_refused(amounts, message):
    with pytest.raises(UsageError, match=message):
        ChestStudy(out=Path("x"), **amounts)


def test_an_order_that_the_diameter_gets_wrong_is_a_gain():
    rng = np.random.default_rng(1)
    chests, told = [], []
    for _ in range(8):
        malignant = rng.random(10) < 0.4
        chests.append(JudgedNodules(output=np.zeros(10), diameter_mm=rng.uniform(4, 20, 10), malignant=malignant))
        told.append(malignant + rng.normal(0, 0.1, 10))
    low, high = bootstrap_gain(chests, told)
    assert 0.2 < low < high < 0.8
    assert bootstrap_gain(chests, [chest.diameter_mm for chest in chests]) == (0.0, 0.0)


def test_without_both_classes_there_is_no_interval():
    chest = JudgedNodules(output=np.zeros(2), diameter_mm=np.ones(2), malignant=np.zeros(2, dtype=bool))
    assert np.isnan(bootstrap_gain([chest], [np.zeros(2)])).all()


@pytest.mark.slow
def test_a_small_study_goes_from_chests_to_a_table(tmp_path):
    amounts = {"size": 128, "chests": 13, "unseen": 5, "test-chests": 3, "malignancy-chests": 2, "minutes": 0.5,
               "crop-minutes": 0.3, "malignancy-minutes": 0.2}  # fmt: skip
    words = [word for name, value in amounts.items() for word in (f"--{name}", str(value))]
    done = CliRunner().invoke(bench, ["nodules", "--out", str(tmp_path / "out"), *words])
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "out" / "nodules.json").read_text())
    record = read_record(NodulesRecord, document)
    assert KINDS["nodules"] is NodulesRecord
    assert [score.ranked_by for score in record.scores] == ["segmentation", "classifier"]
    assert record.scores[0].found == record.scores[1].found <= record.nodules
    assert record.malignancy[0].nodules == 20
    table = format_record(document)
    assert table.count("\n| 0 | ") == 3
    assert f"{record.nodules} nodules" in table
