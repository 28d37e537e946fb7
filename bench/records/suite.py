"""`bench all`: run the benchmark of every stage, one after the other, into one record.

Each stage runs as its own process, so that stages do not share threads or memory. A stage that fails is
recorded with its reason, and the rest goes on.
"""

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicemill.bench.command import slicemill_command
from slicemill.bench.harness.catalog import STAGES
from slicemill.bench.records.markdown import format_processor, format_ratio, table_text
from slicemill.bench.schema.base import Document, Headline, MachineLimit, origin, read_record
from slicemill.bench.schema.suite import Stage, SuiteRecord
from slicemill.common.files import read_json
from slicemill.common.progress import progress

LIMITS = "limits"


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """Options of `bench all`."""

    quick: bool = False
    data: Path | None = None
    """A collection to take one scan from; None makes a phantom."""
    only: tuple[str, ...] = ()
    """Names of stages; empty runs all."""
    cold: bool = False
    """Whether to drop the page cache before every run, where a stage can."""
    environments: Path = Path("peers")
    """Folder of the peers' environments, which are created once."""

    def commands(self) -> dict[str, list[str]]:
        """Return the words of each stage's command after `slicemill bench`."""
        quick = ["--quick"] if self.quick else []
        commands = {LIMITS: [LIMITS, *quick]}
        for name, stage in STAGES.items():
            commands[name] = [*(stage.command or (name,)), *quick]
            if self.data is not None and stage.takes_data:
                commands[name] += ["--data", str(self.data)]
            if stage.takes_environments:
                commands[name] += ["--environments", str(self.environments.resolve())]
            if self.cold and stage.takes_cold:
                commands[name] += ["--cold"]
        return {name: words for name, words in commands.items() if not self.only or name in (LIMITS, *self.only)}


def run_suite(options: SuiteOptions) -> dict[str, Any]:
    """Run the benchmarks and return their records under ``stages``; reasons of failures are under ``failed``."""
    records: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    commands = options.commands()
    with tempfile.TemporaryDirectory() as folder, progress("bench", len(commands), "stages") as advance:
        for name, words in commands.items():
            advance(0, name)
            path = Path(folder) / f"{name}.json"
            reason = run_stage([*words, "--json", str(path)])
            if reason is None:
                records[name] = read_json(path)
            else:
                failed[name] = reason
            advance(1, name)
    limits = records.pop(LIMITS, None)
    results = {"quick": options.quick, "limits": limits, "stages": records, "failed": failed}
    return {"benchmark": "all", **results, **origin()}


def run_stage(words: Sequence[str]) -> str | None:
    """Run a stage's command; return the reason if it failed, or None."""
    command = slicemill_command("bench", *words)
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (a slicemill command)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"ended with exit status {done.returncode}"


def record_name(record: Document) -> str:
    """Return the file name of a record: date, commit, and number of cores and GPUs.

    >>> record_name({"date": "2026-11-21T20:05:01+00:00", "machine": {"commit": "10a5fa4b", "cores": 2, "gpu": []}})
    '2026-11-21T2005-10a5fa4b-2cores.json'
    """
    machine = record["machine"]
    when = record["date"][:16].replace(":", "")
    gpus = f"-{len(machine['gpu'])}gpu" if machine["gpu"] else ""
    return f"{when}-{machine['commit'] or 'installed'}-{machine['cores']}cores{gpus}.json"


def all_table(document: Document) -> str:
    """Format every stage with its limit and its peers as Markdown."""
    record = read_record(SuiteRecord, document)
    limits = record.machine_limits
    rows = [row for name, stage in record.stages.items() for row in _stage_rows(name, stage)]
    rows += [(name, f"failed: {reason}", "-", "-", "-") for name, reason in record.failed.items()]
    shares = {
        name: (stage.headline, share_of_convolution(stage.headline, limits)) for name, stage in record.stages.items()
    }
    peaks = [
        f"{name} {share:.2f} of the measured convolution in {headline.arithmetic}"
        for name, (headline, share) in shares.items()
        if share is not None
    ]
    measured = ", ".join(f"{name} {row.most:,.1f} {row.unit}" for name, row in limits.items())
    note = (
        f"{'Quick run. ' if record.quick else ''}Arithmetic reached: {', '.join(peaks) or 'not known'}. "
        f"Limits of the machine: {measured or 'not measured'}; on {format_processor(record.machine)}."
    )
    header = ["stage", "a second", "limit", "of the limit", "times as fast as"]
    return table_text(header, rows, note)


def _stage_rows(name: str, stage: Stage) -> list[tuple[str, ...]]:
    """Return the row of a stage, and one for each peer that did not run."""
    headline, limit = stage.headline, stage.headline.limit
    peers = ", ".join(f"{peer} {row.times:.1f}" for peer, row in headline.peers.items())
    rate = f"{headline.per_second:,.4g} {stage.unit_name}{' of one core' if stage.is_cpu_time else ''}"
    missing = [(f"{name}: {peer}", f"not run: {reason}", "-", "-", "-") for peer, reason in stage.not_run.items()]
    return [(name, rate, limit.name, format_ratio(limit.fraction), peers or "-"), *missing]


def share_of_convolution(headline: Headline, limits: Mapping[str, MachineLimit]) -> float | None:
    """Return a stage's arithmetic over that of the bare convolution of `bench limits`; None if either is not known."""
    limit = limits.get(f"convolution, {headline.arithmetic}")
    return None if limit is None or headline.gflop is None else headline.per_second * headline.gflop / limit.most
