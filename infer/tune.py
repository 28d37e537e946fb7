"""Post-processing chosen on cases with references: the rules with the best mean Dice, written into a model's files.

1. The network labels each case once.
2. For each combination of organ rules and tumor reach, compute the organ Dice and tabulate the lesions: hits, and what
   rules know of them. Thresholds of lesions are then evaluated from that table alone.
3. Each setting is scored by the sum of the mean Dice of organ and tumor. The model's current rules are among the
   settings.
4. With the best organ rules, a rule about lesions is fitted (`slicemill.infer.fitted_rule`). It replaces the thresholds
   if its Dice on cases that it was not fitted to is better than theirs by a margin.

Of settings with about the same score (`EQUAL_SCORE`), the one that changes the fewest rules wins: cases are few, and a
small gain may be chance. If no case has tumor, the tumor rules stay unchanged: rules that remove every false alarm
would always win. Tune on the validation cases that selected the checkpoint, never on test cases.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from itertools import product
from math import isnan, nan
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from slicemill.common.documents import to_document
from slicemill.common.errors import ConfigError, ModelError
from slicemill.common.extras import describe_install, explain_import
from slicemill.common.files import atomic_write, to_json
from slicemill.ct.geometry import Grid
from slicemill.ct.labels import Labels
from slicemill.ct.overlap import count_overlap, mean_without_nan
from slicemill.ct.runs import connect_runs, find_runs, select_values, voxel_coordinates
from slicemill.infer.fitted_rule import LEAST_GAIN, LesionTable, fit_lesion_rule
from slicemill.infer.inputs.jobs import Job, load_scan
from slicemill.infer.lesion_features import ScanVolumes, measure_lesions
from slicemill.infer.network.description import description_path
from slicemill.infer.network.model import Model, differing_keys, open_model
from slicemill.infer.postprocess import postprocess
from slicemill.infer.single import segment_volume
from slicemill.store.model_card import (
    METADATA_KEY,
    SUFFIXES,
    PostprocessRules,
    TuningScores,
    TuningSummary,
    network_name,
)
from slicemill.store.reader import Store
from slicemill.store.split import read_split

Floats = npt.NDArray[np.float64]
Label = npt.NDArray[np.uint8]
T = TypeVar("T")

REACHES_MM: tuple[float | None, ...] = (None, 10.0, 0.0)
LEAST_ML = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LEAST_PROBABILITY = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LEAST_PEAK = (0.0, 0.8, 0.9, 0.95)
"""Settings that are tried, the weakest first."""
EQUAL_SCORE = 0.002
"""Scores that differ by no more than this count as equal."""


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """A case under one combination of organ rules and tumor reach."""

    organ_dice: float
    """Dice of organ with tumors; NaN without an organ."""
    lesions: LesionTable


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Rules and their mean Dice over the cases."""

    rules: PostprocessRules
    organ: float
    """Mean Dice of organ with tumors; NaN without an organ."""
    tumor: float
    """Mean Dice of tumor; NaN without tumor."""

    @property
    def score(self) -> float:
        """Return the sum of both, ignoring NaN."""
        return sum(dice for dice in (self.organ, self.tumor) if not isnan(dice))

    def as_json(self) -> TuningScores:
        """Return the Dice values as plain JSON values; NaN becomes null."""
        organ, tumor = (None if isnan(dice) else round(dice, 4) for dice in (self.organ, self.tumor))
        return {"organ_dice": organ, "tumor_dice": tumor}


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The chosen rules, and the model's rules before."""

    before: Choice
    chosen: Choice
    cases: tuple[str, ...]
    fit: str = ""
    """What came of the fitted rule, in words; empty if no case has tumor."""

    def as_json(self) -> TuningSummary:
        """Return the metadata ``tuned``."""
        return {"cases": len(self.cases), "before": self.before.as_json(), "chosen": self.chosen.as_json()}


def choose_cases(store: Store, split: Path | None) -> tuple[str, ...]:
    """Return the cases to tune on: the validation part of a split file, or all cases of the store that have a mask.

    Raises
    ------
    ConfigError
        There is none, or the split cannot be read or names cases that the store does not have.
    """
    if split is None:
        cases = [case.info.case_id for case in store.values() if case.label is not None]
    else:
        named = read_split(split, store.case_ids).validation
        cases = [name for name in named if store[name].label is not None]
    if not cases:
        raise ConfigError(f"{split or store.root}: has no case with a reference segmentation, which tuning needs.")
    return tuple(cases)


def tune(model: Model, store: Store, cases: Sequence[str], advance: Callable[[str], None] = lambda _: None) -> Tuned:
    """Choose the rules of a model on cases of a store.

    Raises
    ------
    ConfigError
        The store and the model name the label values differently.
    """
    info = model.info
    combinations = list(organ_combinations(info.labels, info.rules))
    results = [
        dict(zip(combinations, evaluate_case(model, store, case_id, combinations, advance), strict=True))
        for case_id in cases
    ]

    def choice(rules: PostprocessRules) -> Choice:
        of_cases = [by_rules[without_thresholds(rules)] for by_rules in results]
        tumor = [one.lesions.dice_of(rules) for one in of_cases]
        return Choice(
            rules=rules, organ=mean_without_nan([one.organ_dice for one in of_cases]), tumor=mean_without_nan(tumor)
        )

    has_tumor = any(one.lesions.reference for by_rules in results for one in by_rules.values())
    tried = settings(
        combinations, info.rules, probability=info.gives_tumor or info.gives_probability, has_tumor=has_tumor
    )
    before = choice(info.rules)
    chosen = best([*(choice(rules) for rules in tried), before], info.rules)
    if not has_tumor:
        return Tuned(before=before, chosen=chosen, cases=tuple(cases))
    tables = [by_rules[without_thresholds(chosen.rules)].lesions for by_rules in results]
    chosen, note = try_fit(chosen, tables, [store[case_id].info.patient_id for case_id in cases])
    return Tuned(before=before, chosen=chosen, cases=tuple(cases), fit=note)


def try_fit(chosen: Choice, tables: Sequence[LesionTable], patients: Sequence[str]) -> tuple[Choice, str]:
    """Return a fitted rule in place of the thresholds if its Dice of tumor is better, and what came of it in words.

    An earlier fitted rule among the chosen rules stays, or is replaced, as thresholds are. `patients` names the patient
    of each table.
    """
    fit = fit_lesion_rule(tables, patients)
    earlier = chosen.rules.lesion_rule is not None
    unchanged = "fitted rule: the earlier rule is kept" if earlier else "fitted rule: none"
    if fit.rule is None:
        return chosen, f"{unchanged}, because {fit.reason}"
    if not fit.tumor > chosen.tumor + LEAST_GAIN:
        how = f"on cases that it was not fitted to is not {LEAST_GAIN:g} better"
        return chosen, f"{unchanged}, because {'a new' if earlier else 'its'} tumor Dice of {fit.tumor:.4f} {how}"
    rules = replace(without_thresholds(chosen.rules), lesion_rule=fit.rule)
    how = f"tumor Dice {fit.tumor:.4f} on cases that it was not fitted to, {chosen.tumor:.4f} with "
    how += "the earlier rule" if earlier else "thresholds"
    return Choice(rules=rules, organ=chosen.organ, tumor=fit.tumor), f"fitted rule: {how}"


def find_gaps(labels: Labels, scored: Choice) -> list[str]:
    """Return, for each Dice that could not be computed, what is missing, and which rules stay unchanged."""
    gaps = []
    if isnan(scored.organ):
        why = "the cases and the masks of the model have no organ" if labels.organ else "the model has no organ label"
        gaps.append(f"organ Dice: none, because {why}; the rules about the organ stay unchanged")
    if isnan(scored.tumor):
        why = "no case has tumor, and the model finds none" if labels.tumor else "the model has no tumor label"
        gaps.append(f"tumor Dice: none, because {why}; the rules about tumors stay unchanged")
    return gaps


def without_thresholds(rules: PostprocessRules) -> PostprocessRules:
    """Return rules without the thresholds of lesions, which `LesionTable` evaluates."""
    return replace(rules, min_lesion_ml=0.0, min_lesion_probability=0.0, min_lesion_peak=0.0, lesion_rule=None)


def organ_combinations(labels: Labels, current: PostprocessRules) -> Iterator[PostprocessRules]:
    """Yield all combinations of the organ rules and the tumor reach, without thresholds of lesions."""
    flags = (False, True) if labels.organ else (current.largest_organ,)
    holes = (False, True) if labels.organ else (current.fill_holes,)
    reaches = (
        add_current(REACHES_MM, current.tumor_reach_mm) if labels.organ and labels.tumor else (current.tumor_reach_mm,)
    )
    for largest, fill, reach in product(flags, holes, reaches):
        yield PostprocessRules(largest_organ=largest, fill_holes=fill, tumor_reach_mm=reach)


def add_current(values: tuple[T, ...], current: T) -> tuple[T, ...]:
    """Return the values to try, including the model's current one."""
    return values if current in values else (*values, current)


def settings(
    combinations: Sequence[PostprocessRules], current: PostprocessRules, *, probability: bool, has_tumor: bool
) -> Iterator[PostprocessRules]:
    """Yield all rules to try, the weakest first.

    Parameters
    ----------
    probability
        Whether the model outputs probabilities of tumor.
    has_tumor
        Whether any case has tumor; else the rules on tumors stay unchanged.
    """
    volumes = add_current(LEAST_ML, current.min_lesion_ml) if has_tumor else (current.min_lesion_ml,)
    means: tuple[float, ...] = (current.min_lesion_probability,)
    peaks: tuple[float, ...] = (current.min_lesion_peak,)
    if has_tumor and probability:
        means = add_current(LEAST_PROBABILITY, current.min_lesion_probability)
        peaks = add_current(LEAST_PEAK, current.min_lesion_peak)
    for rules, ml, mean, peak in product(combinations, volumes, means, peaks):
        if has_tumor or rules.tumor_reach_mm == current.tumor_reach_mm:
            yield replace(
                rules,
                min_lesion_ml=ml,
                min_lesion_probability=mean,
                min_lesion_peak=peak,
                lesion_rule=None if has_tumor else current.lesion_rule,
            )


def best(choices: Sequence[Choice], current: PostprocessRules) -> Choice:
    """Return, of the choices about as good as the best, the one that changes the fewest rules; of equals, the first."""
    highest = max(one.score for one in choices)
    return min(
        (one for one in choices if one.score >= highest - EQUAL_SCORE),
        key=lambda one: count_changes(one.rules, current),
    )


def count_changes(rules: PostprocessRules, current: PostprocessRules) -> int:
    """Return the number of rules that differ."""
    return sum(getattr(rules, one.name) != getattr(current, one.name) for one in fields(rules))


def evaluate_case(
    model: Model,
    store: Store,
    case_id: str,
    combinations: Sequence[PostprocessRules],
    advance: Callable[[str], None],
) -> list[CaseResult]:
    """Run the network on a case, and compare the result with its reference under each combination of rules.

    Raises
    ------
    ConfigError
        The store and the model name the label values differently.
    """
    case, labels = store[case_id], model.info.labels
    if case.label is None or case.info.labels is None or case.info.labels.values != labels.values:
        raise ConfigError(
            f"{store.root}: {case_id} has other labels than {model.info.name}; tune on cases with the labels of the "
            "model."
        )
    reference = case.label[:]
    loaded = load_scan(Job(name=case_id, path=store.root, case_id=case_id))
    segmentation = segment_volume(model, loaded.volume, loaded.grid.spacing_mm)
    results = []
    for rules in combinations:
        label = segmentation.label.copy()
        postprocess(label, labels, rules, loaded.grid)
        scan = ScanVolumes(label=label, probability=segmentation.tumor_probability, image=loaded.volume)
        lesions = tabulate_lesions(scan, reference, labels, loaded.grid)
        results.append(CaseResult(organ_dice=organ_dice(label, reference, labels), lesions=lesions))
    advance(case_id)
    return results


def organ_dice(label: Label, reference: Label, labels: Labels) -> float:
    """Return the Dice of the organ with its tumors; NaN if the model has no organ or both masks are empty."""
    values = labels.organ_values() if labels.organ else []
    return count_overlap(select_values(reference, values), select_values(label, values)).dice if values else nan


def tabulate_lesions(scan: ScanVolumes, reference: Label, labels: Labels, grid: Grid) -> LesionTable:
    """Tabulate the lesions of a case's labels against its reference, uint8[z, y, x]."""
    tumor = labels.tumor_value()
    runs = find_runs(scan.label, [] if tumor is None else [tumor])
    numbers, count = connect_runs(runs)
    hits = np.zeros(count)
    for part, where in voxel_coordinates(runs):
        owners = np.repeat(numbers[part], runs[part].voxels)
        hits += np.bincount(owners, weights=reference[where] == tumor, minlength=count)
    return LesionTable(
        reference=0 if tumor is None else int(np.count_nonzero(reference == tumor)),
        found=measure_lesions(scan, labels, grid, runs, numbers, fitted=True),
        hits=hits,
    )


def show_rules(rules: PostprocessRules) -> dict[str, object]:
    """Return the rules as columns of a table; of a fitted rule only whether there is one."""
    return {name: bool(value) if name == "lesion_rule" else value for name, value in to_document(rules).items()}


def check_writable(path: Path) -> None:
    """Check, before anything is computed, that rules can be written into a model file.

    Raises
    ------
    ModelError
        The package onnx is missing, or it is a foreign network, whose rules are in its TOML.
    """
    if description_path(path) is not None:
        raise ModelError(
            f"{path}: is a foreign network; its rules are in {path.with_suffix('.toml').name}. --dry-run shows what to "
            "write there."
        )
    missing = f"writing into a model file needs the package onnx. {describe_install('train')}."
    with explain_import("onnx", ModelError(missing, where=path)):
        import onnx  # noqa: F401 (only `write_rules` needs it)


def as_toml(rules: PostprocessRules) -> str:
    """Format rules as a line for the TOML of a foreign network.

    >>> as_toml(PostprocessRules(largest_organ=True, min_lesion_ml=0.5))
    'postprocess = {largest_organ = true, fill_holes = false, min_lesion_ml = 0.5, min_lesion_probability = 0.0}'
    """
    return f"postprocess = {_inline_table(rules.as_json())}"


def _inline_table(values: Mapping[str, Any]) -> str:
    fields = (
        f"{name} = {_inline_table(value) if isinstance(value, dict) else json.dumps(value)}"
        for name, value in values.items()
        if value is not None
    )
    return f"{{{', '.join(fields)}}}"


def find_flavors(path: Path) -> list[Path]:
    """Return a model's files: the named one, and its other flavors of the same training in its folder.

    Raises
    ------
    ModelError
        A file with the name of a flavor is not a model.
    """
    card = open_model(path, "cpu").info.card
    if card.training is None:
        return [path]
    flavors = [path.with_name(network_name(path) + suffix) for suffix in SUFFIXES.values()]
    others = [flavor for flavor in flavors if flavor != path and flavor.exists()]
    return [
        path,
        *(one for one in others if set(differing_keys(card, open_model(one, "cpu").info.card)) <= {"postprocess"}),
    ]


def write_rules(paths: Sequence[Path], tuned: Tuned) -> None:
    """Write the chosen rules into all model files atomically; other metadata stay unchanged."""
    import onnx

    with ExitStack() as appear_together:
        for path in paths:
            model = onnx.load(path, load_external_data=False)
            (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
            metadata = json.loads(entry.value)
            metadata |= {"postprocess": tuned.chosen.rules.as_json(), "tuned": tuned.as_json()}
            entry.value = to_json(metadata)
            onnx.save(model, appear_together.enter_context(atomic_write(path.resolve())))
