import json

from slicemill.bench.harness.clock import Timing, ratio, time_rounds
from slicemill.common.machine import machine_info


def test_rounds_are_interleaved_after_a_warm_up():
    calls = []
    timings = time_rounds({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=9, warm_up=1)
    rounds = ["".join(calls[start : start + 3]) for start in range(0, 30, 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) > 3, "the order of contenders changes"
    assert len(timings["a"].seconds) == 9


def test_a_ratio_is_the_median_of_pairs():
    slow = Timing(name="slow", seconds=(2.0, 30.0, 4.0))
    fast = Timing(name="fast", seconds=(1.0, 10.0, 2.0))
    assert ratio(slow, fast) == 2.0
    assert slow.rate(8).per_second == 2.0


def test_the_machine_description_is_json_with_the_main_versions():
    machine = json.loads(json.dumps(machine_info()))
    assert machine["cores"] >= 1
    assert {"numpy", "zarr", "onnxruntime"} & set(machine["versions"])
