"""What all commands have in common: help, version, quiet, verbose, log file, JSON, old names, missing extras."""

import json
import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from slicemill.cli import ENTRIES, commands
from slicemill.common.app import OLD_NAMES
from slicemill.common.extras import PACKAGES, require_extras
from slicemill.common.output import Output, current_output, use_output
from slicemill.common.terminal import print_always, print_json, print_line
from slicemill.train.config import Config, make_config, read_config
from slicemill.train.config_text import field_docs, to_commented_toml
from slicemill.train.crops.settings import CropConfig, read_crop_config

HERE = Path(__file__).parents[1]
BASE = {one for packages in PACKAGES.values() for one in packages}


def invoke(*words):
    return CliRunner().invoke(commands(), [str(word) for word in words])


def walk(command, name=()):
    """Yield the words and the command of every command."""
    if hasattr(command, "commands"):
        for key, inner in command.commands.items():
            yield from walk(inner, (*name, key))
    else:
        yield name, command


ALL = dict(walk(typer.main.get_command(commands())))


def run_without_extras(*words, cwd):
    """Run a command in a process in which no package of an extra can be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(BASE)!r}));" + "from slicemill.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(HERE)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def run_shell(line, cwd):
    environment = {**os.environ, "PYTHONPATH": str(HERE), "PYTHON": sys.executable}
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    done = invoke("--version")
    assert (done.exit_code, done.output) == (0, f"slicemill {version('slicemill')}\n")


@pytest.mark.parametrize("words", [(), ("store",), ("bench",), *ALL], ids=" ".join)
def test_h_is_help(words):
    short, long = invoke(*words, "-h"), invoke(*words, "--help")
    assert (short.exit_code, short.output) == (0, long.output)


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_can_be_quiet_verbose_and_logged(words):
    names = {name for one in ALL[words].params for name in one.opts}
    assert {"--quiet", "-q", "--verbose", "-v", "--log-file"} <= names


def test_every_command_that_prints_a_table_prints_json():
    named = {" ".join(words) for words, command in ALL.items() if any("--json" in one.opts for one in command.params)}
    user = {name for name in named if not name.startswith("bench")}
    assert user == {
        "ingest", "info", "split", "tune", "infer", "measure", "compare", "evaluate", "froc", "doctor",
        "store info", "store manifest", "store export", "store export-slices", "store upgrade", "store verify",
    }  # fmt: skip


def test_commands_of_users_and_developers_are_in_panels_of_their_own():
    shown = invoke("--help").output
    panels = [shown.index(f"─ {title} ─") for title in dict.fromkeys(entry.panel for entry in ENTRIES)]
    assert panels == sorted(panels)
    for name in ("bench", "phantom", "doctor"):
        assert shown.index(f"│ {name} ") > panels[-1]
    assert "--install-completion" in shown


def test_every_option_of_a_long_command_has_a_panel_but_the_common_ones():
    for name, most in (("ingest", 8), ("infer", 3), ("train", 7), ("export", 0)):
        options = [one for one in ALL[(name,)].params if one.param_type_name == "option"]
        assert sum(one.rich_help_panel is None for one in options) <= most, name


def test_only_the_module_of_the_command_is_imported():
    code = """
import sys
from slicemill.cli import main
sys.argv = ["slicemill", "store", "--help"]
try:
    main()
except SystemExit:
    print(*sorted(name for name in sys.modules if name.endswith(".cli")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "slicemill.cli slicemill.store.cli"


@pytest.mark.parametrize("words", ["--help", "train --help", "store --help"])
def test_help_into_a_pipe_that_closes_early_is_no_error(words, tmp_path):
    line = f'for n in 1 2 3; do "$PYTHON" -m slicemill {words} | true; echo "${{PIPESTATUS[0]}}"; done'
    done = run_shell(line, tmp_path)
    assert (done.stdout.split(), done.stderr) == (["0", "0", "0"], "")


def test_a_misspelled_command_names_the_likely_one():
    done = invoke("ingets")
    assert done.exit_code == 2
    assert "ingest" in done.output


@pytest.mark.parametrize(("command", "old"), [("ingest", "--images"), ("ingest", "--masks"), ("infer", "--devices")])
def test_old_names_of_options_work_and_are_not_in_the_help(command, old, collection, tmp_path):
    words = {
        "--images": ["--images", f"{collection}/volume-*", "--dry-run", "--no-masks"],
        "--masks": [collection, "--masks=segmentation-*", "--dry-run"],
        "--devices": ["m.onnx", collection, "--devices", "first"],
    }[old]
    done = invoke(command, *words)
    assert "No such option" not in done.output
    if command == "ingest":
        assert (done.exit_code, "6 cases" in done.output) == (0, True), done.output
    else:
        assert "--device first: expected numbers of GPUs" in done.output
    shown = invoke(command, "--help").output
    assert f"{old} " not in shown
    assert f"{OLD_NAMES[old]} " in shown


def test_workers_0_is_all_cores():
    names = {
        words for words, one in ALL.items() if words[0] != "bench" and any("--workers" in p.opts for p in one.params)
    }
    of_stores = {("store", name) for name in ("verify", "export", "export-slices", "upgrade")}
    assert {("ingest",), ("evaluate",), ("measure",), ("phantom",), *of_stores} == names
    for words in names:
        (option,) = [one for one in ALL[words].params if "--workers" in one.opts]
        assert "0: all cores" in option.help


def test_quiet_hides_everything_but_problems(stored, tmp_path):
    done = invoke("store", "verify", stored, "-q")
    assert (done.exit_code, done.output) == (0, "")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii").write_bytes(b"no scan")
    done = invoke("ingest", tmp_path / "scans", tmp_path / "store", "--quiet")
    assert done.exit_code == 1
    assert [line.split(":")[0] for line in done.output.splitlines()] == ["failed"]


def test_quiet_does_not_hide_what_was_asked_for(stored):
    for words in (
        ("store", "info", stored),
        ("store", "manifest", stored),
        ("info", stored),
        ("train", "--show-config"),
    ):
        assert invoke(*words, "-q").output == invoke(*words).output != ""


def test_the_log_file_has_every_line_and_the_traceback_of_an_error(stored, tmp_path):
    log = tmp_path / "log.txt"
    invoke("store", "verify", stored, "-q", "--log-file", log)
    invoke("store", "verify", tmp_path, "--log-file", log)
    text = log.read_text()
    assert "6 cases read completely: 0 problems" in text
    assert "StoreError" in text
    assert "Traceback" in text
    assert all(line[:2] == "20" and line[10] == "T" for line in text.splitlines())


def test_a_log_file_that_cannot_be_written_is_one_line(stored, tmp_path):
    done = invoke("store", "info", stored, "--log-file", tmp_path / "nowhere" / "log.txt")
    assert done.exit_code == 1
    assert done.output.startswith(f"slicemill: {tmp_path}/nowhere/log.txt: No such file")


def test_verbose_prints_the_traceback_of_an_error(tmp_path):
    assert "Traceback" in invoke("store", "info", tmp_path, "-v").output
    assert "Traceback" not in invoke("store", "info", tmp_path).output


def test_output_is_as_before_after_a_command(capsys):
    with use_output(quiet=True, json=True):
        assert current_output().quiet
        print_line("hidden")
        print_always("shown")
        print_json({"dice": float("nan"), "path": Path("x"), "of": (1, 2)})
    assert current_output() == Output()
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"dice": None, "path": "x", "of": [1, 2]}
    assert shown.err == "shown\n"


def as_json(*words, code=0):
    done = invoke(*words, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.mark.slow
def test_json_of_ingest(collection, tmp_path):
    plan = as_json("ingest", collection, "--dry-run")
    assert [case["case_id"] for case in plan["cases"]] == [f"volume-{n}" for n in range(6)]
    report = as_json("ingest", collection, tmp_path / "store", "--workers", 1)
    assert {case["status"] for case in report["cases"]} == {"done"}
    assert {case["slices"] > 0 for case in report["cases"]} == {True}


def test_json_of_stores(stored, tmp_path):
    assert as_json("store", "info", stored) == as_json("info", stored)
    assert as_json("info", stored)["cases"] == 6
    assert len(as_json("store", "manifest", stored)) == 6
    assert as_json("store", "verify", stored)["problems"] == []
    assert as_json("store", "export-slices", stored, tmp_path / "png", "--format", "png", "--case", "volume-0")["cases"]
    folds = as_json("split", stored, tmp_path / "folds", "--folds", 2)
    assert sorted(folds[0]["test"] + folds[1]["test"]) == [f"volume-{n}" for n in range(6)]
    done = invoke("store", "manifest", stored, "--csv", "--json")
    assert (done.exit_code, "exclude each other" in done.output) == (2, True)


@pytest.mark.slow
def test_json_of_measurements(collection, tmp_path):
    mask, labels = collection / "segmentation-0.nii", ("--labels", "liver=1,tumor=2")
    document = as_json("evaluate", mask, mask, *labels, "--against", mask, "--out", tmp_path / "scores")
    written = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert {key: value for key, value in document.items() if key not in ("compared", "peak_mib")} == {
        key: value for key, value in written.items() if key != "peak_mib"
    }
    assert document["compared"]
    assert as_json("compare", mask, mask, *labels)["recist"]["new_lesions"] == 0
    assert [one["status"] for one in as_json("measure", mask, "--out", tmp_path / "m", *labels)["cases"]] == ["done"]


@pytest.mark.slow
def test_json_of_inference(model, stored, collection, tmp_path):
    scan = collection / "volume-0.nii"
    assert as_json("infer", model, scan, "--out", tmp_path / "out", "--dry-run")[0]["would_be"] == "segmented"
    document = as_json("infer", model, scan, "--out", tmp_path / "out")
    assert document["scans"] == {"done": 1, "skipped": 0, "failed": 0}
    assert list(document) == list(json.loads((tmp_path / "out" / "summary.json").read_text()))
    tuned = as_json("tune", model, stored, "--dry-run")
    assert (len(tuned["cases"]), tuned["written"]) == (6, [])


def test_infer_writes_nothing_if_no_input_exists(model, collection, tmp_path):
    for words in (["typo"], ["typo", "typo2.nii"], ["typo", "--shard", "0/2"]):
        done = invoke("infer", model, *words, "--out", tmp_path / "out")
        assert (done.exit_code, "typo: there is no such file or folder" in done.output) == (1, True), done.output
        assert list(tmp_path.iterdir()) == []
    done = invoke("infer", model, collection / "volume-0.nii", "typo", "--out", tmp_path / "out")
    assert "1 done" in done.output
    assert done.exit_code == 1


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("ingest COLLECTION new", "ingest"),
        ("train STORE new", "train"),
        ("export run new.onnx", "train"),
        ("gallery STORE --out new.png", "train"),
        ("infer m.onnx COLLECTION --out new", "cpu"),
        ("tune m.onnx STORE", "cpu"),
        ("evaluate MASK MASK --labels liver=1,tumor=2 --out new", "ingest"),
        ("store plots STORE --out new.png", "ingest"),
        ("demo --out new", "ingest,train,cpu"),
        ("bench train --quick", "train"),
        ("info s3://bucket/store", "s3"),
        ("store info s3://bucket/store", "s3"),
    ],
)
def test_a_missing_extra_is_one_line_with_its_remedy(words, extra, collection, stored, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"")
    names = {"COLLECTION": collection, "STORE": stored, "MASK": collection / "segmentation-0.nii"}
    done = run_without_extras(*(names.get(word, word) for word in words.split()), cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("slicemill: ")
    assert f"pip install 'slicemill[{extra}]'" in line


def test_the_extras_are_those_of_the_package_and_bring_what_is_imported():
    import tomllib

    declared = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in PACKAGES.items():
        named = " ".join(declared[extra])
        assert [one for one in packages if one not in named] == []
    require_extras(*PACKAGES)


def test_the_shown_config_is_that_of_the_defaults_and_explains_each_setting(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(invoke("train", "--show-config").output)
    assert read_config(path) == Config()
    assert set(field_docs(Config)) == set(Config.__dataclass_fields__)
    other = Config(epochs=7, optimizer="sgd", ignore='a "b"')
    path.write_text(to_commented_toml(other))
    assert read_config(path) == other


@pytest.mark.parametrize("words", list(permutations(("--recipe=nodules", "--show-config", "store"))))
def test_the_shown_config_is_that_of_the_recipe_wherever_it_stands(words, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(invoke("train", *words).output)
    assert read_config(path) == make_config("nodules") != Config()


@pytest.mark.parametrize("words", [("--crops", "--show-config"), ("--show-config", "--crops")])
def test_the_shown_config_of_crops_is_that_of_the_classifier(words, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(invoke("train", *words).output)
    assert read_crop_config(path) == CropConfig()
    assert set(field_docs(CropConfig)) == set(CropConfig.__dataclass_fields__)


def test_the_help_of_train_shows_the_defaults_of_the_settings():
    shown = {
        one.name: one.show_default
        for one in ALL[("train",)].params
        if one.name in Config.__dataclass_fields__ and one.param_type_name == "option"
    }
    assert len(shown) == 16
    assert shown == {name: f"{value:g}" if isinstance(value := getattr(Config(), name), float | int) else value
                     for name in shown}  # fmt: skip
