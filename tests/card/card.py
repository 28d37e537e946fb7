"""Runs the product's code in a process of its own, whose CUDA libraries are the stand-ins."""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
COMPUTES = (
    "cublasSgeam", "cudaLaunchKernel", "cudnnAddTensor", "cudnnBackendExecute", "cudnnPoolingForward",
    "cudnnReduceTensor",
)  # fmt: skip
"""Calls that start work on a stream."""


@dataclass(frozen=True)
class Call:
    """A line of the log."""

    thread: int
    name: str
    details: dict[str, str]
    """What the library's function was given, by name; `device` is the current device of the thread."""

    def __getitem__(self, detail: str) -> str:
        return self.details[detail]


@dataclass(frozen=True)
class Ran:
    """A process that has ended."""

    code: int
    output: str
    """What it printed, to either stream."""
    calls: tuple[Call, ...]
    value: Any = None
    """What `tests.card.work` returned."""

    def count(self, name: str, **details: Any) -> int:
        """Count the calls of a function with these details."""
        return len(self.named(name, **details))

    def named(self, name: str, **details: Any) -> list[Call]:
        """Return the calls of a function with these details."""
        expected = {key: str(value) for key, value in details.items()}
        return [call for call in self.calls if call.name == name and expected.items() <= call.details.items()]

    def counts(self) -> Counter[str]:
        """Count the calls by the function."""
        return Counter(call.name for call in self.calls)


@dataclass(frozen=True, kw_only=True)
class Card:
    """GPUs that compute nothing."""

    libraries: Path
    folder: Path
    """Where logs are written."""
    devices: int = 1
    fail: str = ""
    """The calls that fail; see `libraries/shared.c`."""
    wait_ms: int = 0
    """How long a wait for a stream takes."""

    def changed(self, **fields: Any) -> "Card":
        """Return a card with other settings."""
        return replace(self, **fields)

    def without(self, library: str) -> "Card":
        """Return a card without one of the libraries; where the machine has the real one, an empty file hides it."""
        rest = self.folder / f"without-{library}"
        rest.mkdir()
        for path in self.libraries.iterdir():
            if path.name != library:
                (rest / path.name).symlink_to(path)
        if loads(library):
            (rest / library).touch()
        return self.changed(libraries=rest)

    def command(self, *words: object) -> Ran:
        """Run slicemill with these words."""
        return self._run("slicemill", words)[0]

    def work(self, name: str, *values: object) -> Ran:
        """Call a function of `tests.card.work`; a process that fails is an error."""
        ran, printed = self._run("tests.card.work", (name, json.dumps(values, default=str)))
        assert ran.code == 0, ran.output
        return replace(ran, value=json.loads(printed.splitlines()[-1]))

    def _run(self, module: str, words: tuple[object, ...]) -> tuple[Ran, str]:
        log = self.folder / f"{len(list(self.folder.glob('*.log')))}.log"
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.libraries),
            "STAND_IN_LOG": str(log),
            "STAND_IN_DEVICES": str(self.devices),
            "STAND_IN_WAIT_MS": str(self.wait_ms),
            "NO_COLOR": "1",
            "COLUMNS": "1000",
        } | ({"STAND_IN_FAIL": self.fail} if self.fail else {})
        command = [sys.executable, "-m", module, *map(str, words)]
        done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
        calls = read_log(log) if log.exists() else ()
        return Ran(done.returncode, done.stderr + done.stdout, calls), done.stdout


def loads(library: str) -> bool:
    """Return whether the machine has a library."""
    with contextlib.suppress(OSError):
        return bool(ctypes.CDLL(library))
    return False


def read_log(path: Path) -> tuple[Call, ...]:
    """Read the calls in a log; the last detail of a line may contain spaces."""
    calls = []
    for line in path.read_text().splitlines():
        thread, name, rest = line.split(" ", 2)
        details, last = {}, ""
        for word in rest.split(" "):
            key, equals, value = word.partition("=")
            if equals and last not in ("kernel", "text"):
                details[key], last = value, key
            else:
                details[last] += f" {word}"
        calls.append(Call(int(thread), name, details))
    return tuple(calls)
