"""The quality study: what it runs, what it derives from the results, and what it refuses."""

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from slicemill.bench.records.readme import TABLES, rendered
from slicemill.bench.records.study import draw, quality_table
from slicemill.bench.studies import study as study_module
from slicemill.bench.studies.runs import Run, check_same, locked, region_row, runs_of
from slicemill.bench.studies.study import Study, minutes_of, numbers, plan, prepare, run_study
from slicemill.bench.studies.summary import gain, scores, summarize
from slicemill.bench.studies.table import Table, read_table
from slicemill.common.errors import ConfigError, InputError
from slicemill.common.files import read_json, write_json
from slicemill.measure.evaluation.statistics import EXACT, bootstrap_interval, paired_difference, wilcoxon_p
from slicemill.train.config import Config

HERE = Path(__file__).parents[2]
TABLE = Table(variants={"default": {}, "one-slice": {"context": 1}}, settings={"width": 4}, folds=2, epochs=2, steps=3)


def test_the_signed_rank_test_is_scipys(rng):
    for count in (5, 9, 17, EXACT, EXACT + 20):
        deltas = rng.normal(0.1, 1, count)
        method = "exact" if count <= EXACT else "asymptotic"
        assert wilcoxon_p(deltas.tolist()) == pytest.approx(stats.wilcoxon(deltas, method=method).pvalue, rel=1e-6)


def test_ties_and_zeros_are_counted_exactly():
    """Against every choice of signs, tried one by one."""
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
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_a_difference_is_paired_and_leaves_out_who_has_no_dice():
    found = paired_difference([0.5, 0.7, math.nan, 0.2], [0.4, 0.5, 0.9, math.nan])
    assert (found.patients, found.better) == (2, 2)
    assert found.mean == pytest.approx(0.15)


def case(patient, dice, part="test", volumes=(2.0, 2.0, 1.0)):
    reference, predicted, overlap = volumes
    row = {"dice": dice, "reference_ml": reference, "predicted_ml": predicted, "overlap_ml": overlap}
    return {"case_id": f"{patient}-ct", "patient_id": patient, "part": part, "regions": {"tumor": row}}


def result(variant, cases, fold=0, seed=0):
    return {
        "benchmark": "quality run",
        "collection": "made-up",
        "variant": variant,
        "fold": fold,
        "seed": seed,
        "minutes": 3.0,
        "settings": {"epochs": 2, "steps": 3},
        "training": {"minutes": 2.0},
        "cases": cases,
        "machine": {"commit": "abc"},
    }


def test_scores_are_by_patient_and_volumes_are_pooled():
    cases = [
        case("a", 0.2, volumes=(10.0, 10.0, 2.0)),
        case("a", 0.4, volumes=(10.0, 10.0, 4.0)),
        case("b", 0.9, volumes=(1.0, 1.0, 0.9)),
        case("c", None, volumes=(0.0, 0.0, 0.0)),
        case("d", 0.0, volumes=(0.0, 3.0, 0.0)),
    ]
    found = scores(cases, "tumor")
    assert found["by_patient"] == {"a": 0.3, "b": 0.9, "c": None, "d": 0.0}
    assert (found["patients"], found["cases_without_region"]) == (3, 1)
    assert (found["mean"], found["median"]) == (0.4, 0.3)
    assert found["mean_where_there_is_any"] == 0.6
    assert found["sd"] == pytest.approx(np.std([0.3, 0.9, 0.0], ddof=1), abs=1e-4)
    assert found["dice_global"] == pytest.approx(2 * 6.9 / 45, abs=1e-4)
    assert found["precision_global"] == pytest.approx(6.9 / 24, abs=1e-4)
    assert found["recall_global"] == pytest.approx(6.9 / 21, abs=1e-4)


def test_a_gain_is_over_the_folds_and_seeds_that_both_have():
    ours = [result("new", [case("a", 0.9)], seed=0), result("new", [case("a", 0.1)], seed=1)]
    theirs = [result("default", [case("a", 0.5)], seed=0)]
    assert gain(ours, theirs, "test", "tumor")["mean"] == 0.4


def test_a_false_alarm_tells_against_who_raises_it():
    """The other finds nothing there and is right, so its Dice is undefined: leaving both out would hide the alarm."""
    ours = [result("new", [case("a", 0.6), case("b", 0.0, volumes=(0.0, 3.0, 0.0)), case("c", None)])]
    theirs = [result("default", [case("a", 0.5), case("b", None), case("c", None)])]
    found = gain(ours, theirs, "test", "tumor")
    assert (found["patients"], found["better"]) == (2, 1)
    assert found["mean"] == pytest.approx((0.1 - 1) / 2)


def test_recipes_are_chosen_by_validation_whatever_the_test_says():
    rows = [
        result("default", [case("a", 0.5, "validation"), case("b", 0.9)]),
        result("one-slice", [case("a", 0.6, "validation"), case("b", 0.1)]),
    ]
    record = summarize(TABLE, rows)
    assert record["chosen"] == "one-slice"
    assert record["variants"]["one-slice"]["gain"]["test"]["tumor"]["mean"] == -0.8
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_more_seeds_of_one_variant_tell_of_chance_and_no_more():
    rows = [
        result("default", [case("a", 0.5, "validation"), case("b", 0.4)]),
        result("one-slice", [case("a", 0.6, "validation"), case("b", 0.5)]),
        result("one-slice", [case("a", 0.2, "validation"), case("b", 0.3)], seed=1),
    ]
    record = summarize(TABLE, rows)
    assert record["chosen"] == "one-slice"
    assert record["variants"]["one-slice"]["validation"]["tumor"]["mean"] == 0.6, "rows compare"
    assert record["variants"]["one-slice"]["mean_by_seed"] == {
        "validation": {"0": 0.6, "1": 0.2},
        "test": {"0": 0.5, "1": 0.3},
    }
    assert "one-slice by seed, validation 0.600, 0.200; one-slice by seed, test 0.500, 0.300. " in quality_table(record)


def made_up(patients=17, variants=("default", "one-slice")):
    rng = np.random.default_rng(3)
    return summarize(
        Table(variants={name: {} if name == "default" else {"context": 1} for name in variants}),
        [
            result(name, [case(f"p{number:02d}", float(rng.uniform(0.2, 0.9)), part) for number in range(patients)
                          for part in ("validation", "test")])
            for name in variants
        ],
    )  # fmt: skip


def test_the_table_says_everything_that_the_record_knows():
    record = made_up()
    shown = TABLES["quality"](record)
    assert shown == quality_table(record)
    assert "| tumor, validation (17 patients) |" in shown
    assert "| tumor, test (17 patients) |" in shown
    row = record["variants"]["one-slice"]
    assert f"{row['test']['tumor']['mean']:.3f} ± {row['test']['tumor']['sd']:.3f}" in shown
    assert f"{row['gain']['validation']['tumor']['mean']:+.3f} [" in shown
    assert "one-slice: context = 1" in shown
    assert "false alarm in a case without the region counts as 0" in shown
    assert f"{record['date'][:10]}, commit abc" in shown
    assert len({len(line.split(" | ")) for line in shown.splitlines() if line.startswith("| default")}) == 1


@pytest.mark.parametrize("figure", ["quality", "quality-phantoms"])
def test_a_committed_record_becomes_a_figure_of_the_readme(tmp_path, figure):
    record = made_up(patients=3)
    write_json(tmp_path / "bench" / "results" / f"{figure}.json", record)
    assert rendered(figure, tmp_path) == f"<!-- {figure} -->\n{quality_table(record)}\n<!-- end -->"


def test_the_picture_has_a_dot_a_patient(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *args, **more: drawn.append(args) or plot(self, *args, **more))
    draw(tmp_path / "quality.png", made_up(patients=5))
    with Image.open(tmp_path / "quality.png") as picture:
        assert picture.size[0] >= 700
    assert sum(len(args) == 3 and args[2] == "o-" for args in drawn) == 2 * 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one variant"),
        ("folds = 1\n[variants.a]", "folds = 1: must be at least 2"),
        ("fold = 4\n[variants.a]", "fold is nothing that a table has"),
        ("seeds = [0, 0]\n[variants.a]", "each once"),
        ("[variants.A_B]", "a name is up to 40"),
        ("[variants.a]\nsteps = 3", "steps is the study's own"),
        ("[variants.a]\nmomentum = 3", "variant a: momentum: is no setting"),
        ("[settings]\ncontext = 2\n[variants.a]", "variant a: context = 2: must be 1, 3, 5 or 7"),
        ("[settings]\nbatch = 0\n[variants.a]", "variant a: batch = 0 takes what a GPU's memory allows"),
        ("variants = 3", "variants = 3: must be dict"),
        ("seeds = [1.5]\n[variants.a]", "must be a list of whole numbers"),
        ("[variants", "cannot be read as TOML"),
    ],
)
def test_a_table_that_cannot_work_is_refused_before_anything_is_trained(tmp_path, text, message):
    (tmp_path / "table.toml").write_text(text)
    with pytest.raises(ConfigError, match="table.toml: .*") as error:
        read_table(tmp_path / "table.toml")
    assert message in str(error.value)


@pytest.mark.parametrize("path", sorted((HERE / "bench" / "quality").glob("*.toml")), ids=lambda path: path.stem)
def test_the_tables_that_are_shipped_are_sound(path):
    table = read_table(path)
    assert next(iter(table.variants)) == "default"
    assert table.config("default", 2) == Config().changed(
        **table.settings, seed=2, epochs=table.epochs, steps=table.steps
    )


def test_whole_folds_come_first():
    names = [run.name for run in runs_of((0, 1), (0, 1), ("a", "b"))]
    assert names[:4] == ["a_fold-0_seed-0", "b_fold-0_seed-0", "a_fold-1_seed-0", "b_fold-1_seed-0"]
    assert len(names) == 8


def test_numbers_are_read_or_refused():
    assert numbers("--seeds", None) == ()
    with pytest.raises(ConfigError, match="--seeds 1;2: expected whole numbers"):
        numbers("--seeds", "1;2")


def test_overlap_comes_back_from_recall():
    """Of an evaluation: a reference of 4 ml, of which a quarter was found."""
    row = {"dice_t": 0.4, "recall_t": 0.25, "reference_t_ml": 4.0, "predicted_t_ml": 1.0}
    found = region_row(row, "t")
    assert 2 * found["overlap_ml"] / (found["reference_ml"] + found["predicted_ml"]) == 0.4


class Trainings:
    """Stands for the commands: notes what is run, and fails where it is told to."""

    def __init__(self, monkeypatch, stored):
        self.done, self.fails = [], set()
        monkeypatch.setattr(study_module, "carry_out", self.carry_out)
        monkeypatch.setattr(study_module, "prepare", lambda study, shell: self.prepare(study, stored))

    def prepare(self, study, stored):
        from slicemill.store.reader import open_store

        for fold in range(study.table.folds):
            parts = {"train": ["volume-0"], "validation": ["volume-1"], "test": [f"volume-{2 + fold}"]}
            write_json(study.place.split(fold), parts)
        return open_store(stored)

    def carry_out(self, run, place, sought, shell, tell):
        tell("train")
        self.done.append((run, os.sched_getaffinity(0)))
        if run.variant in self.fails:
            raise InputError("slicemill train ended with exit status 1")
        row = {**result(run.variant, [case("a", 0.5), case("b", 0.5, "validation")], run.fold, run.seed), **sought}
        write_json(place.result(run), row)
        return row


@pytest.fixture
def trainings(monkeypatch, stored):
    return Trainings(monkeypatch, stored)


def test_a_study_goes_on_where_it_was_and_adds_to_its_record(trainings, tmp_path):
    study = Study(table=TABLE, out=tmp_path, phantoms=6)
    trainings.fails = {"one-slice"}
    with pytest.raises(InputError, match="2 runs of 4 failed, the others are done"):
        run_study(study)
    assert [run.variant for run, _ in trainings.done] == ["default", "one-slice"] * 2
    trainings.done, trainings.fails = [], set()
    assert len(run_study(study)) == 4
    assert [str(run) for run, _ in trainings.done] == ["one-slice, fold 0, seed 0", "one-slice, fold 1, seed 0"]
    trainings.done = []
    more = Study(table=Table(**{**vars_of(TABLE), "seeds": (0, 1)}), out=tmp_path, phantoms=6, variants=("default",))
    assert len(run_study(more)) == 6, "the record holds what earlier calls did"
    assert {run.seed for run, _ in trainings.done} == {1}


def vars_of(table):
    return {name: getattr(table, name) for name in table.__dataclass_fields__}


def test_jobs_keep_to_their_own_cores(trainings, tmp_path):
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("this machine has one core")
    run_study(Study(table=TABLE, out=tmp_path, phantoms=6, jobs=2))
    assert all(len(used) == len(cores) // 2 for _, used in trainings.done)
    assert os.sched_getaffinity(0) == cores


def test_a_result_of_other_settings_is_refused(trainings, tmp_path):
    run_study(Study(table=TABLE, out=tmp_path, phantoms=6))
    other = Table(**{**vars_of(TABLE), "steps": 5})
    with pytest.raises(ConfigError, match="default_fold-0_seed-0.json: is of other settings .steps 3 -> 5."):
        run_study(Study(table=other, out=tmp_path, phantoms=6))


def test_a_setting_that_one_of_two_results_did_not_know_yet_is_no_difference(tmp_path):
    now = {"settings": {"width": 4, "crop": 0}, "export": {}, "split": {}, "collection": "c"}
    check_same(tmp_path, {**now, "settings": {"width": 4}}, now)
    check_same(tmp_path, {name: value for name, value in now.items() if name != "export"}, now)
    with pytest.raises(ConfigError, match="of other settings .the cases of test."):
        check_same(tmp_path, {**now, "split": {"test": ["a"]}}, {**now, "split": {"test": ["b"]}})
    check_same(tmp_path, now, {**now, "tune": {"tuned": False}})
    with pytest.raises(ConfigError, match="tuned False -> True"):
        check_same(tmp_path, now, {**now, "tune": {"tuned": True}})
    with pytest.raises(ConfigError, match="collection d -> c"):
        check_same(tmp_path, {**now, "collection": "d"}, now)


def test_two_at_one_study_are_refused_even_when_the_first_was_killed(tmp_path, monkeypatch):
    """A training that outlives its study holds the study's lock until it ends."""
    training = tmp_path / "training"
    training.write_text("#!/bin/sh\nsleep 1.5\n")
    training.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(training))
    with locked(tmp_path) as shell:
        with pytest.raises(ConfigError, match="a study is at work here"), locked(tmp_path):
            pass
        outliving = threading.Thread(target=shell.type, args=(("train",), tmp_path / "log.txt"))
        outliving.start()
        time.sleep(0.5)
    with pytest.raises(ConfigError, match="trainings of one that was killed"), locked(tmp_path):
        pass
    outliving.join()
    with locked(tmp_path):
        pass


def test_a_command_that_fails_says_its_last_line_and_where_the_rest_is(tmp_path):
    with locked(tmp_path) as shell, pytest.raises(InputError, match="exit status 1: slicemill: .*nowhere.*log.txt"):
        shell.type(("ingest", tmp_path / "nowhere", tmp_path / "store"), tmp_path / "log.txt")


def test_a_plan_lists_what_is_done_and_what_is_left(trainings, tmp_path, capsys):
    study = Study(table=TABLE, out=tmp_path, phantoms=6, only_folds=(0,))
    trainings.fails = {"one-slice"}
    with pytest.raises(InputError):
        run_study(study)
    capsys.readouterr()
    plan(study)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["default", "0", "0", "done", "-"]
    assert lines[2].split() == ["one-slice", "0", "0", "to", "do", "3.000"]
    assert lines[-1].startswith("2 runs of 6 steps, 1 left; about 3 minutes with --jobs 1, by the finished runs.")


def test_an_estimate_grows_with_the_steps():
    study = Study(table=Table(**{**vars_of(TABLE), "steps": 30}), out=Path("q"), phantoms=6)
    done = result("default", [])
    assert minutes_of(study, Run(variant="default", fold=0, seed=0), [done]) == pytest.approx(10 * 2 + 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--data DIR or on --phantoms N"),
        ({"data": Path("nowhere")}, "nowhere: there is no such folder"),
        ({"phantoms": 9, "only_folds": (2,)}, "--only-folds 2: the folds are 0 to 1"),
        ({"phantoms": 9, "variants": ("deep",)}, "--variants deep: the table has default, one-slice"),
        ({"phantoms": 9, "jobs": 4096}, "--jobs 4096: this machine has"),
    ],
)
def test_a_study_that_cannot_work_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Study(table=TABLE, out=Path("q"), **given)


@pytest.mark.slow
def test_a_study_goes_through_the_commands_of_a_user(collection, tmp_path):
    """Brief trainings on six phantoms: every case of both parts must be scored, and a second call does nothing anew."""
    table = Table(variants={"default": {}}, settings={"width": 4, "depth": 3, "batch": 2}, folds=2, epochs=1, steps=1)
    study = Study(table=table, out=tmp_path / "q", data=collection, only_folds=(1,))
    (found,) = run_study(study)
    split = read_json(study.place.split(1))
    assert [row["case_id"] for row in found["cases"]] == split["validation"] + split["test"]
    for row in found["cases"]:
        for region in row["regions"].values():
            whole = region["reference_ml"] + region["predicted_ml"]
            if region["dice"] is not None:
                assert 2 * region["overlap_ml"] / whole == pytest.approx(region["dice"], abs=1e-9)
    written = study.place.result(Run(variant="default", fold=1, seed=0)).stat().st_mtime_ns
    assert run_study(study) == [found]
    assert study.place.result(Run(variant="default", fold=1, seed=0)).stat().st_mtime_ns == written
    record = summarize(table, [found])
    assert set(record["variants"]["default"]["test"]) == {"liver", "tumor"}


@pytest.mark.slow
def test_a_killed_study_is_finished_by_the_same_command(collection, tmp_path):
    """Killed in the middle of a training: the training that outlives it is waited for, and gone on with."""
    (tmp_path / "table.toml").write_text(
        "folds = 2\nepochs = 6\nsteps = 2\n[settings]\nwidth = 4\ndepth = 3\nbatch = 2\n[variants.default]\n"
    )
    words = [sys.executable, "-m", "slicemill", "bench", "quality", "--table", str(tmp_path / "table.toml"), "--data", str(collection),
             "--out", str(tmp_path / "q"), "--only-folds", "0"]  # fmt: skip
    metrics = tmp_path / "q" / "runs" / "default_fold-0_seed-0" / "train" / "metrics.csv"
    first = subprocess.Popen(words, cwd=HERE, stdout=subprocess.DEVNULL, start_new_session=True)
    while not metrics.exists():
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.wait()
    os.killpg(first.pid, signal.SIGSTOP)
    refused = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "trainings of one that was killed" in refused.stderr
    os.killpg(first.pid, signal.SIGKILL)
    done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True)
    log = (metrics.parents[1] / "log.txt").read_text()
    assert "going on after epoch" in log
    assert len(metrics.read_text().splitlines()) == 1 + 6
    assert "1 of 1: default, fold 0, seed 0: validation liver" in done.stdout
    assert (tmp_path / "q" / "quality.png").exists()
    assert read_json(tmp_path / "q" / "quality.json")["variants"]["default"]["runs"] == 1


@pytest.mark.slow
def test_a_scan_that_cannot_be_ingested_does_not_stop_a_study(collection, tmp_path, capsys):
    shutil.copytree(collection, tmp_path / "scans")
    (tmp_path / "scans" / "volume-9.nii").write_bytes(b"no scan")
    study = Study(table=TABLE, out=tmp_path / "q", data=tmp_path / "scans")
    with locked(study.out) as shell:
        assert len(prepare(study, shell)) == 6
    assert "The study goes on without what could not be ingested." in capsys.readouterr().out
    assert study.place.split(1).exists()
