"""Small phantoms, a store of them, and a briefly trained model, made once per run."""

import logging
from pathlib import Path

import numpy as np
import pytest

from ingest.discover import discover
from ingest.params import Params
from ingest.pipeline import Options, ingest
from store.labels import LITS_LABELS
from store.phantom import write_collection
from train.config import Config
from train.export import export
from train.loop import train

REAL = Path(__file__).parents[2] / "shared" / "data"
CASES, SIZE = 6, 64
TINY = Config(width=4, depth=3, batch=8, epochs=2, steps=6, validation=0.2, test=0.3, precision="fp32")


@pytest.fixture(autouse=True, scope="session")
def quiet_libraries():
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def collection(tmp_path_factory) -> Path:
    """Six phantoms of 64 pixels with LiTS names, in six orientations; volume-3 has no tumor."""
    folder = tmp_path_factory.mktemp("collection")
    assert len(list(write_collection(folder, cases=CASES, size=SIZE, seed=1))) == CASES
    return folder


@pytest.fixture(scope="session")
def stored(collection, tmp_path_factory) -> Path:
    """The store of the collection."""
    store = tmp_path_factory.mktemp("stores") / "store"
    report = ingest(discover(collection), store, Params(labels=LITS_LABELS), Options(workers=2))
    assert report.count("done") == CASES
    return store


@pytest.fixture(scope="session")
def trained(stored, tmp_path_factory) -> Path:
    """A run of two short epochs: it need not segment well, only really."""
    run = tmp_path_factory.mktemp("runs") / "run"
    train(stored, run, TINY, tell=lambda _: None)
    return run


@pytest.fixture(scope="session")
def model(trained, tmp_path_factory) -> Path:
    """The run's ONNX file."""
    path = tmp_path_factory.mktemp("models") / "tiny.onnx"
    export(trained, path)
    return path


@pytest.fixture
def real_data() -> Path:
    """The real scans beside the checkout."""
    if not REAL.is_dir():
        pytest.skip("the real scans (../shared/data) are not here")
    return REAL


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
