"""Post-processing chosen on cases: every setting tried by hand is the oracle."""

import json
import math
import re
import shutil
import tomllib
from dataclasses import asdict, replace
from itertools import product
from math import nan
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import ConfigError, ModelError
from slicemill.ct.geometry import Grid
from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.ct.overlap import count_overlap, mean_without_nan
from slicemill.infer import fitted_rule
from slicemill.infer import tune as module
from slicemill.infer.lesion_features import ScanVolumes
from slicemill.infer.network.model import open_model
from slicemill.infer.postprocess import postprocess
from slicemill.infer.slices.assembly import Segmentation
from slicemill.infer.tune import (
    Choice,
    as_toml,
    best,
    check_writable,
    choose_cases,
    count_changes,
    find_flavors,
    find_gaps,
    tabulate_lesions,
    tune,
    write_rules,
)
from slicemill.store.model_card import LesionRule, PostprocessRules, parse_postprocess_rules
from slicemill.store.reader import open_store


def command(*words):
    return CliRunner().invoke(commands(), ["tune", *map(str, words)])


def scene(seed, shape=(9, 20, 22)):
    """A reference, labels that are nearly it, and a probability."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    field /= field.std()
    reference = np.digitize(field, (-0.2, 0.9)).astype(np.uint8)
    label = np.digitize(field + 0.4 * rng.standard_normal(shape), (-0.2, 0.9)).astype(np.uint8)
    return reference, label, rng.integers(0, 256, shape).astype(np.uint8)


RULE = LesionRule(
    intercept=2.0,
    log_volume_ml=0.4,
    mean_probability=1.0,
    peak_probability=-0.5,
    hu_over_organ=0.02,
    depth_mm=0.05,
    filled=-1.0,
    least_score=0.6,
)
"""About half of the lesions of a scene have a higher score."""


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.03, 0.2, 2.0]),
    st.sampled_from([0.0, 0.45, 0.6]),
    st.sampled_from([0.0, 0.8, 0.98]),
)
def test_the_table_of_lesions_gives_the_dice_that_post_processing_would(seed, least_ml, least, peak):
    reference, label, probability = scene(seed)
    grid = Grid(shape=label.shape[::-1], affine=np.diag([-2.0, -2.0, 3.0, 1.0]))
    image = np.random.default_rng(seed).integers(-50, 200, label.shape).astype(np.int16)
    scan = ScanVolumes(label=label, probability=probability, image=image)
    table = tabulate_lesions(scan, reference, LITS_LABELS, grid)
    thresholds = {"min_lesion_ml": least_ml, "min_lesion_probability": least, "min_lesion_peak": peak}
    for rules in (PostprocessRules(**thresholds), PostprocessRules(lesion_rule=RULE)):
        out = label.copy()
        postprocess(out, LITS_LABELS, rules, grid, probability, image)
        expected = count_overlap(reference == 2, out == 2).dice
        assert table.dice_of(rules) == pytest.approx(expected, abs=1e-12, nan_ok=True)


class Fake:
    """Fake network: labels of a case are made up."""

    def __init__(self, scenes):
        self.scenes = scenes

    def __call__(self, model, volume, spacing_mm):
        _, label, probability = self.scenes[int(volume[0, 0, 0])]
        return Segmentation(label=label.copy(), tumor_probability=probability, labeled=len(label))


def made_up(monkeypatch, model, scenes, patients=None):
    """Let `tune` see the scenes as cases of a store, each of a patient of its own unless `patients` names them."""

    class Case:
        def __init__(self, number):
            self.label = scenes[number][0]
            self.info = SimpleNamespace(labels=LITS_LABELS, patient_id=patients[number] if patients else str(number))

    class Store:
        root = "made-up"

        def __getitem__(self, name):
            return Case(int(name))

    shape = scenes[0][0].shape
    grid = Grid(shape=shape[::-1], affine=np.diag([-2.0, -2.0, 3.0, 1.0]))

    def load(job):
        return type("Loaded", (), {"grid": grid, "volume": np.full(shape, int(job.case_id), np.int16)})

    monkeypatch.setattr(module, "load_scan", load)
    monkeypatch.setattr(module, "segment_volume", Fake(scenes))
    return Store(), grid


def scored(scenes, grid, rules):
    """The mean Dice of organ and tumor, by hand."""
    dice = {"organ": [], "tumor": []}
    for reference, label, probability in scenes:
        out = label.copy()
        postprocess(out, LITS_LABELS, rules, grid, probability)
        dice["organ"].append(count_overlap(reference > 0, out > 0).dice)
        dice["tumor"].append(count_overlap(reference == 2, out == 2).dice)
    return {name: mean_without_nan(values) for name, values in dice.items()}


def with_rules(model, **rules):
    opened = open_model(model, "cpu")
    opened.info = replace(opened.info, card=replace(opened.info.card, postprocess=rules))
    return opened


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "now", [{}, {"largest_organ": True, "min_lesion_ml": 0.3, "min_lesion_probability": 0.42, "tumor_reach_mm": 4.0}]
)
def test_what_is_chosen_is_about_the_best_of_all_settings_tried_by_hand(seed, now, model, monkeypatch):
    scenes = [scene(10 * seed + number) for number in range(4)]
    store, grid = made_up(monkeypatch, model, scenes)
    monkeypatch.setattr(module, "LEAST_ML", (0.0, 0.2, 2.0))
    monkeypatch.setattr(module, "LEAST_PROBABILITY", (0.0, 0.5))
    monkeypatch.setattr(module, "LEAST_PEAK", (0.0, 0.99))
    monkeypatch.setattr(fitted_rule, "LEAST_LESIONS", math.inf)
    tuned = tune(with_rules(model, **now), store, ["0", "1", "2", "3"])
    assert tuned.before.rules == PostprocessRules(**now)
    for choice in (tuned.before, tuned.chosen):
        by_hand = scored(scenes, grid, choice.rules)
        assert (choice.organ, choice.tumor) == pytest.approx((by_hand["organ"], by_hand["tumor"]), abs=1e-12)
    tried = [
        sum(
            scored(
                scenes,
                grid,
                PostprocessRules(
                    largest_organ=a, fill_holes=b, tumor_reach_mm=mm, min_lesion_ml=ml, **dict([probability])
                ),
            ).values()
        )
        for a, b, mm, ml, probability in product(
            (False, True),
            (False, True),
            module.REACHES_MM,
            module.LEAST_ML,
            [
                *(("min_lesion_probability", least) for least in module.LEAST_PROBABILITY),
                *(("min_lesion_peak", least) for least in module.LEAST_PEAK[1:]),
            ],
        )
    ]
    assert tuned.chosen.score >= max(*tried, tuned.before.score) - module.EQUAL_SCORE - 1e-12


def box(where, shape=(8, 24, 24)):
    """Labels with an organ and the tumors named: each z, y, x of its first voxel and its side."""
    label = np.zeros(shape, np.uint8)
    label[:, 2:22, 2:14] = 1
    for (z, y, x), side in where:
        label[z : z + side, y : y + side, x : x + side] = 2
    return label


SURE = np.full((8, 24, 24), 255, np.uint8)
FIRST, SPECK = ((2, 4, 4), 3), ((1, 15, 9), 2)


@pytest.mark.parametrize(
    "now", [{}, {"largest_organ": True, "fill_holes": True, "min_lesion_ml": 0.3, "tumor_reach_mm": 7.0}]
)
def test_nothing_is_changed_where_nothing_helps(now, model, monkeypatch):
    store, _ = made_up(monkeypatch, model, [(box([FIRST]), box([FIRST]), SURE)])
    tuned = tune(with_rules(model, **now), store, ["0"])
    assert tuned.chosen.rules == PostprocessRules(**now)
    assert (tuned.chosen.organ, tuned.chosen.tumor) == (1.0, 1.0)


def test_one_rule_is_changed_where_one_is_enough(model, monkeypatch):
    store, _ = made_up(monkeypatch, model, [(box([FIRST]), box([FIRST, SPECK]), SURE)])
    tuned = tune(with_rules(model, largest_organ=True), store, ["0"])
    assert tuned.chosen.rules == PostprocessRules(largest_organ=True, min_lesion_ml=0.1), "the speck has 0.096 ml"
    assert tuned.chosen.tumor == 1.0 > tuned.before.tumor


def test_the_organ_does_not_win_what_the_tumor_loses(model, monkeypatch):
    """The largest organ alone would take the tumor away with the smaller piece that holds it."""
    reference = box([])
    reference[:, 2:12, 17:22] = 1
    reference[2:5, 4:7, 18:21] = 2
    label = reference.copy()
    label[:, 12:22, 17:22] = 1
    store, _ = made_up(monkeypatch, model, [(reference, label, SURE)])
    assert not tune(with_rules(model), store, ["0"]).chosen.rules.largest_organ


def test_rules_on_tumors_stay_where_no_case_has_any(model, monkeypatch):
    store, _ = made_up(monkeypatch, model, [(box([]), box([FIRST, SPECK]), SURE)])
    now = {"min_lesion_ml": 0.15, "min_lesion_probability": 0.3, "tumor_reach_mm": 3.0}
    assert tune(with_rules(model, **now), store, ["0"]).chosen.rules == PostprocessRules(**now)


def test_of_choices_about_as_good_the_one_with_the_fewest_changes_wins():
    def choice(dice, **rules):
        return module.Choice(rules=PostprocessRules(**rules), organ=math.nan, tumor=dice)

    far, near = choice(0.801, min_lesion_ml=1.0, fill_holes=True), choice(0.8, min_lesion_ml=2.0)
    assert best([choice(0.7), far, near], PostprocessRules()) is near
    assert best([choice(0.7), far, near], PostprocessRules(min_lesion_ml=1.0, fill_holes=True)) is far


def test_a_fitted_rule_is_no_change_where_it_is_kept():
    """Lists of named values are not rules: what is equal counts as unchanged, and a second tuning keeps the rule."""
    fitted = PostprocessRules(largest_organ=True, lesion_rule=RULE)
    assert count_changes(replace(fitted), fitted) == 0
    assert count_changes(replace(fitted, lesion_rule=replace(RULE, filled=2.0)), fitted) == 1
    kept, dropped = (Choice(rules=one, organ=nan, tumor=0.8) for one in (fitted, PostprocessRules(largest_organ=True)))
    assert best([dropped, kept], fitted) is kept


def test_a_second_tuning_keeps_the_rule_that_the_first_fitted(model, monkeypatch):
    scenes = [(box([FIRST]), box([FIRST]), SURE)]
    store, _ = made_up(monkeypatch, model, scenes)
    rule = replace(RULE, intercept=100.0)
    tuned = tune(with_rules(model, lesion_rule=asdict(rule)), store, ["0"])
    assert tuned.chosen.rules == PostprocessRules(lesion_rule=rule)
    assert "the earlier rule is kept" in tuned.fit


def test_the_rule_is_fitted_by_the_patients_of_the_store(model, monkeypatch):
    store, _ = made_up(monkeypatch, model, [(box([FIRST]), box([FIRST]), SURE)] * 3, ["ann", "bob", "ann"])
    seen = []

    def fit(tables, patients):
        seen.append((len(tables), list(patients)))
        return fitted_rule.Fit(reason="seen")

    monkeypatch.setattr(module, "fit_lesion_rule", fit)
    tune(with_rules(model), store, ["2", "0", "1"])
    assert seen == [(3, ["ann", "ann", "bob"])]


def test_the_command_shows_what_it_would_choose(model, trained, stored, tmp_path):
    path = tmp_path / "tiny.onnx"
    shutil.copy(model, path)
    before = path.read_bytes()
    shown = command(path, stored, "--split", trained / "split.json", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert re.search(r"before +0\.\d{4}", shown.stdout)
    assert "nothing was written; as TOML: postprocess = {" in shown.stdout
    assert path.read_bytes() == before


def test_the_command_writes_all_flavors_and_a_second_time_nothing(model, trained, stored, tmp_path, monkeypatch):
    path, half = tmp_path / "tiny.onnx", tmp_path / "tiny.fp16.onnx"
    for one in (path, half):
        shutil.copy(model, one)
    weights = {one: [t.raw_data for t in onnx.load(one).graph.initializer] for one in (path, half)}
    wanted = PostprocessRules(fill_holes=True, min_lesion_ml=0.7)

    def found(model, _store, cases, _advance):
        scores = {"organ": 0.5, "tumor": 0.5}
        before = module.Choice(rules=model.info.rules, **scores)
        return module.Tuned(before=before, chosen=module.Choice(rules=wanted, **scores), cases=tuple(cases))

    monkeypatch.setattr(module, "tune", found)
    words = [path, stored, "--split", trained / "split.json"]
    done = command(*words)
    assert done.exit_code == 0, done.output
    assert "written: " in done.output
    for one in (path, half):
        opened = open_model(one, "cpu")
        assert opened.info.rules == wanted
        validation = json.loads((trained / "split.json").read_text())["validation"]
        assert opened.info.card.tuned["cases"] == len(validation)
        assert [t.raw_data for t in onnx.load(one).graph.initializer] == weights[one]
        onnx.checker.check_model(onnx.load(one), full_check=True)
    again = command(*words)
    assert "no other rules are better: the model is unchanged" in again.output


def test_other_trainings_beside_a_model_are_left_alone(model, tmp_path):
    path, other = tmp_path / "a.onnx", tmp_path / "a.fp16.onnx"
    shutil.copy(model, path)
    shutil.copy(model, other)
    changed = onnx.load(other)
    metadata = json.loads(changed.metadata_props[0].value)
    changed.metadata_props[0].value = json.dumps({**metadata, "training": {"minutes": 77}})
    onnx.save(changed, other)
    assert find_flavors(path) == [path]
    assert find_flavors(other) == [other]


class Unlabelled:
    """A store of scans without masks."""

    root, case_ids = "store", ["a", "b"]

    def __getitem__(self, case_id):
        return SimpleNamespace(label=None)


def test_what_cannot_be_tuned_on_is_refused_in_a_sentence(model, stored, tmp_path):
    store = open_store(stored)
    split = tmp_path / "split.json"
    for content, message in (
        ({"train": ["volume-0"], "validation": ["volume-77"]}, "names cases that are not in the store: volume-77"),
        ({"train": ["volume-0"]}, "A split is a JSON object with the lists train, validation and test"),
    ):
        split.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=message):
            choose_cases(store, split)
    split.write_text(json.dumps({"train": ["a"], "validation": ["b"]}))
    with pytest.raises(ConfigError, match="has no case with a reference segmentation"):
        choose_cases(Unlabelled(), split)
    opened = open_model(model, "cpu")
    opened.info = replace(opened.info, card=replace(opened.info.card, labels={"kidney": 1}, organ=None, tumor=None))
    with pytest.raises(ConfigError, match="has other labels than tiny.onnx"):
        tune(opened, store, store.case_ids[:1])
    done = command(model, tmp_path / "nowhere")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)


def test_for_a_foreign_network_the_file_of_its_rules_is_named_before_anything_is_computed(model, tmp_path):
    path = tmp_path / "theirs.onnx"
    shutil.copy(model, path)
    path.with_suffix(".toml").write_text("labels = {liver = 1, tumor = 2}\n")
    with pytest.raises(ModelError, match=r"its rules are in theirs.toml. --dry-run shows what to write there"):
        check_writable(path)


def test_rules_as_toml_are_read_back():
    rules = PostprocessRules(largest_organ=True, tumor_reach_mm=3.0, min_lesion_ml=0.5)
    for one in (rules, PostprocessRules(), replace(rules, min_lesion_peak=0.9, lesion_rule=RULE)):
        assert parse_postprocess_rules(tomllib.loads(as_toml(one))["postprocess"]) == one


def test_flavors_are_all_written_or_none(model, tmp_path):
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path in paths:
        shutil.copy(model, path)
    stripped = onnx.load(paths[1])
    del stripped.metadata_props[:]
    onnx.save(stripped, paths[1])
    nothing = module.Choice(rules=PostprocessRules(), organ=math.nan, tumor=math.nan)
    with pytest.raises(ValueError, match="not enough values"):
        write_rules(paths, module.Tuned(before=nothing, chosen=nothing, cases=()))
    assert open_model(paths[0], "cpu").info.card.tuned is None
    assert sorted(tmp_path.iterdir()) == paths


@pytest.mark.parametrize(
    ("labels", "dice", "words"),
    [
        ({"liver": 1, "tumor": 2}, (nan, nan), ["have no organ", "no case has tumor"]),
        ({"tumor": 1}, (nan, 0.5), ["the model has no organ label"]),
        ({"liver": 1}, (0.9, nan), ["the model has no tumor label"]),
        ({"liver": 1, "tumor": 2}, (0.9, 0.5), []),
    ],
)
def test_a_dice_that_cannot_be_computed_says_what_is_missing(labels, dice, words):
    gaps = find_gaps(make_labels(labels), Choice(rules=PostprocessRules(), organ=dice[0], tumor=dice[1]))
    assert len(gaps) == len(words)
    assert all(word in gap for word, gap in zip(words, gaps, strict=True))
