"""The stand-ins themselves: what CUDA refuses, they refuse."""

import pytest

from tests.card.stand_ins import LIBRARIES


def test_all_libraries_are_built(libraries):
    assert {path.name for path in libraries.glob("*.so*")} == {*LIBRARIES.values(), "libstand_in.so"}


def test_calls_that_cuda_refuses_are_refused(card):
    ran = card.work("misuse")
    assert ran.value == {
        "copy that fits": 0,
        "copy beyond the end": 1,
        "copy in the wrong direction": 1,
        "the error is kept": 1,
        "and cleared": 0,
        "unknown memory is freed": 1,
        "unknown device": 101,
        "function that is not written": 801,
        "freed": 0,
        "freed twice": 1,
    }
    assert [call.name for call in ran.calls if "refused" in call.details] == ["cudaGraphLaunch"]
    assert [call["wrong"] for call in ran.named("cudaMemcpy")] == ["0", "1", "1"]


@pytest.mark.parametrize(("mode", "failed"), [("", 1), ("ever", 2), ("lost", 2)])
def test_the_call_that_was_chosen_fails(mode, failed, card):
    ran = card.changed(fail=f"cudaMemcpy 2 {mode}").work("misuse")
    assert [call["result"] for call in ran.named("cudaMemcpy")] == ["0", *["719"] * failed, *["0"] * (2 - failed)]
    assert (ran.value["freed"] == 719) == (mode == "lost")
