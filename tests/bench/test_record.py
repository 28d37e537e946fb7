"""Records are typed: what a committed record holds can be read, and writing it again loses nothing."""

import json
from pathlib import Path

import pytest
from msgspec import field

from slicemill.bench.records.readme import KINDS, format_record
from slicemill.bench.schema.base import BenchmarkRecord, read_record
from slicemill.bench.schema.networks import OpenvinoRecord
from slicemill.bench.schema.suite import SuiteRecord
from slicemill.common.errors import ConfigError, InputError

RESULTS = Path(__file__).parents[2] / "bench" / "results"
ALL_KINDS = {**KINDS, "openvino": OpenvinoRecord}
DROPPED = {"slabs"}
"""Keys of earlier versions of `bench ingest`, which no version reads."""


def records():
    """Yield every committed record with a name, those of the stages of `bench all` too."""
    for path in sorted(RESULTS.rglob("*.json")):
        document = json.loads(path.read_text())
        parts = {"": document, **document.get("stages", {}), "limits": document.get("limits")}
        for name, part in parts.items():
            if part and part.get("benchmark") in ALL_KINDS:
                yield pytest.param(part, id=f"{path.stem} {name}".strip())


def known(value):
    """Return JSON values without those that a record may lack: None, an empty object, and False."""
    if isinstance(value, dict):
        kept = {key: known(part) for key, part in value.items() if key not in DROPPED}
        return {key: part for key, part in kept.items() if part not in (None, {}) and part is not False}
    return [known(part) for part in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("document", list(records()))
def test_a_committed_record_is_read_and_written_again_without_a_loss(document):
    assert known(read_record(ALL_KINDS[document["benchmark"]], document).as_json()) == known(document)


def test_every_kind_of_committed_record_is_known():
    kinds = {json.loads(path.read_text()).get("benchmark") for path in RESULTS.rglob("*.json")}
    assert kinds - {None, "all"} <= set(ALL_KINDS), "None is the summary of a demo"
    for path in (RESULTS / "runs").glob("*.json"):
        document = json.loads(path.read_text())
        assert set(read_record(SuiteRecord, document).stages) == set(document["stages"])


class Kind(BenchmarkRecord, frozen=True, kw_only=True, tag="kind"):
    rate: float = field(name="slices a second")
    memory: int | None = None


def test_keys_are_in_order_with_the_machine_last():
    record = Kind(date="2026-11-28", machine={"cpu": "a"}, rate=2.0)
    assert list(record.as_json()) == ["benchmark", "date", "slices a second", "memory", "machine"]
    assert read_record(Kind, record.as_json()) == record


@pytest.mark.parametrize("key", ["date", "machine", "slices a second"])
def test_a_record_without_a_value_is_refused_and_none_is_made_up(key):
    document = Kind(date="2026-11-28", machine={"cpu": "a"}, rate=2.0).as_json()
    del document[key]
    with pytest.raises(InputError, match=f"record of bench kind: Object missing required field `{key}`"):
        read_record(Kind, document)


def test_the_record_of_another_benchmark_is_refused():
    document = Kind(date="2026-11-28", machine={"cpu": "a"}, rate=2.0).as_json()
    with pytest.raises(ConfigError, match="a record of bench kind is needed, not one of store"):
        read_record(Kind, {**document, "benchmark": "store"})
    with pytest.raises(InputError, match="benchmark 'kind': no such record"):
        format_record(document)
