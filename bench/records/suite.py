"""Every stage's benchmark, one after the other, as one record, one table, one page and a picture.

Each stage runs as a command of its own, so that none meets the threads or the memory of another; one that fails is said to have
failed, with its reason, and the rest goes on.
"""

import datetime as dt
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicemill.bench.harness.catalog import STAGES
from slicemill.bench.harness.headline import Record
from slicemill.common.files import read_json
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress

LIMITS = "limits"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What to run."""

    quick: bool = False
    data: Path | None = None
    only: tuple[str, ...] = ()
    """Names of stages; empty means all."""
    cold: bool = False
    environments: Path = Path("peers")
    """Of the tools of others; made the first time."""

    def commands(self) -> dict[str, list[str]]:
        """Return the words of each stage's command, after `slicemill bench`."""
        found = {LIMITS: [LIMITS, *(["--quick"] if self.quick else [])]}
        for name, stage in STAGES.items():
            found[name] = [*(stage.command or (name,)), *(["--quick"] if self.quick else [])]
            if self.data is not None and stage.takes_data:
                found[name] += ["--data", str(self.data)]
            if stage.takes_environments:
                found[name] += ["--environments", str(self.environments.resolve())]
            if self.cold and stage.takes_cold:
                found[name] += ["--cold"]
        return {name: words for name, words in found.items() if not self.only or name in (LIMITS, *self.only)}


def run(suite: Suite) -> Record:
    """Run the benchmarks and return their records under ``stages``, and the reasons of those that failed under ``failed``."""
    records: dict[str, Record] = {}
    failed: dict[str, str] = {}
    commands = suite.commands()
    with tempfile.TemporaryDirectory() as folder, progress("bench", len(commands), "stages") as advance:
        for name, words in commands.items():
            advance(0, name)
            path = Path(folder) / f"{name}.json"
            reason = one_stage([*words, "--json", str(path)])
            if reason is None:
                records[name] = read_json(path)
            else:
                failed[name] = reason
            advance(1, name)
    limits = records.pop(LIMITS, None)
    return {
        "benchmark": "all",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "quick": suite.quick,
        "limits": limits,
        "stages": records,
        "failed": failed,
        "machine": machine_info(),
    }


def one_stage(words: Sequence[str]) -> str | None:
    """Run a stage's command; return why it failed, or None."""
    done = subprocess.run(  # noqa: S603 (our own command)
        [sys.executable, "-m", "slicemill", "bench", *words], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"ended with exit status {done.returncode}"


def file_name(record: Mapping[str, Any]) -> str:
    """Return the name that a record is kept under: when, what, where.

    >>> file_name({"date": "2026-11-21T20:05:01+00:00", "machine": {"commit": "10a5fa4b", "cores": 2, "gpu": []}})
    '2026-11-21T2005-10a5fa4b-2cores.json'
    """
    machine = record["machine"]
    when = record["date"][:16].replace(":", "")
    cards = f"-{len(machine['gpu'])}gpu" if machine["gpu"] else ""
    return f"{when}-{machine['commit'] or 'installed'}-{machine['cores']}cores{cards}.json"
