"""On what a run was trained: ``environment.json``, an entry for each time that it was started."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from slicemill.common.files import read_json, write_json
from slicemill.common.machine import machine_info
from slicemill.train.run.setup import ENVIRONMENT, MODEL, Setup

Facts = dict[str, Any]


def note_start(run: Path, setup: Setup, epoch: int) -> None:
    """Write down that training begins here and now after `epoch` epochs, and what has changed since the last start."""
    facts = environment(run, setup)
    path = run / ENVIRONMENT
    earlier = read_json(path) if path.exists() else {}
    start = {
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "after_epoch": epoch,
        "changed": changes(earlier.get("environment", facts), facts),
    }
    write_json(path, {"environment": facts, "starts": [*earlier.get("starts", []), start]})


def environment(run: Path, setup: Setup) -> Facts:
    """Return machine, versions, device, precision and store; nothing that names the machine or a person."""
    model = read_json(run / MODEL)
    cuda = setup.device.type == "cuda"
    return {
        **machine_info(),
        "device": torch.cuda.get_device_name(setup.device) if cuda else setup.device.type,
        "cuda": torch.version.cuda if cuda else None,
        "precision": precision(setup),
        "threads": torch.get_num_threads(),
        "store": model["store"],
        "store_sha256": model["store_sha256"],
    }


def precision(setup: Setup) -> str:
    """Return what the network is computed in; cuDNN rounds the factors of fp32 convolutions to TF32 unless told otherwise."""
    if setup.precision != torch.float32:
        return f"{str(setup.precision).removeprefix('torch.')}, mixed"
    return "fp32, TF32 in convolutions" if setup.device.type == "cuda" and torch.backends.cudnn.allow_tf32 else "fp32"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what differs, as name -> [before, now]; what lies within a table has its name before a dot.

    >>> changes({"cores": 2, "versions": {"torch": "2.6"}}, {"cores": 2, "versions": {"torch": "2.7"}})
    {'versions.torch': ['2.6', '2.7']}
    """
    old, new = _flat(before), _flat(now)
    return {name: [old.get(name), new.get(name)] for name in {**old, **new} if old.get(name) != new.get(name)}


def _flat(facts: Mapping[str, Any]) -> Facts:
    flat: Facts = {}
    for name, value in facts.items():
        flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return flat
