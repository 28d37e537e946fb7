"""A case that is replaced while it is open is read in one version, or reported."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from slicemill.common.errors import StoreError
from slicemill.ct.labels import LITS_LABELS
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import discover
from slicemill.ingest.params import Params
from slicemill.store import reader, shard_reader
from slicemill.store.cache import SliceCache
from slicemill.store.reader import open_store
from slicemill.store.writer import prepare_store

LITS = Params(labels=LITS_LABELS)
CHANGED = "was replaced or removed while it was open. Open the store again"


@pytest.fixture(scope="module")
def versions(collection, tmp_path_factory):
    """The files of a case in two versions, of which the second has each voxel one HU higher."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    for name in ("volume-0.nii", "segmentation-0.nii"):
        shutil.copy(collection / name, first)
        shutil.copy(collection / name, second)
    content = (second / "volume-0.nii").read_bytes()
    voxels = np.frombuffer(content[352:], dtype="<i2") + np.int16(1)
    (second / "volume-0.nii").write_bytes(content[:352] + voxels.tobytes())
    return [discover(folder).cases[0] for folder in (first, second)]


@pytest.fixture(params=["local", "bucket"])
def root(request, tmp_path):
    """The place of a store: on the disk, and in a bucket."""
    return tmp_path / "store" if request.param == "local" else request.getfixturevalue("bucket")[0] / "store"


@pytest.fixture
def opened(versions, root):
    """The case, open in its first version, and a function that replaces it."""
    prepare_store(root)
    convert_case(versions[0], LITS, root)
    return open_store(root)["volume-0"], lambda: convert_case(versions[1], LITS, root)


def agrees(case):
    """Return whether a case's statistics are those of its voxels."""
    return case.info.slice_stats.hu_max == [int(section.max()) for section in case.image]


def reads(case):
    """Return what reading a case says: one version, a mixture, or an error."""
    try:
        return "one version" if agrees(case) else "a mixture"
    except StoreError as error:
        return "reported" if CHANGED in str(error) else str(error)


def test_a_case_that_nothing_was_read_of_is_reported_and_the_store_can_be_opened_again(opened, root):
    case, replace = opened
    replace()
    for array in (case.image, case.label):
        with pytest.raises(StoreError, match=f"volume-0: {CHANGED}"):
            array[0]
        with pytest.raises(StoreError, match=CHANGED):
            array.read_many([0, 1])
    again = open_store(root)["volume-0"]
    assert agrees(again)
    assert again.info.slice_stats != case.info.slice_stats


def test_a_case_that_is_being_read_goes_on_in_its_version_or_is_reported(opened):
    case, replace = opened
    before = case.image[3].copy()
    replace()
    assert reads(case) in ("one version", "reported")
    with contextlib.suppress(StoreError):
        assert np.array_equal(case.image[3], before)
    with pytest.raises(StoreError, match=CHANGED):
        case.label[0]


def test_a_file_that_is_opened_a_second_time_is_checked_again(versions, tmp_path):
    convert_case(versions[0], LITS, prepare_store(tmp_path))
    case = open_store(tmp_path)["volume-0"]
    case.image[0]
    convert_case(versions[1], LITS, tmp_path)
    shard_reader._open_file.cache_clear()
    with pytest.raises(StoreError, match=CHANGED):
        case.image[1]


def test_a_removed_case_is_reported(versions, tmp_path):
    convert_case(versions[0], LITS, prepare_store(tmp_path))
    case = open_store(tmp_path)["volume-0"]
    shutil.rmtree(tmp_path / "scans.zarr" / "volume-0")
    with pytest.raises(StoreError, match=CHANGED):
        case.image[0]


@pytest.mark.parametrize("document", ["image", "0", "volume-0"])
def test_a_case_that_is_replaced_while_it_is_opened_is_reported(opened, root, versions, monkeypatch, document):
    _, replace = opened
    waiting = [document]

    def interrupt(real):
        def interrupted(folder, *data):
            found = real(folder, *data)
            if folder.name in waiting:
                waiting.clear()
                replace()
            return found

        return interrupted

    store = open_store(root)
    assert store.case_ids == ["volume-0"]
    for name in ("read_document", "read_attribute"):
        monkeypatch.setattr(reader, name, interrupt(getattr(reader, name)))
    with pytest.raises(StoreError, match=CHANGED):
        store["volume-0"]
    assert agrees(store["volume-0"])


def test_a_cache_has_no_slices_of_the_version_before(opened, root, tmp_path):
    _, replace = opened
    cache = SliceCache(tmp_path / "cache", 1 << 20)
    before = open_store(root, cache)["volume-0"].image[3].copy()
    replace()
    assert np.array_equal(open_store(root, cache)["volume-0"].image[3], before + 1)


def test_a_case_of_another_layout_is_reported_too(versions, tmp_path, monkeypatch):
    convert_case(versions[0], LITS, prepare_store(tmp_path))
    monkeypatch.setattr(reader, "recognize_profile", lambda *_: None)
    case = open_store(tmp_path)["volume-0"]
    convert_case(versions[1], LITS, tmp_path)
    with pytest.raises(StoreError, match=CHANGED):
        case.image[0]


def test_a_reader_beside_a_writer_sees_one_version_or_an_error(versions, tmp_path):
    convert_case(versions[0], LITS, prepare_store(tmp_path))
    seen = set()
    for turn in range(40):
        case = open_store(tmp_path)["volume-0"]
        if turn % 2:
            convert_case(versions[turn // 2 % 2], LITS, tmp_path)
        seen.add(reads(case))
    assert seen == {"one version", "reported"}
    assert list((Path(tmp_path) / ".partial").iterdir()) == []


@pytest.mark.parametrize("case_id", ["volume-1", "", ".partial", "../scans.zarr/volume-0", "a/b", "x" * 300])
def test_one_case_is_opened_without_listing_the_others(opened, root, monkeypatch, case_id):
    monkeypatch.setattr(reader, "iter_case_ids", lambda _: pytest.fail("the cases were listed"))
    assert open_store(root)["volume-0"].info.case_id == "volume-0"
    with pytest.raises(StoreError, match="has no case"):
        open_store(root)[case_id]
