"""Files are written atomically; a ledger survives torn lines."""

import errno

import pytest

from slicemill.common import files
from slicemill.common.files import atomic_write


def test_a_file_that_fails_half_way_leaves_the_old_one_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    files.write_bytes(path, b"old")

    def fail():
        with files.atomic_write(path) as aside:
            aside.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_torn_last_line_of_a_ledger_costs_only_itself(tmp_path):
    path = tmp_path / "ledger.jsonl"
    files.append_line(path, {"n": 1})
    with path.open("a") as stream:
        stream.write('{"n": 2, "to')
    files.append_line(path, {"n": 3})
    assert files.read_lines(path) == [{"n": 1}, {"n": 3}]


def test_json_with_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"a": float("nan")})


def test_a_ledger_keeps_names_with_any_separator_of_lines(tmp_path):
    record = {"case_id": "a\u2028b\u0085c"}
    files.append_line(tmp_path / "ledger.jsonl", record)
    assert files.read_lines(tmp_path / "ledger.jsonl") == [record]


def test_the_size_of_a_folder_counts_each_file_below_it_and_no_linked_folder(tmp_path):
    store = tmp_path / "store"
    (store / "a" / "b").mkdir(parents=True)
    (store / "one").write_bytes(b"123")
    (store / "a" / "b" / "two").write_bytes(b"4567")
    (store / "linked").symlink_to(store / "one")
    (store / "loop").symlink_to(store)
    (store / "broken").symlink_to(store / "nowhere")
    assert files.folder_bytes(store) == 3 + 4 + 3


def test_a_full_disk_names_the_file_that_could_not_be_written(tmp_path):
    path = tmp_path / "a.json"

    def fill():
        with atomic_write(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.json'"):
        fill()


def test_a_temporary_name_is_not_shown(tmp_path):
    def open_without_rights():
        with atomic_write(tmp_path / "a.json") as aside:
            raise OSError(errno.EACCES, "Permission denied", str(aside))

    with pytest.raises(OSError, match=r"Permission denied: '[^']*/a\.json'"):
        open_without_rights()


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    def read_another():
        with atomic_write(tmp_path / "a.json"):
            raise OSError(errno.EIO, "Input/output error", "scan.nii")

    with pytest.raises(OSError, match=r"'scan\.nii'"):
        read_another()
