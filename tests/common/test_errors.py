"""Errors carry the file and the reason as fields, also between processes."""

import ast
import copy
import pickle
from pathlib import Path

import pytest

import slicemill
from slicemill.common import errors
from slicemill.common.errors import InputError

ROOT = Path(slicemill.__file__).parent
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, InputError)]
RECORDED = ["common", "ct", "store", "infer/inputs", "infer/run", "infer/slices"]
"""Packages whose errors bulk inference records as failures of a scan."""
NO_FILES = {"url", "bucket", "thread.model.provider"}
"""Placeholders that name no file."""


@pytest.mark.parametrize("where", [None, "in/a.nii", Path("in/a.nii"), Path("in/a: b.nii")])
@pytest.mark.parametrize("kind", KINDS)
def test_file_and_reason_survive_copies_and_other_processes(kind, where):
    error = kind("ends early.", where=where)
    for same in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 (it was made here)
        assert type(same) is kind
        assert (same.where, same.reason) == ("" if where is None else str(where), "ends early.")
        assert str(same) == ("ends early." if where is None else f"{where}: ends early.")


def starts_with_a_file(message):
    """Return whether a message begins with a placeholder and a colon, as in f"{path}: ends early."."""
    return (
        isinstance(message, ast.JoinedStr)
        and isinstance(message.values[0], ast.FormattedValue)
        and ast.unparse(message.values[0].value) not in NO_FILES
        and isinstance(message.values[1], ast.Constant)
        and str(message.values[1].value).startswith(": ")
    )


@pytest.mark.parametrize("package", RECORDED)
def test_the_file_is_a_field_and_not_a_part_of_the_reason(package):
    names = {kind.__name__ for kind in KINDS} | {"error"}
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = [
        f"{file.relative_to(ROOT)}:{call.lineno}"
        for file in files
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names
        and call.args and starts_with_a_file(call.args[0])
    ]  # fmt: skip
    assert found == [], "pass the file as `where`"
