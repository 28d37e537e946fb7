"""What imports what, and what the front door costs."""

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
from typer.testing import CliRunner

import slicemill
from store.finite import finite

HERE = Path(__file__).parents[1]
PACKAGES = ("store", "ingest", "train", "infer", "measure", "bench", "bench/quality")
HEAVY = (
    "numpy",
    "nibabel",
    "zarr",
    "numcodecs",
    "dask",
    "distributed",
    "torch",
    "onnx",
    "onnxruntime",
    "pyarrow",
    "PIL",
    "matplotlib",
    "cc3d",
    "scipy",
)


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_package_files_import_nothing():
    for package in PACKAGES:
        assert (HERE / package / "__init__.py").read_text() == ""


def test_the_commands_are_there_without_any_heavy_import():
    loaded = python(
        "import sys, slicemill\n"
        "import bench.cli, infer.cli, ingest.cli, measure.cli, store.cli, train.cli\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert loaded == "[]"


def test_help_names_every_command():
    shown = subprocess.run(
        [sys.executable, "-m", "slicemill", "--help"], cwd=HERE, capture_output=True, text=True, check=True
    ).stdout
    for command in (
        "ingest",
        "store",
        "train",
        "export",
        "infer",
        "evaluate",
        "froc",
        "phantom",
        "demo",
        "bench",
        "doctor",
    ):
        assert f" {command} " in shown


def options_of(app):
    """Yield command, name, type and declaration of every option of an app."""
    for command in app.registered_commands:
        hints = get_type_hints(command.callback, include_extras=True)
        for name, hint in hints.items():
            if get_origin(hint) is Annotated:
                yield command.callback.__name__, name, *get_args(hint)
    for group in app.registered_groups:
        yield from options_of(group.typer_instance)


def test_every_option_that_is_a_float_refuses_what_is_no_number():
    found = [one for one in options_of(slicemill.commands()) if one[2] in (float, float | None)]
    assert {"infer", "train", "export", "evaluate", "demo", "yardstick"} <= {command for command, *_ in found}
    assert [(command, name) for command, name, _, declared in found if declared.callback is not finite] == []
    assert (finite(0.5), finite(None)) == (0.5, None)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["infer", "m.onnx", "--watch", ".", "--out", "o", "--settle", "nan"], "--settle"),
        (["infer", "m.onnx", "--watch", ".", "--out", "o", "--settle", "inf"], "--settle"),
        (["infer", "m.onnx", "--watch", ".", "--out", "o", "--settle", "-1"], "--settle"),
        (["train", "store", "run", "--max-minutes", "inf"], "inf is no number that can be worked with"),
    ],
)
def test_a_number_that_is_none_ends_a_command_with_the_options_name(words, why):
    done = CliRunner().invoke(slicemill.commands(), words)
    assert done.exit_code == 2
    assert why in " ".join(done.output.replace("│", " ").split())


def test_the_layers_hold():
    """import-linter proves the contracts of pyproject.toml, here as in `make check`."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_no_code_reads_the_environment_or_unpickles():
    for package in PACKAGES:
        for path in (HERE / package).glob("*.py"):
            tree = ast.parse(path.read_text())
            names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            assert not {"environ", "getenv"} & names, path
            assert "pickle" not in imported, path


@pytest.mark.parametrize("package", PACKAGES)
def test_every_example_in_a_docstring_is_true(package):
    tried = 0
    for path in sorted((HERE / package).glob("*.py")):
        result = doctest.testmod(importlib.import_module(f"{package.replace('/', '.')}.{path.stem}"))
        assert result.failed == 0, path
        tried += result.attempted
    assert tried > 0 or package == "ingest"


def test_every_module_says_what_it_is_for():
    for package in PACKAGES:
        for path in (HERE / package).glob("*.py"):
            if path.name != "__init__.py":
                assert ast.get_docstring(ast.parse(path.read_text())), path
