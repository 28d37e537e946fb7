"""`slicemill bench luna`: its plan, what is done again, and the folds on small chests."""

import csv
import json
import os
import shlex
import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from slicemill.bench.studies import luna
from slicemill.bench.studies.luna import History, describe_plan, join_tables, mark_of, run_luna, start_line
from slicemill.bench.studies.luna_folder import EXCLUDED, open_luna
from slicemill.bench.studies.luna_plan import RATES, LunaOptions, estimate, make_plan
from slicemill.cli import commands
from slicemill.common.errors import ConfigError, InputError
from slicemill.store.reader import open_store
from slicemill.store.split import read_split
from tests.infer.commands import run_command
from tests.ingest.luna import HEADER, SHAPE, UID, make_collection, make_scan, place, write, write_table

COMMANDS = typer.main.get_command(commands())


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "luna16"
    make_collection(root)
    shutil.move(tmp_path / "seg-lungs", root / "seg-lungs-LUNA16")
    return root


@pytest.fixture
def options(data, tmp_path):
    return LunaOptions(data=data, out=tmp_path / "out")


def test_a_folder_in_the_form_of_luna16_is_counted(data):
    folder = open_luna(data)
    assert [subset.name for subset in folder.subsets] == ["subset0", "subset1"]
    assert [len(subset.files) for subset in folder.subsets] == [1, 2]
    assert (folder.scans, folder.slices, folder.nodules, folder.excluded) == (3, 3 * SHAPE[0], 2, None)


def test_a_dry_run_lists_commands_that_exist_and_their_time_and_writes_nothing(data, tmp_path):
    table = data / EXCLUDED[0]
    table.parent.mkdir(parents=True)
    write_table(table, HEADER, [])
    out = tmp_path / "two words"
    done = CliRunner().invoke(
        commands(), ["bench", "luna", str(data), "--out", str(out), "--dry-run", "--minutes", "90"]
    )
    assert done.exit_code == 0, done.output
    lines = [shlex.split(line)[1:] for line in done.stdout.splitlines() if line.startswith("slicemill")]
    assert f"'{out}/store'" in done.stdout, "a name with a space is quoted"
    assert len(lines) == 2 + 2 * 3 + 1 + 2 * 4 + 2
    for name, *words in lines:
        COMMANDS.commands[name].make_context(name, list(words))  # raises if an option or a value is unknown
    assert all(str(table) in line for line in lines if line[0] == "ingest")
    assert "3 scans, 72 slices, 2 nodules" in done.stdout
    assert "21 of 21 commands left; 3.1 hours" in done.stdout  # two trainings of 90 minutes and the rest
    assert "bench/results/infer.json" in done.stdout
    assert not out.exists()


def test_each_subset_is_judged_by_networks_of_its_own_fold_and_all_of_them_are_scored(options):
    plan = make_plan(open_luna(options.data), options)
    for name in ("subset0", "subset1"):
        fold = [step for step in plan if step.fold == name]
        split = str(options.out / "folds" / f"{name}.json")
        assert [step.words[step.words.index("--split") + 1] for step in fold if "--split" in step.words] == [split] * 3
        for step in fold:
            other = "subset1" if name == "subset0" else "subset0"
            assert not any(other in word for word in step.words)
            assert step.kind not in ("infer", "judge") or str(options.data / name) in step.words
        finds, gives, judges = (
            next(step for step in fold if step.kind == kind) for kind in ("infer", "export", "judge")
        )
        assert "--mirror" in finds.words
        assert "--probability" in gives.words
        assert "--mirror" in judges.words
        assert finds.amount == 2 * sum(one.slices for one in open_luna(options.data).subsets if one.name == name)
    joins = [step for step in plan if step.kind == "join"]
    assert [len(step.words) for step in joins] == [3, 3]
    assert [step.words[1] for step in plan if step.kind == "froc"] == [step.words[0] for step in joins]


def read_rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def finish(plan, mark):
    lines = []
    for step in plan:
        begun = start_line(step, mark)
        lines += [begun, replace(begun, seconds=2.0)]
        step.makes.parent.mkdir(parents=True, exist_ok=True)
        step.makes.touch()
    return lines


def test_a_command_runs_again_if_its_inputs_changed_or_one_before_it_ran(options):
    folder = open_luna(options.data)
    plan, mark = make_plan(folder, options), mark_of(folder, options)
    assert History(lines=()).find_left(plan, mark) == plan
    lines = finish(plan, mark)
    assert History(lines=tuple(lines)).find_left(plan, mark) == []
    assert History(lines=tuple(lines[:5])).find_left(plan, mark) == plan[2:], "the third was stopped"
    assert History(lines=(*lines, lines[8])).find_left(plan, mark) == plan[4:], "the fifth ran again, and was stopped"
    assert History(lines=(*lines, *lines[8:10])).find_left(plan, mark) == plan[5:], "what follows it is out of date"
    plan[6].makes.unlink()
    assert History(lines=tuple(lines)).find_left(plan, mark) == plan[6:]
    plan[6].makes.touch()
    longer = make_plan(folder, replace(options, minutes=700.0))
    assert History(lines=tuple(lines)).find_left(longer, mark) == longer[2:]
    assert History(lines=(*lines, start_line(longer[5], mark))).find_left(plan, mark) == plan[5:], "same run folder"
    shutil.copy(options.data / "annotations.csv", options.data / "copy.csv")
    with (options.data / "annotations.csv").open("a") as file:
        file.write("1.3.6.1.4.1.14519.5.2.1.6279.6001.1,1,1,1,5\n")
    changed = open_luna(options.data)
    assert History(lines=tuple(lines)).find_left(plan, mark_of(changed, options)) == plan
    settings = options.out / "settings.toml"
    settings.write_text("width = 8\n")
    one = mark_of(folder, replace(options, config=settings))
    settings.write_text("width = 9\n")
    assert one != mark_of(folder, replace(options, config=settings))


@pytest.mark.parametrize(
    "name", ["subset0/{}.raw", "subset0/{}.mhd", "seg-lungs-LUNA16/{}.zraw", "seg-lungs-LUNA16/{}.mhd"]
)
def test_a_replaced_file_of_equal_size_makes_the_commands_run_again(options, name):
    path = options.data / name.format(UID.format(2))
    path = path if path.exists() else path.with_suffix(".raw")
    before = mark_of(open_luna(options.data), options)
    assert mark_of(open_luna(options.data), options) == before
    state = path.stat()
    aside = path.with_suffix(".new")
    aside.write_bytes(path.read_bytes())
    os.utime(aside, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))
    aside.replace(path)
    assert path.stat().st_size == state.st_size
    assert mark_of(open_luna(options.data), options) != before


class StoppedError(Exception):
    """A training was stopped."""


@pytest.mark.parametrize("kind", ["train", "train crops"])
def test_a_stopped_training_continues_and_one_of_other_inputs_begins_anew(options, monkeypatch, kind):
    settings = options.data / "settings.toml"
    settings.write_text("width = 8\n")
    options = replace(options, config=settings, epochs=3, crop_epochs=3)
    monkeypatch.setattr(luna, "open_store", lambda path: path)
    hashes = {"train": "cases", "train crops": "cases and points"}
    monkeypatch.setattr(luna, "TRAININGS", {one: lambda store, one=one: hashes[one] for one in hashes})
    first = next(step for step in make_plan(open_luna(options.data), options) if step.kind == kind)
    split = options.out / "folds" / "subset0.json"
    split.parent.mkdir(parents=True)
    split.write_text('{"train": ["a"], "validation": ["b"]}')
    monkeypatch.setattr(History, "find_left", lambda self, plan, mark: [s for s in plan if s.makes == first.makes])
    found = []

    class Runner:
        def run_slicemill(self, words, log):
            found.append((first.makes / "weights").exists())
            first.makes.mkdir(exist_ok=True)
            (first.makes / "weights").touch()
            raise StoppedError

    monkeypatch.setattr(luna, "lock_experiment", lambda out: nullcontext(Runner()))

    def continues(options=options):
        with pytest.raises(StoppedError):
            run_luna(open_luna(options.data), options)
        return found[-1]

    assert not continues()
    assert continues(), "it was merely stopped"
    os.utime(options.data / "subset0" / f"{UID.format(2)}.raw", ns=(1, 1))
    settings.write_text("# the same\nwidth = 8\n")
    assert continues(), "what it depends on is the same"
    hashes[kind] = "others"
    assert not continues()
    split.write_text('{"train": ["b"], "validation": ["a"]}')
    assert not continues()
    with (options.data / "annotations.csv").open("a") as file:
        file.write(f"{UID.format(3)},1,1,1,5\n")
    assert not continues()
    assert continues()
    longer = replace(options, epochs=4, crop_epochs=4)
    assert not continues(longer)
    assert continues(longer)
    settings.write_text("width = 9\n")
    assert continues(longer) == (kind == "train crops"), "the settings are those of segmentations"


def test_rates_are_those_of_the_commands_that_ran_through(options):
    step = next(one for one in make_plan(open_luna(options.data), options) if one.kind == "infer")
    begun = start_line(step, "m")
    ended = replace(begun, seconds=4.0)
    rates = History(lines=(begun, ended)).rates()
    assert rates["infer"].per_second == pytest.approx(step.amount / 4)
    assert rates["ingest"] == RATES["ingest"]
    assert rates["judge"] == rates["infer"]
    assert estimate(step, rates).seconds == pytest.approx(4)
    assert History(lines=(begun, begun, ended)).rates()["infer"] == RATES["infer"], "it was stopped and continued"


def test_tables_are_joined_unless_they_differ_or_share_a_scan(tmp_path):
    one = write_table(tmp_path / "1.csv", ("seriesuid", "coordX"), [("a", 1), ("a", 2)])
    two = write_table(tmp_path / "2.csv", ("seriesuid", "coordX"), [("b", 3)])
    none = write_table(tmp_path / "3.csv", ("seriesuid", "coordX"), [])
    odd = write_table(tmp_path / "5.csv", ("seriesuid", "coordX"), [("c\u2028\x0bd", 4)], encoding="utf-8")
    join_tables(tmp_path / "odd.csv", [one, odd])
    assert (tmp_path / "odd.csv").read_bytes().decode() == "seriesuid,coordX\na,1\na,2\nc\u2028\x0bd,4\n"
    join_tables(tmp_path / "all.csv", [one, none, two])
    rows = [line.split(",") for line in (tmp_path / "all.csv").read_text().splitlines()]
    assert rows == [["seriesuid", "coordX"], ["a", "1"], ["a", "2"], ["b", "3"]]
    with pytest.raises(InputError, match=r"2\.csv.* has the scan b, which .*all\.csv has, too"):
        join_tables(tmp_path / "no.csv", [tmp_path / "all.csv", two])
    other = write_table(tmp_path / "4.csv", ("seriesuid", "x"), [])
    with pytest.raises(InputError, match=r"4\.csv.* has the columns 'seriesuid,x'"):
        join_tables(tmp_path / "no.csv", [one, other])
    assert not (tmp_path / "no.csv").exists()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("subset1", "needs at least two of LUNA16's folders subset0 to subset9, .* it has subset0"),
        ("annotations.csv", r"has no table annotations\.csv"),
        ("seg-lungs-LUNA16", "has no folder seg-lungs-LUNA16"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_written(data, missing, message):
    (data / missing).rename(data / f"no-{missing}")
    with pytest.raises(ConfigError, match=message):
        open_luna(data)


def test_a_failed_command_is_run_again(options, monkeypatch):
    """The commands after it are not run; the next run begins with it."""
    ran = []

    class Runner:
        def run_slicemill(self, words, log):
            name = words[0]
            ran.append(name)
            if name == "split" and ran.count("split") == 1:
                raise InputError("a command ended with exit status 1")
            if name == "train":
                raise InputError("far enough")

    class Lock:
        def __init__(self, out):
            out.mkdir(parents=True, exist_ok=True)

        def __enter__(self):
            return Runner()

        def __exit__(self, *error):
            return False

    monkeypatch.setattr(luna, "lock_experiment", Lock)
    monkeypatch.setattr(luna, "hash_inputs", lambda step, folder: "the same")
    (options.out / "store").mkdir(parents=True)
    (options.out / "folds").mkdir()
    folder = open_luna(options.data)
    for _ in range(2):
        with pytest.raises(InputError):
            run_luna(folder, options)
    assert ran == ["ingest", "split", "split", "train"]
    assert "19 of 21 commands left" in describe_plan(folder, options)[-1]


def make_lookalikes(root):
    """Six scans in two subsets. Each has two balls: one is in the table, and nothing tells it from the other."""
    rows = []
    for number in range(6):
        ball, other = ((8, 12, 14), 9.0), ((16, 28, 30), 8.0)
        make_scan(root / f"subset{number % 2}" / f"{UID.format(number)}.mhd", [ball, other])
        write(root / "seg-lungs-LUNA16" / f"{UID.format(number)}.mhd", np.full(SHAPE, 3, dtype=np.uint8))
        rows.append((UID.format(number), *place(ball[0]), ball[1]))
    write_table(root / "annotations.csv", HEADER, rows)
    return root


@pytest.mark.slow
def test_two_folds_go_from_scans_to_one_curve(tmp_path, monkeypatch):
    """The commands of a user, in this process."""

    class Runner:
        def run_slicemill(self, words, log):
            done = run_command(*words)
            assert done.exit_code == 0, f"{words}: {done.output}"

    monkeypatch.setattr(luna, "lock_experiment", lambda out: nullcontext(Runner()))
    data, out = make_lookalikes(tmp_path / "luna16"), tmp_path / "out"
    settings = tmp_path / "settings.toml"
    settings.write_text("spacing_mm = 0.0\ncrop = 32\nwidth = 8\ndepth = 2\nsteps = 20\naveraging = 0.9\n")
    options = LunaOptions(data=data, out=out, minutes=30, epochs=2, crop_epochs=2, config=settings, provider="cpu")
    folder = open_luna(data)
    scores = run_luna(folder, options)
    assert (scores["scans"], scores["findings"]) == (6, 6)
    store = open_store(out / "store")
    for name in ("subset0", "subset1"):
        tested = read_split(out / "folds" / f"{name}.json", store.case_ids).test
        report = json.loads((out / "found" / name / "summary.json").read_text())
        assert len(tested) == len(report["outcomes"]) == 3
    found = {row["seriesuid"] for row in read_rows(out / "candidates.csv")}
    assert found <= {UID.format(number) for number in range(6)}
    assert found
    before = (out / "scores" / "froc.json").stat().st_mtime_ns
    assert describe_plan(folder, options)[-1] == "0 of 21 commands left"
    assert run_luna(folder, options) == scores
    assert (out / "scores" / "froc.json").stat().st_mtime_ns == before, "nothing ran again"
    shorter = replace(options, crop_epochs=1)
    step = next(one for one in make_plan(folder, shorter) if one.kind == "train crops")
    monkeypatch.setattr(History, "find_left", lambda self, plan, mark: [step])
    run_luna(folder, shorter)
    assert len(read_rows(step.makes / "metrics.csv")) == 1, "a run of two epochs was there"
