"""`slicemill view` as a command: what it prints, how it ends, and what it refuses before it serves."""

import contextlib
import signal
import stat
import subprocess
import sys

import httpx
import pytest
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common import extras
from slicemill.web import run


@contextlib.contextmanager
def started(*words):
    process = subprocess.Popen(
        [sys.executable, "-m", "slicemill", "view", *map(str, words), "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        yield process, lines
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_it_prints_one_address_and_ends_on_a_signal(files, number, status):
    with started(*files) as (process, (first, second)):
        assert first.startswith("1 case.")
        assert "not a medical device" in first
        base, token = second.strip().split("/#")
        with httpx.Client(base_url=base) as client:
            assert client.post("/session", content=token, headers={"Origin": base}).status_code == 204
            assert client.get("/api/cases").json()["cases"][0]["name"] == "ct.nii.gz"
        process.send_signal(number)
        rest, errors = process.communicate(timeout=120)
        assert process.returncode == status
        assert "Traceback" not in errors
        assert token not in rest + errors


def test_it_ends_while_a_page_is_open(files):
    with started(*files) as (process, (_, second)):
        base = second.split("/#")[0]
        with httpx.Client(base_url=base) as client:
            client.get("/")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=120) == 0


STOPPED_IN_A_REQUEST = """
import signal
from slicemill.common.signals import raise_on_stop_signals
from slicemill.web.server import make_server, open_sockets

async def app(scope, receive, send):
    signal.raise_signal(signal.{name})
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"whole"}})

sockets = open_sockets()
try:
    with raise_on_stop_signals():
        make_server(app, lambda: print(sockets[0].getsockname()[1], flush=True)).run(sockets)
except KeyboardInterrupt as end:
    print(type(end).__name__)
"""


@pytest.mark.parametrize(("name", "end"), [("SIGINT", "KeyboardInterrupt"), ("SIGTERM", "Terminated")])
def test_a_signal_within_a_request_ends_the_server_and_not_the_request(name, end):
    """uvicorn takes an exception within a request for the failure of that request."""
    program = [sys.executable, "-c", STOPPED_IN_A_REQUEST.format(name=name)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        answer = httpx.get(f"http://127.0.0.1:{process.stdout.readline().strip()}/")
        assert answer.text == "whole"
        assert process.communicate(timeout=120)[0].strip() == end


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (["none.nii"], 1, "none.nii"),
        (["{scan}", "--scans", "."], 2, "is a scan; --scans does not go with it"),
        (["{scan}", "--labels", "liver"], 2, "expected NAME=VALUE"),
        (["{scan}", "--port", "70000"], 2, "--port"),
        (["{scan}", "--worst-first", "none.csv"], 1, "none.csv"),
        (["{scan}", "--marks", "{scan}"], 1, "UTF-8"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_the_server_starts(files, words, status, why):
    done = CliRunner().invoke(commands("view"), ["view", *(one.format(scan=files[0]) for one in words)])
    assert done.exit_code == status
    assert why in " ".join((done.output + done.stderr).replace("│", " ").split())


def test_without_the_extra_the_command_names_it(files, monkeypatch):
    monkeypatch.setitem(extras.PACKAGES, "web", ("no_such_module",))
    done = CliRunner().invoke(commands("view"), ["view", str(files[0])])
    assert done.exit_code == 1
    assert "pip install 'slicemill[web]'" in done.stderr


def test_the_browser_opens_a_private_file_so_that_the_token_is_in_no_command_line(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(run, "DOOR_SECONDS", 0)
    page = run.write_door(tmp_path, "http://127.0.0.1:1/#to&ken")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert "url=http://127.0.0.1:1/#to&amp;ken" in page.read_text()
    monkeypatch.setattr("webbrowser.open", opened.append)
    run.open_browser(page)
    assert opened == [page.as_uri()]
    assert not page.exists()


def test_a_store_in_a_bucket_is_shown(bucket, stored, tmp_path):
    from slicemill.store.reader import open_store
    from slicemill.web.entries import ViewRequest, find_entries
    from slicemill.web.viewer import Viewer

    place, _ = bucket
    root = place / "store"
    for path in sorted(stored.rglob("*")):
        if path.is_file():
            (root / path.relative_to(stored).as_posix()).write_bytes(path.read_bytes())
    viewer = Viewer(find_entries(ViewRequest(path=root)))
    case = viewer.open(1)
    expected = open_store(stored)[case.source.name]
    assert case.image.read_section("axial", 7) == expected.image[7].tobytes()
    viewer.close()


def test_a_scan_in_a_bucket_is_shown(bucket, files):
    from slicemill.web.entries import ViewRequest, find_entries

    place, _ = bucket
    for path in files:
        (place / path.name).write_bytes(path.read_bytes())
    source = find_entries(ViewRequest(path=place / "ct.nii.gz", masks=(place / "mask.nii",)))[0].open()
    assert source.masks[0].failure is None
    assert source.image.shape == (9, 14, 20)
