"""Runs the page: private folder, models, server, browser."""

import asyncio
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from slicemill.common.errors import UsageError
from slicemill.common.terminal import print_line
from slicemill.web.guard import Access
from slicemill.web.run import serve_page
from slicemill.web.serve.app import make_serve_app
from slicemill.web.serve.folder import private_folder
from slicemill.web.serve.jobs import Jobs
from slicemill.web.serve.models import Models
from slicemill.web.server import open_sockets


def run_server(models: Sequence[Path], provider: str, keep: Path | None, port: int, *, opens_browser: bool) -> None:
    """Serve the page until Ctrl-C.

    Raises
    ------
    UsageError
        A model is not there, or the port is in use.
    """
    for path in models:
        if not path.is_file():
            raise UsageError(f"{path}: there is no such model; pass an ONNX file of `slicemill export`.")
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    sockets = open_sockets(port)
    access = Access(port=sockets[0].getsockname()[1])
    background: list[asyncio.Task[None]] = []
    with private_folder() as folder:
        jobs = Jobs(Models(provider, models), folder, keep)

        def tell() -> None:
            background.append(asyncio.get_running_loop().create_task(jobs.run()))
            print_line("Research software, not a medical device. Scans stay on this machine. Ctrl-C ends it.")

        app = make_serve_app(jobs, access, version("slicemill"))
        serve_page(app, access, sockets, tell, opens_browser=opens_browser)
