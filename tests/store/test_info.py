"""`slicemill store info`: one screen, whatever the store holds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slicemill.common.terminal import BLOCKS, bar_characters, histogram_bars
from slicemill.store.info import describe, describe_tumors, describe_warnings
from slicemill.store.reader import open_store
from slicemill.store.writer import prepare_store
from tests.store.rows import manifest

HERE = Path(__file__).parents[2]


def lines_of(store):
    return {line[:11].strip(): line[11:] for line in describe(open_store(store), BLOCKS)}


def test_histograms_have_counts_ranges_and_units(stored):
    store = open_store(stored)
    infos = [case.info for case in store.values()]
    shown = lines_of(stored)
    depths = [info.shape[0] for info in infos]
    assert shown["cases"] == "6 of 6 patients, 6 with a mask"
    assert shown["slices"] == f"{sum(depths):,}"
    assert f"{min(depths)} to {max(depths)} slices, median {np.median(depths):.3g}" in shown["a case"]
    lesions = [len(info.lesions) for info in infos]
    assert shown["tumor"] == f"in 5 of 6 cases, {sum(lesions)} lesions"
    assert " ml a case, median " in shown["volume"]
    assert "% of the organ" in shown["burden"]
    assert "mm a lesion, axial" in shown["diameter"]


def test_a_store_fits_on_one_screen(stored):
    lines = describe(open_store(stored), BLOCKS)
    assert len(lines) <= 24
    assert max(map(len, lines[1:])) <= 100


def test_an_empty_store_is_described_too(tmp_path):
    shown = lines_of(prepare_store(tmp_path / "store"))
    assert shown["cases"] == "0 of 0 patients, 0 with a mask"
    assert "tumor" not in shown


def test_cases_without_tumor_have_no_tumor_statistics():
    row = manifest(has_tumor=False, n_lesions=0, tumor_volume_ml=0.0, tumor_percent_organ=0.0, tumor_percent_scan=0.0)
    assert describe_tumors([row], [], BLOCKS) == ["tumor      in 0 of 1 case, 0 lesions"]
    assert describe_tumors([manifest(has_tumor=None)], [], BLOCKS) == []


def test_ten_warnings_are_shown_and_the_others_counted():
    rows = [manifest(case_id=f"c{number}", warnings="odd" if number % 2 else "") for number in range(40)]
    lines = describe_warnings(rows)
    assert len(lines) == 11
    assert lines[0] == "warning    c1: odd"
    assert lines[-1].strip().startswith("10 more; ")
    assert len(describe_warnings(rows[:20])) == 10


@example([0.0, 5e-324], False, 1)
@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=60), st.booleans(), st.integers(1, 20))
def test_a_histogram_has_its_width_and_a_sign_for_every_filled_bin(values, log, width):
    shown = histogram_bars(values, BLOCKS, width, log=log)
    assert len(shown) == width
    assert BLOCKS[-1] in shown
    if not log and max(values) - min(values) > 1e-6:
        filled = np.histogram(values, width)[0] > 0
        assert sum(sign != " " for sign in shown) == pytest.approx(filled.sum(), abs=2)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "no such encoding", None])
def test_an_output_that_cannot_show_blocks_gets_plain_signs(encoding):
    assert bar_characters(encoding).isascii()


def test_the_command_works_where_the_output_is_ascii(stored):
    words = [sys.executable, "-m", "slicemill", "store", "info", stored]
    env = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, cwd=HERE, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ml a case" in done.stdout


def test_warnings_of_ingest_are_shown(stored, tmp_path):
    copy = shutil.copytree(stored, tmp_path / "copy")
    document = copy / "scans.zarr" / "volume-1" / "zarr.json"
    changed = json.loads(document.read_text())
    changed["attributes"]["slicemill"]["warnings"] = ["a", "b"]
    document.write_text(json.dumps(changed))
    assert lines_of(copy)["warning"] == "volume-1: a; b"
