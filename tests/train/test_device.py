"""Settings of torch that depend on the device."""

import os

import pytest
import torch

from slicemill.train.loop import train
from slicemill.train.run import epoch
from slicemill.train.run.device import search_algorithms, use_cores
from tests.conftest import TINY
from tests.train.helpers import no_log

CUDA = torch.device("cuda")


@pytest.mark.parametrize("before", [True, False])
def test_algorithms_are_searched_on_a_gpu_only_and_only_in_the_block(before, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    for device, within in ((torch.device("cpu"), before), (CUDA, True)):
        with search_algorithms(device):
            assert torch.backends.cudnn.benchmark == within
        assert torch.backends.cudnn.benchmark == before
        with pytest.raises(ValueError, match="stop"), search_algorithms(device):
            raise ValueError("stop")
        assert torch.backends.cudnn.benchmark == before


def test_steps_search_and_validation_does_not(stored, tmp_path, monkeypatch):
    """The last batch of a case has another size, and each size would be searched."""
    searched = {}
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)

    def watch(name):
        function = getattr(epoch, name)

        def watched(*args, **more):
            searched.setdefault(name, set()).add(torch.backends.cudnn.benchmark)
            return function(*args, **more)

        monkeypatch.setattr(epoch, name, watched)

    watch("train_step")
    watch("validate")
    monkeypatch.setattr(epoch, "search_algorithms", lambda _: search_algorithms(CUDA))
    train(stored, tmp_path, TINY.replace(epochs=1, steps=2), log=no_log)
    assert searched == {"train_step": {True}, "validate": {False}}


def test_a_training_uses_no_more_threads_than_it_may():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as OMP_NUM_THREADS=1 does
        with use_cores(torch.device("cpu")):
            assert torch.get_num_threads() == 1
        torch.set_num_threads(1000)
        with use_cores(torch.device("cpu")):
            assert torch.get_num_threads() == len(os.sched_getaffinity(0))
        assert torch.get_num_threads() == 1000
    finally:
        torch.set_num_threads(before)
