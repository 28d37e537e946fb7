"""The GPU benchmark, run on the CPU: every row is measured, and a failed row is reported."""

import json

import pytest

from slicemill.bench.stages import infer_gpu
from slicemill.bench.stages.infer_gpu import measure
from slicemill.bench.stages.infer_gpu_contenders import Workload
from slicemill.bench.stages.kernels import kernel_kind, summarize, time_by_operator

TINY = Workload(device="cpu", widths=(4,), size=64, batch=2, batches=2, scans=2, slices=8, rounds=2)


@pytest.mark.slow
def test_every_row_is_measured_on_the_cpu_too(tmp_path):
    kept = []
    record = measure(tmp_path, TINY, list(infer_gpu.ROWS), lambda now: kept.append(len(now["results"])))
    assert record["failed"] == {}
    assert kept == sorted(kept)
    assert kept[-1] == len(infer_gpu.ROWS)
    assert len(kept) > 30, "the record is written before each run"
    results = json.loads(json.dumps(record))["results"]
    engines = results["engines"]["width 4"]
    for row in engines["results"].values():
        assert row["per_second"] > 0
    share = engines["results"]["onnxruntime fp16"]["per_second"] * engines["gflop_a_slice"] / 1000
    assert engines["of the peak"]["onnxruntime fp16"] == pytest.approx(share / results["peak"]["tflops"], rel=0.05)
    assert results["labels"]["fp32"]["differing"] == 0
    assert results["labels"]["fp16"]["differing"] < 2e-3
    assert min(results["labels"]["pixels"]) > 0, "all labels are there to be compared"
    assert results["profile"]["width 4"]["by onnxruntime's file"]["kinds"]["convolutions"] > 0
    assert set(results["files"]["over the network with copies"]) == {".nii.gz", ".nii", "store"}
    assert results["files"]["summaries"]["store"]["scans"]["done"] == 2
    assert results["settings"]["over as it is"] == {"as it is": 1.0}
    assert record["machine"]["versions"]["onnxruntime"]


@pytest.mark.slow
def test_a_row_that_fails_is_in_the_record_and_the_others_go_on(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(infer_gpu.ROWS, "engines", broken)
    record = measure(tmp_path, TINY, ["peak", "engines"], lambda _: None)
    assert record["failed"] == {"engines": "RuntimeError: no kernel image"}
    assert record["results"]["peak"]["tflops"] > 0


def test_operators_are_summed_without_their_fences():
    def event(name, op, dur, ts=30):
        return {"cat": "Node", "name": name, "dur": dur, "ts": ts, "args": {"op_name": op}}

    events = [event("c1_kernel_time", "Conv", 5), event("c2_kernel_time", "Conv", 3), event("r_kernel_time", "Relu", 2)]
    noise = [event("c1_fence_before", "Conv", 90)]
    noise += [{"cat": "Session", "name": "model_run", "dur": 99, "ts": ts, "args": {}} for ts in (0, 20)]
    noise.append(event("c1_kernel_time", "Conv", 70, ts=5))
    assert time_by_operator(events + noise) == {"Conv": 8, "Relu": 2}
    kernel = {"cat": "Kernel", "name": "sm90_xmma_fprop", "dur": 4, "ts": 30, "args": {}}
    assert time_by_operator([*events, kernel]) == {"sm90_xmma_fprop": 4}


def test_the_kind_that_takes_most_bounds():
    result = summarize({"cudnn::nchwToNhwcKernel": 30.0, "sm90_gemm_f16": 20.0, "Relu": 25.0, "Concat": 25.0})
    assert result["bound"] == "elementwise"
    assert result["kinds"] == {"elementwise": 0.5, "layout": 0.3, "convolutions": 0.2}
    assert next(iter(result["names"])) == "cudnn::nchwToNhwcKernel"
    assert result["milliseconds"] == 0.1
    assert kernel_kind("convertTensor_kernel") == "layout"
    assert summarize({})["bound"] is None
