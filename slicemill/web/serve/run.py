"""Runs the page: private folder, models, server, browser."""

import asyncio
import contextlib
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from slicemill.common.errors import UsageError
from slicemill.common.signals import Terminated, start_helper
from slicemill.common.terminal import print_always, print_line
from slicemill.web.guard import Access
from slicemill.web.run import open_browser, write_door
from slicemill.web.serve.app import make_serve_app
from slicemill.web.serve.folder import private_folder
from slicemill.web.serve.jobs import Jobs
from slicemill.web.serve.models import Models
from slicemill.web.server import make_server, open_sockets


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
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        jobs = Jobs(Models(provider, models), folder, keep)
        background: list[asyncio.Task[None]] = []

        def tell() -> None:
            background.append(asyncio.get_running_loop().create_task(jobs.run()))
            print_line("Research software, not a medical device. Scans stay on this machine. Ctrl-C ends it.")
            print_always(access.url)
            if opens_browser:
                place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slicemill-")))
                start_helper(lambda: open_browser(write_door(place, access.url)))

        try:
            make_server(make_serve_app(jobs, access, version("slicemill")), tell).run(sockets)
        except Terminated:
            raise
        except KeyboardInterrupt:
            print_line("ended")
