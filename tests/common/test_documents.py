"""Typed documents: an error names the file and the place in it."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from slicemill.common.documents import from_document, from_toml, read_document, to_document
from slicemill.common.errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A record."""

    name: str
    sizes: tuple[float, ...] = ()
    volume_ml: float | None = None


def test_a_record_survives_a_round_trip(tmp_path):
    record = Sample(name="a", sizes=(1.0, 2.5), volume_ml=None)
    (tmp_path / "a.json").write_text(json.dumps(to_document(record)))
    assert read_document(Sample, tmp_path / "a.json") == record
    assert list(to_document(record)) == ["name", "sizes", "volume_ml"]


def test_fields_that_a_document_left_out_are_written_with_their_defaults():
    found = from_document(Sample, {"name": "a"}, "f")
    assert to_document(found) == {"name": "a", "sizes": (), "volume_ml": None}


def test_numpy_values_become_plain_ones():
    assert to_document(Sample(name="a", sizes=(np.float32(1.5),), volume_ml=np.int64(2))) == {
        "name": "a",
        "sizes": (1.5,),
        "volume_ml": 2,
    }


def test_integers_become_floats():
    found = from_document(Sample, {"name": "a", "sizes": [1]}, "f")
    assert found.sizes == (1.0,)
    assert isinstance(found.sizes[0], float)


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A record of records."""

    samples: tuple[Sample, ...] = ()
    by_name: dict[str, Sample] | None = None
    facts: dict[str, object] | None = None


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ({"new": 1}, "new"),
        ({"samples": [{"name": "a"}, {"name": "b", "size": 1}]}, r"samples\[1\]\.size"),
        ({"by_name": {"x": {"name": "a", "volume": 1}}}, r"by_name\.x\.volume"),
    ],
)
def test_unknown_keys_are_refused_by_name_unless_a_record_is_a_part(document, key):
    with pytest.raises(InputError, match=f"^f: the key `{key}` is unknown"):
        from_document(Folder, document, "f")
    assert isinstance(from_document(Folder, document, "f", is_part=True), Folder)


def test_keys_of_tables_without_a_type_are_kept():
    document = {"facts": {"a": {"b": [{"c": 1}]}}}
    assert from_document(Folder, document, "f").facts == document["facts"]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({}, r"f\.json: Object missing required field `name`"),
        ({"name": 1}, r"f\.json: Expected `str`, got `int` - at `\$\.name`"),
        ({"name": "a", "sizes": [1, "x"]}, r"f\.json: Expected `float`, got `str` - at `\$\.sizes\[1\]`"),
        ([], r"f\.json: Expected `object`, got `array`"),
    ],
)
def test_an_error_names_the_file_and_the_place_in_the_document(document, why):
    with pytest.raises(InputError, match=why):
        from_document(Sample, document, "f.json")


def test_toml_is_read_or_refused():
    assert from_toml(Sample, 'name = "a"\nsizes = [1, 2]', "f.toml").sizes == (1.0, 2.0)
    with pytest.raises(ConfigError, match=r"f\.toml: cannot be read as TOML"):
        from_toml(Sample, "name = ", "f.toml", error=ConfigError)


def test_toml_with_a_byte_order_mark_is_read_and_a_key_twice_is_refused():
    assert from_toml(dict[str, int], "\ufeffepochs = 1\n", "x.toml") == {"epochs": 1}
    with pytest.raises(InputError, match=r"x\.toml: cannot be read as TOML \(Cannot overwrite a value"):
        from_toml(dict[str, int], "epochs = 1\nepochs = 2\n", "x.toml")
