"""What only a GPU can show; skipped by name where there is none. bench/gpu/two.sh runs these."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from slicemill.ct.labels import LITS_LABELS
from slicemill.train.config import Config
from slicemill.train.data.generators import make_generators
from slicemill.train.data.sampling import draw_epoch
from slicemill.train.loop import train
from slicemill.train.network.losses import IGNORED
from slicemill.train.network.step import (
    build_network,
    class_lookup,
    confusion_matrix,
    make_learner,
    move_to_device,
    prepare_input,
    train_step,
)
from slicemill.train.run.checkpoint import read_state
from slicemill.train.run.memory import fitting_batch
from slicemill.train.run.setup import prepare
from slicemill.train.run.tally import begin_record
from slicemill.train.run.validate import predict_case
from tests.conftest import TINY
from tests.train.helpers import no_log

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_learns_and_goes_on(precision, stored, tmp_path):
    config = replace(TINY, device="cuda", precision=precision, steps=20)
    train(stored, tmp_path, config, log=no_log)
    history = read_state(tmp_path).history
    assert history[-1].loss < history[0].loss
    assert train(stored, tmp_path, config, log=no_log).epoch == TINY.epochs


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_a_stopped_run_goes_on_within_the_epoch(optimizer, stored, tmp_path, monkeypatch):
    config = replace(TINY, device="cuda", optimizer=optimizer, steps=6, save_minutes=1e-6)
    steps = []

    def stop_at_9(*args, **more):
        steps.append(1)
        if len(steps) == 9:
            raise KeyboardInterrupt
        return train_step(*args, **more)

    monkeypatch.setattr("slicemill.train.run.epoch.train_step", stop_at_9)
    with pytest.raises(KeyboardInterrupt):
        train(stored, tmp_path, config, log=no_log)
    assert train(stored, tmp_path, config, log=no_log).epoch == TINY.epochs
    assert len(steps) in {12, 13}, "the steps before the checkpoint are not taken again"


@contextmanager
def no_waiting():
    """Raise if torch makes the host wait for the GPU while the block runs."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "more", [{}, {"spacing_mm": 4.0}, {"spacing_mm": 4.0, "augment": 0.0}, {"optimizer": "sgd"}, {"optimizer": "adamw"}]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_does_not_wait_for_the_gpu(precision, more, stored, tmp_path):
    if precision == "fp16":  # with Muon, the host reads whether a gradient overflowed
        more = {"optimizer": "adamw", **more}
    config = replace(TINY, device="cuda", precision=precision, augment=1.0, oblique=1, batch=16, **more)
    setup = prepare(stored, tmp_path, config, None)
    learner = make_learner(setup.labels, config, setup.device, setup.precision)
    to_class, generators = class_lookup(setup.labels, CUDA), make_generators(CUDA).manual_seed(0)
    positions = draw_epoch(setup.pool, config, 1, torch.full((len(setup.pool.slices),), torch.nan).numpy())
    results, pending = [], []

    def take_step(batch):
        inputs = prepare_input(move_to_device(batch, to_class), config, setup.view.size, generators)
        results.append(train_step(learner, inputs))
        pending.append(begin_record(positions[:16], results[-1], setup.processes))

    with setup.batches.iterate(positions, (0, 1)) as stream:
        take_step(next(stream))  # allocates, and makes what is the same in each step
        for batch in stream:
            with no_waiting():
                take_step(batch)
    assert len(results) > 2
    for result, copied in zip(results, pending, strict=True):
        expected = torch.cat([result.loss[None], result.by_slice]).cpu()
        assert torch.equal(copied.losses.wait(), expected)
        assert torch.isfinite(expected).all()


def test_the_check_for_waiting_finds_it():
    with pytest.raises(RuntimeError, match="synchroniz"), no_waiting():
        torch.zeros(3, device=CUDA).nonzero()


def test_pixels_are_counted_as_on_the_cpu():
    generator = torch.Generator().manual_seed(0)
    predicted, label = (torch.randint(3, (4, 300, 300), generator=generator) for _ in range(2))
    label[:, :50] = IGNORED
    expected = confusion_matrix(predicted, label, 3)
    assert torch.equal(confusion_matrix(predicted.to(CUDA), label.to(CUDA), 3).cpu(), expected)


def test_it_labels_as_the_cpu_does(stored, tmp_path):
    setup = prepare(stored, tmp_path, replace(TINY, device="cuda"), None)
    torch.manual_seed(0)
    network = build_network(LITS_LABELS, setup.config).eval()
    case = setup.store[setup.split.validation[0]]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 rounds to 11 bits, float32 to 24
        there = predict_case(case, network.to(CUDA), setup)
    here = predict_case(case, network.cpu(), replace(setup, device=torch.device("cpu")))
    assert (there != here).mean() < 2e-3


def test_the_batch_that_is_measured_fits(stored):
    config = Config(device="cuda", batch=0)
    batch = fitting_batch(LITS_LABELS, config, (512, 512), CUDA, torch.bfloat16)
    assert batch >= 2
