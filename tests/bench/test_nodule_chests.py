"""`bench nodules`: its commands, its splits, what may reach the test chests, and its table."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from slicemill.bench.cli import bench
from slicemill.bench.records.readme import KINDS, format_record
from slicemill.bench.schema.base import origin, read_record
from slicemill.bench.schema.nodules import BandScore, MalignancyScore, NodulesRecord, NodulesScore
from slicemill.bench.studies import nodule_chests
from slicemill.bench.studies.nodule_chests import (
    ChestStudy,
    bootstrap_gain,
    make_splits,
    plan_chests,
    plan_seed,
    require_nodules,
)
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


def test_candidates_are_those_of_mirrored_slices_in_training_and_test(tmp_path):
    lines = all_words(tmp_path)
    assert all("--mirror" in words for words in lines if words[0] == "infer")
    first, second = (words for words in lines if words[0] == "export")
    assert "--probability" in first
    assert "--mirror" in second


def test_no_command_that_learns_reads_a_test_chest(tmp_path):
    lines = all_words(tmp_path)
    last = max(number for number, words in enumerate(lines) if words[0] in ("train", "export", "tune"))
    first = min(number for number, words in enumerate(lines) if words[0] == "train")
    for words in lines[first : last + 1]:
        assert not [word for word in words if Path(word).name.startswith("test") or "malignancy-store" in word]
        assert str(tmp_path / "malignancy") not in words
    seeds = [words[words.index("--seed") + 1] for words in all_words(tmp_path) if words[0] == "phantom"]
    assert seeds == ["41", "9010", "9011"]


def test_the_segmentation_does_not_see_the_further_chests_and_no_network_its_validation():
    segmentation, classifier = make_splits(ChestStudy(out=Path("x")))
    assert [len(part) for part in (segmentation.train, segmentation.validation, segmentation.test)] == [48, 4, 18]
    assert [len(part) for part in (classifier.train, classifier.validation, classifier.test)] == [63, 7, 0]
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
        ({"seeds": (1, 1)}, "each once"),
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


@pytest.mark.parametrize(("part", "option"), [("test", "--test-chests 40"), ("malignancy", "--malignancy-chests 12")])
def test_chests_without_anything_to_score_are_refused_before_the_training(part, option, tmp_path):
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm,kind,place,malignancy\n"
    rows = "a,0,0,0,5,solid,free,1\nb,0,0,0,5,solid,free,0\n"
    for name in ("test", "malignancy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "annotations.csv").write_text(header + ("" if name == part else rows))
    with pytest.raises(UsageError, match=option):
        require_nodules(ChestStudy(out=tmp_path))
    (tmp_path / part / "annotations.csv").write_text(header + rows)
    require_nodules(ChestStudy(out=tmp_path))


def test_the_table_says_what_was_scored_and_what_was_not_fitted():
    band = BandScore(nodules=31, cpm=0.25, cpm_interval=[0.125, 0.5])
    none = BandScore(nodules=0, cpm=None, cpm_interval=None)
    score = NodulesScore(
        seed=0,
        ranked_by="classifier",
        cpm=0.5,
        cpm_interval=[0.4, 0.6],
        sensitivity=[0.5] * 7,
        by_diameter={"below 6 mm": band, "10 mm and above": none},
        found=28,
        false_alarms=80,
        gain=0.125,
        gain_interval=[0.1, 0.2],
    )
    malignancy = MalignancyScore(
        seed=0, nodules=20, malignant=4, auc_diameter=0.75, auc_output=0.5, auc_both=None, gain=None, gain_interval=None
    )
    study = ChestStudy(out=Path("x"))
    amounts = {name: getattr(study, name) for name in NodulesRecord.__struct_fields__ if hasattr(study, name)}
    record = NodulesRecord(nodules=31, scores=[score], malignancy=[malignancy], chests_version=3, **amounts, **origin())
    assert KINDS["nodules"] is NodulesRecord
    table = format_record(json.loads(json.dumps(record.as_json())))
    for text in (
        "| 0 | classifier | 0.500 [0.400, 0.600] | +0.125 [+0.100, +0.200] | 0.500",
        "| 28 of 31 | 2 |",
        "CPM below 6 mm (31 nodules)",
        "| 0.25 [0.12, 0.50] | - |",
        "| 0 | 20 (4) | 0.750 | 0.500 | - | - |",
        "31 nodules in 40 synthetic chests of version 3 and 416 pixels",
    ):
        assert text in table


@pytest.mark.slow
def test_a_small_study_goes_from_chests_to_a_table(tmp_path):
    amounts = {"size": 128, "chests": 13, "unseen": 5, "test-chests": 3, "malignancy-chests": 2, "minutes": 0.5,
               "crop-minutes": 0.3, "malignancy-minutes": 0.2}  # fmt: skip
    words = [word for name, value in amounts.items() for word in (f"--{name}", str(value))]
    done = CliRunner().invoke(bench, ["nodules", "--out", str(tmp_path / "out"), *words])
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "out" / "nodules.json").read_text())
    record = read_record(NodulesRecord, document)
    assert [score.ranked_by for score in record.scores] == ["segmentation", "classifier"]
    assert record.scores[0].found == record.scores[1].found <= record.nodules
    assert record.malignancy[0].nodules == 20
    table = format_record(document)
    assert table.count("\n| 0 | ") == 5
    assert f"{record.nodules} nodules" in table
