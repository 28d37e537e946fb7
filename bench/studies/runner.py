"""Runs the commands of an experiment, while no other process works in its folder."""

import fcntl
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from slicemill.bench.command import slicemill_command
from slicemill.common.errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class CommandRunner:
    """Runs commands one by one."""

    lock: BinaryIO
    """Lock of the experiment. Every command gets it as standard input, and so keeps it if the experiment is killed."""

    def run_slicemill(self, words: Iterable[object], log: Path) -> None:
        """Run a slicemill command and append its output to a log.

        Raises
        ------
        InputError
            The command failed.
        """
        self.run(slicemill_command(*words), log)

    def run(self, words: Iterable[object], log: Path) -> None:
        """Run a program and append its output to a log.

        Raises
        ------
        InputError
            The program failed; the message holds its last line of output.
        """
        arguments = [str(word) for word in words]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"$ {' '.join(arguments)}\n")
            stream.flush()
            done = subprocess.run(  # noqa: S603 (slicemill commands, and those of nnU-Net's environment)
                arguments, stdin=self.lock, stdout=stream, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode:
            lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            raise InputError(f"a command ended with exit status {done.returncode}: {lines[-1]} Full output: {log}.")


@contextmanager
def lock_experiment(out: Path) -> Iterator[CommandRunner]:
    """Yield a command runner while this process holds the lock of an experiment's folder.

    Raises
    ------
    ConfigError
        Another process holds the lock.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{out}: an experiment is running here, or trainings of one that was killed. "
                "Wait for them, or end them, or use another --out."
            ) from None
        yield CommandRunner(lock=lock)


def pin_to_cores(cores: Sequence[int]) -> None:
    """Restrict this thread and the processes that it starts to some cores. torch uses a thread for each of them."""
    os.sched_setaffinity(0, cores)
