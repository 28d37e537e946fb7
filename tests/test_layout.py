"""The layout in words: which room imports which. ``python -m tests.test_layout`` writes it to docs/architecture.md."""

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
BLOCK = re.compile(r"(<!-- layout -->\n```\n)(.*?)(```\n<!-- end -->)", re.DOTALL)
DIVIDED = ("bench", "infer", "measure", "train")
"""Packages whose sub-packages and modules are rooms of their own; every other package is one room."""
FLOORS = ("common", "ct", "store", "stages", "bench", "front door")
STAGES = ("ingest", "infer", "measure", "train")


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("slicemill", cache_dir=None)


def imports(graph):
    """Return module -> modules that it imports."""
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def room_of(module, packages):
    """Return the room of a module.

    >>> room_of("slicemill.infer.run.engine", {"slicemill.infer.run"}), room_of("slicemill.ct.scan", set())
    ('infer/run', 'ct')
    """
    parts = module.split(".")[1:]
    if not parts or module == "slicemill.bench":
        return "front door" if not parts else "bench"
    if parts[0] not in (*DIVIDED, *STAGES, "common", "ct", "store"):
        return "front door"
    if parts[0] not in DIVIDED or len(parts) == 1:
        return parts[0]
    return "/".join(parts[:2])


def rooms(graph):
    """Return room -> rooms that it imports."""
    found = {}
    for module, imported in imports(graph).items():
        room = found.setdefault(room_of(module, graph.modules), set())
        room.update(room_of(other, graph.modules) for other in imported)
    return {
        room: others - {room} for room, others in found.items() if others - {room} or "/" in room or room not in DIVIDED
    }


def drawn(graph):
    """Return a line a room, the highest floor first."""
    found = rooms(graph)
    lines = [
        f"{room} -> {', '.join(sorted(found[room])) or 'nothing of ours'}"
        for room in sorted(found, key=lambda room: (-floor_of(room), room))
    ]
    return "\n".join(lines) + "\n"


def floor_of(room):
    top = room.split("/")[0]
    return FLOORS.index("stages" if top in STAGES else top)


def test_no_module_and_no_room_imports_in_a_circle(graph):
    for arrows in (imports(graph), rooms(graph)):
        try:
            TopologicalSorter(arrows).prepare()
        except CycleError as error:
            pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_every_arrow_goes_down_and_no_stage_knows_another(graph):
    for room, others in rooms(graph).items():
        for other in others:
            assert floor_of(other) <= floor_of(room), (room, other)
            if floor_of(other) == floor_of(room):
                assert other.split("/")[0] == room.split("/")[0], (room, other)


def test_the_page_shows_the_layout_as_it_is(graph):
    assert BLOCK.search(PAGE.read_text())[2] == drawn(graph), "run python -m tests.test_layout"


if __name__ == "__main__":
    now = drawn(grimp.build_graph("slicemill", cache_dir=None))
    PAGE.write_text(BLOCK.sub(lambda match: match[1] + now + match[3], PAGE.read_text()))
