"""A store of format 1 is read, takes new cases, and is moved to format 2 by renaming."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.common.locks import try_claim
from slicemill.common.remote import RemotePath
from slicemill.ct.labels import LITS_LABELS
from slicemill.ingest.discover import discover
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store import shard_reader, upgrade
from slicemill.store.cli import store as cli
from slicemill.store.reader import open_store
from slicemill.store.tables import reindex
from slicemill.store.upgrade import upgrade_store
from slicemill.store.verify import verify
from tests.store.formats import to_format_1

CASES = ("volume-0", "volume-3")


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def few(stored, tmp_path):
    """A store of two cases."""
    copy = shutil.copytree(stored, tmp_path / "few")
    for folder in (copy / "scans.zarr").iterdir():
        if folder.is_dir() and folder.name not in CASES:
            shutil.rmtree(folder)
    reindex(copy)
    return copy


@pytest.fixture
def old(few, tmp_path):
    return to_format_1(shutil.copytree(few, tmp_path / "old"))


def content(store):
    """The bytes of every file but the claims and the ledger."""
    paths = [path for path, _ in store.files()] if isinstance(store, RemotePath) else store.rglob("*")
    files = {path.relative_to(store).as_posix(): path for path in paths if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(".claims/")}


def voxels(store):
    return {case.case_id: (case.image[:], case.label[:]) for case in open_store(store).values()}


def assert_same_voxels(one, other):
    assert one.keys() == other.keys()
    for case_id, arrays in one.items():
        for array, same in zip(arrays, other[case_id], strict=True):
            assert np.array_equal(array, same)


def problems(store):
    return verify(open_store(store), None, workers=1, advance=lambda *_: None)


def statuses(store, workers=1):
    return [outcome.status for outcome in upgrade_store(open_store(store), workers)]


def test_a_store_of_format_1_is_read_and_verified_as_it_is(old, few):
    assert not list(old.glob("scans.zarr/*/labels"))
    assert {case.info.format for case in open_store(old).values()} == {1}
    assert_same_voxels(voxels(old), voxels(few))
    assert problems(old) == []


def test_an_upgraded_store_has_the_bytes_of_a_new_one(old, few):
    assert statuses(old, workers=2) == ["done", "done"]
    assert content(old) == content(few)
    assert problems(old) == []
    assert statuses(old) == ["skipped", "skipped"]
    assert content(old) == content(few)


def test_no_voxel_is_read_and_no_shard_is_written(old, monkeypatch):
    shards = {path.stat().st_ino for path in old.glob("scans.zarr/*/label/c/0/0/0")}
    monkeypatch.setattr(shard_reader.ShardReader, "read", None)
    assert statuses(old) == ["done", "done"]
    assert {path.stat().st_ino for path in old.glob("scans.zarr/*/labels/segmentation/0/c/0/0/0")} == shards


def test_a_disk_without_hard_links_gets_copies(old, few, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert statuses(old) == ["done", "done"]
    assert content(old) == content(few)


@pytest.mark.slow
def test_an_upgrade_that_is_killed_anywhere_leaves_every_case_readable_and_is_finished_by_the_next(
    old, few, tmp_path, monkeypatch
):
    same, killed = voxels(few), 0
    steps = ((os, "link"), (os, "unlink"), (os, "rmdir"), (Path, "replace"), (upgrade, "reindex"))
    for step in range(200):
        copy = shutil.copytree(old, tmp_path / f"copy-{step}")
        left = [step]
        with monkeypatch.context() as patch:
            for owner, name in steps:
                patch.setattr(owner, name, stopping(getattr(owner, name), left))
            try:
                upgrade_store(open_store(copy), 1)
            except Killed:
                killed += 1
            else:
                break
        assert_same_voxels(voxels(copy), same)
        upgrade_store(open_store(copy), 1)
        for table in [*copy.glob(".*.part*"), *copy.glob("scans.zarr/.*.part*")]:
            table.unlink()
        assert content(copy) == content(few), f"killed at step {step}"
        shutil.rmtree(copy)
    assert 20 < killed < 199


def stopping(work, left):
    """Return the function, which kills the process at the call at which `left` has come to 0."""

    def run(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return work(*arguments, **options)

    return run


def test_a_case_whose_documents_changed_is_not_blessed_with_new_checksums(old):
    path = old / "scans.zarr/volume-3/zarr.json"
    path.write_text(path.read_text().replace('"tumor": "tumor"', '"tumor": "liver"'))
    before, recorded = path.read_text(), (old / "checksums.json").read_text()
    outcomes = {outcome.case_id: outcome for outcome in upgrade_store(open_store(old), 1)}
    assert outcomes["volume-0"].status == "done"
    assert "its documents changed since the tables were built" in outcomes["volume-3"].reason
    assert path.read_text() == before
    assert (old / "checksums.json").read_text() == recorded


def test_a_case_that_another_run_is_writing_is_left_and_named(old):
    with try_claim(old, "volume-0"):
        done = CliRunner().invoke(cli, ["upgrade", str(old), "--workers", "1"])
    assert done.exit_code == 1
    assert "failed: volume-0: another run is writing it" in done.output
    assert "2 cases: 1 upgraded to format 2, 0 had it, 1 failed" in done.output
    again = CliRunner().invoke(cli, ["upgrade", str(old), "--json"])
    assert again.exit_code == 0
    assert [case["status"] for case in json.loads(again.stdout)["cases"]] == ["done", "skipped"]


def test_a_store_of_format_1_takes_new_cases_and_both_formats_are_read(old, collection, stored, one_worker):
    report = ingest(discover(collection), old, Params(labels=LITS_LABELS), IngestOptions(workers=1))
    assert (report.count("done"), report.count("failed")) == (4, 0)
    assert sorted(case.info.format for case in open_store(old).values()) == [1, 1, 2, 2, 2, 2]
    assert_same_voxels(voxels(old), voxels(stored))
    assert problems(old) == []
    assert sorted(statuses(old)) == ["done"] * 2 + ["skipped"] * 4
    assert content(old)["scans.zarr/volume-3/zarr.json"] == content(stored)["scans.zarr/volume-3/zarr.json"]


def test_a_bucket_is_upgraded_by_copies_on_the_server(old, few, bucket):
    place, seen = bucket
    root = place / "store"
    for name, data in content(old).items():
        (root / name).write_bytes(data)
    assert isinstance(root, RemotePath)
    outcomes = []
    shards = seen.during(lambda: outcomes.extend(upgrade_store(open_store(root), 1)))
    assert [outcome.status for outcome in outcomes] == ["done", "done"], outcomes
    assert not [line for line in shards if line[0] == "GET" and "/c/0/0/0" in line[1]]
    assert content(root) == content(few)
