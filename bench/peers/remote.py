"""A peer in its own environment as a contender: a process that does one round of work when it is told to.

So it stands in the same interleaved rounds as ours, on the same files, and neither's packages get in the other's way.
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
    """File of this folder; it answers as `turns` has it."""
    given: Mapping[str, Any]
    """What it is to work on."""
    slices: int = 0
    """How many came in the last round."""
    cpu_seconds: float = 0.0
    """What its cores worked in the last round."""
    reason: str = ""
    """Why it ended before its time; it does nothing any more then."""
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)
    _said: IO[str] = field(default_factory=lambda: TemporaryFile("w+", encoding="utf-8"), repr=False)  # noqa: SIM115 (closed when it ends)
    """What it writes on its standard error: a file, since a pipe that nobody reads is full one day and stops it."""

    def __enter__(self) -> Self:
        """Start it, and wait until it is ready.

        Raises
        ------
        InputError
            It ended; the message holds the last line that it said.
        """
        self._process = subprocess.Popen(  # noqa: S603 (our script in an environment that we made)
            [str(self.python), str(HERE / self.script), json.dumps(self.given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        os.sched_setaffinity(self._process.pid, os.sched_getaffinity(0))
        self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._said.close()

    def __call__(self) -> None:
        """Have it do one round of work, and wait; where it has ended, note why."""
        if self.reason:
            return
        try:
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write("go\n")
                self._process.stdin.flush()
            answer = self._answer()
        except (InputError, BrokenPipeError) as error:
            self.reason = str(error)
            return
        self.slices, self.cpu_seconds = int(answer["slices"]), float(answer["cpu_seconds"])

    def _answer(self) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdout is None:
            raise InputError(f"{self.name}: is not running.")
        for line in process.stdout:  # a peer may print what it likes before its answer
            try:
                answer = json.loads(line)
            except ValueError:
                continue
            if isinstance(answer, dict) and ("ready" in answer or "slices" in answer):
                return answer
        process.communicate()
        with self._said as file:
            file.seek(0)
            said = file.read().strip().splitlines()
        raise InputError(f"{self.name}: ended: {said[-1] if said else 'without a word'}")


def ended(contenders: Mapping[str, object]) -> dict[str, str]:
    """Return name -> reason of the peers that ended before their time."""
    return {name: work.reason for name, work in contenders.items() if isinstance(work, PeerProcess) and work.reason}
