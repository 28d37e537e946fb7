"""The record of an experiment: scores, gains, the chosen variant, and how they are shown."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from slicemill.bench.records.quality import QualityRecord, quality_table
from slicemill.bench.records.quality_figure import draw_dice
from slicemill.bench.records.readme import format_record, render_figure
from slicemill.bench.schema.base import read_record
from slicemill.bench.studies.design import ExperimentDesign
from slicemill.bench.studies.fold_run import read_region
from slicemill.bench.studies.lesion_recall import recall_by_volume
from slicemill.bench.studies.summary import dice_gain, score_region, summarize
from slicemill.common.errors import ConfigError
from slicemill.common.files import write_json
from slicemill.measure.evaluation.statistics import EXACT, bootstrap_interval, paired_difference, wilcoxon_p
from tests.bench.made_up import DESIGN, run_result, scored_case


def test_the_signed_rank_test_is_scipys(rng):
    for count in (5, 9, 17, EXACT, EXACT + 20):
        deltas = rng.normal(0.1, 1, count)
        method = "exact" if count <= EXACT else "asymptotic"
        assert wilcoxon_p(deltas.tolist()) == pytest.approx(stats.wilcoxon(deltas, method=method).pvalue, rel=1e-6)


def test_ties_and_zeros_are_counted_exactly():
    """Compared with every choice of signs."""
    deltas = [1.0, 1.0, -2.0, 0.0, 3.0, 3.0, -3.0, 5.0]
    kept = [delta for delta in deltas if delta]
    ranks = stats.rankdata(np.abs(kept))
    seen = min(ranks[np.array(kept) > 0].sum(), ranks[np.array(kept) < 0].sum())
    sums = [sum(itertools.compress(ranks, signs)) for signs in itertools.product((0, 1), repeat=len(kept))]
    assert wilcoxon_p(deltas) == pytest.approx(2 * np.mean([total <= seen for total in sums]))
    assert math.isnan(wilcoxon_p([0.0, 0.0]))


def test_the_interval_is_that_of_scipys_bootstrap(rng):
    values = rng.normal(0.3, 0.2, 25)
    low, high = bootstrap_interval(values.tolist())
    reference = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.005)


def test_a_difference_is_paired_and_leaves_out_patients_without_dice():
    result = paired_difference([0.5, 0.7, math.nan, 0.2], [0.4, 0.5, 0.9, math.nan])
    assert (result.patients, result.better) == (2, 2)
    assert result.mean == pytest.approx(0.15)


def test_scores_are_by_patient_and_volumes_are_pooled():
    cases = [
        scored_case("a", 0.2, volumes=(10.0, 10.0, 2.0)),
        scored_case("a", 0.4, volumes=(10.0, 10.0, 4.0)),
        scored_case("b", 0.9, volumes=(1.0, 1.0, 0.9)),
        scored_case("c", None, volumes=(0.0, 0.0, 0.0)),
        scored_case("d", 0.0, volumes=(0.0, 3.0, 0.0)),
    ]
    result = score_region(cases, "tumor")
    assert result.by_patient == {"a": 0.3, "b": 0.9, "c": None, "d": 0.0}
    assert (result.patients, result.cases_without_region) == (3, 1)
    assert (result.mean, result.median) == (0.4, 0.3)
    assert result.mean_where_there_is_any == 0.6
    assert result.sd == pytest.approx(np.std([0.3, 0.9, 0.0], ddof=1), abs=1e-4)
    assert result.dice_global == pytest.approx(2 * 6.9 / 45, abs=1e-4)
    assert result.precision_global == pytest.approx(6.9 / 24, abs=1e-4)
    assert result.recall_global == pytest.approx(6.9 / 21, abs=1e-4)


def test_overlap_comes_back_from_recall():
    """A row of an evaluation: the prediction overlaps a quarter of a reference of 4 ml."""
    row = {"dice_t": 0.4, "recall_t": 0.25, "reference_t_ml": 4.0, "predicted_t_ml": 1.0}
    result = read_region(row, "t")
    assert 2 * result.overlap_ml / (result.reference_ml + result.predicted_ml) == 0.4


def test_a_gain_is_over_the_folds_and_seeds_that_both_have():
    variant = [run_result("new", [scored_case("a", 0.9)]), run_result("new", [scored_case("a", 0.1)], seed=1)]
    reference = [run_result("default", [scored_case("a", 0.5)])]
    assert dice_gain(variant, reference, "test", "tumor").mean == 0.4


def test_lesions_are_counted_by_volume_and_compared_by_patient():
    def results(found):
        cases = [
            replace(scored_case(patient, 0.5), lesions={"below_1_ml": (one, of), "above_5_ml": (0, 0)})
            for patient, one, of in zip("abc", found, (2, 4, 0), strict=True)
        ]
        return [run_result("default", cases)]

    (before, after) = results((1, 1, 0)), results((2, 2, 0))
    small = recall_by_volume(after, before, "test")["below_1_ml"]
    assert (small.found, small.references) == (4, 6)
    assert (small.gain.patients, small.gain.better) == (2, 2), "the third patient has no small lesion"
    assert small.gain.mean == pytest.approx((0.5 + 0.25) / 2)
    assert recall_by_volume(before, None, "test")["below_1_ml"].gain is None
    assert recall_by_volume([run_result("default", [scored_case("a", 0.5)])], None, "test") == {}, "an early result"
    shown = quality_table(summarize(DESIGN, [*before, *(replace(one, variant="one-slice") for one in after)]))
    assert "| one-slice | 4 of 6, +0.375 [+0.250, +0.500] |" in shown
    assert "above 5 ml" not in shown, "no case has one"


def test_a_false_alarm_counts_against_the_variant_that_raises_it():
    """The other variant has a correct empty mask, so its Dice is undefined. Omitting both would hide the alarm."""
    alarm = scored_case("b", 0.0, volumes=(0.0, 3.0, 0.0))
    variant = [run_result("new", [scored_case("a", 0.6), alarm, scored_case("c", None)])]
    reference = [run_result("default", [scored_case("a", 0.5), scored_case("b", None), scored_case("c", None)])]
    result = dice_gain(variant, reference, "test", "tumor")
    assert (result.patients, result.better) == (2, 1)
    assert result.mean == pytest.approx((0.1 - 1) / 2)


def test_variants_are_chosen_by_validation_scores_alone():
    results = [
        run_result("default", [scored_case("a", 0.5, "validation"), scored_case("b", 0.9)]),
        run_result("one-slice", [scored_case("a", 0.6, "validation"), scored_case("b", 0.1)]),
    ]
    record = summarize(DESIGN, results)
    assert record.chosen == "one-slice"
    assert record.variants["one-slice"].gain["test"]["tumor"].mean == -0.8
    document = record.as_json()
    assert read_record(QualityRecord, document) == read_record(QualityRecord, json.loads(json.dumps(document)))


def test_more_seeds_of_one_variant_show_chance_and_no_more():
    results = [
        run_result("default", [scored_case("a", 0.5, "validation"), scored_case("b", 0.4)]),
        run_result("one-slice", [scored_case("a", 0.6, "validation"), scored_case("b", 0.5)]),
        run_result("one-slice", [scored_case("a", 0.2, "validation"), scored_case("b", 0.3)], seed=1),
    ]
    record = summarize(DESIGN, results)
    assert record.chosen == "one-slice"
    assert record.variants["one-slice"].validation["tumor"].mean == 0.6, "over the common seed"
    assert record.variants["one-slice"].mean_by_seed == {
        "validation": {"0": 0.6, "1": 0.2},
        "test": {"0": 0.5, "1": 0.3},
    }
    shown = quality_table(record)
    assert "one-slice by seed, validation 0.600, 0.200; one-slice by seed, test 0.500, 0.300. " in shown


def test_variants_without_a_common_fold_and_seed_are_refused():
    results = [run_result("default", [scored_case("a", 0.5)]), run_result("one-slice", [scored_case("a", 0.5)], fold=1)]
    with pytest.raises(ConfigError, match="default, one-slice have no fold and seed in common yet"):
        summarize(DESIGN, results)


def made_up_record(patients=17):
    rng = np.random.default_rng(3)
    variants = {"default": {}, "one-slice": {"context": 1}}
    results = [
        run_result(
            name,
            [
                scored_case(f"p{number:02d}", float(rng.uniform(0.2, 0.9)), part)
                for number in range(patients)
                for part in ("validation", "test")
            ],
        )
        for name in variants
    ]
    return summarize(ExperimentDesign(variants=variants), results)


def test_the_table_shows_everything_that_the_record_holds():
    record = made_up_record()
    shown = format_record(record.as_json())
    assert "| tumor, validation (17 patients) |" in shown
    assert "| tumor, test (17 patients) |" in shown
    variant = record.variants["one-slice"]
    assert f"{variant.test['tumor'].mean:.3f} ± {variant.test['tumor'].sd:.3f}" in shown
    assert f"{variant.gain['validation']['tumor'].mean:+.3f} [" in shown
    assert "one-slice: context = 1" in shown
    assert "false alarm in a case without the region counts as 0" in shown
    assert f"{record.date[:10]}, commit abc" in shown
    assert len({len(line.split(" | ")) for line in shown.splitlines() if line.startswith("| default")}) == 1


@pytest.mark.parametrize("figure", ["quality", "quality-phantoms"])
def test_a_committed_record_becomes_a_table_of_the_readme(tmp_path, figure):
    document = made_up_record(patients=3).as_json()
    write_json(tmp_path / "bench" / "results" / f"{figure}.json", document)
    assert render_figure(figure, tmp_path) == f"<!-- {figure} -->\n{format_record(document)}\n<!-- end -->"


def test_the_picture_has_a_dot_a_patient(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *args, **more: drawn.append(args) or plot(self, *args, **more))
    draw_dice(tmp_path / "quality.png", made_up_record(patients=5))
    with Image.open(tmp_path / "quality.png") as picture:
        assert picture.size[0] >= 700
    assert sum(len(args) == 3 and args[2] == "o-" for args in drawn) == 2 * 5
