"""The README is correct: its commands, options and files exist, and its tables are those of the committed records."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from slicemill import cli
from slicemill.bench.records.readme import FIGURES, render_figure

HERE = Path(__file__).parents[1]
README = (HERE / "README.md").read_text()
APP = cli.commands()
GROUPS = ("store", "bench")
LONG = ("make demo", "make test", "make real", "make bench")
"""Too long for a test; `make demo` and `make test` are what continuous integration and every release run."""


def blocks(language):
    return [
        text
        for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
        if kind == language
    ]


def commands():
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    inline = re.findall(r"`((?:slicemill|infer|make) [^`]+)`", README)
    return sorted({line for line in [*lines, *inline] if line and "..." not in line})


def words_of(command):
    words = shlex.split(command)
    if words[0] == "infer":
        words = ["slicemill", *words]
    name = words[1:3] if words[1] in GROUPS else words[1:2]
    return name, words


def help_of(*names):
    """Return the help of a command."""
    done = CliRunner().invoke(APP, [*names, "--help"])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("command", [command for command in commands() if not command.startswith("make")])
def test_every_command_and_option_in_the_readme_exists(command):
    name, words = words_of(command)
    names = [part for part in re.split(r"\s*\|\s*", " ".join(name)) if part]
    shown = help_of(*names[0].split())
    for option in (word for word in words if word.startswith("--")):
        assert option in shown


def test_every_option_named_in_the_text_belongs_to_some_command():
    commands = (
        "ingest",
        "train",
        "split",
        "export",
        "infer",
        "evaluate",
        "froc",
        "measure",
        "compare",
        "demo",
        "phantom",
        "store preview",
        "store manifest",
        "store verify",
        "bench ingest",
        "bench peers",
        "store export",
        "store export-slices",
        "store plots",
    )
    helps = "".join(help_of(*command.split()) for command in commands)
    named = set(re.findall(r"`(--[a-z-]+)", README))
    assert named
    assert {option for option in named if option not in helps} == set()


def test_every_make_target_in_the_readme_exists():
    targets = subprocess.run(["make", "help"], cwd=HERE, capture_output=True, text=True, check=True).stdout
    named = re.findall(r"(?:`|^)make ([a-z]+)", README, re.MULTILINE)
    assert "demo" in named
    for target in named:
        if target != "help":
            assert re.search(rf"^{target}\s", targets, re.MULTILINE), target


def test_the_source_tree_names_every_package():
    (tree,) = [block for block in blocks("") if "slicemill/common/ " in block]
    listed = [line.split()[0].rstrip("/") for line in tree.splitlines()]
    packages = subprocess.run(["git", "ls-files", "*__init__.py"], cwd=HERE, capture_output=True, text=True, check=True)
    there = {Path(path).parent.as_posix() for path in packages.stdout.splitlines()}
    assert sorted(listed) == sorted(path for path in there if not path.startswith("tests"))


def test_pictures_and_results_that_are_named_exist():
    for path in set(re.findall(r"bench/results/[a-z]+\.[a-z]+", README)):
        assert (HERE / path).exists(), path


@pytest.mark.parametrize("figure", FIGURES)
def test_the_tables_are_those_of_the_committed_results(figure):
    assert render_figure(figure, HERE) in README


def test_the_committed_results_have_their_origin():
    for name in ("demo.json", "real.json"):
        machine = json.loads((HERE / "bench" / "results" / name).read_text())["machine"]
        assert machine["cpu"]
        assert machine["commit"]


@pytest.mark.slow
def test_your_own_scans_from_top_to_bottom(collection, tmp_path):
    """The block "Your own scans", each line unchanged, on phantoms and with a short training."""
    (block,) = [block for block in blocks("sh") if "slicemill ingest scans/" in block]
    shutil.copytree(collection, tmp_path / "scans")
    for line in block.splitlines():
        words = shlex.split(line.split("#")[0].replace("--max-minutes 60", "--max-minutes 0.05 --width 4"))
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (line, done.stderr)
    python = blocks("python")[0]
    shown = subprocess.run([sys.executable, "-c", python + "\nprint(label.shape[1:], image.dtype)"],
                           cwd=tmp_path, env=environment(),
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert shown.stdout.strip() == "(64, 64) int16", shown.stderr


def test_the_script_without_slicemill_gives_the_same_labels(model, collection, tmp_path):
    """Without this checkout on its path; scans of the model's own size, in axis orders of all kinds."""
    import nibabel as nib
    import numpy as np

    import slicemill

    script = blocks("python")[1]
    assert len(script.splitlines()) <= 20
    assert max(map(len, script.splitlines())) <= 120
    assert "slicemill" not in re.findall(r"import (\w+)", script)
    (tmp_path / "script.py").write_text(script)
    own = [
        path
        for path in sorted(collection.glob("volume-*"))
        if nib.as_closest_canonical(nib.load(path)).shape[:2] == (64, 64)
    ]
    assert len({nib.aff2axcodes(nib.load(path).affine) for path in own}) > 2
    for source in own:
        done = subprocess.run([sys.executable, "script.py", str(model), str(source), "out.nii.gz"],
                              cwd=tmp_path, capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        slicemill_label = slicemill.segment(source, model)[0]
        mask = nib.load(tmp_path / "out.nii.gz")
        script_label = np.asarray(nib.as_closest_canonical(mask).dataobj)[::-1, ::-1].transpose(2, 1, 0)
        assert mask.shape == nib.load(source).shape
        assert np.array_equal(script_label, slicemill_label)
        assert "research use only" in done.stdout


def environment():
    import os

    return {**os.environ, "PYTHONPATH": str(HERE)}
