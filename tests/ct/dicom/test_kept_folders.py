"""Folders with many series: one listing for all of them, and no change of a file is missed."""

import os
import time
import zipfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest

from slicemill.common.errors import ReadError, ScanError
from slicemill.ct.formats.dicom import folders
from slicemill.ct.formats.dicom.discover import find_dicom
from slicemill.ct.formats.dicom.files import OpenFile, stat_file
from slicemill.ct.formats.dicom.lookup import find_series
from slicemill.ct.formats.dicom.series import Refused
from slicemill.ct.formats.open import mark_files, open_source
from tests.ct.dicom.made import make_series, make_volume, save_series

OLD = 10_000_000_000
"""ns: an age at which a folder counts as settled."""


def write_flat(folder, count=4, slices=3):
    """Write a folder of several series."""
    for number in range(1, count + 1):
        some = make_series(make_volume((slices, 4, 5), seed=number), SeriesInstanceUID=f"1.2.{number}")
        save_series(folder, some, name=f"S{number}_{{:03d}}")
    settle(folder)


def settle(folder):
    """Make the last change of a folder an old one."""
    old = time.time_ns() - OLD
    os.utime(folder, ns=(old, old))


@pytest.fixture
def listed(monkeypatch):
    """The folders that were listed."""
    calls = []
    original = folders.list_folder

    def list_folder(folder):
        calls.append(folder)
        return original(folder)

    monkeypatch.setattr(folders, "list_folder", list_folder)
    return calls


def test_all_series_of_a_folder_need_one_listing(tmp_path, listed):
    write_flat(tmp_path / "in", count=20)
    series = find_dicom(tmp_path / "in").series
    assert len(series) == 20
    for one in series:
        mark_files(one.location)
        source = open_source(one.location)
        list(source.planes(8, 1))
        source.finish()
        assert find_series(one.location) == one.series
    assert listed == [tmp_path / "in"]


def test_a_folder_that_changed_just_now_is_listed_again(tmp_path, listed):
    write_flat(tmp_path / "in")
    os.utime(tmp_path / "in")
    series = find_dicom(tmp_path / "in").series
    mark_files(series[0].location)
    assert len(listed) == 2


def test_a_mark_changes_with_the_files_of_its_series_only(tmp_path):
    folder = tmp_path / "in"
    write_flat(folder)
    first, second, *_ = [one.location for one in find_dicom(folder).series]
    marks = mark_files(first), mark_files(second)
    longer = make_series(make_volume((4, 4, 5), seed=1), SeriesInstanceUID="1.2.1")
    save_series(folder, longer[3:], name="later{:03d}")
    os.utime(folder, ns=(OLD, OLD))  # another time than before
    assert mark_files(first) != marks[0]
    assert mark_files(second) == marks[1]
    assert len(find_series(first).planes) == 4
    for path in folder.glob("later*"):
        path.unlink()
    assert mark_files(first) == marks[0]
    assert len(find_series(first).planes) == 3


@pytest.mark.parametrize("name", ["S1_001", "S1_003"])
def test_a_slice_that_is_written_again_in_place_is_seen(name, tmp_path):
    folder = tmp_path / "in"
    write_flat(folder)
    before = find_dicom(folder).series[0]
    mark = mark_files(before.location)
    moved = make_series(make_volume((3, 4, 5), seed=1), SeriesInstanceUID="1.2.1", start=(0, 0, 40))[1]
    save_series(tmp_path / "new", [moved])
    (folder / name).write_bytes((tmp_path / "new" / "IM001").read_bytes())
    settle(folder)
    assert mark_files(before.location) != mark
    assert find_series(before.location) != before.series


def overwrite(path, content):
    """Write a file again in place, with the size and the modification time that it had."""
    state = path.stat()
    assert len(content) == state.st_size
    time.sleep(0.02)  # the clock of a file system counts in steps of some ms
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("way", ["file", "listing"])
def test_a_slice_that_is_written_again_with_its_old_modification_time_is_seen(way, tmp_path):
    folder = tmp_path / "in"
    write_flat(folder, count=2)
    before = find_dicom(folder).series[0]
    others = make_series(make_volume((3, 4, 5), seed=1), SeriesInstanceUID="1.2.1", start=(-10, -20, -40))
    save_series(tmp_path / "new", others)
    for number in (1, 2, 3):
        overwrite(folder / f"S1_00{number}", (tmp_path / "new" / f"IM00{number}").read_bytes())
    after = find_series(before.location) if way == "file" else find_dicom(folder).series[0].series
    assert before.series.grid.affine[2, 3] - 10 == after.grid.affine[2, 3]


def test_a_file_that_is_overwritten_after_it_was_listed_is_not_read(tmp_path):
    save_series(tmp_path, make_series(make_volume((1, 4, 5))))
    listed = stat_file(tmp_path / "IM001")
    OpenFile(listed).close()
    overwrite(listed.path, bytes(listed.size))
    with pytest.raises(ReadError, match="changed during reading"):
        OpenFile(listed)


def test_an_archive_that_is_overwritten_with_its_old_modification_time_is_read_again(tmp_path):
    def pack(path, start):
        slices = tmp_path / f"slices of {path.name}"
        save_series(slices, make_series(make_volume((3, 4, 5)), start=start))
        with zipfile.ZipFile(path, "w") as made:
            for number in (1, 2, 3):
                made.write(slices / f"IM00{number}", f"IM{number}")

    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / "a.zip"
    pack(archive, (0, 0, 10))
    before = find_dicom(tmp_path / "in").series[0].series
    pack(tmp_path / "other", (0, 0, 20))
    overwrite(archive, (tmp_path / "other").read_bytes())
    after = find_dicom(tmp_path / "in").series[0].series
    assert before.grid.affine[2, 3] + 10 == after.grid.affine[2, 3]


@pytest.mark.parametrize("length", [0, 100, 600])
def test_a_slice_that_was_still_being_copied_is_seen(length, tmp_path):
    folder = tmp_path / "in"
    write_flat(folder)
    content = (folder / "S1_001").read_bytes()
    (folder / "S1_001").write_bytes(content[:length])
    settle(folder)
    location = find_dicom(folder).series[0].location
    assert isinstance(find_series(location), Refused) or len(find_series(location).planes) == 2
    mark = mark_files(location)
    (folder / "S1_001").write_bytes(content)
    assert len(find_series(location).planes) == 3
    assert mark_files(location) != mark


def test_the_mark_of_a_refused_series_changes_when_a_slice_of_it_or_a_damaged_file_does(tmp_path):
    folder = tmp_path / "in"
    write_flat(folder, slices=5)
    content = (folder / "S1_003").read_bytes()
    (folder / "S1_003").unlink()
    location = find_dicom(folder).series[0].location
    assert isinstance(find_series(location), Refused)
    gap = mark_files(location)
    (folder / "S1_003").write_bytes(content[:700])
    damaged = mark_files(location)
    (folder / "S1_003").write_bytes(content)
    assert len({gap, damaged, mark_files(location)}) == 3
    assert len(find_series(location).planes) == 5


def test_any_file_of_a_series_names_it_and_another_file_does_not(tmp_path):
    folder = tmp_path / "in"
    write_flat(folder)
    (folder / "notes").write_text("text")
    one = find_series(folder / "S2_002")
    assert one.series_uid == "1.2.2"
    assert mark_files(folder / "S2_002") == mark_files(folder / "S2_001")
    with pytest.raises(ScanError, match="is not a file of a CT series in DICOM"):
        find_series(folder / "notes")


def test_indexes_of_many_folders_do_not_stay_in_memory(tmp_path, monkeypatch, listed):
    monkeypatch.setattr(folders, "KEPT_FILES", 13)
    for name in ("a", "b", "c"):
        write_flat(tmp_path / name, count=2)
    for name in ("a", "b", "c"):
        find_dicom(tmp_path / name)
    assert list(folders._kept) == [tmp_path / "b", tmp_path / "c"]
    monkeypatch.setattr(folders, "KEPT_FILES", 1)
    find_dicom(tmp_path / "a")
    assert list(folders._kept) == [tmp_path / "a"]


class Guarded(OrderedDict):
    """A dictionary that is used only while the lock is held, because any other use might meet a change."""

    def __getattribute__(self, name):
        assert folders._lock.locked(), name
        return super().__getattribute__(name)

    def __setitem__(self, key, value):
        assert folders._lock.locked()
        super().__setitem__(key, value)

    def __contains__(self, key):
        assert folders._lock.locked()
        return super().__contains__(key)


def test_several_threads_look_up_series_while_indexes_are_dropped(tmp_path, monkeypatch):
    for name in "abcd":
        write_flat(tmp_path / name, count=1)
    paths = [tmp_path / name / "S1_001" for name in "abcd"]
    monkeypatch.setattr(folders, "_kept", Guarded())
    monkeypatch.setattr(folders, "KEPT_FILES", 7)  # two of the folders
    for path in (*paths, *paths, paths[-1]):
        folders.look_up_file(path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(folders.look_up_file, paths * 20))
    assert {one.series.series_uid for one in found} == {"1.2.1"}
    folders.forget_folders()


def test_a_lookup_survives_that_another_thread_drops_the_index(tmp_path, monkeypatch):
    """The index is dropped between the check of its files and the end of the lookup."""
    write_flat(tmp_path / "in", count=1)
    path = tmp_path / "in" / "S1_001"
    folders.look_up_file(path)
    original = folders._have_not_changed

    def drop(files):
        result = original(files)
        folders.forget_folders()
        return result

    monkeypatch.setattr(folders, "_have_not_changed", drop)
    assert folders.look_up_file(path).series.series_uid == "1.2.1"
