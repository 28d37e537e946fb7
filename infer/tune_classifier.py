"""Calibration and thresholds of a classifier, chosen on the candidates of a store, and written into its file.

1. The classifier judges every candidate of the chosen cases. Detections and false alarms are counted as by `slicemill
   froc`: a candidate detects each nodule whose radius it lies in. It is a false alarm if it lies in no nodule and in no
   excluded finding. Candidates near each other all count, whatever class the table gives them.
2. The threshold for r false alarms a scan is the lowest at which no more than r candidates a scan are false alarms, so
   the one with the highest sensitivity.
   Thresholds are those of calibrated probabilities (`slicemill.infer.calibration`), if there are candidates enough.
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

from slicemill.common.errors import ConfigError, UsageError
from slicemill.common.files import read_file, to_json, write_bytes
from slicemill.ct.crops import SIDE, cut_crop
from slicemill.ct.points import UNKNOWN_DIAMETER_MM, Point
from slicemill.infer.calibration import NotCalibrated, calibrate, fit_calibration
from slicemill.infer.network.classifier import BATCH, Classifier, open_classifier
from slicemill.infer.network.nodules import open_judge
from slicemill.infer.runtime.providers import Provider
from slicemill.store.crop_card import CropCalibration, CropCard, CropTuning
from slicemill.store.model_card import METADATA_KEY
from slicemill.store.nodules_file import BUNDLE_SUFFIX, read_bundle, save_bundle
from slicemill.store.reader import Case, Store
from slicemill.store.split import read_split
from slicemill.store.tables import points_sha256

RATES = (1, 4)
"""False alarms a scan."""
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class JudgedCase:
    """The judged candidates of a case."""

    false: Floats
    """Probabilities of the candidates that are no nodule."""
    true: Floats
    """Probabilities of the candidates that lie in a nodule."""
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


def choose_judged_cases(store: Store, split: Path | None, card: CropCard) -> list[Case]:
    """Return the cases to judge: the validation part of a split file, or all; those with a table of candidates.

    Raises
    ------
    UsageError
        There is no split, and the classifier was trained on this store.
    ConfigError
        There is no such case, or the split cannot be read.
    """
    if split is None and card.store_sha256 == points_sha256(store):
        raise UsageError(
            f"--split: the classifier was trained on {store.root}, whose cases are for the most part its training "
            "cases. Pass the split of its run: --split RUN/split.json."
        )
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
    nodules = [point for point in points if point.kind == "nodule"]
    if table is None or not len(table):
        return JudgedCase(false=np.zeros(0), true=np.zeros(0), nodules=np.full(len(nodules), -1.0))
    places = table[:, :3]
    hits = [_are_inside(places, point) for point in nodules]
    in_nodule = _any_of(hits, len(table))
    in_excluded = _any_of([_are_inside(places, point) for point in points if point.kind == "excluded"], len(table))
    is_false = ~in_nodule & ~in_excluded
    rows = np.flatnonzero(is_false | in_nodule)
    probability = np.full(len(table), np.nan)
    volume = case.image[:]
    for first in range(0, len(rows), BATCH):
        chosen = rows[first : first + BATCH]
        crops = np.empty((len(chosen), SIDE, SIDE, SIDE), dtype=np.int16)
        for crop, row in zip(crops, chosen, strict=True):
            crop[...] = cut_crop(volume, case.affine, places[row])
        probability[chosen] = classifier.run(crops).nodule
    best = [float(probability[hit].max(initial=-1.0)) for hit in hits]
    return JudgedCase(
        false=probability[is_false], true=probability[in_nodule], nodules=np.array(best, dtype=np.float64)
    )


def _are_inside(places: Floats, point: Point) -> Mask:
    """Return bool[n]: whether positions float64[n, 3], mm, lie in a finding."""
    radius = (point.diameter_mm or UNKNOWN_DIAMETER_MM) / 2
    return np.asarray(((places - np.array(point.xyz_mm)) ** 2).sum(axis=1) < radius**2, dtype=bool)


def _any_of(masks: Sequence[Mask], count: int) -> Mask:
    return np.asarray(np.logical_or.reduce([np.zeros(count, dtype=bool), *masks]), dtype=bool)


def choose_threshold(judged: Sequence[JudgedCase], rate: int) -> ChosenThreshold:
    """Choose the threshold for a number of false alarms a scan.

    A candidate is an alarm if its probability is at least the threshold. Equal probabilities are alarms together. Where
    more candidates than allowed have a probability of exactly 1, the threshold is 1, and `false_alarms` says how many.

    >>> case = JudgedCase(false=np.array([0.9, 0.5, 0.5, 0.1]), true=np.zeros(0), nodules=np.array([0.7, 0.4]))
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


@dataclass(frozen=True, kw_only=True)
class ClassifierTuning:
    """What was chosen for a classifier."""

    calibration: CropCalibration | NotCalibrated
    thresholds: tuple[ChosenThreshold, ...]
    """For RATES, of calibrated probabilities, or of the output without a calibration."""


def tune_classifier(
    classifier: Classifier, cases: Sequence[Case], advance: Callable[[str], None] = lambda _: None
) -> ClassifierTuning:
    """Fit the calibration, and choose the thresholds for RATES.

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
    fitted = fit_calibration(
        np.concatenate([case.true for case in judged]), np.concatenate([case.false for case in judged])
    )
    known = None if isinstance(fitted, NotCalibrated) else fitted
    calibrated = [_calibrate_case(case, known) for case in judged]
    return ClassifierTuning(calibration=fitted, thresholds=tuple(choose_threshold(calibrated, rate) for rate in RATES))


def _calibrate_case(case: JudgedCase, calibration: CropCalibration | None) -> JudgedCase:
    """Return a case with calibrated probabilities; nodules without candidates stay at -1."""
    has_candidate = case.nodules >= 0
    nodules = np.where(has_candidate, calibrate(np.where(has_candidate, case.nodules, 0.0), calibration), -1.0)
    return JudgedCase(false=calibrate(case.false, calibration), true=calibrate(case.true, calibration), nodules=nodules)


def open_tunable(path: Path, provider: Provider) -> Classifier:
    """Open a classifier, also that of a file of both models.

    Raises
    ------
    ModelError
        It is not a model of kind `crops`.
    ProviderError
        The provider does not run here.
    """
    return open_judge(path, None, provider) or open_classifier(path, provider)


def write_tuning(path: Path, card: CropCard, chosen: ClassifierTuning, tuned: CropTuning | None) -> None:
    """Write thresholds and calibration into a classifier's file, or one of both models, atomically.

    `card` has the metadata of the classifier. An earlier calibration is replaced or removed; the rest stays unchanged.
    """
    known = None if isinstance(chosen.calibration, NotCalibrated) else chosen.calibration
    thresholds = {str(one.rate): one.threshold for one in chosen.thresholds}
    card = replace(card, thresholds=thresholds, tuned=tuned, calibration=known)
    target = path.resolve()
    if path.suffix != BUNDLE_SUFFIX:
        write_bytes(target, _replace_card(read_file(target), card))
        return
    models = read_bundle(target)
    save_bundle(target, replace(models, classifier=_replace_card(models.classifier, card)))


def _replace_card(content: bytes, card: CropCard) -> bytes:
    """Return the ONNX file `content` of a classifier with other metadata."""
    import onnx

    model = onnx.load_model_from_string(content)
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = to_json(card.as_json())
    return bytes(model.SerializeToString())
