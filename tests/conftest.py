"""Small phantoms, a store of them, and a briefly trained model. Each is made once for all processes of a run."""

import contextlib
import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings

from slicemill.common.files import parse_location
from slicemill.train.config import Config

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `slicemill train` does, before torch is loaded
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
settings.register_profile("search", deadline=None, max_examples=2000, derandomize=False)
settings.register_profile("same", deadline=None, derandomize=True, database=None)
settings.load_profile("same")  # the same examples in every run: a failure then comes from a change
REAL = Path(__file__).parents[2] / "shared" / "data"
CASES, SIZE = 6, 64
TINY = Config(width=4, depth=3, batch=8, epochs=2, steps=6, validation=0.2, test=0.3, precision="fp32")
NEEDS_TRAINING = {"trained", "model"}


def pytest_collection_modifyitems(items):
    """Mark tests that need a trained network. Keep tests that share a fixture of their module in one process."""
    for item in items:
        if NEEDS_TRAINING & set(item.fixturenames):
            item.add_marker("trained")
        fixtures = [found[-1] for found in item._fixtureinfo.name2fixturedefs.values()]
        if any(fixture.scope == "module" and fixture.baseid.startswith("tests/") for fixture in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


@pytest.fixture(autouse=True, scope="session")
def quiet_libraries():
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


@pytest.fixture(autouse=True, scope="session")
def no_bfloat16():
    """`--provider auto` computes in float32 in all tests: OpenVINO keeps threads and memory, and its labels differ."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slicemill.infer.network.bfloat16.processor_flags", frozenset)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory, request):
    """Make something in a folder once, and give its path to every process of the run.

    The folders of pytest-xdist's workers lie in one folder, which they share; a lock lets one of them do the work.
    """
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if hasattr(request.config, "workerinput") else base

    def once(name, make):
        path, done = folder / "shared" / name, folder / "shared" / f".{name}.done"
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.parent / f".{name}.lock"):
            if not done.exists():
                make(path)
                done.touch()
        return path

    return once


@pytest.fixture(scope="session")
def collection(shared) -> Path:
    """Six phantoms of 64 pixels with LiTS names, in six orientations; volume-3 has no tumor."""
    from slicemill.ct.phantom import write_collection

    return shared("collection", lambda folder: list(write_collection(folder, cases=CASES, size=SIZE, seed=1)))


@pytest.fixture(scope="session")
def stored(collection, shared) -> Path:
    """The store of the collection."""
    from slicemill.ct.labels import LITS_LABELS
    from slicemill.ingest.discover import discover
    from slicemill.ingest.params import Params
    from slicemill.ingest.pipeline import IngestOptions, ingest

    def make(store):
        report = ingest(discover(collection), store, Params(labels=LITS_LABELS), IngestOptions(workers=2))
        assert report.count("done") == CASES

    return shared("store", make)


@pytest.fixture(scope="session")
def trained(stored, shared) -> Path:
    """A run of two short epochs: a real network, which need not segment well."""
    from slicemill.train.loop import train

    return shared("run", lambda run: train(stored, run, TINY, log=lambda _: None))


@pytest.fixture(scope="session")
def model(trained, shared) -> Path:
    """The run's ONNX file."""
    from slicemill.train.export.model_file import export

    def make(folder):
        folder.mkdir(exist_ok=True)  # after an export that failed
        export(trained, folder / "tiny.onnx")

    return shared("model", make) / "tiny.onnx"


@pytest.fixture(scope="session")
def one_worker_client():
    """A client of one worker process."""
    from slicemill.ingest.cluster import open_client

    with open_client(None, 1) as client:
        yield client


@pytest.fixture
def one_worker(request, monkeypatch):
    """Let every ingest of a test in this process use the same worker process: to start one takes seconds."""
    from slicemill.ingest import pipeline

    def keep(*_):
        return contextlib.nullcontext(request.getfixturevalue("one_worker_client"))

    monkeypatch.setattr(pipeline, "open_client", keep)


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
    slicemill.common.remote._open_bucket.cache_clear()
    yield parse_location(f"s3://{name}"), seen
    slicemill.common.remote._open_bucket.cache_clear()
