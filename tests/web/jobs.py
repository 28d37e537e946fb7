"""A server of `slicemill serve` in a thread of this process, its scans, and a client that drops files on it."""

import asyncio
import contextlib
import json
import shutil
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from slicemill.web.guard import Access
from slicemill.web.serve.app import make_serve_app
from slicemill.web.serve.folder import private_folder
from slicemill.web.serve.jobs import Jobs
from slicemill.web.serve.models import Models
from slicemill.web.serve.records import LIMITS
from slicemill.web.server import make_server, open_sockets
from tests.web.served import Served

SHAPE = (12, 32, 40)
"""z, y, x."""
SPACING = (2.5, 1.0, 1.0)
TUMORS = ((slice(3, 6), slice(8, 14), slice(10, 19)), (slice(9, 10), slice(20, 23), slice(30, 33)))
HU = 100
"""HU of the tumors; all else is below the model's threshold."""


def make_hu(shape=SHAPE):
    """Return int16[z, y, x]: tissue with two tumors in air."""
    hu = np.full(shape, -1000, dtype=np.int16)
    hu[:, 2:-2, 2:-2] = -80
    for box in TUMORS:
        hu[box] = HU
    return hu


def write_nifti(path, hu=None):
    image = nib.Nifti1Image((make_hu() if hu is None else hu).T, np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0]))
    nib.save(image, path)
    return path


class ServedJobs(Served):
    """A running server of jobs."""

    def __init__(self, access, server, jobs, folder):
        super().__init__(access, server)
        self.jobs = jobs
        self.folder = folder

    def files(self):
        """Return all files below the private folder but the server's lock."""
        return [path for path in self.folder.rglob("*") if path.is_file() and ".claims" not in path.parts]

    def wait_until_empty(self, seconds=10):
        deadline = time.monotonic() + seconds
        while self.files():
            assert time.monotonic() < deadline, self.files()
            time.sleep(0.05)


@contextlib.contextmanager
def serving_jobs(models, base, *, keep=None, limits=LIMITS):
    """Serve jobs while the block runs; afterwards nothing may be left."""
    sockets = open_sockets()
    access = Access(port=sockets[0].getsockname()[1])
    started = threading.Event()
    with private_folder(base) as folder:
        jobs = Jobs(Models("cpu", models), folder, keep, limits)
        tasks = []

        def tell():
            tasks.append(asyncio.get_running_loop().create_task(jobs.run()))
            started.set()

        server = make_server(make_serve_app(jobs, access, "0"), tell)
        thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
        thread.start()
        assert started.wait(120)
        try:
            yield ServedJobs(access, server, jobs, folder)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
            for one in sockets:
                one.close()
    assert not folder.exists()


class Dropped:
    """A client that uploads files as the page does."""

    def __init__(self, client, base):
        self.client = client
        self.origin = {"Origin": base}

    def create(self):
        answer = self.client.post("/api/jobs", headers=self.origin)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def put(self, job, name, content):
        return self.client.put(f"/api/jobs/{job}/files", params={"name": name}, content=content, headers=self.origin)

    def post(self, path, body=None):
        return self.client.post(path, content=json.dumps(body or {}), headers=self.origin)

    def drop(self, *paths, **request):
        """Upload files and start; return the job's id."""
        job = self.create()
        for path in paths:
            answer = self.put(job, Path(path).name, Path(path).read_bytes())
            assert answer.status_code == 204, answer.text
        answer = self.post(f"/api/jobs/{job}/start", request)
        assert answer.status_code == 204, answer.text
        return job

    def state(self, job):
        return next(one for one in self.client.get("/api/server").json()["jobs"] if one["id"] == job)

    def wait(self, job, *statuses, seconds=180):
        deadline = time.monotonic() + seconds
        while True:
            state = self.state(job)
            if state["status"] in (statuses or ("done", "failed")):
                return state
            assert time.monotonic() < deadline, state
            time.sleep(0.05)

    def finish(self, *paths, **request):
        state = self.wait(self.drop(*paths, **request))
        assert state["status"] == "done", state["failure"]
        return state

    def fail(self, *paths, **request):
        state = self.wait(self.drop(*paths, **request))
        assert state["status"] == "failed", state
        return state["failure"]

    def result(self, state, name):
        answer = self.client.get(f"/api/jobs/{state['id']}/results/{name}")
        assert answer.status_code == 200, answer.text
        return answer.content

    def end(self, job):
        assert self.post(f"/api/jobs/{job}/end").status_code == 204


@contextlib.contextmanager
def dropping(served):
    with served.client() as client:
        yield Dropped(client, served.base)


def copy_all(paths, folder):
    folder.mkdir(parents=True, exist_ok=True)
    return [shutil.copy(path, folder) for path in paths]
