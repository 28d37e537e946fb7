"""A child process, from the server's side."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Mapping

from slicemill.common.errors import InputError
from slicemill.web.serve.messages import MAX_LINE, Message, decode, encode


class ChildEndedError(InputError):
    """A child process has ended without a result."""


class Child:
    """A running child process that sends and takes messages."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, module: str, *words: str, environment: Mapping[str, str] | None = None) -> "Child":
        """Start a module of this package, with more variables in its environment.

        Its errors go nowhere: they might name a patient.
        """
        process = await asyncio.create_subprocess_exec(
            "env",
            *(f"{name}={value}" for name, value in (environment or {}).items()),
            sys.executable,
            "-m",
            f"slicemill.web.serve.{module}",
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=MAX_LINE,
            start_new_session=True,  # Ctrl-C in the terminal is for the server, which ends its children
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Return whether the process has not ended."""
        return self._process.returncode is None

    async def send(self, record: object) -> None:
        """Send an order; one to a process that has ended is lost, and the next `read` says so."""
        assert self._process.stdin is not None  # noqa: S101 (a pipe was requested)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(encode(record))
            await self._process.stdin.drain()

    async def read(self) -> Message:
        """Wait for a message.

        Raises
        ------
        ChildEndedError
            The process has ended.
        InputError
            It sent something else.
        """
        assert self._process.stdout is not None  # noqa: S101 (a pipe was requested)
        try:
            line = await self._process.stdout.readline()
        except ValueError as error:
            raise InputError("a child process sent a message without an end.") from error
        if not line.endswith(b"\n"):
            raise ChildEndedError(describe_end(await self._process.wait()))
        return decode(line)

    async def kill(self) -> None:
        """End the process."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        transport = getattr(self._process, "_transport", None)  # its pipes would be closed by the garbage collector
        if transport is not None:
            transport.close()


def describe_end(code: int) -> str:
    """Return how a process ended.

    >>> describe_end(-9)
    'its process was ended by SIGKILL, perhaps because memory ran out. Try again.'
    """
    if code == -signal.SIGXCPU:
        return "it took more computing time than a scan may take."
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}, perhaps because memory ran out. Try again."
    return f"its process ended with status {code}. Try again."
