"""The training benchmark: what it measures is what its settings say."""

from functools import partial

import pytest
import torch

from slicemill.bench.harness.subject import phantom_subject
from slicemill.bench.stages import train
from slicemill.train.config import Config

TINY = Config(width=4, depth=2, batch=2, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def subject():
    return phantom_subject(8, size=64)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_compiled_network_is_compiled(compiled, subject, tmp_path, monkeypatch):
    """torch compiles no network whose operations are counted in its first run; so another network is counted."""
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(train, "STEPS", {"cpu": 1})
    record = train.run(tmp_path, subject, rounds=1, config=TINY.replace(compile=compiled))
    assert bool(graphs) == compiled
    assert record["headline"]["gflop"] > 0
    assert set(record["results"]) == {train.BARE, train.PLAIN, train.COMPLETE}
