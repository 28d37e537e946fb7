"""Texts of DICOM headers stay in the DICOM files: a marker in every text element is searched in all that is written.

Ingest has a test of its own (`tests/ingest/test_dicom.py`). DICOM results are the exception: they must carry the
source's patient and study.
"""

import subprocess
import time
import warnings

import numpy as np
import pytest

from slicemill.ct.formats.dicom_objects.options import ENDINGS
from slicemill.web.entries import ViewRequest, find_entries
from tests.ct.dicom.made import make_series, save_series
from tests.ct.dicom.marked import MARKER, TAGS, mark
from tests.infer.networks import write_threshold
from tests.ingest.runs import HERE, command
from tests.web.served import serving

pytestmark = pytest.mark.slow
TEXTS = (MARKER, MARKER.upper(), "19010203")
RESULTS = ["--dicom-seg", "--dicom-sr", "--rtstruct"]


def write_marked(folder, damage=None):
    """Write a series of 5 slices with a tumor of 90 HU and a marker in every text; `damage` breaks it."""
    stored = np.full((5, 20, 24), 974, dtype=np.int16)
    stored[1:4, 4:9, 5:12] = 1114
    slices = [mark(one) for one in make_series(stored)]
    for one in slices:
        if damage in TAGS:
            one.add_new(TAGS[damage], "LO", MARKER.upper())
    if damage == "gap":
        del slices[2]
    with warnings.catch_warnings(action="ignore"):  # pydicom's, about the values
        save_series(folder, slices)
    if damage == "cut":
        path = folder / "IM002"
        path.write_bytes(path.read_bytes()[:900])
    return folder


def run(*words):
    """Run slicemill, and return its exit status, what it printed, and the answer of ``--json``."""
    done = subprocess.run(command(*map(str, words)), cwd=HERE, capture_output=True, text=True, check=False)
    assert "--verbose" in words or "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def check(printed, *folders):
    """Check that no text of a header was printed or written, DICOM results apart."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    written = b"".join(str(path).encode() + path.read_bytes() for path in paths if not path.name.endswith(ENDINGS))
    for text in TEXTS:
        assert text not in printed
        assert text.encode() not in written
        assert text.encode("utf-16-le") not in written
    return len(paths)


@pytest.fixture
def segmented(tmp_path):
    """The output of infer for a marked series."""
    model, out = write_threshold(tmp_path / "net.onnx"), tmp_path / "segmented"
    status, printed = run(
        "infer", model, write_marked(tmp_path / "in" / "p1"), "--out", out, "--provider", "cpu", "--verbose", *RESULTS
    )
    assert status == 0, printed
    assert check(printed, out) >= 6
    return out


def test_results_of_infer_measure_and_evaluate(segmented, tmp_path):
    assert all(MARKER.encode() in path.read_bytes() for path in segmented.rglob(f"*{ENDINGS[0]}"))
    measured, scores = tmp_path / "measured", tmp_path / "scores"
    status, printed = run("measure", segmented, "--image", tmp_path / "in", "--out", measured, *RESULTS)
    assert status == 0, printed
    assert check(printed, measured) >= 6
    status, printed = run("evaluate", segmented, segmented, "--out", scores, "--json")
    assert status == 0, printed
    assert check(printed, scores) >= 2


def test_what_infer_prints_as_json(tmp_path):
    model = write_threshold(tmp_path / "net.onnx")
    status, printed = run(
        "infer", model, write_marked(tmp_path / "in" / "p1"), "--out", tmp_path / "out", "--provider", "cpu", "--json"
    )
    assert status == 0, printed
    assert '"model_sha256"' in printed
    check(printed, tmp_path / "out")


@pytest.mark.parametrize("damage", ["gap", "cut", *TAGS])
def test_messages_about_damaged_series(damage, tmp_path):
    model, folder = write_threshold(tmp_path / "net.onnx"), write_marked(tmp_path / "in" / "p1", damage)
    for words in (
        ("infer", model, folder, "--out", tmp_path / "out", "--provider", "cpu", *RESULTS),
        ("infer", model, tmp_path / "in", "--out", tmp_path / "out2", "--provider", "cpu", "--verbose"),
        ("info", folder),
    ):
        check(run(*words)[1], *tmp_path.glob("out*"))


def test_what_the_viewer_serves(segmented, tmp_path):
    entries = find_entries(ViewRequest(path=segmented, scans=tmp_path / "in"))
    with serving(entries) as served, served.client() as client:
        deadline, answers = time.monotonic() + 30, []
        while (state := client.get("/api/cases/0/progress")).status_code != 200 or "true" not in state.text:
            assert time.monotonic() < deadline
            client.get("/api/cases/0")
            time.sleep(0.1)
        for address in (
            "/", "/api/cases", "/api/cases/0", "/api/cases/0/progress", "/api/cases/0/parts/0/1",
            "/api/cases/0/image/axial/2", "/api/cases/0/mask/0/axial/2",
        ):  # fmt: skip
            answer = client.get(address)
            assert answer.status_code == 200, (address, answer.text)
            answers.append(answer.content.decode("latin-1") + str(answer.headers))
    check("".join(answers))
