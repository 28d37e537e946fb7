"""A peer in its own environment as a contender: a process that does one round of work per request.

The peer runs in the same interleaved rounds and on the same files as slicemill, with separate packages.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Self

from slicemill.common.errors import InputError

HERE = Path(__file__).parent


@dataclass(kw_only=True)
class PeerProcess:
    """A peer's script, running."""

    name: str
    python: Path
    """Interpreter of its environment."""
    script: str
    """Script in this folder; it follows the protocol of `rounds`."""
    request: Mapping[str, Any]
    """Its request, passed on the command line."""
    slices: int = 0
    """Slices of the last round."""
    cpu_seconds: float = 0.0
    """CPU time of the last round, on all cores."""
    reason: str = ""
    """Reason why it ended early; later rounds do nothing."""
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)
    _errors: IO[str] = field(default_factory=lambda: TemporaryFile("w+", encoding="utf-8"), repr=False)  # noqa: SIM115
    """Its standard error. It is a file, because a pipe that nobody reads fills up and blocks the peer."""

    def __enter__(self) -> Self:
        """Start the peer, and wait until it is ready.

        Raises
        ------
        InputError
            The peer ended; the message holds its last line of output.
        """
        self._process = subprocess.Popen(  # noqa: S603 (a script of this package, in its environment)
            [str(self.python), str(HERE / self.script), json.dumps(self.request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        os.sched_setaffinity(self._process.pid, os.sched_getaffinity(0))
        self._read_reply()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the peer."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def __call__(self) -> None:
        """Run one round of work in the peer. If the peer has ended, record the reason."""
        if self.reason:
            return
        try:
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write("go\n")
                self._process.stdin.flush()
            reply = self._read_reply()
        except (InputError, BrokenPipeError) as error:
            self.reason = str(error)
            return
        self.slices, self.cpu_seconds = int(reply["slices"]), float(reply["cpu_seconds"])

    def _read_reply(self) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdout is None:
            raise InputError(f"{self.name}: is not running.")
        for line in process.stdout:  # a peer may print other lines before its reply
            try:
                reply = json.loads(line)
            except ValueError:
                continue
            if isinstance(reply, dict) and ("ready" in reply or "slices" in reply):
                return reply
        process.communicate()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        self._errors.close()
        raise InputError(f"{self.name}: ended: {lines[-1] if lines else 'without a message'}")
