"""How much a command prints, whether as JSON, and where it is logged: `--quiet`, `--verbose`, `--json`, `--log-file`.

One process runs one command, so its choice is kept here. Lines go through `slicemill.common.terminal`.
"""

import datetime as dt
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO


def escape(text: str) -> str:
    r"""Return a text with its control characters, line ends, directional marks and lone surrogates escaped.

    >>> print(escape("red\x1b[31m, new\nline, \u202egnp"))
    red\x1b[31m, new\nline, \u202egnp
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a command prints and logs."""

    quiet: bool = False
    """Whether only errors and failures are printed."""
    verbose: bool = False
    """Whether lists are printed in full, and errors with their traceback."""
    json: bool = False
    """Whether standard output is one JSON document; all other lines go to standard error."""
    log: TextIO | None = None
    """Open file that gets every line, also those that are not printed."""

    def write_log(self, level: str, text: str) -> None:
        """Append a line with time and level to the log file, if there is one."""
        if self.log is not None:
            now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
            self.log.write(f"{now} {level:<7} {escape(text)}\n")
            self.log.flush()


_current = Output()


def current_output() -> Output:
    """Return what the running command prints and logs."""
    return _current


def _change(output: Output) -> None:
    global _current  # noqa: PLW0603 (one command a process)
    _current = output


@contextmanager
def use_output(
    *, quiet: bool = False, verbose: bool = False, json: bool = False, log_file: Path | None = None
) -> Iterator[None]:
    """Print and log as chosen while the block runs.

    An exception that is a bug is logged with its traceback, and raised.

    Raises
    ------
    OSError
        The log file cannot be written.
    """
    before = _current
    log = None if log_file is None else log_file.open("a", encoding="utf-8", errors="backslashreplace")
    try:
        _change(Output(quiet=quiet, verbose=verbose, json=json, log=log))
        _current.write_log("command", shlex.join(["slicemill", *sys.argv[1:]]))
        yield
    except Exception:
        log_traceback()
        raise
    finally:
        _change(before)
        if log is not None:
            log.close()


def log_traceback() -> None:
    """Append the exception that is being handled to the log file, if there is one."""
    for line in traceback.format_exc().splitlines():
        _current.write_log("error", line)
