"""What a client, a file or an accident can do to `slicemill serve`: no file is left, and the next scan works.

`docs/guides/serve.md` lists the threats with these tests.
"""

import asyncio
import contextlib
import errno
import io
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from slicemill.web.serve import app, folder, jobs, uploads
from slicemill.web.serve.folder import OWNER, PREFIX, private_folder, sweep
from slicemill.web.serve.keep import describe_copy_error, keep_results
from slicemill.web.serve.records import LIMITS
from tests.infer.networks import write_threshold
from tests.web.jobs import Dropped, dropping, make_hu, serving_jobs, write_nifti
from tests.web.test_serve_inputs import draw_picture, write_dicom, zipped

SMALL = replace(LIMITS, file_bytes=2_000_000, files=40, unpacked_bytes=3_000_000, slices=50, voxels=3_000_000)
IMPATIENT = replace(SMALL, stalled_seconds=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_threshold(tmp_path_factory.mktemp("model") / "net.onnx")


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    with serving_jobs([model], tmp_path_factory.mktemp("private"), limits=SMALL) as one:
        yield one


@pytest.fixture
def page(served, tmp_path):
    """A client; after the test no file is left, and the next scan works."""
    with dropping(served) as client:
        yield client
        for job in client.client.get("/api/server").json()["jobs"]:
            client.end(job["id"])
        served.wait_until_empty()
        state = client.finish(write_nifti(tmp_path / "next.nii"))
        assert state["answer"]["headline"].startswith("Tumor found: 2")
        client.end(state["id"])
    served.wait_until_empty()


def wait_for(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_all_that_has_or_changes_data_needs_host_origin_and_cookie(served, page):
    job = page.create()
    paths = ["/api/server", *(f"/api/jobs/{job}/{what}" for what in ("events", "results/all.zip", "files/0"))]
    changes = [("POST", "/api/jobs"), ("PUT", f"/api/jobs/{job}/files?name=a"), ("POST", f"/api/jobs/{job}/start"),
               ("POST", f"/api/jobs/{job}/choose"), ("POST", f"/api/jobs/{job}/end")]  # fmt: skip
    with served.client(with_cookie=False) as stranger:
        for path in paths:
            assert stranger.get(path).status_code == 401
            assert page.client.get(path, headers={"Host": f"evil.example:{served.port}"}).status_code == 421
            assert page.client.get(path, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        for method, path in changes:
            assert stranger.request(method, path, headers=page.origin).status_code == 401
            assert page.client.request(method, path).status_code == 403
            assert page.client.request(method, path, headers={"Origin": "https://evil.example"}).status_code == 403
            rebound = {"Host": f"evil.example:{served.port}", "Origin": f"http://evil.example:{served.port}"}
            assert page.client.request(method, path, headers=rebound).status_code == 421
    assert page.state(job)["upload_files"] == 0


def test_a_result_has_no_other_name_than_those_of_the_list(page, tmp_path):
    job = page.finish(write_nifti(tmp_path / "a.nii"))["id"]
    for name in ("..", "%2e%2e%2fimage.raw", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "all.zip%00", ""):
        assert page.client.get(f"/api/jobs/{job}/results/{name}").status_code == 404, name
    for path in (f"/api/jobs/{job}/results/image.raw", f"/api/jobs/{job + 2}/results/all.zip", "/api/jobs/-1/events"):
        assert page.client.get(path).status_code == 404
    assert page.client.get(f"/api/jobs/{job}/results/all.zip").status_code == 200


def test_the_name_of_an_upload_is_no_path(served, page, tmp_path):
    for name in ("../../../x.nii", "/etc/cron.d/x", "C:\\x.nii", ".claims/owner", "a\0b.nii", "x" * 5000):
        job = page.create()
        assert page.put(job, name, write_nifti(tmp_path / "a.nii").read_bytes()).status_code == 204
        (written,) = served.files()
        assert re.fullmatch(r"1(\.nii)?", written.name), name
        assert written.parent.name == "input"
        assert stat.S_IMODE(written.stat().st_mode) == 0o600
        assert stat.S_IMODE(written.parent.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(served.folder.stat().st_mode) == 0o700
        page.end(job)
        served.wait_until_empty()


def test_an_upload_above_the_limit_is_refused_before_and_while_it_streams(served, page):
    limits = page.client.get("/api/server").json()["limits"]
    assert limits["file_bytes"] == SMALL.file_bytes  # told before
    job = page.create()
    assert page.put(job, "a.nii", bytes(SMALL.file_bytes + 1)).status_code == 413
    assert page.state(job)["upload_files"] == 0

    def endless():
        while True:
            yield bytes(100_000)

    with contextlib.suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):  # cut off in mid-sentence
        answer = page.put(job, "a.nii", endless())
        assert answer.status_code == 413
    wait_for(lambda: not page.client.get("/api/server").json()["jobs"])
    assert sum(path.stat().st_size for path in served.files()) == 0


def test_many_small_files_have_one_limit_together_and_a_number(page):
    job = page.create()
    for number in range(4):
        assert page.put(job, f"{number}", bytes(400_000)).status_code == 204
    assert page.put(job, "5", bytes(500_000)).status_code == 413
    job = page.create()
    for number in range(SMALL.files):
        assert page.put(job, f"{number}", b"x").status_code == 204
    answer = page.put(job, "one more", b"x")
    assert answer.status_code == 413
    assert f"{SMALL.files} files" in answer.json()["error"]


@pytest.mark.slow
def test_a_client_that_stops_sending_is_given_up(served, page, monkeypatch):
    monkeypatch.setattr(served.jobs, "limits", IMPATIENT)
    job = page.create()
    with served.connect() as slow:
        slow.sendall(
            f"PUT /api/jobs/{job}/files?name=a.nii HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n"
            f"Origin: {served.base}\r\nCookie: {served.access.cookie}={served.access.session}\r\n"
            "Content-Length: 1000000\r\n\r\nx".encode()
        )
        assert b" 408 " in slow.recv(4096).splitlines()[0]
    wait_for(lambda: not page.client.get("/api/server").json()["jobs"])


@contextlib.contextmanager
def sending(served, job, content, total):
    """Send the start of a file, and break the connection when the block ends."""
    with served.connect() as gone:
        gone.sendall(
            f"PUT /api/jobs/{job}/files?name=a.nii&number=7 HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n"
            f"Origin: {served.base}\r\nCookie: {served.access.cookie}={served.access.session}\r\n"
            f"Content-Length: {total}\r\n\r\n".encode()
            + content
        )
        wait_for(lambda: served.jobs.find(job).upload_bytes == len(content))
        yield gone


@pytest.mark.slow
def test_a_tab_that_is_closed_in_mid_upload_leaves_nothing(served, page, monkeypatch):
    monkeypatch.setattr(served.jobs, "limits", IMPATIENT)
    monkeypatch.setattr(jobs, "SWEEP_SECONDS", 0.1)
    job = page.create()
    with sending(served, job, bytes(300_000), 1_000_000):
        pass
    wait_for(lambda: not page.client.get("/api/server").json()["jobs"])


def test_a_scan_that_was_removed_takes_no_more_and_says_so(served, page):
    job = page.create()
    with sending(served, job, bytes(300_000), 600_000) as connection:
        page.end(job)
        connection.sendall(b"x")
        assert b" 410 " in connection.recv(4096).splitlines()[0]


@pytest.mark.slow
def test_the_rest_of_a_file_follows_after_a_lost_connection_and_nothing_else(served, page, tmp_path):
    content = write_nifti(tmp_path / "a.nii").read_bytes()
    half = len(content) // 2
    job = page.create()
    path = f"/api/jobs/{job}/files"

    def put(offset, body, number=7):
        words = {"name": "other.mha", "number": number, "offset": offset}
        return page.client.put(path, params=words, content=body, headers=page.origin).status_code

    with sending(served, job, content[:half], len(content)):
        assert put(half, content[half:]) == 409, "while the first connection sends"
    wait_for(lambda: not served.jobs.find(job).is_receiving)
    assert page.client.get(f"{path}/7").json() == {"bytes": half, "is_complete": False}
    assert page.post(f"/api/jobs/{job}/start").status_code == 409, "a file is not complete"
    for wrong in (0, half - 1, half + 1, 10**14):
        assert put(wrong, b"x") == 409
    assert put(4, b"x", number=8) == 409, "nothing of this file has arrived"
    for odd in ("-1", "x", "9" * 5000):
        assert put(odd, b"x") == put(0, b"x", number=odd) == 400
    assert page.client.get(f"{path}/8").status_code == 404
    assert put(half, content[half:]) == 204
    assert page.client.get(f"{path}/7").json() == {"bytes": len(content), "is_complete": True}
    assert put(len(content), b"x") == put(0, b"x") == 409, "it is complete"
    assert page.state(job)["upload_bytes"] == len(content)
    assert page.post(f"/api/jobs/{job}/start").status_code == 204
    state = page.wait(job)
    assert state["name"] == "a.nii"
    assert state["answer"]["headline"].startswith("Tumor found: 2")


@pytest.mark.slow
def test_a_file_in_parts_has_the_same_limit(served, page):
    job = page.create()
    with sending(served, job, bytes(300_000), SMALL.file_bytes):
        pass
    wait_for(lambda: not served.jobs.find(job).is_receiving)
    words = {"number": 7, "offset": 300_000}
    rest = bytes(SMALL.file_bytes - 300_000 + 1)
    answer = page.client.put(f"/api/jobs/{job}/files", params=words, content=iter([rest]), headers=page.origin)
    assert answer.status_code == 413
    assert not page.client.get("/api/server").json()["jobs"]


@pytest.mark.slow
def test_a_tab_that_is_closed_between_two_files_leaves_nothing(served, page, monkeypatch):
    monkeypatch.setattr(served.jobs, "limits", IMPATIENT)
    monkeypatch.setattr(jobs, "SWEEP_SECONDS", 0.1)
    job = page.create()
    assert page.put(job, "1", b"x").status_code == 204
    wait_for(lambda: not page.client.get("/api/server").json()["jobs"])
    assert page.post(f"/api/jobs/{job}/start").status_code == 404


@pytest.mark.slow
def test_a_scan_that_nobody_looks_at_is_removed(served, page, tmp_path, monkeypatch):
    monkeypatch.setattr(served.jobs, "limits", replace(SMALL, idle_minutes=0))
    page.drop(write_nifti(tmp_path / "a.nii"))
    wait_for(lambda: not page.client.get("/api/server").json()["jobs"])


def test_two_people_at_once_get_their_own_answers(served, page, tmp_path):
    hu = make_hu()
    hu[9] = -80
    paths = [write_nifti(tmp_path / "a.nii"), write_nifti(tmp_path / "b.nii", hu)]
    found = {}

    def drop(path):
        with dropping(served) as client:
            found[path] = client.finish(path)

    threads = [threading.Thread(target=drop, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[path]["answer"]["headline"][:14] for path in paths] == ["Tumor found: 2", "Tumor found: 1"]
    assert [found[path]["name"] for path in paths] == ["a.nii", "b.nii"]


@pytest.mark.slow
def test_the_fifth_scan_is_refused_with_a_sentence(page):
    made = [page.create() for _ in range(SMALL.jobs)]
    answer = page.client.post("/api/jobs", headers=page.origin)
    assert answer.status_code == 429
    assert "4 scans are kept" in answer.json()["error"]
    page.end(made[0])
    page.create()


def test_a_bomb_in_an_archive_is_refused(page, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.nii", bytes(2_900_000))
    assert "zip bomb" in page.fail(tmp_path / "bomb.zip")
    with zipfile.ZipFile(tmp_path / "large.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"{number}.nii", bytes(900_000))
    assert "unpacks to 4,500,000 bytes" in page.fail(tmp_path / "large.zip")
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(41):
            archive.writestr(f"{number}", b"")
    assert "has 41 members" in page.fail(tmp_path / "many.zip")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.nii", b"x")
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as archive:
        archive.writestr("inner.zip", inner.getvalue())
    assert "no CT scan" in page.fail(tmp_path / "nested.zip")


def test_an_archive_with_a_name_that_leads_out_is_refused(page, tmp_path):
    for name in ("/etc/x.nii", "../x.nii", "a/../../x.nii", "C:/x.nii", "..\\x.nii"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("good.nii", write_nifti(tmp_path / "a.nii").read_bytes())
            archive.writestr(name, b"x")
        job = page.drop(tmp_path / "a.zip")
        assert "leads out of the archive" in page.wait(job)["failure"], name
        page.end(job)


@pytest.mark.slow
def test_an_archive_with_a_link_or_a_false_size_is_refused(page, tmp_path):
    info = zipfile.ZipInfo("link.nii")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "is a link" in page.fail(tmp_path / "link.zip")
    zipped(tmp_path / "a.zip", [write_nifti(tmp_path / "a.nii")])
    data = bytearray((tmp_path / "a.zip").read_bytes())
    at = data.rindex(b"PK\x01\x02") + 24
    data[at : at + 4] = (10).to_bytes(4, "little")  # says that it has 10 bytes
    (tmp_path / "false.zip").write_bytes(data)
    assert page.fail(tmp_path / "false.zip")
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 nothing")
    assert "no readable zip archive" in page.fail(tmp_path / "no.zip")


@pytest.mark.slow
def test_hostile_dicom_is_refused(page, tmp_path):
    files = write_dicom(tmp_path / "x")
    for number, file in enumerate(files):
        data = bytearray(file.read_bytes())
        data[200 + 37 * number : 260 + 37 * number] = b"\xff" * 60
        file.write_bytes(data)
    failure = page.fail(*files)
    assert "slicemill-serve" not in failure
    (tmp_path / "bytes.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 1000)
    assert page.fail(tmp_path / "bytes.dcm")
    assert "no CT scan" in page.fail(tmp_path / "bytes.dcm")


@pytest.mark.slow
def test_a_header_of_a_huge_scan_is_refused(page, tmp_path):
    data = bytearray(write_nifti(tmp_path / "a.nii").read_bytes())
    data[42:48] = np.array([20000, 20000, 20000], "<i2").tobytes()  # dim[1..3]
    (tmp_path / "huge.nii").write_bytes(data)
    assert page.fail(tmp_path / "huge.nii")
    write_nifti(tmp_path / "long.nii", np.zeros((51, 8, 8), dtype=np.int16))
    assert "has 51 slices" in page.fail(tmp_path / "long.nii")


@pytest.mark.slow
def test_a_small_file_of_a_large_scan_is_refused_before_anything_is_written(served, page, tmp_path):
    """What the sides allow together can fill a disk, and a file of zeros is small."""
    path = write_nifti(tmp_path / "zeros.nii.gz", np.zeros((49, 250, 250), dtype=np.int16))
    assert path.stat().st_size < 50_000
    failure = page.fail(path)
    assert "has 3,062,500 voxels; at most 3,000,000 are read" in failure
    served.wait_until_empty()
    limits = page.client.get("/api/server").json()["limits"]
    assert limits["voxels"] == SMALL.voxels  # told before


def test_a_header_cannot_name_another_file_of_this_machine(page, tmp_path):
    for name in ("/etc/passwd", "../../1.raw"):
        header = f"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = {name}\n"
        (tmp_path / "a.mhd").write_text(header)
        assert "not read" in page.fail(tmp_path / "a.mhd"), name


def test_a_killed_reader_fails_its_scan_only(served, page, tmp_path, monkeypatch):
    job = page.create()
    os.kill(served.jobs.find(job).child.pid, signal.SIGKILL)
    page.put(job, "a.nii", write_nifti(tmp_path / "a.nii").read_bytes())
    page.post(f"/api/jobs/{job}/start")
    state = page.wait(job)
    assert state["status"] == "failed"
    assert "SIGKILL" in state["failure"]
    wait_for(lambda: not served.files())  # before anybody removes it


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["idle", "at work"])
def test_a_killed_model_is_started_again(served, page, tmp_path, moment):
    if moment == "idle":
        page.finish(write_nifti(tmp_path / "a.nii"))
        os.kill(served.jobs.models.pid, signal.SIGKILL)
        time.sleep(0.3)
        assert page.finish(write_nifti(tmp_path / "a.nii"))["answer"]["kind"] == "found"
        return
    pid = served.jobs.models.pid
    os.kill(pid, signal.SIGSTOP)  # it takes the scan and does not answer
    job = page.drop(write_nifti(tmp_path / "a.nii"))
    page.wait(job, "segmenting")
    os.kill(pid, signal.SIGKILL)
    state = page.wait(job)
    assert "the model stopped" in state["failure"]
    wait_for(lambda: not served.files())


@pytest.mark.slow
def test_a_scan_that_takes_the_model_too_much_memory_fails_alone(served, page, tmp_path):
    models = served.jobs.models
    page.finish(write_nifti(tmp_path / "a.nii"))  # the model runs
    pid, most = models.pid, models.most_bytes
    models.most_bytes = psutil.Process(pid).memory_info().rss + (3 << 20)
    try:
        assert page.finish(tmp_path / "a.nii")["answer"]["kind"] == "found", "a small scan fits"
        large = np.full((45, 256, 256), -80, dtype=np.int16)
        why = page.fail(write_nifti(tmp_path / "large.nii.gz", large))
    finally:
        models.most_bytes = most
    assert why.startswith("the model took more than 0.")
    assert why.endswith("Use a scan of fewer or smaller slices, or a machine with more memory.")
    assert not psutil.pid_exists(pid)


def test_an_upload_that_does_not_fit_on_the_disk_is_refused_before_it_is_sent(served, page):
    answer = page.client.post("/api/jobs", params={"bytes": 10**15 - 1}, headers=page.origin)
    assert answer.status_code == 507
    assert "the upload may need 1e+06 GB of disk, and " in answer.json()["error"]
    assert answer.json()["error"].endswith("start slicemill with TMPDIR on another disk.")
    assert not served.jobs.all()
    for odd in ("x", "-1", "9" * 5000, ""):
        answer = page.client.post("/api/jobs", params={"bytes": odd}, headers=page.origin)
        assert answer.status_code == 201, "a number that is none says nothing"
        page.end(answer.json()["id"])


def test_an_unexpected_error_ends_the_work_with_a_sentence(served, page, tmp_path, monkeypatch):
    async def fail(_):
        raise ZeroDivisionError("/secret")

    for step in ("_read", "_segment", "_write"):
        with monkeypatch.context() as patch:
            patch.setattr(served.jobs, step, fail)
            state = page.wait(page.drop(write_nifti(tmp_path / "a.nii")))
        told = state["failure"] or state["missing"][0]
        assert "unexpected error (ZeroDivisionError)" in told, step
        assert "secret" not in told
        assert (state["status"] == "done") == (step == "_write")


@pytest.mark.slow
def test_a_model_that_is_not_there_is_refused_after_the_models_are_loaded(served, page, tmp_path, monkeypatch):
    job = page.create()
    page.put(job, "a.nii", write_nifti(tmp_path / "a.nii").read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(served.jobs.models, "records", None)  # as while they are loaded
        assert page.post(f"/api/jobs/{job}/start", {"model": 5}).status_code == 204
    state = page.wait(job)
    assert state["status"] == "failed"
    assert "there is no such model" in state["failure"]


def test_a_job_whose_work_failed_in_any_way_can_be_removed(tmp_path):
    async def fail():
        raise ZeroDivisionError

    async def run():
        kept = jobs.Jobs(models=None, folder=tmp_path)
        job = await kept.create()
        job.task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        await kept.end(job)
        return kept.all(), job

    with ThreadPoolExecutor(1) as apart:  # a browser that another test drives has a loop in this thread
        left, job = apart.submit(asyncio.run, run()).result()
    assert left == []
    assert not job.child.is_running
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_results_that_cannot_be_kept_leave_nothing_half_and_the_page_says_why(served, page, tmp_path, monkeypatch):
    results, keep = tmp_path / "results", tmp_path / "keep"
    results.mkdir()
    keep.mkdir()
    (results / "a").write_text("a")
    assert [path.name for path in keep_results(results, keep).iterdir()] == ["a"]
    keep_results(results, keep)
    assert len([path for path in keep.iterdir() if not path.name.startswith(".")]) == 2
    (results / "b").symlink_to("nowhere")  # fails when "a" may be copied already
    with pytest.raises(OSError, match="nowhere|results") as caught:
        keep_results(results, keep)
    assert describe_copy_error(caught.value) == "No such file or directory"
    assert len(list(keep.iterdir())) == 2
    monkeypatch.setattr(served.jobs, "_keep", tmp_path / "removed")
    state = page.finish(write_nifti(tmp_path / "a.nii"))
    assert state["missing"] == ["A copy in the folder of --keep: No such file or directory. Download the files here."]
    assert {"segmentation.nii.gz", "all.zip"} <= {file["name"] for file in state["files"]}


@pytest.mark.slow
def test_a_scan_that_is_cancelled_while_it_is_segmented_leaves_nothing(served, page, tmp_path):
    os.kill(served.jobs.models.pid, signal.SIGSTOP)
    job = page.drop(write_nifti(tmp_path / "a.nii"))
    page.wait(job, "segmenting")
    page.end(job)
    os.kill(served.jobs.models.pid, signal.SIGCONT)
    wait_for(lambda: not served.files())


def test_a_disk_that_is_full_during_the_upload_is_reported(served, page, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    job = page.create()
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "_write", full)
        answer = page.put(job, "a.nii", b"x" * 100)
    assert answer.status_code == 507
    assert "No space left" in answer.json()["error"]
    assert not page.client.get("/api/server").json()["jobs"]


@pytest.mark.slow
def test_a_disk_that_is_full_while_a_scan_is_read_is_reported(model, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=False, capture_output=True
    ).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        with serving_jobs([model], place) as served, dropping(served) as client:
            write_nifti(tmp_path / "a.nii.gz", np.full((30, 256, 256), -80, dtype=np.int16))
            reason = client.fail(tmp_path / "a.nii.gz")
            assert "No space left" in reason
            assert "may need 0.0157 GB of disk, and 0.00" in reason, "it is known from the header"
            assert served.files() == []
            assert client.finish(write_nifti(tmp_path / "b.nii"))["answer"]["kind"] == "found"
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_the_stream_of_events_resumes_and_shows_that_it_is_alive(served, page, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "COMMENT_SECONDS", 0.2)
    job = page.finish(write_nifti(tmp_path / "a.nii"))["id"]

    def read(parts, **headers):
        text = ""
        with page.client.stream("GET", f"/api/jobs/{job}/events", headers=headers) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            for part in stream.iter_text():
                text += part
                if text.count("\n\n") >= parts:
                    return text
        return text

    first = read(2)
    revision = re.search(r"^id: (\d+)$", first, re.MULTILINE)[1]
    assert '"status": "done"' in first
    again = read(3, **{"Last-Event-ID": revision})
    assert "data:" not in again  # nothing new
    assert again.count(": still here") == 2
    assert f"id: {revision}" in read(2, **{"Last-Event-ID": "0"})
    assert f"id: {revision}" in read(2, **{"Last-Event-ID": "x" * 40})


def test_no_name_of_a_file_or_patient_is_printed(model, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    words = [sys.executable, "-m", "slicemill", "serve", model, "--no-browser", "--provider", "cpu"]
    words += ["--keep", str(tmp_path / "kept")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        process.stdout.readline()
        base, token = process.stdout.readline().strip().split("/#")
        try:
            with httpx.Client(base_url=base, timeout=60) as client:
                client.post("/session", content=token, headers={"Origin": base})
                page = Dropped(client, base)
                state = page.finish(write_nifti(tmp_path / "Miller^Anna.nii"))
                assert state["name"] == "Miller^Anna.nii"
        finally:
            process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=120)
    assert "Miller" not in out + errors
    assert token not in out + errors
    assert list((tmp_path / "tmp").iterdir()) == []
    (kept,) = (tmp_path / "kept").iterdir()
    assert {"segmentation.nii.gz", "all.zip"} <= {path.name for path in kept.iterdir()}
    assert "Miller" not in "".join(
        path.read_text(errors="replace") for path in kept.rglob("*") if path.suffix == ".json"
    )


@pytest.mark.slow
def test_the_folder_of_a_killed_server_is_swept_by_the_next_and_its_children_end(model, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-m", "slicemill", "serve", model, "--no-browser", "--provider", "cpu"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        process.stdout.readline()
        base, token = process.stdout.readline().strip().split("/#")
        with httpx.Client(base_url=base) as client:
            client.post("/session", content=token, headers={"Origin": base})
            wait_for(lambda: client.get("/api/server").json()["models"], 30)
            assert client.post("/api/jobs", headers={"Origin": base}).status_code == 201
        children = _children(process.pid)
        assert len(children) == 2
        with private_folder(tmp_path):  # a second server leaves the first one's folder
            assert len(list(tmp_path.glob(f"{PREFIX}*"))) == 2
        process.kill()
    wait_for(lambda: not any(_is_running(pid) for pid in children))
    assert len(list(tmp_path.glob(f"{PREFIX}*"))) == 1
    with private_folder(tmp_path) as own:
        assert list(tmp_path.glob(f"{PREFIX}*")) == [own]
    assert list(tmp_path.iterdir()) == []


def _children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_running(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_only_own_folders_of_dead_servers_are_swept(tmp_path):
    other = tmp_path / "elsewhere"
    (other / "kept").mkdir(parents=True)
    (tmp_path / f"{PREFIX}link").symlink_to(other)
    (tmp_path / f"{PREFIX}new").mkdir()
    old = tmp_path / f"{PREFIX}old"
    old.mkdir()
    os.utime(old, (1, 1))
    dead = tmp_path / f"{PREFIX}dead"
    (dead / folder.CLAIMS).mkdir(parents=True)
    (dead / folder.CLAIMS / OWNER).touch()
    assert sweep(tmp_path) == [dead, old]
    assert (other / "kept").is_dir()
    assert (tmp_path / f"{PREFIX}new").is_dir()


@pytest.mark.slow
def test_the_child_has_limits(served, page):
    job = page.create()
    pid = served.jobs.find(job).child.pid
    wait_for(lambda: "Max address space         unlimited" not in Path(f"/proc/{pid}/limits").read_text())
    limits = Path(f"/proc/{pid}/limits").read_text()
    for name in ("Max address space", "Max cpu time", "Max file size"):
        line = next(line for line in limits.splitlines() if line.startswith(name))
        assert "unlimited" not in line


@pytest.mark.slow
def test_a_picture_bomb_is_refused(page, tmp_path):
    draw_picture(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    (tmp_path / "bomb.png").write_bytes(data)
    request = {"low": -200, "high": 300, "left": 0, "top": 0, "right": 64, "bottom": 48}
    assert page.fail(tmp_path / "bomb.png", picture=request)
