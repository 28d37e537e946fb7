"""The environment of a run: ``environment.json``, with an entry for each start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from slicemill.common.documents import read_document, to_document
from slicemill.common.files import write_json
from slicemill.common.machine import machine_info
from slicemill.train.run.setup import ENVIRONMENT, Setup, read_run_model

Facts = Mapping[str, Any]
"""Name -> value: machine, versions, device, precision and store. A value may be a table, like the versions."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a run."""

    utc: str
    """Time in UTC, ISO 8601."""
    after_epoch: int
    """Number of epochs completed before."""
    changed: dict[str, tuple[Any, Any]]
    """Changes since the start before: name -> (before, now)."""


@dataclass(frozen=True, kw_only=True)
class RunEnvironment:
    """The content of ``environment.json``."""

    environment: Facts = field(default_factory=dict)
    """The environment of the last start."""
    starts: Sequence[Start] = ()
    """Every start, the first one first."""


def record_start(run: Path, setup: Setup, epoch: int) -> None:
    """Record that training starts after `epoch` epochs, and the changes since the last start."""
    facts = collect_facts(run, setup)
    earlier = read_environment(run)
    start = Start(
        utc=datetime.now(UTC).isoformat(timespec="seconds"),
        after_epoch=epoch,
        changed=find_changes(earlier.environment or facts, facts),
    )
    now = RunEnvironment(environment=facts, starts=[*earlier.starts, start])
    write_json(run / ENVIRONMENT, to_document(now))


def read_environment(run: Path) -> RunEnvironment:
    """Read the environment of a run; an empty one before its first start."""
    path = run / ENVIRONMENT
    return read_document(RunEnvironment, path) if path.exists() else RunEnvironment()


def collect_facts(run: Path, setup: Setup) -> Facts:
    """Return machine, versions, device, precision and store; nothing that identifies the machine or a person."""
    model = read_run_model(run)
    cuda = setup.device.type == "cuda"
    return {
        **machine_info(),
        "device": torch.cuda.get_device_name(setup.device) if cuda else setup.device.type,
        "cuda": torch.version.cuda if cuda else None,
        "precision": describe_precision(setup),
        "threads": torch.get_num_threads(),
        "store": model.store,
        "store_sha256": model.store_sha256,
    }


def describe_precision(setup: Setup) -> str:
    """Return the precision of the network. By default, cuDNN rounds the factors of fp32 convolutions to TF32."""
    if setup.precision != torch.float32:
        return f"{str(setup.precision).removeprefix('torch.')}, mixed"
    return "fp32, TF32 in convolutions" if setup.device.type == "cuda" and torch.backends.cudnn.allow_tf32 else "fp32"


def find_changes(before: Facts, now: Facts) -> dict[str, tuple[Any, Any]]:
    """Return the differences, as name -> (before, now); names of values in a table have a dot.

    >>> find_changes({"cores": 2, "versions": {"torch": "2.6"}}, {"cores": 2, "versions": {"torch": "2.7"}})
    {'versions.torch': ('2.6', '2.7')}
    """
    old, new = _flatten(before), _flatten(now)
    return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}


def _flatten(facts: Facts) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return flat
