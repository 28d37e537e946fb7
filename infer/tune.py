"""Post-processing chosen on cases with references: the rules with the best mean Dice, written into a model's files.

1. Every case goes through the network once.
2. Under all combinations of the rules on the organ and of the reach of tumors, a case's organ is compared, and its lesions are counted:
   voxels, how many of them are right, probability. What a least volume and a least probability leave of the tumor's Dice follows from
   these rows alone.
3. All settings are scored by the mean Dice of organ and of tumor, added up; those that the model asks for now are among them.

Of settings about as good (SAME) the one with the fewest rules changed wins: cases are few, and what helps only a little may be chance.
Where no case has tumor, the rules on tumors stay: what removes every false alarm would always win. Choose on the cases that chose the
checkpoint, never on those of a test.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ConfigError, ModelError
from slicemill.common.files import atomic_write, to_json
from slicemill.ct.geometry import Grid, voxel_ml
from slicemill.ct.labels import Labels
from slicemill.ct.overlap import Overlap, mean_of, overlap
from slicemill.ct.runs import connected, runs_of, values_in, voxel_coordinates
from slicemill.infer.inputs.jobs import Job, load
from slicemill.infer.network.foreign import card_beside
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.postprocess import postprocess
from slicemill.infer.single import segment_volume
from slicemill.infer.slices.assembly import Segmented
from slicemill.store.model_card import BYTES_SUFFIX, PostprocessRules, network_name
from slicemill.store.model_card import SHARED_KEYS as SAID_ALIKE
from slicemill.store.reader import Store
from slicemill.store.split import read_split

Floats = npt.NDArray[np.float64]
Label = npt.NDArray[np.uint8]

REACHES_MM = (None, 10.0, 0.0)
LEAST_ML = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LEAST_PROBABILITY = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Settings that are tried, the weakest first."""
SHARED_KEYS = 0.002
"""Sums of mean Dice no farther apart count as equal."""


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
    sure: Floats
    """Sum of 255 times the probability of tumor over each lesion; that of certainty where the model gives none."""

    def dice(self, least_ml: float, least_probability: float) -> float:
        """Return the Dice of what is left without lesions that are smaller, or less sure; NaN where neither mask has tumor.

        >>> two = Found(reference=10, ml=1.0, voxels=np.array([9.0, 2.0]), hits=np.array([9.0, 0.0]), sure=np.array([2295.0, 510.0]))
        >>> round(two.dice(0, 0), 3), round(two.dice(5, 0), 3)
        (0.857, 0.947)
        """
        kept = (self.voxels >= least_ml / self.ml) & (self.sure >= least_probability * 255 * self.voxels)
        hits, predicted = int(self.hits[kept].sum()), int(self.voxels[kept].sum())
        return Overlap(hits, predicted - hits, self.reference - hits).dice


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Rules with what they come to on the cases, mean Dice."""

    rules: PostprocessRules
    organ: float
    """Of organ with tumors; NaN without an organ."""
    tumor: float

    @property
    def score(self) -> float:
        """Return the sum of both, without what is NaN."""
        return sum(dice for dice in (self.organ, self.tumor) if not isnan(dice))


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
        There are none, or the split cannot be read or names cases that the store does not have.
    """
    if split is None:
        cases = [case.info.case_id for case in store if case.label is not None]
    else:
        named = read_split(split, store.case_ids).validation
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
    info = model.info
    ways = list(ways_of(info.labels, info.rules))
    counted = [dict(zip(ways, count_case(model, store, case_id, ways, advance), strict=True)) for case_id in cases]

    def choice(rules: PostprocessRules) -> Choice:
        seen = [case[bare(rules)] for case in counted]
        dice = [found.dice(rules.min_lesion_ml, rules.min_lesion_probability) for _, found in seen]
        return Choice(rules=rules, organ=mean_of([organ for organ, _ in seen]), tumor=mean_of(dice))

    has_tumor = any(found.reference for case in counted for _, found in case.values())
    tried = settings(ways, info.rules, sure=info.gives_tumor or info.gives_probability, tumors=has_tumor)
    return Tuned(
        before=choice(info.rules), chosen=best([choice(rules) for rules in tried], info.rules), cases=tuple(cases)
    )


def bare(rules: PostprocessRules) -> PostprocessRules:
    """Return rules without those that the rows of lesions answer."""
    return replace(rules, min_lesion_ml=0.0, min_lesion_probability=0.0)


def ways_of(labels: Labels, now: PostprocessRules) -> Iterator[PostprocessRules]:
    """Yield all combinations of the rules on the organ and of the reach of tumors, without those on lesions."""
    flags = (False, True) if labels.organ else (now.largest_organ,)
    holes = (False, True) if labels.organ else (now.fill_holes,)
    reaches = with_own(REACHES_MM, now.tumor_reach_mm) if labels.organ and labels.tumor else (now.tumor_reach_mm,)
    for largest, fill, reach in product(flags, holes, reaches):
        yield PostprocessRules(largest_organ=largest, fill_holes=fill, tumor_reach_mm=reach)


def with_own(grid: tuple[Any, ...], own: object) -> tuple[Any, ...]:
    """Return what is tried, and what the model asks for now."""
    return grid if own in grid else (*grid, own)


def settings(
    ways: Sequence[PostprocessRules], now: PostprocessRules, *, sure: bool, tumors: bool
) -> Iterator[PostprocessRules]:
    """Yield all rules to try, the weakest first; `sure` where there are probabilities, `tumors` where a case has any."""
    volumes = with_own(LEAST_ML, now.min_lesion_ml) if tumors else (now.min_lesion_ml,)
    least = (
        with_own(LEAST_PROBABILITY, now.min_lesion_probability) if tumors and sure else (now.min_lesion_probability,)
    )
    for way, ml, probability in product(ways, volumes, least):
        if tumors or way.tumor_reach_mm == now.tumor_reach_mm:
            yield replace(way, min_lesion_ml=ml, min_lesion_probability=probability)


def best(choices: Sequence[Choice], now: PostprocessRules) -> Choice:
    """Return, of the choices about as good as the best, the one with the fewest rules changed; of equals the first."""
    highest = max(one.score for one in choices)
    return min((one for one in choices if one.score >= highest - SHARED_KEYS), key=lambda one: changed(one.rules, now))


def changed(rules: PostprocessRules, now: PostprocessRules) -> int:
    """Return how many rules are others."""
    return sum(value != getattr(now, name) for name, value in asdict(rules).items())


def count_case(
    model: Model, store: Store, case_id: str, ways: Sequence[PostprocessRules], advance: Callable[[str], None]
) -> list[tuple[float, Found]]:
    """Send a case through the network and return, for each way, the Dice of the organ and the lesions that are left.

    Raises
    ------
    ConfigError
        The store means something else by a label value than the model.
    """
    case, labels = store[case_id], model.info.labels
    if case.label is None or case.info.labels is None or case.info.labels.values != labels.values:
        raise ConfigError(
            f"{store.root}: {case_id} has other labels than {model.info.name}; choose on cases labelled alike."
        )
    reference = case.label[:]
    loaded = load(Job(name=case_id, path=store.root, case_id=case_id))
    segmented = segment_volume(model, loaded.volume, loaded.grid.spacing_mm)
    seen = []
    for way in ways:
        label = segmented.label.copy()
        postprocess(label, labels, way, loaded.grid)
        found = found_in(replace(segmented, label=label), reference, labels, loaded.grid)
        seen.append((organ_dice(label, reference, labels), found))
    advance(case_id)
    return seen


def organ_dice(label: Label, reference: Label, labels: Labels) -> float:
    """Return the Dice of the organ with its tumors; NaN where no organ is named or both are empty."""
    values = labels.organ_values() if labels.organ else []
    return overlap(values_in(reference, values), values_in(label, values)).dice if values else nan


def found_in(segmented: Segmented, reference: Label, labels: Labels, grid: Grid) -> Found:
    """Count the lesions of a case's labels, uint8[z, y, x], against its reference."""
    tumor, probability = labels.tumor_value(), segmented.tumor_probability
    if tumor is None:
        none = np.zeros(0)
        return Found(reference=0, ml=1.0, voxels=none, hits=none, sure=none)
    runs = runs_of(segmented.label, [tumor])
    numbers, count = connected(runs)
    voxels = np.bincount(numbers, weights=runs.voxels, minlength=count).astype(np.float64)
    hits, sure = np.zeros(count), 255 * voxels if probability is None else np.zeros(count)
    for part, where in voxel_coordinates(runs):
        owners = np.repeat(numbers[part], runs[part].voxels)
        hits += np.bincount(owners, weights=reference[where] == tumor, minlength=count)
        if probability is not None:
            sure += np.bincount(owners, weights=probability[where], minlength=count)
    return Found(
        reference=int(np.count_nonzero(reference == tumor)),
        ml=voxel_ml(grid.affine_lps),
        voxels=voxels,
        hits=hits,
        sure=sure,
    )


def check_writable(path: Path) -> None:
    """Check, before anything is computed, that rules can be written into a model file.

    Raises
    ------
    ModelError
        The package onnx is missing, or it is a network of others, whose rules stand in its TOML.
    """
    if card_beside(path) is not None:
        raise ModelError(
            f"{path}: is a network of others; its rules stand in {path.with_suffix('.toml').name}. --dry-run shows what to write there."
        )
    try:
        import onnx  # noqa: F401 (it is asked for only here and in `write_rules`)
    except ImportError:
        raise ModelError(f"{path}: writing into a model file takes the package onnx: pip install onnx.") from None


def as_toml(rules: PostprocessRules) -> str:
    """Return rules as a line for the TOML of a network of others.

    >>> as_toml(PostprocessRules(largest_organ=True, min_lesion_ml=0.5))
    'postprocess = {largest_organ = true, fill_holes = false, min_lesion_ml = 0.5, min_lesion_probability = 0.0}'
    """
    fields = [f"{name} = {json.dumps(value)}" for name, value in rules.as_json().items() if value is not None]
    return f"postprocess = {{{', '.join(fields)}}}"


def flavors_beside(path: Path) -> list[Path]:
    """Return a model's files: the one named, and its other flavors of the same training beside it.

    Raises
    ------
    ModelError
        A file that has the name of a flavor is no model.
    """
    named = [path.with_name(network_name(path) + suffix) for suffix in (".onnx", ".fp16.onnx", BYTES_SUFFIX)]
    given = said_by(path)
    others = [one for one in named if one != path and one.exists() and given is not None]
    return [path, *(one for one in others if said_by(one) == given)]


def said_by(path: Path) -> dict[str, Any] | None:
    """Return what flavors of one training say alike; None of a model that says nothing of its training."""
    metadata = open_model(path, "cpu").info.metadata
    if metadata.get("training") is None:
        return None
    return {name: metadata.get(name) for name in SAID_ALIKE if name != "postprocess"}


def write_rules(paths: Sequence[Path], tuned: Tuned) -> None:
    """Put the chosen rules into model files of ours, each whole, and none before all are prepared."""
    import onnx

    with ExitStack() as shown_together:
        for path in paths:
            model = onnx.load(path, load_external_data=False)
            (entry,) = (entry for entry in model.metadata_props if entry.key == "slicemill")
            said = json.loads(entry.value)
            entry.value = to_json({**said, "postprocess": tuned.chosen.rules.as_json(), "tuned": tuned.as_json()})
            onnx.save(model, shown_together.enter_context(atomic_write(path.resolve())))
