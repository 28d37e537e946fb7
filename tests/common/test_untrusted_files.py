"""Files that others wrote: pipes and devices are refused, and one bad line or document costs only itself."""

import os
import stat

import pytest

from slicemill.common import files
from slicemill.common.documents import from_toml, read_document
from slicemill.common.errors import ConfigError, InputError
from slicemill.common.ledger import Ledger
from slicemill.common.locks import try_claim

BAD_LINES = {
    "deep": b"[" * 100_000,
    "huge number": b'{"case_id": ' + b"9" * 5000 + b"}",
    "NUL": b"\0\0\0",
    "text": b'"x"',
    "half a character": b'{"case_id": "\\ud800"}',
    "not UTF-8": b'{"case_id": "\xff\xfe"}',
    "not a number": b'{"case_id": NaN}',
    "incomplete": b'{"case_id": "x"',
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_are_read(kind, tmp_path):
    path = tmp_path / "a.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(InputError, match=r"a\.json: cannot be read \(is not a regular file"):
        files.read_json(path)
    with pytest.raises(OSError, match="is not a regular file"):
        files.sha256_of_file(path)


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_of_a_ledger_costs_only_itself(kind, tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"case_id": "a"}\n' + BAD_LINES[kind] + b'\n{"case_id": "b"}\n')
    assert files.read_lines(path) == [{"case_id": "a"}, {"case_id": "b"}]


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_document_is_an_input_error_that_names_the_file(kind, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(BAD_LINES[kind])
    with pytest.raises(ConfigError, match=r"a\.json: "):
        read_document(dict[str, str], path, error=ConfigError)


def test_a_pair_of_surrogates_is_a_character():
    assert files.parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_deep_toml_is_an_input_error():
    with pytest.raises(InputError, match=r"^a\.toml: cannot be read as TOML"):
        from_toml(dict[str, object], "a = " + "[" * 100_000, "a.toml")


def test_a_document_is_sized_before_it_is_read(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as stream:
        stream.truncate(files.MAX_DOCUMENT_BYTES + 1)
    with pytest.raises(InputError, match="a document has at most"):
        files.read_json(path)


@pytest.mark.parametrize(("mask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_files_and_folders_have_the_rights_of_the_umask(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        Ledger(tmp_path / "out" / "ledger.jsonl").append({"case_id": "a"})
        files.write_json(tmp_path / "out" / "deep" / "a.json", {})
        files.write_csv(tmp_path / "out" / "a.csv", [{"a": 1}])
        with try_claim(tmp_path / "out", "volume-1"):
            pass
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == dict.fromkeys(("ledger.jsonl", "a.json", "a.csv", ".ledger", "volume-1"), mode)
    folders = [path for path in (tmp_path / "out").rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o777 & ~mask}
