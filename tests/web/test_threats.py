"""Who may use the server, and what a client can do to it."""

import contextlib
import errno
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from slicemill.web import app, server
from slicemill.web.entries import Entry
from slicemill.web.marks import Marks
from slicemill.web.opened import CaseSource
from slicemill.web.volumes import VolumeSource
from tests.web.made import make_affine
from tests.web.served import read_all, serving


@pytest.fixture(scope="module")
def served(entries):
    with serving(entries) as one:
        yield one


@pytest.fixture
def client(served):
    with served.client() as one:
        yield one


def test_the_page_and_its_files_need_no_cookie_and_show_no_data(served):
    with served.client(with_cookie=False) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "ct.nii" not in page.text
        assert client.get("/api/cases").status_code == 401


def test_the_token_is_traded_for_a_cookie_that_scripts_and_other_sites_do_not_get(served):
    with served.client(with_cookie=False) as client:
        answer = client.post("/session", content=served.access.token, headers={"Origin": served.base})
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "expires" not in cookie  # gone with the browser
        assert "max-age" not in cookie
        assert served.access.token not in cookie
        assert client.get("/api/cases").status_code == 200


@pytest.mark.parametrize("token", ["", "wrong", "x" * 22])
def test_a_wrong_token_gives_no_cookie(served, token):
    with served.client(with_cookie=False) as client:
        answer = client.post("/session", content=token, headers={"Origin": served.base})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


def test_the_cookies_of_two_servers_have_two_names(served, entries):
    """Browsers send the cookies of one port to the others, and one name would be overwritten."""
    with serving(entries) as other, served.client() as client, other.client() as second:
        second.cookies.update(dict(client.cookies))
        assert second.get("/api/cases").status_code == 200
        second.cookies.delete(other.access.cookie)
        assert second.get("/api/cases").status_code == 401


HOSTS = ["evil.example:{}", "127.0.0.1", "127.0.0.1:80", "127.0.0.1.evil.example:{}", "", "[::1]"]


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_that_only_leads_here_is_refused(served, client, host):
    """DNS rebinding: the browser believes that the page of evil.example comes from here."""
    answer = client.get("/", headers={"Host": host.format(served.port)})
    assert answer.status_code == 421
    assert client.get("/api/cases", headers={"Host": host.format(served.port)}).status_code == 421


def test_no_host_and_two_hosts_are_refused(served):
    good = f"127.0.0.1:{served.port}"
    assert " 400 " in served.send("GET / HTTP/1.1\r\n\r\n").splitlines()[0]
    assert " 400 " in served.send(f"GET / HTTP/1.1\r\nHost: {good}\r\nHost: evil\r\n\r\n").splitlines()[0]
    assert " 421 " in served.send("GET / HTTP/1.0\r\n\r\n").splitlines()[0]


@pytest.mark.parametrize("name", ["localhost", "[::1]"])
def test_the_other_names_of_this_machine_work(served, name):
    try:
        answer = httpx.get(f"http://{name}:{served.port}/")
    except httpx.ConnectError:
        pytest.skip(f"{name} is not an address here")
    assert answer.status_code == 200


@pytest.mark.parametrize("origin", [None, "null", "https://evil.example", "http://127.0.0.1:1"])
def test_another_page_cannot_change_anything(entries, tmp_path, origin):
    headers = {} if origin is None else {"Origin": origin}
    with serving(entries, Marks(tmp_path / "marks.csv")) as served, served.client() as client:
        assert client.put("/api/cases/0/mark", content='"bad"', headers=headers).status_code == 403
        assert client.post("/session", content=served.access.token, headers=headers).status_code == 403
        assert not (tmp_path / "marks.csv").exists()


@pytest.mark.parametrize("size", [5, 60_000])
def test_a_refused_sender_whose_body_comes_late_reads_the_answer(served, size):
    """A connection that is closed over unread bytes is reset."""
    for attempt in range(60):
        with served.connect() as late:
            start = f"PUT /api/cases/0/mark HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Length: {size}\r\n\r\n"
            late.sendall(start.encode())
            time.sleep(0.001 * (attempt % 3))
            late.sendall(b"x" * size)
            answer = b""
            while part := late.recv(65536):  # a reset raises ConnectionResetError
                answer += part
            assert b" 403 " in answer.splitlines()[0]


def test_a_refused_sender_that_sends_nothing_is_answered(served):
    with served.connect() as silent:
        silent.sendall(f"PUT /x HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Length: 9\r\n\r\n".encode())
        assert " 403 " in read_all(silent).splitlines()[0]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_page_cannot_load_anything_but_may_link_to_the_page(client, site):
    """Another port of this machine is the same site, and may be another user's."""
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
    for path in ("/", "/api/cases", "/api/cases/0/image/axial/1"):
        assert client.get(path, headers=headers).status_code == 403
    assert client.get("/", headers=headers | {"Sec-Fetch-Mode": "navigate"}).status_code == 200
    assert client.get("/api/cases", headers=headers | {"Sec-Fetch-Mode": "navigate"}).status_code == 403


@pytest.mark.parametrize("method", ["DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT"])
def test_other_methods_are_refused_and_no_answer_allows_another_origin(served, client, method):
    target = f"127.0.0.1:{served.port}" if method == "CONNECT" else "/"
    answer = served.send(f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nConnection: close\r\n\r\n")
    assert " 405 " in answer.splitlines()[0]
    assert "access-control" not in answer.lower()
    assert not [name for name in client.get("/").headers if name.startswith("access-control")]


def test_every_answer_has_the_policy_and_data_is_not_stored(client):
    for path in ("/", "/api/cases", "/api/cases/0/image/axial/1", "/nothing", "/static/x/y"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


TRAVERSAL = [
    "..",
    "../guard.py",
    "..%2fguard.py",
    "%2e%2e/guard.py",
    "..\\guard.py",
    "/etc/passwd",
    "%00",
    "index.html",
]


@pytest.mark.parametrize("name", TRAVERSAL)
def test_no_path_leads_out_of_the_page(served, client, name):
    digest = client.get("/").text.split("/static/")[1].split("/")[0]
    for target in (f"/static/{digest}/{name}", f"/static/../{name}", f"/{name}", f"/api/cases/0/image/{name}/0"):
        text = served.send(
            f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nConnection: close\r\n"
            f"Cookie: {served.access.cookie}={served.access.session}\r\n\r\n"
        )
        assert " 404 " in text.splitlines()[0] or " 400 " in text.splitlines()[0], target
        assert "root:" not in text
        assert "def " not in text


@pytest.mark.parametrize(
    "path",
    [
        "/api/cases/1",
        "/api/cases/-1",
        "/api/cases/99999999999999999999999",
        "/api/cases/0/image/axial/9",
        "/api/cases/0/image/axial/-1",
        "/api/cases/0/image/coronal/14",
        "/api/cases/0/image/sagittal/20",
        "/api/cases/0/image/oblique/0",
        "/api/cases/0/mask/1/axial/0",
        "/api/cases/0/parts/0/0",
        "/api/cases/0/parts/0/256",
        "/api/cases/0/parts/5/1",
    ],
)
def test_what_does_not_exist_is_not_found(client, path):
    answer = client.get(path)
    assert answer.status_code == 404, answer.text
    assert answer.json()["error"]


def test_a_large_body_is_refused_while_it_arrives(served, client):
    """Without a Content-Length, nothing tells its size before."""

    def endless():
        nonlocal sent
        for sent in range(1000):  # noqa: B007 (counts what was sent)
            yield b"x" * 65536

    sent = 0
    with contextlib.suppress(httpx.TransportError):  # the server closes the connection before the end
        assert client.post("/session", content=endless(), headers={"Origin": served.base}).status_code == 413
    assert sent < 900
    answer = client.post("/session", content=b"x" * 1000, headers={"Origin": served.base})
    assert answer.status_code == 413
    assert client.get("/api/cases").status_code == 200


def test_a_body_that_stays_away_is_not_waited_for(served, monkeypatch):
    monkeypatch.setattr(app, "BODY_SECONDS", 0.2)
    start = time.monotonic()
    text = served.send(
        f"POST /session HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nOrigin: {served.base}\r\n"
        "Content-Length: 9\r\n\r\nx"
    )
    assert " 408 " in text.splitlines()[0]
    assert time.monotonic() - start < 10


def test_a_client_that_sends_no_header_is_disconnected(served, monkeypatch):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.5)
    with served.connect() as slow:
        start = time.monotonic()
        for character in "GET / HT":
            slow.sendall(character.encode())
            time.sleep(0.02)
        assert read_all(slow) == ""
        assert 0.3 < time.monotonic() - start < 10


def test_a_client_that_is_slow_with_its_second_request_is_disconnected(served, monkeypatch):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.5)
    with served.connect() as slow:
        slow.sendall(f"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode())
        answer = b""
        while b"no such page" not in answer:
            answer += slow.recv(65536)
        slow.sendall(b"GET")
        start = time.monotonic()
        assert read_all(slow) == ""
        assert time.monotonic() - start < 10


def test_long_headers_are_refused(served):
    text = served.send(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nX: " + "x" * 100_000)
    assert not text or " 400 " in text.splitlines()[0]


def test_too_many_connections_are_refused_and_the_next_client_is_served(served, client, monkeypatch):
    with contextlib.ExitStack() as stack:
        for _ in range(server.MAX_CONNECTIONS):
            stack.enter_context(served.connect())
        time.sleep(0.3)
        text = served.send(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nConnection: close\r\n\r\n")
        assert " 503 " in text.splitlines()[0]
    time.sleep(0.3)
    assert client.get("/api/cases").status_code == 200


def test_a_websocket_is_not_accepted(served):
    text = served.send(
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        f"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nConnection: close\r\n\r\n"
    )
    assert " 101 " not in text.splitlines()[0]


def test_the_server_listens_on_this_machine_only():
    sockets = server.open_sockets()
    try:
        assert {one.getsockname()[0] for one in sockets} <= {"127.0.0.1", "::1"}
        assert len({one.getsockname()[1] for one in sockets}) == 1
    finally:
        for one in sockets:
            one.close()


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(server.UsageError, match=r"--port \d+: .*in use"):
            server.open_sockets(taken.getsockname()[1])


def test_the_request_of_a_tab_that_was_closed_is_not_worked_on(stuck):
    """A section that is not read yet is not waited for after its client has gone."""
    with serving([stuck]) as served:
        with served.connect() as gone:
            gone.sendall(
                f"GET /api/cases/0/image/axial/1 HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n"
                f"Cookie: {served.access.cookie}={served.access.session}\r\n\r\n".encode()
            )
            wait_for(lambda: served.server.server_state.tasks)
            time.sleep(0.2)
            assert served.server.server_state.tasks
        wait_for(lambda: not served.server.server_state.tasks)


def test_a_section_that_is_not_read_yet_is_asked_for_again(stuck, monkeypatch):
    monkeypatch.setattr(app, "WAIT_SECONDS", 0.2)
    with serving([stuck]) as served, served.client() as client:
        assert client.get("/api/cases/0/image/axial/1").status_code == 503
        assert client.get("/api/cases/0/image/coronal/1").status_code == 503
        assert client.get("/api/cases/0/progress").json()["image"]["slices"] == 0


@pytest.fixture
def stuck():
    """A case whose file never arrives."""
    end = threading.Event()

    def slabs(_warnings):
        end.wait(60)
        yield from ()

    image = VolumeSource(name="stuck", shape=(3, 4, 5), dtype="int16", slabs=slabs)
    case = CaseSource(name="stuck", image=image, masks=(), spacing_mm=(1, 1, 1), affine_lps=make_affine())
    yield Entry(name="stuck", case_id="stuck", open=lambda: case)
    end.set()


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_full_disk_is_reported_and_the_next_case_works(entries, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with serving([*entries, *entries]) as served, served.client() as client:
        with monkeypatch.context() as patch:
            patch.setattr("slicemill.web.voxel_file.write_all", full)
            client.get("/api/cases/0")
            wait_for(lambda: client.get("/api/cases/0/progress").json()["image"]["failure"])
            answer = client.get("/api/cases/0/image/axial/1")
            assert answer.status_code == 422
            assert "No space left" in answer.json()["error"]
        assert client.get("/api/cases/1/image/axial/1").status_code == 200


def test_a_killed_server_leaves_no_file(files, tmp_path):
    scan, mask = files
    words = [sys.executable, "-m", "slicemill", "view", scan, mask, "--labels", "liver=1,tumor=2", "--no-browser"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        process.stdout.readline()
        base, token = process.stdout.readline().strip().split("/#")
        with httpx.Client(base_url=base) as client:
            client.post("/session", content=token, headers={"Origin": base})
            assert client.get("/api/cases/0/image/axial/1").status_code == 200
        arguments = Path(f"/proc/{process.pid}/cmdline").read_text()
        process.kill()
    assert list(tmp_path.iterdir()) == []
    assert token not in arguments


def test_a_bug_is_answered_and_the_next_case_works(entries):
    def broken():
        raise ZeroDivisionError("odd")

    with serving([Entry(name="a", case_id="a", open=broken), *entries]) as served, served.client() as client:
        answer = client.get("/api/cases/0")
        assert answer.status_code == 500
        assert "bug" in answer.json()["error"]
        assert client.get("/api/cases/1").status_code == 200
