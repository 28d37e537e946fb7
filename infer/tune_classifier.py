"""Thresholds of a classifier, chosen on the candidates of a store, and written into its file.

1. The classifier judges every candidate of the chosen cases. Candidates that contradict the points, repeat another, or
   lie in an excluded finding do not count (`slicemill.store.point_tables`).
2. The threshold for r false alarms a scan is the lowest at which no more than r candidates a scan are false alarms, so
   the one with the highest sensitivity.
3. A nodule counts as detected if a candidate in its radius reaches the threshold. A nodule without candidates is missed
   at every threshold.

Choose thresholds on the validation cases that selected the checkpoint, never on test cases, and on candidates as
`infer` finds them: a table with other candidates has other false alarms.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ConfigError
from slicemill.common.files import to_json, write_bytes
from slicemill.ct.crops import SIDE, cut_crop
from slicemill.infer.network.classifier import BATCH, Classifier
from slicemill.store.model_card import METADATA_KEY
from slicemill.store.nodules_file import BUNDLE_SUFFIX, read_bundle, save_bundle
from slicemill.store.point_tables import NONE, compare_candidates
from slicemill.store.reader import Case, Store
from slicemill.store.split import read_split

RATES = (1, 4)
"""False alarms a scan."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class JudgedCase:
    """The judged candidates of a case."""

    false: Floats
    """Probabilities of the candidates that are no nodule."""
    nodules: Floats
    """Highest probability of the candidates of each nodule; -1 for one without candidates."""


@dataclass(frozen=True, kw_only=True)
class ChosenThreshold:
    """A threshold and what it gives on the cases it was chosen on."""

    rate: int
    """False alarms a scan that it allows."""
    threshold: float
    false_alarms: float
    """False alarms a scan that there are."""
    detected: int
    """Nodules that reach it."""
    nodules: int


def choose_judged_cases(store: Store, split: Path | None) -> list[Case]:
    """Return the cases to judge: the validation part of a split file, or all; those with a table of candidates.

    Raises
    ------
    ConfigError
        There is none, or the split cannot be read.
    """
    names = list(store) if split is None else list(read_split(split, store.case_ids).validation)
    cases = [case for case in (store[name] for name in names) if case.candidates is not None]
    if not cases:
        raise ConfigError(
            "has no case with candidates, which the thresholds of a classifier need. Ingest it with --candidates.",
            where=split or store.root,
        )
    return cases


def judge_case(classifier: Classifier, case: Case) -> JudgedCase:
    """Judge the candidates of a case."""
    table, points = case.candidates, case.points or ()
    count = sum(point.kind == "nodule" for point in points)
    if table is None or not len(table):
        return JudgedCase(false=np.zeros(0), nodules=np.full(count, -1.0))
    found = compare_candidates(table, points)
    is_false = ~found.in_nodule & ~found.in_excluded & (found.duplicate_of == NONE) & (table[:, 3] == 0)
    rows = np.flatnonzero(is_false | found.in_nodule)
    probability = np.full(len(table), np.nan)
    volume = case.image[:]
    for first in range(0, len(rows), BATCH):
        chosen = rows[first : first + BATCH]
        crops = np.empty((len(chosen), SIDE, SIDE, SIDE), dtype=np.int16)
        for crop, row in zip(crops, chosen, strict=True):
            crop[...] = cut_crop(volume, case.affine, table[row, :3])
        probability[chosen] = classifier.run(crops).nodule
    nodules = np.full(count, -1.0)
    inside = np.flatnonzero(found.in_nodule)
    np.maximum.at(nodules, found.nearest[inside], probability[inside])
    return JudgedCase(false=probability[is_false], nodules=nodules)


def choose_threshold(judged: Sequence[JudgedCase], rate: int) -> ChosenThreshold:
    """Choose the threshold for a number of false alarms a scan.

    A candidate is an alarm if its probability is at least the threshold. Equal probabilities are alarms together. Where
    more candidates than allowed have a probability of exactly 1, the threshold is 1, and `false_alarms` says how many.

    >>> case = JudgedCase(false=np.array([0.9, 0.5, 0.5, 0.1]), nodules=np.array([0.7, 0.4]))
    >>> one = choose_threshold([case], 1)
    >>> one.threshold > 0.5, one.false_alarms, one.detected
    (True, 1.0, 1)
    """
    false = np.sort(np.concatenate([case.false for case in judged]))[::-1]
    nodules = np.concatenate([case.nodules for case in judged])
    allowed = rate * len(judged)
    # just above the first probability that would be one alarm too many
    threshold = 0.0 if len(false) <= allowed else min(1.0, math.nextafter(float(false[allowed]), 2.0))
    return ChosenThreshold(
        rate=rate,
        threshold=threshold,
        false_alarms=float((false >= threshold).sum()) / len(judged),
        detected=int((nodules >= threshold).sum()),
        nodules=len(nodules),
    )


def choose_thresholds(
    classifier: Classifier, cases: Sequence[Case], advance: Callable[[str], None] = lambda _: None
) -> list[ChosenThreshold]:
    """Choose the thresholds for RATES.

    Raises
    ------
    ConfigError
        The cases have no nodule.
    """
    judged = []
    for case in cases:
        judged.append(judge_case(classifier, case))
        advance(case.case_id)
    if not sum(len(case.nodules) for case in judged):
        raise ConfigError(f"the {len(cases)} cases have no nodule, so that no threshold can be compared.")
    return [choose_threshold(judged, rate) for rate in RATES]


def write_thresholds(path: Path, classifier: Classifier, chosen: Sequence[ChosenThreshold]) -> None:
    """Write the thresholds into the file of a classifier, or of both models, atomically; the rest stays unchanged."""
    if path.suffix != BUNDLE_SUFFIX:
        write_bytes(path.resolve(), _set_thresholds(path.read_bytes(), classifier, chosen))
        return
    models = read_bundle(path)
    save_bundle(path.resolve(), replace(models, classifier=_set_thresholds(models.classifier, classifier, chosen)))


def _set_thresholds(content: bytes, classifier: Classifier, chosen: Sequence[ChosenThreshold]) -> bytes:
    """Return the ONNX file `content` of a classifier with thresholds in its metadata."""
    import onnx

    card = classifier.card.as_json() | {"thresholds": {str(one.rate): one.threshold for one in chosen}}
    model = onnx.load_model_from_string(content)
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = to_json(card)
    return bytes(model.SerializeToString())
