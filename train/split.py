"""Who is trained on, who chooses the checkpoint, who is never seen: by patient, with a fixed seed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from store.errors import ConfigError, StoreError
from store.files import write_json

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Case ids of the three parts; no patient is in two of them."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def make_split(manifest: Sequence[Row], *, validation: float, test: float, seed: int) -> Split:
    """Share the patients with masks out, those with and those without tumor each in the same proportion.

    Cases of equal source bytes count as one patient, so that a copy under another name cannot leak.

    Raises
    ------
    StoreError
        Fewer than three patients have a mask.
    """
    cases: dict[str, list[Row]] = {}
    owner: dict[str, str] = {}
    for row in manifest:
        if row["mask_path"] is not None:
            patient = owner.setdefault(row["source_sha256"], row["patient_id"])
            cases.setdefault(patient, []).append(row)
    if len(cases) < 3:
        raise StoreError(
            f"training needs at least 3 patients with a mask (train, validation, test); the store has {len(cases)}."
        )
    rng = np.random.default_rng(seed)
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    patients = sorted(cases)
    order = [patients[index] for index in rng.permutation(len(patients))]
    order.sort(key=lambda patient: not any(row["has_tumor"] for row in cases[patient]))
    wanted = {"test": test, "validation": validation, "train": 1 - test - validation}
    counts = dict.fromkeys(wanted, 0)
    for place, patient in enumerate(order, start=1):
        part = max((name for name in wanted if wanted[name] > 0), key=lambda name: wanted[name] * place - counts[name])
        counts[part] += 1
        parts[part] += [row["case_id"] for row in cases[patient]]
    if not parts["validation"]:
        parts["validation"].append(parts["train"].pop())
    return Split(**{name: tuple(sorted(ids)) for name, ids in parts.items()})


def write_split(path: Path, split: Split) -> None:
    """Write a split as JSON: three lists of case ids."""
    write_json(path, {"train": split.train, "validation": split.validation, "test": split.test})


def read_split(path: Path, known: Sequence[str]) -> Split:
    """Read a split and check it against the case ids of the store.

    Raises
    ------
    ConfigError
        It cannot be read, names an unknown case, or a case stands in two parts.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        split = Split(
            train=tuple(document["train"]),
            validation=tuple(document["validation"]),
            test=tuple(document.get("test", ())),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: must hold a JSON object with the lists train, validation and test ({error})."
        ) from error
    ids = [*split.train, *split.validation, *split.test]
    unknown = sorted(set(ids) - set(known))
    if unknown:
        raise ConfigError(f"{path}: names cases that the store does not have: {', '.join(unknown[:5])}.")
    if len(set(ids)) != len(ids):
        raise ConfigError(f"{path}: a case stands in two parts; every case may stand in one.")
    return split
