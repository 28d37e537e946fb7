"""The README and docs/benchmarks.md: their tables are those of the committed records, and what they name exists.

tests/docs checks commands, snippets, links and style of all pages.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

from slicemill.bench.records.readme import FIGURES, HEADLINES, render_figure

HERE = Path(__file__).parents[1]
README = (HERE / "README.md").read_text()
BENCHMARKS = (HERE / "docs" / "benchmarks.md").read_text()
ARCHITECTURE = (HERE / "docs" / "architecture.md").read_text()


def test_the_source_tree_names_every_package():
    (tree,) = re.findall(r"^```text\n(.*?)^```$", ARCHITECTURE, re.DOTALL | re.MULTILINE)
    listed = [line.split()[0].rstrip("/") for line in tree.splitlines()]
    packages = subprocess.run(["git", "ls-files", "*__init__.py"], cwd=HERE, capture_output=True, text=True, check=True)
    there = {Path(path).parent.as_posix() for path in packages.stdout.splitlines()}
    assert sorted(listed) == sorted(path for path in there if not path.startswith("tests"))


def test_pictures_and_results_that_are_named_exist():
    pages = [README, *(page.read_text() for page in (HERE / "docs").rglob("*.md"))]
    named = {path for page in pages for path in re.findall(r"bench/results/[\w/-]+\.[a-z]+", page)}
    assert len(named) > 15
    assert {path for path in named if not (HERE / path).exists()} == set()


@pytest.mark.parametrize("figure", FIGURES)
def test_the_tables_are_those_of_the_committed_results(figure):
    assert render_figure(figure, HERE) in BENCHMARKS


def test_the_headlines_are_those_of_the_committed_results():
    headlines = render_figure(HEADLINES, HERE)
    assert headlines in README
    rows = [line for line in headlines.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 6
    assert all("`slicemill bench " in row for row in rows)


def test_the_committed_results_have_their_origin():
    for name in ("demo.json", "real.json"):
        machine = json.loads((HERE / "bench" / "results" / name).read_text())["machine"]
        assert machine["cpu"]
        assert machine["commit"]
