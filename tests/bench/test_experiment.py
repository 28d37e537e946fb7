"""An experiment: its design, its runs, resuming, and refused inputs."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from slicemill.bench.options import parse_integers
from slicemill.bench.records.quality import RegionScores, quality_table
from slicemill.bench.studies import experiment as experiment_module
from slicemill.bench.studies import parallel
from slicemill.bench.studies.design import MANY_EPOCHS, ExperimentDesign, read_design
from slicemill.bench.studies.dry_run import show_plan
from slicemill.bench.studies.estimates import estimate_minutes, run_time
from slicemill.bench.studies.experiment import Experiment, prepare, run_experiment
from slicemill.bench.studies.results import FoldRun, RunInputs, check_same_inputs
from slicemill.bench.studies.runner import lock_experiment
from slicemill.bench.studies.summary import summarize
from slicemill.common.documents import to_document
from slicemill.common.errors import ConfigError, InputError
from slicemill.common.files import read_json, write_json
from slicemill.store.reader import open_store
from slicemill.train.config import Config
from tests.bench.made_up import DESIGN, run_result, scored_case

HERE = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one variant"),
        ("folds = 1\n[variants.a]", "folds = 1: must be at least 2"),
        ("fold = 4\n[variants.a]", "fold is not a key of a design"),
        ("seeds = [0, 0]\n[variants.a]", "each once"),
        ("minutes = -1.0\n[variants.a]", "minutes = -1.0: must be 0 (no limit) or above"),
        ("[settings]\nmax_minutes = 3.0\n[variants.a]", "max_minutes is not for a design; set minutes above"),
        ("[variants.A_B]", "use up to 40 characters"),
        ("[variants.a]\nsteps = 3", "steps is the same for all variants"),
        ("[variants.a]\nmomentum = 3", "variant a: momentum: is not a setting"),
        ("[settings]\ncontext = 2\n[variants.a]", "variant a: context = 2: must be 1, 3, 5 or 7"),
        ("[settings]\nbatch = 0\n[variants.a]", "variant a: batch = 0 (chosen by GPU memory) is not allowed"),
        ("variants = 3", "Expected `object`, got `int` - at `$.variants`"),
        ("seeds = [1.5]\n[variants.a]", "Expected `int`, got `float` - at `$.seeds[0]`"),
        ("[variants", "cannot be read as TOML"),
    ],
)
def test_an_invalid_design_is_refused_before_training(tmp_path, text, message):
    (tmp_path / "table.toml").write_text(text)
    with pytest.raises(ConfigError, match="table.toml: .*") as error:
        read_design(tmp_path / "table.toml")
    assert message in str(error.value)


@pytest.mark.parametrize("path", sorted((HERE / "bench" / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_the_designs_that_are_shipped_are_sound(path):
    design = read_design(path)
    name, changes = next(iter(design.variants.items()))
    assert (name == "default") == (not changes)
    for_minutes = {"epochs": MANY_EPOCHS, "max_minutes": design.minutes}
    length = for_minutes if design.minutes else {"epochs": design.epochs}
    assert design.config(name, 2) == Config().replace(
        **{**design.settings, **changes}, seed=2, steps=design.steps, **length
    )


def test_complete_folds_come_first():
    runs = Experiment(design=replace(DESIGN, seeds=(0, 1)), out=Path("q"), phantoms=6).runs()
    assert [str(run) for run in runs[:4]] == [
        "default, fold 0, seed 0",
        "one-slice, fold 0, seed 0",
        "default, fold 1, seed 0",
        "one-slice, fold 1, seed 0",
    ]
    assert len({run.name for run in runs}) == 8


def test_integers_are_parsed_or_refused():
    assert parse_integers("--seeds", None) == ()
    with pytest.raises(ConfigError, match="--seeds 1;2: expected integers"):
        parse_integers("--seeds", "1;2")


class FakeTrainings:
    """Replaces the commands of an experiment: records the runs, and fails for the variants in `fails`."""

    def __init__(self, monkeypatch, stored):
        self.done, self.fails, self.store = [], set(), open_store(stored)
        monkeypatch.setattr(parallel, "run_fold", self.run_fold)
        monkeypatch.setattr(experiment_module, "prepare", self.prepare)

    def prepare(self, experiment, runner):
        for fold in range(experiment.design.folds):
            parts = {"train": ["volume-0"], "validation": ["volume-1"], "test": [f"volume-{2 + fold}"]}
            write_json(experiment.folder.split_file(fold), parts)
        return self.store

    def run_fold(self, request, folder, runner, log):
        run = request.run
        log("train")
        self.done.append((run, os.sched_getaffinity(0)))
        if run.variant in self.fails:
            raise InputError("slicemill train ended with exit status 1")
        cases = [scored_case("a", 0.5), scored_case("b", 0.5, "validation")]
        result = run_result(run.variant, cases, run.fold, run.seed, **vars(request.inputs))
        write_json(folder.result_file(run), to_document(result))
        return result


@pytest.fixture
def trainings(monkeypatch, stored):
    return FakeTrainings(monkeypatch, stored)


def test_an_experiment_resumes_and_adds_to_its_results(trainings, tmp_path):
    experiment = Experiment(design=DESIGN, out=tmp_path, phantoms=6)
    trainings.fails = {"one-slice"}
    with pytest.raises(InputError, match="2 runs of 4 failed, the others are done"):
        run_experiment(experiment)
    assert [run.variant for run, _ in trainings.done] == ["default", "one-slice"] * 2
    trainings.done, trainings.fails = [], set()
    assert len(run_experiment(experiment)) == 4
    assert [str(run) for run, _ in trainings.done] == ["one-slice, fold 0, seed 0", "one-slice, fold 1, seed 0"]
    trainings.done = []
    more = replace(experiment, design=replace(DESIGN, seeds=(0, 1)), variants=("default",))
    assert len(run_experiment(more)) == 6, "the results of earlier calls count too"
    assert {run.seed for run, _ in trainings.done} == {1}


def test_a_result_holds_the_inputs_in_the_order_of_its_format(trainings, tmp_path):
    run_experiment(Experiment(design=DESIGN, out=tmp_path, phantoms=6, only_folds=(0,)))
    document = read_json(tmp_path / "results" / "default_fold-0_seed-0.json")
    assert " ".join(document) == (
        "benchmark date variant fold seed collection settings export tune split training minutes cases machine"
    )
    assert document["split"]["test"] == ["volume-2"]
    assert document["tune"] == {"tuned": False}


def test_jobs_keep_to_their_own_cores(trainings, tmp_path):
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("this machine has one core")
    run_experiment(Experiment(design=DESIGN, out=tmp_path, phantoms=6, jobs=2))
    assert all(len(used) == len(cores) // 2 for _, used in trainings.done)
    assert os.sched_getaffinity(0) == cores


def test_a_result_of_other_settings_is_refused(trainings, tmp_path):
    experiment = Experiment(design=DESIGN, out=tmp_path, phantoms=6)
    run_experiment(experiment)
    with pytest.raises(ConfigError, match="default_fold-0_seed-0.json: was made with other inputs .steps 3 -> 5."):
        run_experiment(replace(experiment, design=replace(DESIGN, steps=5)))


def test_a_setting_that_one_of_two_results_did_not_know_yet_is_no_difference(tmp_path):
    now = RunInputs(collection="c", settings={"width": 4, "crop": 0}, export={"--min-lesion-ml": 1.0})
    check_same_inputs(tmp_path, replace(now, settings={"width": 4}), now)
    check_same_inputs(tmp_path, replace(now, export={}), now)
    with pytest.raises(ConfigError, match="with other inputs .the cases of test."):
        check_same_inputs(tmp_path, replace(now, split={"test": ("a",)}), replace(now, split={"test": ("b",)}))
    with pytest.raises(ConfigError, match="tuned False -> True"):
        check_same_inputs(tmp_path, now, replace(now, tune={"tuned": True}))
    with pytest.raises(ConfigError, match="collection d -> c"):
        check_same_inputs(tmp_path, replace(now, collection="d"), now)


def test_two_processes_in_one_folder_are_refused_even_when_the_first_was_killed(tmp_path, monkeypatch):
    """A training that outlives its experiment holds the lock until it ends."""
    training = tmp_path / "training"
    training.write_text("#!/bin/sh\nsleep 1.5\n")
    training.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(training))
    with lock_experiment(tmp_path) as runner:
        with pytest.raises(ConfigError, match="an experiment is running here"), lock_experiment(tmp_path):
            pass
        outliving = threading.Thread(target=runner.run_slicemill, args=(("train",), tmp_path / "log.txt"))
        outliving.start()
        time.sleep(0.5)
    with pytest.raises(ConfigError, match="trainings of one that was killed"), lock_experiment(tmp_path):
        pass
    outliving.join()
    with lock_experiment(tmp_path):
        pass


def test_a_failed_command_is_reported_by_its_last_line_and_its_log(tmp_path):
    words = ("ingest", tmp_path / "nowhere", tmp_path / "store")
    message = "exit status 1: slicemill: .*nowhere.*log.txt"
    with lock_experiment(tmp_path) as runner, pytest.raises(InputError, match=message):
        runner.run_slicemill(words, tmp_path / "log.txt")


def test_a_plan_lists_finished_and_remaining_runs(trainings, tmp_path, capsys):
    experiment = Experiment(design=DESIGN, out=tmp_path, phantoms=6, only_folds=(0,))
    trainings.fails = {"one-slice"}
    with pytest.raises(InputError):
        run_experiment(experiment)
    capsys.readouterr()
    show_plan(experiment)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["default", "0", "0", "done", "-"]
    assert lines[2].split() == ["one-slice", "0", "0", "to", "do", "3.000"]
    assert lines[-1].startswith("2 runs of 6 steps, 1 left; about 3 minutes with --jobs 1, by the finished runs.")


def test_trainings_may_take_the_same_minutes_instead_of_the_same_steps(trainings, tmp_path, capsys):
    design = replace(DESIGN, minutes=1.5)
    assert design.config("default", 0).max_minutes == 1.5
    experiment = Experiment(design=design, out=tmp_path, phantoms=6, only_folds=(0,))
    show_plan(experiment)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("2 runs of 1.5 minutes, 2 left; about 5 minutes with --jobs 1, by their time limit.")
    results = run_experiment(experiment)
    assert results[0].settings["max_minutes"] == 1.5
    assert ", 1.5 minutes a run." in quality_table(summarize(design, results))


def test_an_estimate_grows_with_the_steps():
    known = [run_time(run_result("default", []))]
    assert estimate_minutes(FoldRun(variant="default", fold=0, seed=0), 60, known) == pytest.approx(10 * 2 + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--data DIR or on --phantoms N"),
        ({"data": Path("nowhere")}, "nowhere: there is no such folder"),
        ({"phantoms": 9, "only_folds": (2,)}, "--only-folds 2: the folds are 0 to 1"),
        ({"phantoms": 9, "variants": ("deep",)}, "--variants deep: the table has default, one-slice"),
        ({"phantoms": 9, "jobs": 4096}, "--jobs 4096: this machine has"),
    ],
)
def test_an_invalid_experiment_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Experiment(design=DESIGN, out=Path("q"), **options)


@pytest.mark.slow
def test_an_experiment_goes_through_the_commands_of_a_user(collection, tmp_path):
    """Brief trainings on six phantoms: every case of both parts is scored, and a second call trains nothing."""
    design = ExperimentDesign(
        variants={"default": {}}, settings={"width": 4, "depth": 3, "batch": 2}, folds=2, epochs=1, steps=1
    )
    experiment = Experiment(design=design, out=tmp_path / "q", data=collection, only_folds=(1,))
    (result,) = run_experiment(experiment)
    split = read_json(experiment.folder.split_file(1))
    assert [case.case_id for case in result.cases] == split["validation"] + split["test"]
    for case in result.cases:
        for region in case.regions.values():
            if region.dice is not None:
                total = region.reference_ml + region.predicted_ml
                assert 2 * region.overlap_ml / total == pytest.approx(region.dice, abs=1e-9)
    path = experiment.folder.result_file(FoldRun(variant="default", fold=1, seed=0))
    written = path.stat().st_mtime_ns
    assert run_experiment(experiment) == [result]
    assert path.stat().st_mtime_ns == written
    scores = summarize(design, [result]).variants["default"].test
    assert set(scores) == {"liver", "tumor"}
    assert isinstance(scores["tumor"], RegionScores)


@pytest.mark.slow
def test_a_killed_experiment_is_finished_by_the_same_command(collection, tmp_path):
    """Killed during a training: the command refuses to run while that training lives on, and resumes it afterwards."""
    (tmp_path / "table.toml").write_text(
        "folds = 2\nepochs = 6\nsteps = 2\n[settings]\nwidth = 4\ndepth = 3\nbatch = 2\n[variants.default]\n"
    )
    words = [sys.executable, "-m", "slicemill", "bench", "quality", "--table", str(tmp_path / "table.toml"),
             "--data", str(collection), "--out", str(tmp_path / "q"), "--only-folds", "0"]  # fmt: skip
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
    assert "continuing after epoch" in log
    assert len(metrics.read_text().splitlines()) == 1 + 6
    assert "1 of 1: default, fold 0, seed 0: validation liver" in done.stdout
    assert (tmp_path / "q" / "quality.png").exists()
    assert read_json(tmp_path / "q" / "quality.json")["variants"]["default"]["runs"] == 1


@pytest.mark.slow
def test_a_scan_that_cannot_be_ingested_does_not_stop_an_experiment(collection, tmp_path, capsys):
    shutil.copytree(collection, tmp_path / "scans")
    (tmp_path / "scans" / "volume-9.nii").write_bytes(b"no scan")
    experiment = Experiment(design=DESIGN, out=tmp_path / "q", data=tmp_path / "scans")
    with lock_experiment(experiment.out) as runner:
        assert len(prepare(experiment, runner)) == 6
    assert "The experiment goes on without the cases that could not be ingested." in capsys.readouterr().out
    assert experiment.folder.split_file(1).exists()
