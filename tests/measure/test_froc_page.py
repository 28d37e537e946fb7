"""The page of `froc`: which marks are found, missed and false, and the colors of their rings."""

import io
import math
import re
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.ct.pictures import FALSE_NEGATIVE, FALSE_POSITIVE, TRUE_POSITIVE
from slicemill.ingest.convert import convert_case
from slicemill.ingest.request import IngestRequest
from slicemill.measure.evaluation.findings import Findings
from slicemill.measure.evaluation.froc_page import VIEW_PX, describe_threshold, draw_mark
from slicemill.measure.evaluation.luna16 import find_hits
from slicemill.measure.evaluation.marks import Mark, choose_marks, divide_marks
from slicemill.store.writer import prepare_store
from tests.ingest.luna import CENTERS, HEADER, make_scan, place, write_table


def rows(*values):
    return np.array(values, dtype=float).reshape(-1, 4)


def test_marks_are_those_that_froc_counts_at_the_threshold():
    rng = np.random.default_rng(5)
    names = tuple(f"s{number}" for number in range(8))
    finds = {name: np.column_stack([rng.uniform(0, 60, (4, 3)), rng.uniform(5, 20, 4)]) for name in names[:6]}
    excluded = {name: np.column_stack([rng.uniform(0, 60, (2, 3)), np.full(2, 15.0)]) for name in names}
    found = {
        name: np.column_stack([rng.uniform(0, 60, (9, 3)), rng.integers(0, 20, 9) / 20])
        if name not in finds
        else np.vstack(
            [np.column_stack([rng.uniform(0, 60, (7, 3)), rng.integers(0, 20, 7) / 20]), [*finds[name][0, :3], 0.8]]
        )
        for name in names
    }
    marks = divide_marks(found, Findings(scans=names, included=finds, excluded=excluded))
    none = np.empty((0, 4))
    hits = [find_hits(found[name], finds.get(name, none), excluded[name]) for name in names]
    false = sorted((value for one in hits for value in one.false), reverse=True)
    assert false[len(names)] < marks.threshold <= false[0]
    counts = {kind: len(ones) for kind, ones in marks.by_kind.items()}
    assert counts["false"] == sum(value >= marks.threshold for value in false) <= len(names)
    assert counts["false"] + false.count(false[len(names)]) > len(names), "no lower threshold allows as few"
    assert counts["found"] == sum(value >= marks.threshold for one in hits for value in one.found)
    assert counts["found"] + counts["missed"] == 24
    assert marks.false_per_scan == counts["false"] / 8
    assert {one.kind for one in marks.by_kind["missed"]} == {"missed"}
    sizes = [one.diameter_mm for one in marks.by_kind["missed"]]
    assert sizes == sorted(sizes, reverse=True)


def test_without_too_many_false_marks_every_candidate_counts():
    finds = {"s": rows((0, 0, 0, -1), (50, 0, 0, 8))}
    marks = divide_marks(
        {"s": rows((4.9, 0, 0, 0.0), (20, 0, 0, 0.1))}, Findings(scans=("s",), included=finds, excluded={})
    )
    assert marks.threshold == -math.inf
    assert [one.probability for one in marks.by_kind["found"]] == [0.0]
    assert marks.by_kind["found"][0].diameter_mm is None
    assert [one.probability for one in marks.by_kind["missed"]] == [None]
    assert [one.xyz_mm for one in marks.by_kind["false"]] == [(20.0, 0.0, 0.0)]


def test_the_page_says_that_marks_at_the_probability_itself_do_not_count():
    """Three equal false marks in one scan are two too many: none of them counts."""
    marks = divide_marks({"s": rows((20, 0, 0, 0.5), (30, 0, 0, 0.5), (40, 0, 0, 0.5))},
                         Findings(scans=("s",), included={"s": rows((0, 0, 0, 8))}, excluded={}))  # fmt: skip
    assert marks.by_kind["false"] == ()
    assert describe_threshold(marks, 1).startswith("Candidates with a probability above 0.5000 count: 0.00 false marks")


def test_at_most_so_many_are_chosen():
    marks = [Mark(kind="missed", scan="s", xyz_mm=(0, 0, 0), diameter_mm=float(n), probability=None) for n in range(9)]
    assert choose_marks(marks, 3) == marks[:3]
    assert choose_marks(marks, 20) == marks
    assert choose_marks([], 3) == []


@pytest.mark.parametrize(
    ("kind", "color"), [("found", TRUE_POSITIVE), ("missed", FALSE_NEGATIVE), ("false", FALSE_POSITIVE)]
)
def test_the_ring_has_the_color_of_the_kind_and_leaves_the_nodule_visible(kind, color):
    image = np.full((40, 60, 60), -900, dtype=np.int16)
    image[20, 30, 30] = 0
    mark = Mark(kind=kind, scan="s", xyz_mm=(30, 30, 20), diameter_mm=9.0, probability=0.5)
    picture = np.asarray(Image.open(io.BytesIO(draw_mark(image, np.eye(4), mark))))
    axial = picture[:, :VIEW_PX]
    ring = (axial == color).all(axis=2)
    y, x = np.nonzero(ring)
    radius = np.hypot(y - (VIEW_PX - 1) / 2, x - (VIEW_PX - 1) / 2) * 48 / VIEW_PX
    assert 5.4 < radius.min() < radius.max() < 6.1  # 12 mm, 3 more than the nodule
    assert axial[VIEW_PX // 2, VIEW_PX // 2].min() > 200
    assert picture.shape[0] == VIEW_PX


@pytest.fixture
def store(tmp_path):
    """Two scans with a nodule each."""
    for number in (1, 2):
        make_scan(tmp_path / "in" / f"p{number}" / "ct.mha", [CENTERS[number]])
    found = [(f"p{number}/ct", *place(center), size) for number, (center, size) in CENTERS.items()]
    one = IngestRequest(source=tmp_path / "in", points=write_table(tmp_path / "annotations.csv", HEADER, found))
    collection, store = one.collection(), prepare_store(tmp_path / "store")
    for case in collection.cases:
        convert_case(case, one.params(collection), store)
    return tmp_path / "store"


def froc_command(*arguments):
    result = CliRunner().invoke(commands(), ["froc", *map(str, arguments)])
    return result.exit_code, " ".join(f"{result.output} {result.exception or ''}".split())


@pytest.mark.slow
def test_the_page_of_a_store_has_pictures_and_that_of_a_table_says_why_not(store, tmp_path):
    x, y, z = place(CENTERS[1][0])
    found = tmp_path / "found.csv"
    found.write_text(f"seriesuid,coordX,coordY,coordZ,probability\np1,{x},{y},{z},0.9\np1,{x + 30},{y},{z},0.6\n")
    code, text = froc_command(found, store, "--out", tmp_path / "out")
    assert code == 0, text
    page = (tmp_path / "out" / "froc.html").read_text()
    assert "Nodules found (green)" in page
    assert page.count("1, all shown.") == 3
    pictures = re.findall(r'<figcaption>(.*?)</figcaption>.*?base64,([^"]*)', page)
    assert [caption.partition(",")[0] for caption, _ in pictures] == ["p1", "p2", "p1"]
    for (_, png), color in zip(pictures, (TRUE_POSITIVE, FALSE_NEGATIVE, FALSE_POSITIVE), strict=True):
        assert (np.asarray(Image.open(io.BytesIO(b64decode(png)))) == color).all(axis=2).any()
    code, text = froc_command(found, store, "--out", tmp_path / "none", "--pictures", "0")
    assert code == 0, text
    page = (tmp_path / "none" / "froc.html").read_text()
    assert "No pictures (--pictures 0)" in page
    assert "<figure" not in page
    (tmp_path / "uids").write_text("p1\np2\n")
    table = tmp_path / "table.csv"
    table.write_text(f"seriesuid,coordX,coordY,coordZ,diameter_mm\np1,{x},{y},{z},9\n")
    words = (found, table, "--scans", tmp_path / "uids")
    code, text = froc_command(*words, "--out", tmp_path / "table")
    assert code == 0, text
    assert "a table of findings has no scans" in (tmp_path / "table" / "froc.html").read_text()
    for options in (("--out", tmp_path / "t", "--pictures", "3"), ("--pictures", "3")):
        code, text = froc_command(*words, *options)
        assert code
        assert "--pictures: pictures need --out and the scans of a slice store" in text
