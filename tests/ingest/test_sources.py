"""A stored case is replaced only by a new version of the files that it was made from."""

import gzip
import os
import shutil
from dataclasses import replace

import pytest

from slicemill.common.files import append_line, read_lines
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import write_collection
from slicemill.ingest.discover import MaskOptions, add_prefix, discover, set_patients
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.ingest.stamps import locate
from slicemill.store.reader import open_store
from slicemill.store.tables import read_table
from tests.ingest.runs import contents

LITS = Params(labels=LITS_LABELS)

pytestmark = pytest.mark.usefixtures("one_worker")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Two collections with equal names, sizes and times, and other voxels."""
    folder = tmp_path_factory.mktemp("sites")
    list(write_collection(folder / "siteA", cases=2, size=24, seed=1))
    for path in list((folder / "siteA").glob("*.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    shutil.copytree(folder / "siteA", folder / "siteB")
    for path in (folder / "siteB").glob("volume-*"):
        flip_last_byte(path)
    for path in folder.rglob("*.nii"):
        os.utime(path, (1.5e9, 1.5e9))
    return folder


@pytest.fixture
def sites(originals, tmp_path):
    return shutil.copytree(originals, tmp_path / "sites")


def run(folder, store, *, collection=None, **options):
    return ingest(collection or discover(folder), store, LITS, IngestOptions(workers=1, **options))


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("rehash", [False, True])
def test_a_second_collection_with_the_same_names_is_refused_and_the_first_is_kept(sites, tmp_path, rehash):
    store = tmp_path / "store"
    assert run(sites / "siteA", store).count("done") == 2
    before = contents(store)
    report = run(sites / "siteB", store, rehash=rehash)
    assert (report.count("failed"), report.count("unchanged")) == (2, 0)
    reason = report.failures[0].reason
    assert reason.startswith(f"{sites / 'siteB' / 'volume-0.nii'}: {store} already has a case 'volume-0', made from ")
    assert "--prefix NAME" in reason
    assert "--overwrite" in reason
    assert contents(store) == before
    assert run(sites / "siteA", store).count("unchanged") == 2


def test_overwrite_replaces_cases_of_another_collection_which_is_then_the_known_one(sites, tmp_path):
    store = tmp_path / "store"
    run(sites / "siteA", store)
    before = contents(store)
    assert run(sites / "siteB", store, overwrite=True).count("done") == 2
    assert contents(store) != before
    assert run(sites / "siteB", store).count("unchanged") == 2
    assert run(sites / "siteA", store).count("failed") == 2


def test_a_prefix_stores_two_collections_beside_each_other(sites, tmp_path):
    store = tmp_path / "store"
    run(sites / "siteA", store)
    collection = add_prefix(discover(sites / "siteB"), "siteB/")
    assert collection.labels == LITS_LABELS
    assert run(None, store, collection=collection).count("done") == 2
    assert open_store(store).case_ids == ["siteB_volume-0", "siteB_volume-1", "volume-0", "volume-1"]
    assert {row["patient_id"] for row in read_table(store, "manifest")} == set(open_store(store).case_ids)
    assert run(None, store, collection=collection).count("unchanged") == 2
    named = set_patients(add_prefix(discover(sites / "siteB"), "siteB"), r"volume-(\d)")
    assert (named.cases[0].case_id, named.cases[0].patient_id) == ("siteB_volume-0", "0")


def test_a_collection_that_moved_is_unchanged_and_its_new_place_is_known(sites, tmp_path):
    store = tmp_path / "store"
    run(sites / "siteA", store)
    before = contents(store)
    moved = (sites / "siteA").rename(tmp_path / "moved")
    assert run(moved, store).count("unchanged") == 2
    assert contents(store) == before
    lines = len(read_lines(store / "ledger.jsonl"))
    assert run(moved, store).count("unchanged") == 2
    assert len(read_lines(store / "ledger.jsonl")) == lines
    flip_last_byte(moved / "volume-1.nii")  # a new version, at a place that is known by now
    assert run(moved, store).count("done") == 1


def test_two_mounts_of_one_collection_are_both_known(sites, tmp_path):
    store = tmp_path / "store"
    run(sites / "siteA", store)
    shutil.copytree(sites / "siteA", tmp_path / "mount")
    run(tmp_path / "mount", store)
    lines = len(read_lines(store / "ledger.jsonl"))
    for folder in (sites / "siteA", tmp_path / "mount"):
        assert run(folder, store).count("unchanged") == 2
    assert len(read_lines(store / "ledger.jsonl")) == lines


def test_a_link_that_leads_to_another_collection_is_another_place(sites, tmp_path):
    current, store = tmp_path / "current", tmp_path / "store"
    current.symlink_to(sites / "siteA")
    run(current, store)
    assert run(sites / "siteA", store).count("unchanged") == 2
    current.unlink()
    current.symlink_to(sites / "siteB")
    assert run(current, store).count("failed") == 2


def test_masks_of_another_reader_are_refused_and_corrected_ones_are_not(sites, tmp_path):
    store, other = tmp_path / "store", tmp_path / "other"
    run(sites / "siteA", store)
    cases = discover(sites / "siteA").cases
    other.mkdir()
    for case in cases:
        shutil.copy(case.mask, other / case.mask.name)
        flip_last_byte(other / case.mask.name)
    second = tuple(replace(case, mask=other / case.mask.name) for case in cases)
    report = run(None, store, collection=replace(discover(sites / "siteA"), cases=second))
    assert report.count("failed") == 2
    assert "segmentation-0.nii: " in report.failures[0].reason
    assert "made from the mask segmentation-0.nii" in report.failures[0].reason
    flip_last_byte(cases[0].mask)
    assert run(sites / "siteA", store).count("done") == 1


def test_masks_may_come_later_and_are_not_lost_by_a_copy_without_them(sites, tmp_path):
    store = tmp_path / "store"
    bare = discover(sites / "siteA", MaskOptions(none=True))
    run(None, store, collection=bare)
    assert run(sites / "siteA", store).count("done") == 2
    copy = shutil.copytree(sites / "siteA", tmp_path / "copy")
    report = run(None, store, collection=discover(copy, MaskOptions(none=True)))
    assert report.count("failed") == 2
    assert open_store(store)["volume-0"].label is not None


def test_a_store_of_an_earlier_version_is_compared_by_content(sites, tmp_path):
    store = tmp_path / "store"
    run(sites / "siteA", store)
    lines = read_lines(store / "ledger.jsonl")
    (store / "ledger.jsonl").unlink()
    for line in lines:
        del line["stamp"]["place"]
        append_line(store / "ledger.jsonl", line)
    assert run(sites / "siteB", store).count("failed") == 2
    assert run(sites / "siteA", store).count("unchanged") == 2
    assert len(read_lines(store / "ledger.jsonl")) == 2 * len(lines)
    flip_last_byte(sites / "siteA" / "volume-1.nii")
    assert run(sites / "siteA", store).count("done") == 1


def test_a_store_without_its_ledger_is_not_replaced_by_another_collection(sites, tmp_path):
    store = tmp_path / "store"
    run(sites / "siteA", store)
    (store / "ledger.jsonl").unlink()
    assert run(sites / "siteB", store).count("failed") == 2
    assert run(sites / "siteA", store).count("unchanged") == 2


def test_a_failure_of_one_collection_is_none_of_another(sites, tmp_path):
    store = tmp_path / "store"
    volume = sites / "siteA" / "volume-0.nii"
    size = volume.stat().st_size
    volume.write_bytes(b"\0" * size)
    os.utime(volume, (1.5e9, 1.5e9))
    assert run(sites / "siteA", store).count("failed") == 1
    assert run(sites / "siteA", store).count("failed before") == 1
    report = run(sites / "siteB", store)
    assert [(one.case_id, one.status) for one in report.outcomes] == [("volume-0", "done"), ("volume-1", "failed")]


def test_a_damaged_case_of_another_collection_is_kept(sites, tmp_path):
    store = tmp_path / "store"
    run(sites / "siteA", store)
    document = store / "scans.zarr" / "volume-0" / "zarr.json"
    document.write_bytes(b"")
    report = run(sites / "siteB", store)
    assert report.count("failed") == 2
    assert "made from a damaged case" in report.failures[0].reason
    assert document.read_bytes() == b""


def test_no_path_is_in_the_ledger(sites, tmp_path):
    run(sites / "siteA", tmp_path / "store")
    assert "siteA" not in (tmp_path / "store" / "ledger.jsonl").read_text()
    case = discover(sites / "siteA").cases[0]
    assert locate(case) == locate(replace(case, image=sites / "siteB" / ".." / "siteA" / case.image.name))
    assert locate(case) != locate(replace(case, image=sites / "siteB" / case.image.name))
