"""Documents of a store: an unknown key is refused by name, a newer version by its number."""

import json
import shutil

import pytest

from slicemill.common.errors import ConfigError, StoreError
from slicemill.store.layout import FORMAT
from slicemill.store.reader import open_case, open_store
from slicemill.store.split import read_split
from slicemill.store.verify import verify


@pytest.fixture
def copy(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "copy")


def change(path, edit):
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def test_an_unknown_part_of_a_split_is_refused_by_name(tmp_path):
    (tmp_path / "split.json").write_text('{"train": ["a"], "validation": ["b"], "test": [], "holdout": ["c"]}')
    with pytest.raises(ConfigError, match=r"split\.json: the key `holdout` is unknown"):
        read_split(tmp_path / "split.json", ["a", "b", "c"])


def test_an_unknown_key_of_a_case_is_refused_by_name_wherever_it_is(copy):
    path = copy / "scans.zarr" / "volume-0" / "zarr.json"
    change(path, lambda document: document["attributes"]["slicemill"]["source"]["image"].update(site="x"))
    with pytest.raises(StoreError, match=r"volume-0.*the key `source\.image\.site` is unknown"):
        open_case(copy, "volume-0")


def test_a_newer_format_is_refused_by_its_number_before_its_keys(copy):
    path = copy / "scans.zarr" / "volume-0" / "zarr.json"
    change(path, lambda document: document["attributes"]["slicemill"].update(format=FORMAT + 1, new=1))
    with pytest.raises(StoreError, match=f"has store format {FORMAT + 1}, but this version of slicemill reads"):
        open_case(copy, "volume-0")


def test_an_unknown_key_of_the_checksums_is_refused_by_name(copy):
    change(copy / "checksums.json", lambda document: document.update(later=1))
    problems = verify(open_store(copy), None, workers=1, advance=lambda *_: None)
    assert any("the key `later` is unknown" in problem for problem in problems)
