"""Post-processing chosen on cases: every setting tried by hand is the oracle."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from infer import tune as module
from infer.canvas import Segmented
from infer.model import open_model
from infer.postprocess import Rules, postprocess
from infer.tune import best, cases_of, flavors_beside, found_in, tune, write_rules
from store.errors import ConfigError, ModelError
from store.geometry import Grid
from store.labels import LITS_LABELS, make_labels
from store.metrics import overlap
from store.reader import open_store


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "slicemill", "tune", *map(str, words)], capture_output=True, text=True, check=False
    )


def scene(seed, shape=(9, 20, 22)):
    """A reference, labels that are nearly it, and a probability."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    field /= field.std()
    reference = np.digitize(field, (-0.2, 0.9)).astype(np.uint8)
    label = np.digitize(field + 0.4 * rng.standard_normal(shape), (-0.2, 0.9)).astype(np.uint8)
    return reference, label, rng.integers(0, 256, shape).astype(np.uint8)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.03, 0.2, 2.0]), st.sampled_from([0.0, 0.45, 0.6]))
def test_the_rows_of_lesions_say_what_post_processing_would_leave(seed, least_ml, least):
    reference, label, probability = scene(seed)
    grid = Grid(shape=label.shape[::-1], affine=np.diag([-2.0, -2.0, 3.0, 1.0]))
    found = found_in(Segmented(label=label, tumor_probability=probability), reference, LITS_LABELS, grid)
    postprocess(label, LITS_LABELS, Rules(min_lesion_ml=least_ml, min_lesion_probability=least), grid, probability)
    expected = overlap(reference == 2, label == 2).dice
    assert found.dice(least_ml, least) == pytest.approx(expected, abs=1e-12, nan_ok=True)


class Fake:
    """Stands for the network: labels of a case are made up."""

    def __init__(self, scenes):
        self.scenes = scenes

    def __call__(self, model, volume, spacing_mm):
        _, label, probability = self.scenes[int(volume[0, 0, 0])]
        return Segmented(label=label.copy(), tumor_probability=probability)


def made_up(monkeypatch, model, scenes):
    """Let `tune` see the scenes as cases of a store."""

    class Case:
        def __init__(self, number):
            self.label = scenes[number][0]
            self.info = type("Info", (), {"labels": LITS_LABELS})

    class Store:
        root = "made-up"

        def __getitem__(self, name):
            return Case(int(name))

    shape = scenes[0][0].shape
    grid = Grid(shape=shape[::-1], affine=np.diag([-2.0, -2.0, 3.0, 1.0]))

    def load(job):
        return type("Loaded", (), {"grid": grid, "volume": np.full(shape, int(job.case_id), np.int16)})

    monkeypatch.setattr(module, "load", load)
    monkeypatch.setattr(module, "segment_volume", Fake(scenes))
    return Store(), grid


@pytest.mark.parametrize("seed", range(3))
def test_what_is_chosen_is_about_the_best_of_all_settings_tried_by_hand(seed, model, monkeypatch):
    scenes = [scene(10 * seed + number) for number in range(4)]
    store, grid = made_up(monkeypatch, model, scenes)
    opened = open_model(model, "cpu")
    tuned = tune(opened, store, ["0", "1", "2", "3"])

    def scored(rules):
        dice = {"organ": [], "tumor": []}
        for reference, label, probability in scenes:
            out = label.copy()
            postprocess(out, LITS_LABELS, rules, grid, probability)
            dice["organ"].append(overlap(reference > 0, out > 0).dice)
            dice["tumor"].append(overlap(reference == 2, out == 2).dice)
        return {name: np.nanmean(values) for name, values in dice.items()}

    for choice in (tuned.before, tuned.chosen):
        assert (choice.organ, choice.tumor) == pytest.approx(tuple(scored(choice.rules).values()), abs=1e-12)
    assert tuned.before.rules == opened.info.rules
    organ_only = [scored(Rules(largest_organ=a, fill_holes=b))["organ"] for a, b in product((False, True), repeat=2)]
    assert (
        max(organ_only) - module.SAME
        <= scored(Rules(largest_organ=tuned.chosen.rules.largest_organ, fill_holes=tuned.chosen.rules.fill_holes))[
            "organ"
        ]
    )
    tried = [
        scored(replace(tuned.chosen.rules, tumor_reach_mm=reach, min_lesion_ml=ml, min_lesion_probability=least))[
            "tumor"
        ]
        for reach, ml, least in product(module.REACHES_MM, module.LEAST_ML, module.LEAST_PROBABILITY)
    ]
    assert tuned.chosen.tumor >= max(tried) - module.SAME - 1e-12
    assert tuned.chosen.tumor > tuned.before.tumor


def test_nothing_is_changed_where_nothing_helps(model, monkeypatch):
    reference = np.zeros((6, 16, 16), np.uint8)
    reference[:, 2:14, 2:14] = 1
    reference[2:5, 5:9, 5:9] = 2
    store, _ = made_up(monkeypatch, model, [(reference, reference.copy(), np.full(reference.shape, 255, np.uint8))])
    opened = open_model(model, "cpu")
    tuned = tune(opened, store, ["0"])
    assert tuned.chosen.rules == replace(opened.info.rules, min_lesion_ml=0.0, min_lesion_probability=0.0)
    assert (tuned.chosen.organ, tuned.chosen.tumor) == (1.0, 1.0)


def test_of_choices_about_as_good_the_first_wins():
    choices = [
        module.Choice(rules=Rules(min_lesion_ml=ml), organ=math.nan, tumor=dice)
        for ml, dice in ((0, 0.7), (1, 0.8), (2, 0.801))
    ]
    assert best(choices, lambda one: one.tumor).rules.min_lesion_ml == 1
    assert best(choices, lambda one: one.organ) is choices[0]


def test_the_command_writes_all_flavors_and_infer_heeds_them(model, trained, stored, tmp_path):
    from train.export import FLAVORS, export

    path = tmp_path / "tiny.onnx"
    export(trained, path, flavors=FLAVORS[:2])
    weights = {one.name: [t.raw_data for t in onnx.load(one).graph.initializer] for one in tmp_path.glob("*.onnx")}
    shown = command(path, stored, "--split", trained / "split.json", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "written" not in shown.stdout
    assert "tuned" not in open_model(path, "cpu").info.metadata
    done = command(path, stored, "--split", trained / "split.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written: ") == 2
    validation = json.loads((trained / "split.json").read_text())["validation"]
    for one in flavors_beside(path):
        opened = open_model(one, "cpu")
        assert opened.info.metadata["tuned"]["cases"] == len(validation)
        assert opened.info.rules.as_json() == opened.info.metadata["postprocess"]
        assert [t.raw_data for t in onnx.load(one).graph.initializer] == weights[one.name]
        onnx.checker.check_model(onnx.load(one), full_check=True)
    rules = open_model(path, "cpu").info.rules
    expected = tune(open_model(path, "cpu"), open_store(stored), validation).before
    assert expected.rules == rules, "a second run starts from what the first has written"


def test_other_trainings_and_strange_files_beside_a_model_are_left_alone(model, tmp_path):
    path, other = tmp_path / "a.onnx", tmp_path / "a.fp16.onnx"
    shutil.copy(model, path)
    shutil.copy(model, other)
    changed = onnx.load(other)
    said = json.loads(changed.metadata_props[0].value)
    changed.metadata_props[0].value = json.dumps({**said, "training": {"minutes": 77}})
    onnx.save(changed, other)
    assert flavors_beside(path) == [path]
    assert flavors_beside(other) == [other]


def test_what_cannot_be_tuned_on_is_refused_in_a_sentence(model, stored, tmp_path):
    store = open_store(stored)
    split = tmp_path / "split.json"
    for content, message in (
        ({"validation": ["volume-77"]}, "names volume-77, which .* does not have"),
        ({"validation": []}, "names no case with a reference"),
        ({"train": ["volume-0"]}, "has no list of cases under validation"),
    ):
        split.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=message):
            cases_of(store, split)
    opened = open_model(model, "cpu")
    opened.info = replace(opened.info, labels=make_labels({"kidney": 1}))
    with pytest.raises(ConfigError, match="has other labels than tiny.onnx"):
        tune(opened, store, store.case_ids[:1])
    done = command(model, tmp_path / "nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_a_network_of_others_is_told_where_its_rules_stand(model, tmp_path):
    path = tmp_path / "theirs.onnx"
    bare = onnx.load(model)
    del bare.metadata_props[:]
    onnx.save(bare, path)
    nothing = module.Choice(rules=Rules(), organ=math.nan, tumor=math.nan)
    with pytest.raises(ModelError, match="carries no slicemill metadata; write postprocess = .* into its TOML"):
        write_rules(path, module.Tuned(before=nothing, chosen=nothing, cases=()))
