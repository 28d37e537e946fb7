"""The layers: which package imports which. ``python -m tests.test_layout`` writes the list to docs/architecture.md."""

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
BLOCK = re.compile(r"(<!-- layout -->\n```\n)(.*?)(```\n<!-- end -->)", re.DOTALL)
DIVIDED = ("bench", "infer", "measure", "train")
"""Packages whose sub-packages and modules are listed separately; every other package is one entry."""
TOP = "public API and commands"
LAYERS = ("common", "ct", "store", "stages", "bench", "web", TOP)
STAGES = ("ingest", "infer", "measure", "train")


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("slicemill", cache_dir=None)


def imports(graph):
    """Return module -> modules that it imports."""
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def package_of(module, packages):
    """Return the package in the list that a module belongs to.

    >>> package_of("slicemill.infer.run.engine", {"slicemill.infer.run"}), package_of("slicemill.ct.scan", set())
    ('infer/run', 'ct')
    """
    parts = module.split(".")[1:]
    if not parts or module == "slicemill.bench":
        return TOP if not parts else "bench"
    if parts[0] not in (*DIVIDED, *STAGES, "common", "ct", "store", "web"):
        return TOP
    if parts[0] not in DIVIDED or len(parts) == 1:
        return parts[0]
    return "/".join(parts[:2])


def package_imports(graph):
    """Return package -> packages that it imports."""
    packages = {}
    for module, imported in imports(graph).items():
        package = packages.setdefault(package_of(module, graph.modules), set())
        package.update(package_of(other, graph.modules) for other in imported)
    return {
        package: others - {package}
        for package, others in packages.items()
        if others - {package} or "/" in package or package not in DIVIDED
    }


def list_packages(graph):
    """Return one line per package, the highest layer first."""
    packages = package_imports(graph)
    lines = [
        f"{package} -> {', '.join(sorted(packages[package])) or 'no slicemill imports'}"
        for package in sorted(packages, key=lambda package: (-layer_of(package), package))
    ]
    return "\n".join(lines) + "\n"


def layer_of(package):
    top = package.split("/")[0]
    return LAYERS.index("stages" if top in STAGES else top)


def test_no_module_and_no_package_imports_in_a_circle(graph):
    for arrows in (imports(graph), package_imports(graph)):
        try:
            TopologicalSorter(arrows).prepare()
        except CycleError as error:
            pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_imports_go_downward_and_no_stage_imports_another(graph):
    for package, others in package_imports(graph).items():
        for other in others:
            assert layer_of(other) <= layer_of(package), (package, other)
            if layer_of(other) == layer_of(package):
                assert other.split("/")[0] == package.split("/")[0], (package, other)


def test_the_page_shows_the_current_layout(graph):
    assert BLOCK.search(PAGE.read_text())[2] == list_packages(graph), "run python -m tests.test_layout"


if __name__ == "__main__":
    now = list_packages(grimp.build_graph("slicemill", cache_dir=None))
    PAGE.write_text(BLOCK.sub(lambda match: match[1] + now + match[3], PAGE.read_text()))
