"""Import contracts, import cost of the command line, and forbidden calls."""

import ast
import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
from typer.testing import CliRunner

import slicemill
from slicemill.cli import commands
from slicemill.common.options import require_finite

HERE = Path(__file__).parents[1]
LIGHT = {"rich", "typer"}
"""Distributions that the command line itself needs; every other one is imported where it is used."""
MODULE_OF = {
    "connected-components-3d": "cc3d",
    "google-crc32c": "google_crc32c",
    "onnxruntime-gpu": "onnxruntime",
    "pillow": "PIL",
}
"""Import names that differ from the names of their distributions."""
OUTSIDE = r"bench\.peers\.(load_slices|segment_scans)$|bench\.studies\.nnunet"
"""Scripts that run in the environments of other tools."""


def modules():
    """Return the names of all modules, packages included."""
    found = [found.name for found in pkgutil.walk_packages(slicemill.__path__, "slicemill.")]
    return [name for name in found if not re.search(OUTSIDE, name)]


def file_of(module):
    path = HERE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def name_of(path):
    return path.relative_to(HERE).as_posix()


SOURCES = [file_of(module) for module in modules()]


def heavy():
    """Return the import names of all dependencies in pyproject.toml, except those of the command line."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    names = {re.match(r"[\w-]+", line)[0] for line in [*project["dependencies"], *extras]} - LIGHT
    return sorted(MODULE_OF.get(name, name) for name in names)


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_list_of_modules_is_complete():
    assert {"slicemill.store.reader", "slicemill.ct.scan", "slicemill.infer.run.engine"} <= set(modules())
    assert all(path.exists() for path in SOURCES)


def test_package_files_import_nothing():
    for path in SOURCES:
        if path.name == "__init__.py":
            assert not [
                node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
            ], path


def test_the_commands_are_there_without_any_heavy_import():
    assert {"numpy", "torch", "dask", "onnxruntime", "PIL", "cc3d"} <= set(heavy())
    clis = ", ".join(module for module in modules() if module.endswith(("cli", "commands")))
    loaded = python(f"import sys, slicemill, {clis}\nprint([name for name in {heavy()!r} if name in sys.modules])")
    assert loaded == "[]"


def test_help_names_every_command():
    shown = CliRunner().invoke(commands(), ["--help"]).output
    for command in commands().registered_commands:
        assert f" {command.name or command.callback.__name__} " in shown
    for group in commands().registered_groups:
        assert f" {group.name} " in shown


def test_the_module_is_the_command():
    words = [sys.executable, "-m", "slicemill", "--help"]
    shown = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True).stdout
    assert "slicemill [OPTIONS] COMMAND" in shown
    assert " ingest " in shown


def options_of(app):
    """Yield command, name, type and declaration of every option of an app."""
    for command in app.registered_commands:
        hints = get_type_hints(command.callback, include_extras=True)
        for name, hint in hints.items():
            if get_origin(hint) is Annotated:
                yield command.callback.__name__, name, *get_args(hint)
    for group in app.registered_groups:
        yield from options_of(group.typer_instance)


def test_every_float_option_refuses_nan_and_infinity():
    found = [one for one in options_of(commands()) if one[2] in (float, float | None)]
    assert {"infer", "train", "export", "evaluate", "demo", "yardstick"} <= {command for command, *_ in found}
    assert [(command, name) for command, name, _, declared in found if declared.callback is not require_finite] == []
    assert (require_finite(0.5), require_finite(None)) == (0.5, None)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["infer", "m.onnx", "--watch", ".", "--out", "o", "--settle", "nan"], "--settle"),
        (["infer", "m.onnx", "--watch", ".", "--out", "o", "--settle", "inf"], "--settle"),
        (["infer", "m.onnx", "--watch", ".", "--out", "o", "--settle", "-1"], "--settle"),
        (["train", "store", "run", "--max-minutes", "inf"], "inf is not a finite number"),
    ],
)
def test_an_invalid_number_ends_a_command_with_the_options_name(words, why):
    done = CliRunner().invoke(commands(), words)
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


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_code_reads_the_environment_or_unpickles(path):
    tree = ast.parse(path.read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not {"environ", "getenv"} & names
    assert "pickle" not in imported


def test_every_example_in_a_docstring_is_true():
    tried = 0
    for module in modules():
        if module != "slicemill.__main__":
            result = doctest.testmod(importlib.import_module(module))
            assert result.failed == 0, module
            tried += result.attempted
    assert tried > 100


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_has_a_docstring(path):
    if path.read_text():
        assert ast.get_docstring(ast.parse(path.read_text()))
