"""A server of the viewer in a thread of this process, for clients of any kind."""

import contextlib
import socket
import threading

import httpx

from slicemill.web.app import make_app
from slicemill.web.guard import Access
from slicemill.web.server import make_server, open_sockets
from slicemill.web.viewer import Viewer


class Served:
    """A running server: its address, and clients for it."""

    def __init__(self, access, server):
        self.access = access
        self.server = server
        self.port = access.port
        self.base = f"http://127.0.0.1:{access.port}"

    @contextlib.contextmanager
    def client(self, *, with_cookie=True):
        with httpx.Client(base_url=self.base, timeout=60) as client:
            if with_cookie:
                answer = client.post("/session", content=self.access.token, headers={"Origin": self.base})
                assert answer.status_code == 204, answer.text
            yield client

    def connect(self):
        """Return a raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def send(self, text):
        """Send raw bytes, and return the whole answer."""
        with self.connect() as connection:
            connection.sendall(text.encode())
            return read_all(connection)


def read_all(connection):
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts).decode("latin-1")


@contextlib.contextmanager
def serving(entries, marks=None):
    """Serve entries while the block runs."""
    sockets = open_sockets()
    access = Access(port=sockets[0].getsockname()[1])
    viewer = Viewer(entries, marks)
    started = threading.Event()
    server = make_server(make_app(viewer, access, "0"), started.set)
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    assert started.wait(120)
    try:
        yield Served(access, server)
    finally:
        server.should_exit = True
        thread.join(30)
        viewer.close()
        for one in sockets:
            one.close()
