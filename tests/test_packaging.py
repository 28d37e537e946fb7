"""What stands beside the code: changelog, citation, image, recipe, and the versions and packages that they name."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((HERE / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA_NAMES = {"dask": "dask-core", "isal": "python-isal", "matplotlib": "matplotlib-base", "torch": "pytorch"}
"""Names on conda-forge that differ from those on PyPI. pip installs dask and matplotlib without more, too."""


def bounds(lines):
    """Return the lower bound of each package."""
    found = [re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?>=([\w.]+)", line) for line in lines]
    assert None not in found, lines
    return {match[1]: match[2] for match in found}


def conda_bounds(lines):
    found = [re.fullmatch(r"([\w-]+) >=([\w.]+)", line) for line in lines]
    assert None not in found, lines
    return {match[1]: match[2] for match in found}


def as_conda(*groups):
    return {CONDA_NAMES.get(name, name): bound for group in groups for name, bound in bounds(group).items()}


@pytest.fixture(scope="module")
def recipe():
    """The recipe, with its context filled in."""
    text = (HERE / "recipe" / "recipe.yaml").read_text()
    context = yaml.safe_load(text)["context"]
    return yaml.safe_load(re.sub(r"\$\{\{ (\w+) \}\}", lambda match: str(context.get(match[1], match[0])), text))


def test_the_recipe_has_the_packages_and_versions_of_pyproject(recipe):
    python, *run = recipe["requirements"]["run"]
    assert python == f"python {PROJECT['requires-python']}"
    assert conda_bounds(run) == as_conda(PROJECT["dependencies"], EXTRAS["ingest"], EXTRAS["train"], EXTRAS["cpu"])
    optional = as_conda(EXTRAS["s3"], [line for line in EXTRAS["openvino"] if line.startswith("openvino")])
    assert conda_bounds(recipe["requirements"]["run_constraints"]) == optional
    built_by = [
        line.replace(" ", "") for line in recipe["requirements"]["host"] if not line.startswith(("python", "pip"))
    ]
    assert built_by == PYPROJECT["build-system"]["requires"]


def test_the_recipe_has_the_name_version_and_commands_of_pyproject(recipe):
    assert recipe["package"] == {"name": PROJECT["name"], "version": PROJECT["version"]}
    commands = [f"{name} = {target}" for name, target in PROJECT["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == commands
    assert recipe["about"]["license"] == PROJECT["license"]
    assert (HERE / recipe["about"]["license_file"]).exists()
    text = (HERE / "recipe" / "recipe.yaml").read_text()
    assert set(re.findall(r"\$\{\{ (\w+) \}\}", text)) <= {*recipe["context"], "PYTHON"}


def test_the_citation_is_complete_and_names_this_version():
    citation = yaml.safe_load((HERE / "CITATION.cff").read_text())
    assert set(citation) >= {"cff-version", "message", "title", "authors"}, "required by the format 1.2.0"
    assert citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["keywords"] == PROJECT["keywords"]
    assert citation["abstract"] == PROJECT["description"]


def dockerfile():
    """Return the instructions of the Dockerfile, each as its name and its text."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", (HERE / "Dockerfile").read_text(), flags=re.MULTILINE))
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]


def test_the_image_installs_the_extras_that_exist_and_one_runtime():
    instructions = dockerfile()
    assert [name for name, _ in instructions if name == "FROM"] == ["FROM", "FROM"], (
        "built in one image, run in another"
    )
    runs = [text for name, text in instructions if name == "RUN"]
    (install,) = [text for text in runs if "pip install" in text]
    (extras,) = re.findall(r"\[([\w,${}]+)\]", install)
    *fixed, runtime = extras.split(",")
    assert set(fixed) <= set(EXTRAS)
    assert runtime == "${RUNTIME}"
    (choices,) = re.findall(r'case "\$RUNTIME" in ([\w|]+)\) ;;', install)
    assert set(choices.split("|")) == {"cpu", "gpu"} <= set(EXTRAS)
    assert "-c /wheels/constraints.txt" in install
    (python,) = [text.split("=")[1] for name, text in instructions if name == "ARG" and text.startswith("PYTHON=")]
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


def test_the_shell_commands_of_the_image_are_valid_and_refuse_another_runtime():
    runs = [text for name, text in dockerfile() if name == "RUN"]
    for text in runs:
        assert subprocess.run(["sh", "-n", "-c", text], check=False).returncode == 0
    (install,) = [text for text in runs if "pip install" in text]
    check = install.split("&&")[0]
    for runtime, status in (("cpu", 0), ("gpu", 0), ("both", 1), ("", 1)):
        assert subprocess.run(["sh", "-c", check], env={"RUNTIME": runtime}, check=False).returncode == status


def test_the_image_is_built_without_what_git_ignores():
    ignored = (HERE / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv*", "**/__pycache__"} <= set(ignored)
    needed = {
        "slicemill",
        "store",
        "ingest",
        "train",
        "infer",
        "measure",
        "bench",
        "pyproject.toml",
        "setup.py",
        "README.md",
    }
    assert needed & set(ignored) == set()


def test_runtimes_that_overwrite_each_other_are_declared_as_conflicts_for_uv():
    runtimes = {
        extra: {name for name in bounds(lines) if name.startswith("onnxruntime")}
        for extra, lines in EXTRAS.items()
        if any(line.startswith("onnxruntime") for line in lines)
    }
    expected = {
        frozenset((one, other))
        for one in runtimes
        for other in runtimes
        if one < other and runtimes[one] != runtimes[other]
    }
    declared = {frozenset(item["extra"] for item in group) for group in PYPROJECT["tool"]["uv"]["conflicts"]}
    assert declared == expected
    assert declared


def test_the_classifiers_are_the_pythons_that_are_allowed():
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    named = [int(text.rpartition(".")[2]) for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)]
    assert named == list(range(int(low), int(high)))
    assert not any(text.startswith("License ::") for text in PROJECT["classifiers"]), (
        "the license is an SPDX expression"
    )


def test_the_changelog_begins_with_this_version_and_has_a_screen_a_version():
    for name in ("CHANGELOG.md", "docs/changelog-details.md"):
        assert re.findall(r"^## \[([\d.]+)\]", (HERE / name).read_text(), re.MULTILINE)[0] == PROJECT["version"]
    _, *sections = re.split(r"^## ", (HERE / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    for section in sections:
        lines = section.splitlines()
        assert len(lines) <= 32, lines[0]
        assert max(map(len, lines)) <= 124, "lines of text, not paragraphs"


def test_pinned_versions_are_within_the_bounds():
    pinned = dict(line.split("==") for line in (HERE / "constraints.txt").read_text().splitlines() if "==" in line)
    numbers = {name.lower(): [int(part) for part in version.split(".")] for name, version in pinned.items()}
    for lines in (PROJECT["dependencies"], *EXTRAS.values()):
        for name, bound in bounds(lines).items():
            assert numbers[name.lower()] >= [int(part) for part in bound.split(".")], name


def test_the_description_on_a_package_index_has_no_target_in_the_repository():
    code = "import sys, setup; sys.stdout.write(setup.describe_package(sys.stdin.read()))"
    readme = (
        "# Title\n\n![A picture, of the repository](bench/results/demo.png)\n\n"
        "*Its caption, made by `make demo`:\ntwo lines.*\n\n"
        "*Words in italics* begin a paragraph. See [the *inputs*](docs/inputs.md), [`a` file](a.py), `a[0](x)`, "
        "[here](#title) and [Zarr](https://zarr.dev).\n\n"
        "![badge](https://example.org/badge.svg)\n\n```python\nimage[0](x)\n```\n"
    )
    expected = (
        "# Title\n\n*Words in italics* begin a paragraph. See the *inputs*, `a` file, `a[0](x)`, [here](#title) and [Zarr](https://zarr.dev).\n\n"
        "![badge](https://example.org/badge.svg)\n\n```python\nimage[0](x)\n```\n"
    )
    for text, shown in ((readme, expected), ((HERE / "README.md").read_text(), None)):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=HERE, input=text, capture_output=True, text=True, check=True
        )
        outside = re.sub(r"```.*?```|`[^`]*`", "", done.stdout, flags=re.DOTALL)
        assert re.findall(r"\]\((?!https?:|mailto:|#)[^)]*\)|src=\"(?!https?:)[^\"]*\"", outside) == []
        assert shown is None or done.stdout == shown
