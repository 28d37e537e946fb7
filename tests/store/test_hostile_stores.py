"""Documents of a store that others may have written: each fault is that case's alone, in words."""

import errno
import json
import os
import re
import shutil
import struct

import google_crc32c
import pytest

from slicemill.common.errors import StoreError
from slicemill.store.reader import open_store
from slicemill.store.tables import read_table, reindex
from slicemill.store.verify import verify
from tests.infer.commands import run_command

CASE = "volume-1"


@pytest.fixture
def copy(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "copy")


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def attribute(change):
    """A change of the attribute ``slicemill`` of a case."""
    return lambda folder: edit(folder / "zarr.json", lambda document: change(document["attributes"]["slicemill"]))


def array(**fields):
    return lambda folder: edit(folder / "image" / "zarr.json", lambda document: document.update(fields))


def lesions(**fields):
    return attribute(lambda case: [lesion.update(fields) for lesion in case["lesions"]])


def pipe(name):
    def replace(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return replace


def absent_slices(folder):
    """All slices become fill values."""
    shard = folder / "image" / "c" / "0" / "0" / "0"
    slices = json.loads((folder / "image" / "zarr.json").read_text())["shape"][0]
    index = struct.pack("<QQ", 2**64 - 1, 2**64 - 1) * slices
    data = shard.read_bytes()[: -len(index) - 4]
    shard.write_bytes(data + index + struct.pack("<I", google_crc32c.value(index)))


def odd_fill(folder):
    absent_slices(folder)
    array(fill_value=10**30)(folder)


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


REFUSED = {
    "a pipe for the document": (pipe("zarr.json"), "is not a regular file"),
    "deep nesting": (text("zarr.json", "[" * 100_000), "nested too deeply"),
    "a list": (text("zarr.json", "[]"), "must be a JSON object"),
    "attributes as a list": (text("zarr.json", '{"attributes": [1]}'), "store format None"),
    "half a character": (attribute(lambda case: case.update(patient_id="\ud800")), "half of a character"),
    "an infinite affine": (
        lambda folder: (folder / "zarr.json").write_text(
            (folder / "zarr.json").read_text().replace('"affine_lps": [[', '"affine_lps": [[1e999, 0, 0, 0], [', 1)
        ),
        "affine_lps",
    ),
    "an affine of nothing": (attribute(lambda case: case.update(affine_lps=[[0] * 4] * 4)), "finite and invertible"),
    "a spacing of 0": (attribute(lambda case: case.update(spacing_mm=[0, 1, 1])), "spacing_mm must be above 0"),
    "a negative spacing": (attribute(lambda case: case.update(spacing_mm=[-1, 1, 1])), "spacing_mm must be above 0"),
    "too many voxels": (
        attribute(
            lambda case: case["slice_stats"]["voxels"].update(tumor=[2**62] * len(case["slice_stats"]["hu_min"]))
        ),
        "statistics of fewer than 0 or of more",
    ),
    "a label without statistics": (attribute(lambda case: case["labels"].update(x=3)), "statistics of"),
    "a lesion far outside": (lesions(bbox_zyx=[0, 0, 0, 2**60, 2**60, 2**60]), "a number of lesion"),
    "a lesion before the start": (lesions(key_z=-7), "a number of lesion"),
    "a lesion of 1e999 ml": (
        lambda folder: (folder / "zarr.json").write_text(
            re.sub(r'"volume_ml": [0-9.e+-]+', '"volume_ml": 1e999', (folder / "zarr.json").read_text())
        ),
        "a number of lesion",
    ),
    "another type of voxels": (array(data_type="float64"), "must hold int16"),
    "objects as voxels": (array(data_type="O"), "must hold int16"),
    "a huge shape": (array(shape=[2**40, 16, 16]), r"statistics of|truncated"),
    "a shape in words": (array(shape=["1" * 5000, 1, 1]), "three axes"),
    "a fill value out of range": (odd_fill, "must hold int16"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", REFUSED)
def test_a_hostile_document_is_that_cases_alone(kind, copy):
    spoil, words = REFUSED[kind]
    spoil(copy / "scans.zarr" / CASE)
    store = open_store(copy)
    cases, reasons = store.read_cases()
    assert len(cases) == len(store.case_ids) - 1
    assert len(reasons) == 1
    with pytest.raises(StoreError, match=words):
        raise StoreError(reasons[0])
    assert "this is a bug" not in reasons[0]
    with pytest.raises(StoreError, match=f"without 1 unreadable cases: {CASE}"):
        reindex(copy)
    assert [row["case_id"] for row in read_table(copy, "manifest")] == [case.info.case_id for case in cases]
    problems = verify(open_store(copy), None, workers=2, advance=lambda *_: None)
    assert all(problem.startswith(f"{CASE}: ") for problem in problems)
    assert problems
    shown = run_command("store", "info", copy)
    assert shown.exit_code == 0
    assert f"unreadable {copy / 'scans.zarr' / CASE}" in shown.output


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_shard_that_is_no_file_is_that_cases_alone(kind, copy):
    shard = copy / "scans.zarr" / CASE / "image" / "c" / "0" / "0" / "0"
    shard.unlink()
    os.mkfifo(shard) if kind == "pipe" else shard.mkdir()
    (problem,) = verify(open_store(copy), None, workers=2, advance=lambda *_: None)
    assert "is not a regular file" in problem


def test_hostile_names_reach_neither_terminal_nor_spreadsheet_raw(copy):
    attribute(lambda case: case.update(patient_id="=cmd|x\x1b[31m\u202e<script>\n"))(copy / "scans.zarr" / CASE)
    reindex(copy)
    assert b"\"'=cmd|x" in (copy / "manifest.csv").read_bytes()
    for words in (("manifest",), ("manifest", "--csv"), ("info",), ("verify",)):
        shown = run_command("store", words[0], copy, *words[1:]).output
        assert all(letter.isprintable() or letter == "\n" for letter in shown)


def test_running_out_of_file_descriptors_is_no_damage(copy, monkeypatch):
    def refuse(path):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr("slicemill.store.shard_reader.open_regular", refuse)
    shown = run_command("store", "verify", copy)
    assert shown.exit_code == 1
    assert "Too many open files. Allow more open files (ulimit -n)" in shown.output
    assert "problem" not in shown.output
