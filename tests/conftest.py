"""Small phantoms, a store of them, and a briefly trained model, made once per run."""

import logging
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from slicemill.common.files import parse_location
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import write_collection
from slicemill.ingest.discover import discover
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.train.config import Config
from slicemill.train.export.model_file import export
from slicemill.train.loop import train

settings.register_profile("search", deadline=None, max_examples=2000, derandomize=False)
settings.register_profile("same", deadline=None, derandomize=True, database=None)
settings.load_profile("same")  # the same examples in every run, so that a change is refused for what it changes
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
    report = ingest(discover(collection), store, Params(labels=LITS_LABELS), IngestOptions(workers=2))
    assert report.count("done") == CASES
    return store


@pytest.fixture(scope="session")
def trained(stored, tmp_path_factory) -> Path:
    """A run of two short epochs: it need not segment well, only really."""
    run = tmp_path_factory.mktemp("runs") / "run"
    train(stored, run, TINY, log=lambda _: None)
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


class Requests:
    """The requests that the server saw."""

    def __init__(self):
        self.lines = []

    def during(self, work):
        start = len(self.lines)
        work()
        return list(self.lines[start:])


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of an S3 server, and the requests that it saw."""
    from moto.server import create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    seen = Requests()
    backend = create_backend_app("s3")

    def app(environment, start_response):
        seen.lines.append(
            (
                environment["REQUEST_METHOD"],
                environment["PATH_INFO"],
                environment.get("HTTP_RANGE"),
                environment.get("HTTP_AUTHORIZATION"),
            )
        )
        return backend(environment, start_response)

    running = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", seen
    running.shutdown()


@pytest.fixture
def bucket(server, monkeypatch):
    """A fresh bucket, with credentials in the environment as the provider's tools expect them."""
    import uuid
    from urllib.request import Request, urlopen

    import slicemill.common.remote

    address, seen = server
    name = f"scans-{uuid.uuid4().hex[:8]}"
    urlopen(Request(f"{address}/{name}", method="PUT"))  # noqa: S310 (a server of this test)
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "TOPSECRET")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    slicemill.common.remote._opened.cache_clear()
    yield parse_location(f"s3://{name}"), seen
    slicemill.common.remote._opened.cache_clear()
