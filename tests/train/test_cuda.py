"""What only a GPU can show; skipped by name where there is none. bench/gpu/train.sh runs these."""

from dataclasses import replace

import pytest
import torch

from slicemill.ct.labels import LITS_LABELS
from slicemill.train.config import Config
from slicemill.train.loop import train
from slicemill.train.network.step import build_network
from slicemill.train.run.checkpoint import read_state
from slicemill.train.run.memory import fitting_batch
from slicemill.train.run.setup import prepare
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
