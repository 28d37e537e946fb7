"""Runs the application on this machine's own address, until it is stopped."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from slicemill.common.errors import UsageError
from slicemill.common.signals import SIGNALS
from slicemill.web.guard import Guard

MAX_CONNECTIONS = 64
"""A browser opens at most six at a time."""
HEADER_SECONDS = 30
"""Time for the headers of a request to arrive."""
IDLE_SECONDS = 60
"""Time until a connection without a request is closed."""
MAX_HEADER_BYTES = 16 << 10


class TimedProtocol(H11Protocol):
    """HTTP/1.1 whose clients have HEADER_SECONDS to send the headers of a request."""

    header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time of the first request."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Read data; the time ends with the last header."""
        if self.header_timer is None and self._is_between_requests():
            self._start_timer()
        super().data_received(data)
        if not self._is_between_requests():
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self) -> None:
        self.header_timer = self.loop.call_later(HEADER_SECONDS, self._close_if_waiting)

    def _stop_timer(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None

    def _close_if_waiting(self) -> None:
        self.header_timer = None
        if self._is_between_requests() and not self.transport.is_closing():
            self.transport.close()


def open_sockets(port: int = 0) -> list[socket.socket]:
    """Listen on 127.0.0.1, and on ::1 where there is IPv6; port 0 takes a free one.

    Raises
    ------
    UsageError
        The port is in use.
    """
    first = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        first.bind(("127.0.0.1", port))
    except OSError as error:
        first.close()
        raise UsageError(f"--port {port}: {error.strerror}. Pass another port, or none.") from error
    sockets = [first]
    with contextlib.suppress(OSError):  # no IPv6 here, or the port is taken there: 127.0.0.1 is enough
        second = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        try:
            second.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            second.bind(("::1", first.getsockname()[1]))
            sockets.append(second)
        except OSError:
            second.close()
            raise
    return sockets


class Server(uvicorn.Server):
    """A server that ends on stop signals before the command hears of them, and says when it listens."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """End the server on the first stop signal, and pass the signal on to the command then.

        The command's own handler raises an exception; uvicorn would take one that is raised within a request for the
        failure of this request, and go on. Signals that are ignored stay ignored.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
        received: list[int] = []

        def stop(number: int, _frame: FrameType | None) -> None:
            self.force_exit = self.should_exit  # by the second signal
            self.should_exit = True
            received.append(number)

        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        for first in received[:1]:
            signal.raise_signal(first)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        self._tell()


def make_server(app: Guard, started: Callable[[], None]) -> Server:
    """Return a server; `started` is called when it listens. ``run(sockets)`` serves until KeyboardInterrupt."""
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # nothing of a request is logged, neither path nor token
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    return Server(config, started)
