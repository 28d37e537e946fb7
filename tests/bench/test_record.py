"""Records are typed, and their keys are those of the committed records."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from slicemill.bench.harness.record import BenchmarkRecord, json_keys
from slicemill.bench.stages.constants import ConstantsRecord
from slicemill.bench.stages.infer_cpu import InferRecord
from slicemill.bench.stages.infer_openvino import OpenvinoRecord
from slicemill.bench.stages.ingest_lits import LitsRecord
from slicemill.bench.stages.instructions import InstructionsRecord
from slicemill.bench.stages.loader import LoaderRecord
from slicemill.bench.stages.measure import MeasureRecord
from slicemill.bench.stages.peers_inference import PeersInferenceRecord
from slicemill.bench.stages.scaling import ScaleRecord
from slicemill.bench.stages.store import StoreRecord
from slicemill.bench.stages.train import TrainRecord

RESULTS = Path(__file__).parents[2] / "bench" / "results"
KINDS = {
    "constants": ConstantsRecord,
    "infer": InferRecord,
    "openvino": OpenvinoRecord,
    "lits": LitsRecord,
    "instructions": InstructionsRecord,
    "loader": LoaderRecord,
    "measure": MeasureRecord,
    "peers-inference": PeersInferenceRecord,
    "scale": ScaleRecord,
    "store": StoreRecord,
    "train": TrainRecord,
}


@pytest.mark.parametrize("name", KINDS)
def test_a_benchmark_writes_the_keys_of_its_committed_record(name):
    assert list(json_keys(KINDS[name]).values()) == list(json.loads((RESULTS / f"{name}.json").read_text()))


def test_an_optional_key_is_absent_without_a_value_and_the_machine_comes_last():
    @dataclass(frozen=True, kw_only=True)
    class Kind(BenchmarkRecord):
        benchmark: str = "kind"
        rate: float = field(metadata={"key": "slices a second"})
        memory: int | None = field(default=None, metadata={"optional": True})

    assert list(Kind(rate=2.0).as_json()) == ["benchmark", "date", "slices a second", "machine"]
    assert list(Kind(rate=2.0, memory=3).as_json()) == ["benchmark", "date", "slices a second", "memory", "machine"]
