"""Post-processing chosen on cases with references: the rules with the best mean Dice, written into a model's files.

1. Every case goes through the network once.
2. Rules on the organ (largest component, holes) are tried in all combinations; the best mean Dice of organ with tumors wins.
3. Under each of them, and each reach of tumors from the organ, the lesions of a case are counted once: voxels, how many of them are
   right, mean probability. What a least volume and a least probability leave of the tumor's Dice follows from these rows alone.

Of settings about as good (SAME), the organ's rules stay what they were, and of the others those win that change least: cases are few, and
what helps only a little may be chance.
Choose on the cases that chose the checkpoint, never on those of a test.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infer.canvas import Segmented
from infer.inputs import Job, load
from infer.model import BYTES_SUFFIX, Model, open_model
from infer.postprocess import Rules, postprocess
from infer.single import segment_volume
from store.errors import ConfigError, ModelError
from store.files import read_json, to_json, written_whole
from store.geometry import Grid, voxel_ml
from store.labels import Labels
from store.metrics import Overlap, mean_of, overlap
from store.reader import Store
from store.runs import connected, places, runs_of, values_in

Floats = npt.NDArray[np.float64]
Label = npt.NDArray[np.uint8]

REACHES_MM = (None, 10.0, 0.0)
LEAST_ML = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LEAST_PROBABILITY = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Settings that are tried, in the order of how much they change."""
SAME = 0.002
"""Means of Dice no farther apart count as equal."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The lesions that are predicted in a case."""

    reference: int
    """Voxels of tumor in the reference."""
    ml: float
    """Of a voxel."""
    voxels: Floats
    hits: Floats
    """Voxels of each lesion that are tumor in the reference."""
    probability: Floats
    """Mean probability of tumor of each lesion; 1 where the model gives none."""

    def dice(self, least_ml: float, least_probability: float) -> float:
        """Return the Dice of what is left without lesions that are smaller, or less sure; NaN where neither mask has tumor.

        >>> two = Found(reference=10, ml=1.0, voxels=np.array([9.0, 2.0]), hits=np.array([9.0, 0.0]), probability=np.ones(2))
        >>> round(two.dice(0, 0), 3), round(two.dice(5, 0), 3)
        (0.857, 0.947)
        """
        kept = (self.voxels * self.ml >= least_ml) & (self.probability >= least_probability)
        hits, predicted = int(self.hits[kept].sum()), int(self.voxels[kept].sum())
        return Overlap(hits, predicted - hits, self.reference - hits).dice


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Rules with what they come to on the cases, mean Dice."""

    rules: Rules
    organ: float
    """Of organ with tumors; NaN without an organ."""
    tumor: float


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was chosen, beside what the model asked for before."""

    before: Choice
    chosen: Choice
    cases: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as it stands in the metadata, key ``tuned``."""
        rows = {
            name: {"organ_dice": _rounded(one.organ), "tumor_dice": _rounded(one.tumor)}
            for name, one in (("before", self.before), ("chosen", self.chosen))
        }
        return {"cases": len(self.cases), **rows}


def _rounded(value: float) -> float | None:
    return None if isnan(value) else round(value, 4)


def cases_of(store: Store, split: Path | None) -> tuple[str, ...]:
    """Return the cases to choose on: the validation part of a split file, or all cases of the store that have a mask.

    Raises
    ------
    ConfigError
        There are none, or the split names cases that the store does not have.
    """
    if split is None:
        cases = [case.info.case_id for case in store if case.label is not None]
    else:
        named = read_json(split).get("validation")
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise ConfigError(f"{split}: has no list of cases under validation; take the split.json of a training run.")
        if unknown := sorted(set(named) - set(store.case_ids)):
            raise ConfigError(
                f"{split}: names {unknown[0]}, which {store.root} does not have; take the store it was made for."
            )
        cases = [name for name in named if store[name].label is not None]
    if not cases:
        raise ConfigError(
            f"{split or store.root}: names no case with a reference segmentation; nothing can be chosen on it."
        )
    return tuple(cases)


def tune(model: Model, store: Store, cases: Sequence[str], advance: Callable[[str], None] = lambda _: None) -> Tuned:
    """Choose the rules of a model on cases of a store.

    Raises
    ------
    ConfigError
        The store means something else by a label value than the model.
    """
    labels = model.info.labels
    organs = list(product((False, True), (False, True))) if labels.organ else [(False, False)]
    reaches = REACHES_MM if labels.organ and labels.tumor else REACHES_MM[:1]
    ways = [Rules(largest_organ=a, fill_holes=b, tumor_reach_mm=mm) for (a, b), mm in product(organs, reaches)]
    before = replace(model.info.rules, min_lesion_ml=0.0, min_lesion_probability=0.0)
    ways.sort(key=lambda way: differing(way, before))
    ways += [] if before in ways else [before]
    organ_dice: dict[Rules, list[float]] = {way: [] for way in ways}
    lesions: dict[Rules, list[Found]] = {way: [] for way in ways}
    for case_id in cases:
        case = store[case_id]
        if case.label is None or case.info.labels is None or case.info.labels.values != labels.values:
            raise ConfigError(
                f"{store.root}: {case_id} has other labels than {model.info.name}; choose on cases labelled alike."
            )
        reference = case.label[:]
        loaded = load(Job(name=case_id, path=store.root, case_id=case_id))
        grid, segmented = loaded.grid, segment_volume(model, loaded.volume, loaded.grid.spacing_mm)
        for way in ways:
            label = segmented.label.copy()
            postprocess(label, labels, way, grid)
            organ_dice[way].append(organ_of(label, reference, labels))
            lesions[way].append(found_in(replace(segmented, label=label), reference, labels, grid))
        advance(case_id)

    def scored(way: Rules, least_ml: float, least: float) -> Choice:
        return Choice(
            rules=replace(way, min_lesion_ml=least_ml, min_lesion_probability=least),
            organ=mean_of(organ_dice[way]),
            tumor=mean_of([one.dice(least_ml, least) for one in lesions[way]]),
        )

    was = model.info.rules
    start = scored(before, was.min_lesion_ml, was.min_lesion_probability)
    best_organ = best([scored(way, 0.0, 0.0) for way in ways if way.tumor_reach_mm is None], lambda one: one.organ)
    same = [
        way
        for way in ways
        if (way.largest_organ, way.fill_holes) == (best_organ.rules.largest_organ, best_organ.rules.fill_holes)
    ]
    sure = LEAST_PROBABILITY if model.info.gives_tumor or model.info.gives_probability else LEAST_PROBABILITY[:1]
    chosen = best([scored(*tried) for tried in product(same, LEAST_ML, sure)], lambda one: one.tumor)
    return Tuned(before=start, chosen=chosen, cases=tuple(cases))


def differing(rules: Rules, before: Rules) -> int:
    """Return how many rules on the organ are others than before."""
    return (rules.largest_organ != before.largest_organ) + (rules.fill_holes != before.fill_holes)


def best(choices: Sequence[Choice], score: Callable[[Choice], float]) -> Choice:
    """Return the first of those that are about as good as the best; the first of all where there are no scores."""
    highest = max((score(one) for one in choices if not isnan(score(one))), default=float("nan"))
    return next((one for one in choices if score(one) >= highest - SAME), choices[0])


def organ_of(label: Label, reference: Label, labels: Labels) -> float:
    """Return the Dice of the organ with its tumors; NaN where no organ is named or both are empty."""
    values = labels.organ_values() if labels.organ else []
    return overlap(values_in(reference, values), values_in(label, values)).dice if values else float("nan")


def found_in(segmented: Segmented, reference: Label, labels: Labels, grid: Grid) -> Found:
    """Count the lesions of a case's labels, uint8[z, y, x], against its reference."""
    tumor = labels.tumor_value()
    if tumor is None:
        none = np.zeros(0)
        return Found(reference=0, ml=1.0, voxels=none, hits=none, probability=none)
    runs = runs_of(segmented.label, [tumor])
    numbers, count = connected(runs)
    sums = np.zeros((2, count))
    for part, where in places(runs):
        owners = np.repeat(numbers[part], runs[part].voxels)
        sums[0] += np.bincount(owners, weights=reference[where] == tumor, minlength=count)
        if segmented.tumor_probability is not None:
            sums[1] += np.bincount(owners, weights=segmented.tumor_probability[where], minlength=count)
    voxels = np.bincount(numbers, weights=runs.voxels, minlength=count).astype(np.float64)
    sure = np.ones(count) if segmented.tumor_probability is None else sums[1] / 255 / np.maximum(voxels, 1)
    return Found(
        reference=int(np.count_nonzero(reference == tumor)),
        ml=voxel_ml(grid.affine_lps),
        voxels=voxels,
        hits=sums[0],
        probability=sure,
    )


def flavors_beside(path: Path) -> list[Path]:
    """Return a model's files: the one named, and its other flavors of the same training beside it.

    Raises
    ------
    ModelError
        A file that has the name of a flavor is no model.
    """
    stem = path.name.removesuffix(".onnx").removesuffix(".fp16").removesuffix(".bytes")
    named = [path.with_name(stem + suffix) for suffix in (".onnx", ".fp16.onnx", BYTES_SUFFIX)]
    training = open_model(path, "cpu").info.metadata.get("training")
    others = [one for one in named if one != path and one.exists()]
    return [path, *(one for one in others if open_model(one, "cpu").info.metadata.get("training") == training)]


def write_rules(path: Path, tuned: Tuned) -> None:
    """Put the chosen rules into a model file, whole or not at all.

    Raises
    ------
    ModelError
        The package onnx is missing, or the file is a network of others, whose rules stand in its TOML.
    """
    try:
        import onnx
    except ImportError:
        raise ModelError(f"{path}: writing into a model file takes the package onnx: pip install onnx.") from None
    model = onnx.load(path)
    entry = next((entry for entry in model.metadata_props if entry.key == "slicemill"), None)
    if entry is None:
        raise ModelError(
            f"{path}: carries no slicemill metadata; write postprocess = {tuned.chosen.rules.as_json()} into its TOML."
        )
    said = json.loads(entry.value)
    entry.value = to_json({**said, "postprocess": tuned.chosen.rules.as_json(), "tuned": tuned.as_json()})
    with written_whole(path) as aside:
        onnx.save(model, aside)
