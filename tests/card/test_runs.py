"""Whole runs on the dry card: `slicemill infer --provider cuda`, and what it reports when a call of a library fails."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from slicemill.common.files import read_lines
from slicemill.ct.phantom import write_nifti
from slicemill.train.export.graph import DEFAULT
from tests.card.card import COMPUTES, Card, Ran
from tests.card.models import SIDE
from tests.infer.test_device import guided

SCANS, SLICES, BATCH = 6, 12, 8
CALLS = {
    "cublasCreate_v2", "cublasDestroy_v2", "cublasLtCreate", "cublasLtDestroy", "cublasSetStream_v2", "cublasSgeam",
    "cudaDeviceSynchronize", "cudaFree", "cudaFreeHost", "cudaGetDeviceCount", "cudaGetDeviceProperties",
    "cudaHostAlloc", "cudaLaunchKernel", "cudaMalloc", "cudaMemcpy", "cudaMemcpyAsync", "cudaSetDevice",
    "cudaStreamCreateWithFlags", "cudaStreamDestroy", "cudaStreamSynchronize",
    "cudnnBackendCreateDescriptor", "cudnnBackendExecute", "cudnnBackendFinalize", "cudnnCreate",
    "cudnnCreateFilterDescriptor", "cudnnCreatePoolingDescriptor", "cudnnCreateTensorDescriptor", "cudnnDestroy",
    "cudnnDestroyFilterDescriptor", "cudnnDestroyPoolingDescriptor", "cudnnDestroyTensorDescriptor",
    "cudnnPoolingForward", "cudnnSetPoolingNdDescriptor", "cudnnSetStream", "cudnnSetTensorNdDescriptor",
}  # fmt: skip
"""Every function that a run calls, of those that can fail."""
IGNORED = {
    "cublasDestroy_v2", "cublasLtDestroy", "cudaFree", "cudaFreeHost", "cudaGetDeviceProperties", "cudaStreamDestroy",
    "cudnnBackendCreateDescriptor", "cudnnCreateFilterDescriptor", "cudnnDestroy", "cudnnDestroyFilterDescriptor",
    "cudnnDestroyPoolingDescriptor", "cudnnDestroyTensorDescriptor",
}  # fmt: skip
"""Functions that compute nothing, whose failure onnxruntime ignores where it happens."""
OF_A_BATCH = ("cudaLaunchKernel", "cudaMemcpy", "cudaStreamSynchronize", "cudnnBackendExecute", "cudnnPoolingForward")
OF_THE_START = ("cublasCreate_v2", "cudaMalloc", "cudaSetDevice", "cudaStreamCreateWithFlags", "cudnnCreate")


@pytest.fixture(scope="session")
def scans(shared) -> Path:
    """Scans of noise."""

    def make(folder):
        rng = np.random.default_rng(7)
        for number in range(SCANS):
            voxels = rng.integers(-200, 300, (SLICES, SIDE, SIDE), dtype=np.int16)
            write_nifti(folder / f"scan-{number}.nii.gz", voxels, (3.0, 1.0, 1.0))

    return shared("noise", make)


@dataclass(frozen=True)
class Infer:
    """The command on a card."""

    model: Path
    scans: Path
    out: Path

    def __call__(self, card: Card, *options: object) -> Ran:
        settings = ("--batch", BATCH, "--provider", "cuda", "--out", self.out, *options)
        return card.command("infer", self.model, self.scans, *settings)

    def statuses(self) -> Counter[str]:
        """Count the scans by their last status in the ledger."""
        lines = read_lines(self.out / "ledger.jsonl") if self.out.exists() else []
        return Counter({line["name"]: line["status"] for line in lines}.values())


@pytest.fixture
def infer(written, scans, tmp_path) -> Infer:
    return Infer(written("default", "fp16"), scans, tmp_path / "out")


@pytest.fixture(scope="session")
def clean(written, scans, libraries, tmp_path_factory) -> Ran:
    """A run without a failing call."""
    folder = tmp_path_factory.mktemp("clean")
    ran = Infer(written("default", "fp16"), scans, folder / "out")(Card(libraries=libraries, folder=folder))
    assert ran.code == 0, ran.output
    return ran


def middle(clean, name):
    """Return the number of a call in the middle of a run."""
    return clean.count(name) // 2 + 1


def in_a_batch(clean, name):
    """Return the number of a call that a batch makes after the comparison with the CPU, when others are to come."""
    down = [index for index, call in enumerate(clean.calls) if call.details.get("direction") == "down"]
    return 1 + sum(call.name == name for call in clean.calls[: down[len(down) // 3]])


def assert_clear(ran: Ran, *parts: str) -> None:
    """Check that a run ended with a message that a user can act on."""
    assert ran.code == 1, ran.output
    assert "Traceback" not in ran.output
    for part in parts:
        assert part in ran.output, ran.output


def test_the_first_line_says_that_nothing_is_computed(clean):
    assert clean.output.splitlines()[0] == "stand-ins for the CUDA libraries: nothing is computed"


def test_a_run_segments_all_scans_and_frees_its_memory(card, infer):
    ran = infer(card)
    assert ran.code == 0, ran.output
    assert infer.statuses() == {"done": SCANS}
    assert ran.count("cudaHostAlloc") == ran.count("cudaFreeHost")
    assert [call for call in ran.calls if "refused" in call.details or call["result"] != "0"] == []
    assert [
        call for call in ran.calls if {"wrong", "elsewhere"} & {k for k, v in call.details.items() if v == "1"}
    ] == []


def test_labels_that_no_gpu_computed_are_refused(card, scans, tmp_path):
    ran = Infer(guided(tmp_path / "guided.onnx", DEFAULT), scans, tmp_path / "out")(card)
    assert_clear(ran, "labels on cuda differ from those on the CPU")
    assert not list((tmp_path / "out").rglob("*.nii*"))


def test_auto_takes_the_card(card, infer):
    ran = card.command("infer", infer.model, infer.scans, "--out", infer.out)
    assert ran.code == 0, ran.output
    assert "on cuda" in ran.output


def test_two_lanes_use_two_streams_and_keep_their_order(card, written):
    batches = 5
    ran = card.changed(wait_ms=20).work("two_lanes", written("default", "fp16"), batches)
    assert ran.value == [0] * 2 * batches
    lanes = {}
    for call in after_mark(ran.calls):
        if call.name in (*COMPUTES, "cudaMemcpy", "cudaStreamSynchronize"):
            lanes.setdefault(call.thread, []).append(call)
    assert len(lanes) == 2
    for calls in lanes.values():
        assert "0" not in {call["stream"] for call in calls if call.name in COMPUTES}
        assert_order(calls)
    assert overlaps(after_mark(ran.calls))


def after_mark(calls):
    """Return the calls after the last mark."""
    return calls[max(index for index, call in enumerate(calls) if call.name == "mark") :]


def assert_order(calls):
    """Check one thread's calls: after work on a stream, nothing is copied down before that stream was waited for."""
    busy = set()
    for call in calls:
        if call.name in COMPUTES:
            busy.add(call["stream"])
        elif call.name == "cudaStreamSynchronize":
            busy.discard(call["stream"])
        elif call["direction"] == "down":
            assert not busy


def overlaps(calls):
    """Return whether one thread started work while another one's stream had not been waited for."""
    busy = {}
    for call in calls:
        if call.name in COMPUTES:
            if any(other != call.thread and stream != call["stream"] for stream, other in busy.items()):
                return True
            busy[call["stream"]] = call.thread
        elif call.name == "cudaStreamSynchronize":
            busy.pop(call["stream"], None)
    return False


def test_a_session_is_made_again_on_the_same_gpu(card, written):
    ran = card.work("rebuild", written("default", "fp16"))
    assert ran.value == [0, 0]
    assert ran.count("cudaHostAlloc") == ran.count("cudaFreeHost")


class TestDevices:
    def test_everything_of_a_model_is_on_its_gpu(self, card, written):
        ran = card.changed(devices=3).work("label", written("default", "fp16"), 2)
        marks = [index for index, call in enumerate(ran.calls) if call.name == "mark"]
        used = {call["device"] for call in ran.calls[marks[0] : marks[-1]] if call.name in (*COMPUTES, "cudaMemcpy")}
        assert used == {"2"}
        assert {call["device"] for call in ran.named("allocated", pinned=0)} == {"2"}
        assert ran.value["options"]["device_id"] == "2"

    def test_two_gpus_share_a_run(self, card, infer):
        ran = infer(card.changed(devices=2, wait_ms=5), "--device", "0,1")
        assert ran.code == 0, ran.output
        assert infer.statuses() == {"done": SCANS}
        assert {call["device"] for call in ran.named("cudnnBackendExecute")} == {"0", "1"}
        assert [call for call in ran.calls if call.details.get("elsewhere", "0") != "0"] == []

    def test_a_gpu_that_does_not_exist_is_named(self, card, infer):
        assert_clear(infer(card.changed(devices=2), "--device", "7"), "--provider cuda", "Invalid device ID: 7")


class TestMissingLibraries:
    @pytest.mark.parametrize("library", ["libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"])
    def test_a_library_that_the_provider_links_is_named(self, library, card, infer):
        assert_clear(infer(card.without(library)), "--provider cuda", library)

    def test_cudnn_is_named(self, card, infer):
        assert_clear(infer(card.without("libcudnn.so.9")), "--provider cuda", "cudnn")

    def test_a_missing_driver_is_named(self, card, infer):
        assert_clear(infer(card.without("libcuda.so.1")), "--provider cuda", "libcuda.so.1")

    @pytest.mark.parametrize("library", ["libcudnn.so.9", "libcublas.so.13"])
    def test_auto_takes_the_cpu_and_says_why(self, library, card, infer):
        ran = card.without(library).command("infer", infer.model, infer.scans, "--out", infer.out)
        assert ran.code == 0, ran.output
        assert "on cpu" in ran.output
        assert library.split(".")[0].removeprefix("lib") in ran.output.lower()

    @pytest.mark.parametrize("library", ["libcudnn.so.9", "libcublas.so.13"])
    def test_the_doctor_does_not_call_it_healthy(self, library, card):
        ran = card.without(library).command("doctor")
        assert ran.code == 1, ran.output
        assert library.split(".")[0].removeprefix("lib") in ran.output.lower()


class TestFailures:
    def test_the_list_of_calls_is_complete(self, clean):
        assert set(clean.counts()) - {"mark", "allocated"} == CALLS

    @pytest.mark.parametrize("mode", ["", "lost"])
    @pytest.mark.parametrize("name", sorted(CALLS))
    def test_whichever_call_fails_the_run_ends_in_order(self, name, mode, clean, card, infer):
        ran = infer(card.changed(fail=f"{name} {middle(clean, name)} {mode}"))
        assert any(call["result"] != "0" for call in ran.calls)
        assert "Traceback" not in ran.output
        if name in IGNORED and ran.code == 0:
            assert infer.statuses() == {"done": SCANS}
        else:
            assert ran.code == 1, ran.output
            assert re.search(r"--provider cuda|cuda: the device failed", ran.output), ran.output

    @pytest.mark.parametrize("name", OF_THE_START)
    def test_a_gpu_that_does_not_start_is_reported(self, name, card, infer):
        assert_clear(infer(card.changed(fail=f"{name} 1 ever")), "--provider cuda", "does not")
        assert not infer.statuses()

    def test_pinned_memory_that_is_not_there_is_reported(self, card, infer):
        ran = infer(card.changed(fail="cudaHostAlloc 1 ever"))
        assert_clear(ran, "--provider cuda", "cudaHostAlloc failed on GPU 0: out of memory (error 2)", "--provider cpu")

    @pytest.mark.parametrize("name", OF_A_BATCH)
    def test_one_failed_batch_costs_its_scans_and_the_rest_is_done(self, name, clean, card, infer):
        ran = infer(card.changed(fail=f"{name} {in_a_batch(clean, name)}"))
        assert_clear(ran, "cuda: the device failed")
        assert infer.statuses()["done"] > 0
        assert infer.statuses().total() == SCANS
        again = infer(card, "--retry-failed")
        assert again.code == 0, again.output
        assert infer.statuses() == {"done": SCANS}

    @pytest.mark.parametrize("mode", ["ever", "lost"])
    @pytest.mark.parametrize("name", OF_A_BATCH)
    def test_a_gpu_that_keeps_failing_ends_the_run_and_the_next_one_continues(self, name, mode, clean, card, infer):
        ran = infer(card.changed(fail=f"{name} {in_a_batch(clean, name)} {mode}"))
        assert_clear(ran, "ame command again")
        again = infer(card, "--retry-failed")
        assert again.code == 0, again.output
        assert infer.statuses() == {"done": SCANS}
