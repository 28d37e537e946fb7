"""Size limits of modules, functions and signatures."""

import ast

import pytest

from tests.test_architecture import SOURCES, name_of

MODULE_LINES, FUNCTION_LINES, PARAMETERS = 400, 50, 7
COMMANDS = {"cli.py", "commands.py"}
"""Modules whose functions mirror the options of a command."""


def is_of_commands(path):
    return path.name in COMMANDS or path.parent.name in ("cli", "api")  # api: the public functions


def functions(path):
    return [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= MODULE_LINES
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in functions(path)
        if node.end_lineno - node.lineno + 1 > FUNCTION_LINES
        and not (is_of_commands(path) and not node.name.startswith("_"))
    }
    assert long == {}


@pytest.mark.parametrize("path", [path for path in SOURCES if not is_of_commands(path)], ids=name_of)
def test_signatures_are_short(path):
    counts = {node.name: len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) for node in functions(path)}
    assert {name: count for name, count in counts.items() if count > PARAMETERS} == {}
