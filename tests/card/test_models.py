"""Every kind of model on the dry card: where its nodes run, and which calls a batch makes in which order."""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from slicemill.infer.runtime.providers import provider_options
from tests.card.card import COMPUTES, Call, Card
from tests.card.models import KINDS

PINNED = "-1"


def name(kind):
    """Return the name of a kind of model."""
    return "-".join(kind)


@dataclass(frozen=True)
class Run:
    """What three batches of a model did."""

    kind: tuple[str, ...]
    path: Path
    value: dict[str, Any]
    calls: tuple[Call, ...]
    batches: list[list[Call]]
    """The calls of each batch."""


@pytest.fixture(
    scope="session", params=[pytest.param(kind, marks=pytest.mark.xdist_group(name(kind))) for kind in KINDS], ids=name
)
def run(request, libraries, written, tmp_path_factory) -> Run:
    path = written(*request.param)
    ran = Card(libraries=libraries, folder=tmp_path_factory.mktemp("card")).work("label", path)
    marks = [index for index, call in enumerate(ran.calls) if call.name == "mark"]
    batches = [list(ran.calls[start + 1 : end]) for start, end in pairwise(marks)]
    return Run(request.param, path, ran.value, ran.calls, batches)


def test_every_node_runs_on_the_gpu(run):
    assert run.value["provider"] == "cuda"
    assert {provider for provider, _ in run.value["nodes"]} == {"CUDAExecutionProvider"}
    assert {"Conv", "ConvTranspose"} <= {operator for _, operator in run.value["nodes"]}
    assert [call.name for call in run.calls if "refused" in call.details] == []


def test_every_option_is_accepted(run):
    requested = provider_options("cuda", 0, run.path.read_bytes())
    assert {name: run.value["options"][name] for name in requested} == requested


def test_biases_are_fused_in_the_flavors_for_gpus(run):
    fused = run.value["options"]["fuse_conv_bias"] == "1"
    added = [call for batch in run.batches for call in batch if call.name == "cudnnAddTensor"]
    assert fused == (run.kind[0] != "foreign" and run.kind[1] not in ("fp32", "probability-fp32"))
    assert fused == (not added)


def test_a_fused_bias_of_a_transposed_convolution_is_what_cudnn_refuses(libraries, written, tmp_path):
    card = Card(libraries=libraries, folder=tmp_path)
    refused = card.work("fuse_every_bias", written("default", "fp32")).value
    assert re.search(r"ConvTranspose node.*cudnn_fe_call", refused), "onnxruntime mended it: fuse every bias"
    assert card.work("fuse_every_bias", written("default", "fp16")).value == ""


def test_nothing_is_copied_inside_the_network(run):
    for batch in run.batches:
        copies = copies_of(batch)
        directions = [call["direction"] for call in copies]
        outputs = len(run.value["outputs"])
        inputs = len(copies) - outputs
        assert directions == ["up"] * inputs + ["down"] * outputs
        assert inputs in (1, 2)
        first, last = (find(batch, COMPUTES, which) for which in (0, -1))
        assert batch.index(copies[inputs - 1]) < first <= last < batch.index(copies[inputs])


def copies_of(batch):
    """Return the copies between the host and the GPU."""
    return [call for call in batch if call.name.startswith("cudaMemcpy") and call["direction"] != "inside"]


def find(batch, names, which):
    """Return the position of the first call of these (0), or of the last (-1)."""
    return [index for index, call in enumerate(batch) if call.name in names][which]


def test_copies_are_between_pinned_memory_and_the_gpu_and_within_their_buffers(run):
    copies = [call for batch in run.batches for call in copies_of(batch)]
    ends = {"up": ("0", PINNED), "down": (PINNED, "0")}
    assert [(call["to"], call["from"]) for call in copies] == [ends[call["direction"]] for call in copies]
    assert [call for call in run.calls if call.details.get("wrong", "0") != "0"] == []
    assert [call for call in run.calls if call.details.get("elsewhere", "0") != "0"] == []


def stream_of(batch):
    """Return the one stream on which a batch computes."""
    (stream,) = {call["stream"] for call in batch if call.name in COMPUTES}
    return stream


def test_all_work_of_the_network_is_on_one_stream_that_does_not_block_others(run):
    made = {call["stream"]: call["flags"] for call in run.calls if call.name.startswith("cudaStreamCreate")}
    for batch in run.batches:
        assert made[stream_of(batch)] == "1"
        others = [
            call for call in batch if call.name.startswith("cudaMemset") or call.details.get("direction") == "inside"
        ]
        assert {call["stream"] for call in others} <= {stream_of(batch)}


def test_outputs_are_copied_after_the_stream_has_finished(run):
    for batch in run.batches:
        last = find(batch, COMPUTES, -1)
        down = [index for index, call in enumerate(batch) if call.details.get("direction") == "down"]
        waits = [index for index, call in enumerate(batch) if call.name == "cudaStreamSynchronize"]
        assert any(last < wait < down[0] for wait in waits if batch[wait]["stream"] == stream_of(batch))


def test_all_batches_make_the_same_calls_and_the_third_allocates_nothing(run):
    first, *others = ([(c.name, c.details.get("kernel")) for c in batch if c.name in COMPUTES] for batch in run.batches)
    assert others == [first, first]
    # onnxruntime plans the memory of a run at the first batch, and allocates it as one piece at the second
    assert [call.name for call in run.batches[2] if "alloc" in call.name.lower()] == []


def test_memory_is_freed_once_and_pinned_memory_is_for_every_gpu(run):
    freed = [call["address"] for call in run.calls if call.name in ("cudaFree", "cudaFreeHost")]
    assert {call["flags"] for call in run.calls if call.name == "cudaHostAlloc"} == {"1"}
    failed = [call for call in run.calls if call["result"] != "0"]
    assert failed == []
    assert freed


def test_no_gpu_computes_a_label(run):
    assert run.value["highest"] == [0, 0, 0]
