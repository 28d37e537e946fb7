"""What is known of a lesion, by hand and by scipy; and the rule that is fitted to it."""

from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, optimize

from slicemill.common.errors import ModelError
from slicemill.ct.geometry import Grid
from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.ct.runs import connect_runs, find_runs
from slicemill.infer import fitted_rule
from slicemill.infer.fitted_rule import LesionTable, fit_lesion_rule, fit_weights
from slicemill.infer.lesion_features import LesionFeatures, ScanVolumes, measure_lesions, score_lesions
from slicemill.infer.postprocess import extent, postprocess
from slicemill.infer.tune import Choice, tabulate_lesions, try_fit
from slicemill.store.model_card import LesionRule, PostprocessRules, parse_postprocess_rules
from tests.infer.test_tune import RULE, scene

GRID = Grid(shape=(12, 12, 6), affine=np.diag([-2.0, -2.0, 3.0, 1.0]))


def measure(label, labels=LITS_LABELS, grid=GRID, **volumes):
    runs = find_runs(label, [labels.tumor_value()])
    numbers, _ = connect_runs(runs)
    return measure_lesions(ScanVolumes(label=label, **volumes), labels, grid, runs, numbers, fitted=True)


def test_features_by_hand():
    """An organ of 10 x 10 voxels in 6 slices; an L of three voxels, two voxels from its side, and a voxel outside."""
    label = np.zeros((6, 12, 12), np.uint8)
    label[:, 1:11, 1:11] = 1
    label[3, 5, 3:5] = label[3, 6, 3] = 2
    label[0, 0, 0] = 2
    image = np.full(label.shape, 100, np.int16)
    image[3, 5, 3], image[3, 5, 4], image[3, 6, 3], image[0, 0, 0] = 40, 50, 60, -1000
    probability = np.zeros(label.shape, np.uint8)
    probability[3, 5, 3:5], probability[3, 6, 3], probability[0, 0, 0] = 255, 153, 128
    found = measure(label, image=image, probability=probability)
    assert found.voxel_ml == pytest.approx(0.012)
    assert found.voxels.tolist() == [1, 3]
    assert found.probability_sums.tolist() == [128, 663]
    assert found.peaks.tolist() == [128, 255]
    assert found.hu_over_organ.tolist() == [-1100, -50]
    assert found.depth_mm.tolist() == [2, 6], "one and three steps of 2 mm; beyond the ends of the scan is outside"
    assert found.filled.tolist() == [1, 0.75]


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_features_are_those_of_scipy(seed):
    _, label, probability = scene(seed)
    image = np.random.default_rng(seed).integers(-500, 500, label.shape).astype(np.int16)
    found = measure(label, image=image, probability=probability)
    numbers, count = ndimage.label(label == 2, structure=np.ones((3, 3, 3)))
    index = range(1, count + 1)
    assert len(found.voxels) == count
    if not count:
        return
    organ = image[label == 1].mean() if (label == 1).any() else 0
    np.testing.assert_allclose(found.peaks, ndimage.maximum(probability, numbers, index))
    np.testing.assert_allclose(found.probability_sums, ndimage.sum(probability, numbers, index))
    np.testing.assert_allclose(found.hu_over_organ, ndimage.mean(image, numbers, index) - organ, atol=1e-9)
    boxes = [np.prod([side.stop - side.start for side in sides]) for sides in ndimage.find_objects(numbers)]
    np.testing.assert_allclose(found.filled, found.voxels / boxes)
    nearest = ndimage.distance_transform_edt(np.pad(label > 0, 1), sampling=GRID.spacing_mm)[1:-1, 1:-1, 1:-1]
    centers = np.floor(np.array(ndimage.center_of_mass(label == 2, numbers, index)) + 0.5 + 1e-9).astype(int)
    assert np.all(found.depth_mm >= nearest[tuple(centers.T)] - 1e-9), "along the axes it is never nearer"


def assert_same_features_on_the_box(label, image, probability):
    box = extent(label)
    whole = measure(label, image=image, probability=probability)
    part = measure(label[box], image=image[box], probability=probability[box])
    for one in fields(LesionFeatures):
        np.testing.assert_array_equal(getattr(whole, one.name), getattr(part, one.name), err_msg=one.name)
    return whole


@pytest.mark.parametrize("corner", [(1, 2, 2), (2, 3, 3)])
def test_a_lesion_of_even_size_has_the_depth_of_its_later_middle_voxel(corner):
    """`tune` measures in the whole scan, `infer` in the box of the labels: centers between voxels must agree."""
    label = np.zeros((6, 12, 12), np.uint8)
    z, y, x = corner
    label[z : z + 4, y : y + 9, x : x + 9] = 1
    label[z : z + 4, y + 3 : y + 5, x + 1 : x + 3] = 2
    found = assert_same_features_on_the_box(label, np.zeros(label.shape, np.int16), np.full(label.shape, 255, np.uint8))
    assert found.depth_mm.tolist() == [6], "voxel 2 of 4 slices of 3 mm, 4 of 9 and 2 of 9 voxels of 2 mm"


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)))
def test_features_are_equal_in_the_whole_scan_and_in_the_box_of_its_labels(seed, margins):
    _, label, probability = scene(seed)
    image = np.random.default_rng(seed).integers(-500, 500, label.shape).astype(np.int16)
    around = [(margin, 1) for margin in margins]
    assert_same_features_on_the_box(*(np.pad(part, around) for part in (label, image, probability)))


def test_without_an_organ_hu_count_from_0_and_depths_are_0():
    label = np.zeros((6, 12, 12), np.uint8)
    label[2, 3, 3:6] = 1
    found = measure(label, make_labels({"tumor": 1}), image=np.full(label.shape, 30, np.int16))
    assert (found.hu_over_organ.tolist(), found.depth_mm.tolist()) == ([30], [0])
    assert found.peaks.tolist() == [255], "without probabilities, all are 1"


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_those_of_an_optimizer(seed):
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((60, 6)) * [1, 0.1, 0.2, 40, 9, 0.3] + [0, 0.5, 0.8, -20, 8, 0.5]
    columns[:, 2] = 0.75  # says nothing
    true = rng.random(60) < 1 / (1 + np.exp(-(columns[:, 3] + 20) / 20))
    center, scale = columns.mean(axis=0), np.where(np.arange(6) == 2, np.inf, columns.std(axis=0))
    design = (columns - center) / scale

    def loss(weights):
        logits = weights[0] + design @ weights[1:]
        return (
            np.logaddexp(0, np.where(true, -logits, logits)).sum() + fitted_rule.PENALTY / 2 * (weights[1:] ** 2).sum()
        )

    best = optimize.minimize(loss, np.zeros(7), tol=1e-12).x
    rule = fit_weights(columns, true)
    np.testing.assert_allclose(np.array(rule.weights) * np.where(np.isinf(scale), 0, scale), best[1:], atol=1e-4)
    np.testing.assert_allclose(
        score_lesions(columns, rule), 1 / (1 + np.exp(-(best[0] + design @ best[1:]))), atol=1e-4
    )


def test_lesions_of_one_kind_in_a_fold_are_no_error():
    rule = fit_weights(np.random.default_rng(0).standard_normal((8, 6)), np.ones(8, dtype=bool))
    assert np.isfinite([rule.intercept, *rule.weights]).all()


def made_table(seed, count=12):
    """A case whose true lesions are dark and whose others are bright; volume and probabilities tell nothing."""
    rng = np.random.default_rng(seed)
    true = np.arange(count) % 2 == 0
    voxels = rng.integers(20, 200, count).astype(float)
    means = rng.uniform(150, 250, count)
    found = LesionFeatures(
        voxel_ml=0.01,
        voxels=voxels,
        probability_sums=means * voxels,
        peaks=np.full(count, 255.0),
        hu_over_organ=np.where(true, -50, 30) + rng.normal(0, 15, count),
        depth_mm=rng.uniform(0, 30, count),
        filled=rng.uniform(0.3, 1, count),
    )
    return LesionTable(reference=int(voxels[true].sum()), found=found, hits=voxels * true)


def test_a_fitted_rule_replaces_thresholds_only_where_it_is_better_on_other_cases():
    tables = [made_table(seed) for seed in range(6)]
    rules = PostprocessRules(largest_organ=True, min_lesion_ml=0.5, min_lesion_peak=0.9)
    dice = float(np.mean([table.dice_of(rules) for table in tables]))
    chosen, note = try_fit(Choice(rules=rules, organ=0.9, tumor=dice), tables, list("abcdef"))
    assert chosen.rules == PostprocessRules(largest_organ=True, lesion_rule=chosen.rules.lesion_rule)
    assert chosen.tumor > 0.95 > dice
    assert note == (
        f"fitted rule: tumor Dice {chosen.tumor:.4f} on cases that it was not fitted to, {dice:.4f} with thresholds"
    )
    assert np.mean([table.dice_of(chosen.rules) for table in tables]) > 0.95
    assert np.mean([made_table(seed).dice_of(chosen.rules) for seed in range(90, 95)]) > 0.9, "on new cases"
    kept, note = try_fit(replace(chosen, rules=rules), tables, list("abcdef"))
    assert kept.rules == rules
    assert "is not 0.01 better" in note


def test_an_earlier_rule_is_kept_in_words_unless_a_new_one_is_better():
    tables, patients = [made_table(seed) for seed in range(6)], list("abcdef")
    earlier = PostprocessRules(largest_organ=True, lesion_rule=RULE)
    kept, note = try_fit(Choice(rules=earlier, organ=0.9, tumor=0.999), tables, patients)
    assert kept.rules == earlier
    assert note.startswith("fitted rule: the earlier rule is kept, because a new tumor Dice of ")
    kept, note = try_fit(Choice(rules=earlier, organ=0.9, tumor=0.5), tables[:1], patients[:1])
    assert kept.rules == earlier
    assert note.startswith("fitted rule: the earlier rule is kept, because 6 lesions are tumor")
    chosen, note = try_fit(Choice(rules=earlier, organ=0.9, tumor=0.5), tables, patients)
    assert chosen.rules.lesion_rule not in (None, RULE)
    assert note.endswith("0.5000 with the earlier rule")


def test_scans_of_a_patient_are_in_one_fold(monkeypatch):
    """A rule is never judged by a patient that it was fitted to, however many scans and whatever their order."""
    tables = [made_table(seed) for seed in range(13)]
    patients = list("abcdefgabcaha")
    fitted, fit = [], fitted_rule._fit

    def spy(cases):
        fitted.append({number for number, table in enumerate(tables) if any(case[0] is table for case in cases)})
        return fit(cases)

    monkeypatch.setattr(fitted_rule, "_fit", spy)
    assert fit_lesion_rule(tables, patients).rule is not None
    *folds, last = [set(range(13)) - one for one in fitted]
    assert last == set(), "the rule itself is that of all cases"
    assert sorted(number for held_out in folds for number in held_out) == list(range(13))
    assert [{patients[number] for number in held_out} for held_out in folds] == [
        {"a", "f"},
        {"b", "g"},
        {"c", "h"},
        {"d"},
        {"e"},
    ]


def test_chance_is_hardly_ever_fitted():
    """Hits that nothing tells: on other cases, the rule is no better than keeping all lesions."""
    rng, fitted = np.random.default_rng(3), 0
    for number in range(30):
        tables = [made_table(100 * number + seed) for seed in range(6)]
        tables = [replace(table, hits=rng.permutation(table.hits > 0) * table.found.voxels) for table in tables]
        tables = [replace(table, reference=int(table.hits.sum())) for table in tables]
        dice = float(np.mean([table.dice_of(PostprocessRules()) for table in tables]))
        chosen, _ = try_fit(Choice(rules=PostprocessRules(), organ=0.9, tumor=dice), tables, list("abcdef"))
        fitted += chosen.rules.lesion_rule is not None
    assert fitted <= 2


@pytest.mark.parametrize(
    ("tables", "patients", "reason"),
    [
        ([made_table(1, 30)], ["a"], "15 lesions are tumor and 15 are not, of patients: 1"),
        ([made_table(1, 38), made_table(2, 1)], ["a", "b"], "20 lesions are tumor and 19 are not, of patients: 2"),
        ([made_table(1, 40), made_table(2, 40)], ["a", "a"], "40 lesions are tumor and 40 are not, of patients: 1"),
        ([], [], "0 lesions are tumor and 0 are not, of patients: 0"),
    ],
)
def test_too_few_lesions_are_not_fitted(tables, patients, reason):
    rules = PostprocessRules(min_lesion_ml=0.5)
    chosen, note = try_fit(Choice(rules=rules, organ=0.9, tumor=0.5), tables, patients)
    assert chosen.rules == rules
    assert note == f"fitted rule: none, because {reason}; it needs 20 of each, of 2 patients"
    assert fit_lesion_rule(tables, patients).rule is None


def test_files_without_these_rules_are_written_and_read_as_before():
    before = {"largest_organ": True, "fill_holes": False, "tumor_reach_mm": None, "min_lesion_ml": 0.5}
    before["min_lesion_probability"] = 0.0
    assert parse_postprocess_rules(before).as_json() == before
    rules = PostprocessRules(min_lesion_peak=0.8, lesion_rule=RULE)
    assert parse_postprocess_rules(rules.as_json()) == rules
    assert rules.as_json()["lesion_rule"] == asdict(RULE)
    assert set(LesionRule.FEATURES) == set(asdict(RULE)) - {"intercept", "least_score"}
    damaged = {**rules.as_json(), "lesion_rule": {**asdict(RULE), "depth_mm": float("nan")}}
    with pytest.raises(ModelError, match=r"post-processing rules are invalid.*depth_mm"):
        parse_postprocess_rules(damaged)


def test_a_rule_that_lacks_its_input_is_refused():
    reference, label, _ = scene(1)
    image = np.zeros(label.shape, np.int16)
    with pytest.raises(ValueError, match="needs the image"):
        postprocess(label, LITS_LABELS, PostprocessRules(lesion_rule=RULE), GRID)
    with pytest.raises(ModelError, match="needs probabilities of tumor"):
        postprocess(label, LITS_LABELS, PostprocessRules(lesion_rule=RULE), GRID, image=image)
    table = tabulate_lesions(ScanVolumes(label=label, image=image), reference, LITS_LABELS, GRID)
    assert fit_weights(table.found.columns(), table.hits > 0).mean_probability == 0, "nothing to learn from"
