"""A collection that a test may change, and a Dask cluster."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ingest.runs import HERE


@pytest.fixture
def copied(collection, tmp_path):
    """A copy of the collection, with its times."""
    return shutil.copytree(collection, tmp_path / "collection")


@pytest.fixture
def cluster(tmp_path):
    """A Dask scheduler and three workers, each a process of its own; yields the address and the workers."""
    log = (tmp_path / "scheduler.log").open("w+")
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    scheduler = subprocess.Popen(
        [*dask, "--host", "127.0.0.1", "--port", "0", "--no-dashboard"], stderr=log, stdout=log, cwd=HERE
    )
    address, deadline = None, time.time() + 60
    while address is None and time.time() < deadline:
        time.sleep(0.1)
        found = re.search(r"Scheduler at:\s+(tcp://127\.0\.0\.1:\d+)", Path(log.name).read_text())
        address = found and found[1]
    assert address, Path(log.name).read_text()
    words = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        address,
        "--nthreads",
        "1",
        "--no-nanny",
        "--no-dashboard",
    ]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    workers = [
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path, env=environment)
        for _ in range(3)
    ]
    yield address, workers
    for process in (*workers, scheduler):
        process.kill()
        process.wait()
    log.close()
