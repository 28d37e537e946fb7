"""The notebooks run from top to bottom, and what they show in the documentation is what they print and draw."""

import json
import re
import shutil

import pytest

from docs.hooks import show_notebook
from tests.docs.notebooks import NOTEBOOKS, run
from tests.docs.pages import HERE
from tests.docs.test_style import LINE, PHRASES, WORDS, sentences


def read(path):
    return json.loads(path.read_text())


def texts(notebook):
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


def kinds(notebook):
    """Return the kinds of output of each cell."""
    return [[one["output_type"] for one in cell.get("outputs", ())] for cell in notebook["cells"]]


@pytest.fixture
def folder(tmp_path, collection, stored, trained, model):
    """A folder with the part of a demo's output that the notebooks read."""
    for source, name in ((collection, "collection"), (stored, "store"), (trained, "run")):
        shutil.copytree(source, tmp_path / "demo" / name)
    shutil.copy(model, tmp_path / "demo" / "model.onnx")
    return tmp_path


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 2


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, folder, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = read(path)
    done = run(notebook, folder)
    assert kinds(done) == kinds(notebook), "run python -m tests.docs.notebooks on the folder of a demo"


def test_a_cell_that_fails_is_found(tmp_path):
    cells = [{"cell_type": "code", "source": ["print(1)\n", "1 / 0"]}]
    with pytest.raises(ZeroDivisionError):
        run({"cells": cells}, tmp_path)


def test_a_cell_gives_what_it_prints_and_its_last_value(tmp_path):
    cells = [{"cell_type": "code", "source": [line]} for line in ("x = 2; print(x)\nx + 1", "x;", "None")]
    first, second, third = run({"cells": cells}, tmp_path)["cells"]
    assert [one.get("text") or one["data"]["text/plain"] for one in first["outputs"]] == [["2\n"], ["3"]]
    assert second["outputs"] == third["outputs"] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_one_of_jupyter_with_its_outputs(path):
    notebook = read(path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["outputs"] for cell in code)
    assert {one["output_type"] for cell in code for one in cell["outputs"]} <= {
        "stream", "execute_result", "display_data"
    }  # fmt: skip
    assert not re.search(
        r"(?<![\w.])/(?:home|root|tmp|work|Users)/", re.sub(r'"image/png": "[^"]*"', "", path.read_text())
    )
    assert len(path.read_bytes()) < 300_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_written_as_the_pages_are(path):
    for text in texts(read(path)):
        assert [line for line in text.splitlines() if len(re.sub(r"`[^`]*`|\]\([^)]*\)", "code", line)) > LINE] == []
        assert [one for one in sentences(text) if len(one.split()) > WORDS] == []
        assert [phrase for phrase in PHRASES if phrase in text.lower()] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_resolve_beside_it_and_its_page_has_its_outputs(path):
    links = [link.partition("#")[0] for text in texts(read(path)) for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert links
    for link in links:
        assert (path.parent / link).resolve().is_relative_to(HERE)
        assert (path.parent / link).exists(), link
    page = show_notebook(path)
    assert page.startswith("# Notebook: ")
    assert page.count("```text\n") + page.count("<img ") == sum(len(one) for one in kinds(read(path)))
