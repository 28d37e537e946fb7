"""Runs the viewer: finds the cases, starts the server, and opens the browser."""

import contextlib
import html
import socket
import tempfile
import time
import webbrowser
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from slicemill.common.signals import Terminated, start_helper
from slicemill.common.terminal import print_always, print_line
from slicemill.web.app import make_app
from slicemill.web.guard import Access, Guard
from slicemill.web.marks import Marks
from slicemill.web.server import make_server, open_sockets
from slicemill.web.viewer import Viewer

if TYPE_CHECKING:
    from slicemill.web.entries import ViewRequest

DOOR_SECONDS = 30
"""Time for the browser to open the page that leads to the address."""


def run_viewer(request: "ViewRequest", marks: Path | None, port: int, *, opens_browser: bool) -> None:
    """Show the cases of a request until Ctrl-C.

    Raises
    ------
    InputError
        There is nothing to show, or the port is in use.
    """
    from slicemill.web.entries import find_entries  # takes long to import, and `slicemill serve` does not need it

    viewer = Viewer(find_entries(request), Marks(marks) if marks is not None else None)
    sockets = open_sockets(port)
    access = Access(port=sockets[0].getsockname()[1])
    count = len(viewer.entries)

    def tell() -> None:
        print_line(f"{count} case{'s' * (count != 1)}. Research software, not a medical device. Ctrl-C ends it.")

    with contextlib.closing(viewer):
        serve_page(make_app(viewer, access, version("slicemill")), access, sockets, tell, opens_browser=opens_browser)


def serve_page(
    app: Guard, access: Access, sockets: list[socket.socket], started: Callable[[], None], *, opens_browser: bool
) -> None:
    """Serve a page until Ctrl-C: call `started`, print the address, open the browser."""
    with contextlib.ExitStack() as stack:

        def tell() -> None:
            started()
            print_always(access.url)
            if opens_browser:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slicemill-")))
                start_helper(lambda: open_browser(write_door(folder, access.url)))

        try:
            make_server(app, tell).run(sockets)
        except Terminated:
            raise
        except KeyboardInterrupt:
            print_line("ended")


def write_door(folder: Path, url: str) -> Path:
    """Write a page that leads to the address. Other users can read the browser's command line, but not this file."""
    path = folder / "open.html"
    path.touch(mode=0o600)
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">'
        f'<meta http-equiv="refresh" content="0; url={html.escape(url)}"><title>slicemill</title>',
        encoding="utf-8",
    )
    return path


def open_browser(page: Path) -> None:
    """Open a page in the browser, and remove it when the browser had time to read it."""
    with contextlib.suppress(webbrowser.Error):
        webbrowser.open(page.as_uri())
    time.sleep(DOOR_SECONDS)
    page.unlink(missing_ok=True)
