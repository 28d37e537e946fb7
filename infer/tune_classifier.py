"""Calibration and thresholds of a classifier, chosen on the candidates of a store, and written into its file.

1. The classifier judges every candidate of the chosen cases. Detections and false alarms are counted as by `slicemill
   froc`: a candidate detects each nodule whose radius it lies in. It is a false alarm if it lies in no nodule and in no
   excluded finding. Candidates near each other all count, whatever class the table gives them.
2. The threshold for r false alarms a scan is the lowest at which no more than r candidates a scan are false alarms, so
   the one with the highest sensitivity.
   Thresholds are those of calibrated probabilities (`slicemill.infer.calibration`), if there are candidates enough.
3. Malignancy is fitted beside the diameter (`slicemill.infer.malignancy`) on the nodules of these cases that have one.
4. A nodule counts as detected if a candidate in its radius reaches the threshold. A nodule without candidates is missed
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
from slicemill.ct.points import UNKNOWN_DIAMETER_MM, Point, is_malignant
from slicemill.infer.calibration import NotCalibrated, calibrate, fit_calibration
from slicemill.infer.malignancy import JudgedNodules, fit_malignancy
from slicemill.infer.network.classifier import BATCH, Classifier, open_classifier
from slicemill.infer.network.nodules import open_judge
from slicemill.infer.runtime.providers import Provider
from slicemill.store.crop_card import CropCalibration, CropCard, CropTuning, MalignancyCalibration
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
    """The judged candidates of a case, n, without those that lie in excluded findings alone; and its k nodules."""

    probability: Floats
    """float64[n]: the classifier's output."""
    means: Floats
    """float64[n]: mean probability of the segmentation that found each; NaN if the table has none."""
    hits: Mask
    """bool[k, n]: which candidates lie in which nodule."""

    @property
    def is_nodule(self) -> Mask:
        """Return bool[n]: which candidates lie in a nodule; the others are false alarms."""
        return np.asarray(self.hits.any(axis=0), dtype=bool)


@dataclass(frozen=True, kw_only=True)
class RankedCase:
    """Probabilities of a case, after calibration if there is one."""

    false: Floats
    """Of the candidates that are no nodule."""
    nodules: Floats
    """Highest one of the candidates of each nodule; -1 for one without candidates."""


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
        return JudgedCase(probability=np.zeros(0), means=np.zeros(0), hits=np.zeros((len(nodules), 0), dtype=bool))
    hits = _which_inside(table[:, :3], nodules)
    in_excluded = _which_inside(table[:, :3], [point for point in points if point.kind == "excluded"]).any(axis=0)
    used = hits.any(axis=0) | ~in_excluded
    places = table[used, :3]
    probability = np.empty(len(places))
    volume = case.image[:]
    for first in range(0, len(places), BATCH):
        part = places[first : first + BATCH]
        probability[first : first + len(part)] = classifier.run(_cut(volume, case, part)).nodule
    return JudgedCase(probability=probability, means=table[used, 5], hits=hits[:, used])


def judge_nodules(classifier: Classifier, case: Case, *, ratings: bool) -> JudgedNodules:
    """Judge the malignancy of the nodules of a case that have one, and a diameter, at their annotated centers.

    `ratings`: whether the malignancies of the store are ratings (`slicemill.ct.points.has_ratings`).

    Raises
    ------
    ConfigError
        A malignancy is out of range.
    """
    known: list[tuple[Point, float, bool]] = []
    for point in case.points or ():
        if point.kind != "nodule":
            continue
        try:
            malignant = is_malignant(point.malignancy, ratings=ratings)
        except ValueError as error:
            name = f"malignancy of {point.id} of case {case.case_id}"
            raise ConfigError(f"{name} {error}. Correct the table of points.") from None
        if malignant is not None and point.diameter_mm:
            known.append((point, point.diameter_mm, malignant))
    output = np.zeros(0)
    if known:
        places = np.array([point.xyz_mm for point, _, _ in known])
        scores = classifier.run(_cut(case.image[:], case, places)).malignancy
        assert scores is not None  # noqa: S101 (the caller asked whether the classifier has the output)
        output = scores.astype(np.float64)
    return JudgedNodules(
        output=output,
        diameter_mm=np.array([diameter for _, diameter, _ in known], dtype=np.float64),
        malignant=np.array([malignant for _, _, malignant in known], dtype=bool),
    )


def _cut(volume: npt.NDArray[np.int16], case: Case, places: Floats) -> npt.NDArray[np.int16]:
    """Cut the crops int16[n, 48, 48, 48] around positions float64[n, 3], mm."""
    crops = np.empty((len(places), SIDE, SIDE, SIDE), dtype=np.int16)
    for crop, place in zip(crops, places, strict=True):
        crop[...] = cut_crop(volume, case.affine, place)
    return crops


def rank_case(case: JudgedCase, calibration: CropCalibration | None) -> RankedCase:
    """Return the probabilities of a case, calibrated if there is a calibration."""
    probability = calibrate(case.probability, case.means, calibration)
    best = [float(probability[hit].max(initial=-1.0)) for hit in case.hits]
    return RankedCase(false=probability[~case.is_nodule], nodules=np.array(best, dtype=np.float64))


def _which_inside(places: Floats, points: Sequence[Point]) -> Mask:
    """Return bool[k, n]: which positions float64[n, 3], mm, lie in which of k findings."""
    inside = np.zeros((len(points), len(places)), dtype=bool)
    for row, point in zip(inside, points, strict=True):
        radius = (point.diameter_mm or UNKNOWN_DIAMETER_MM) / 2
        row[:] = ((places - np.array(point.xyz_mm)) ** 2).sum(axis=1) < radius**2
    return inside


def choose_threshold(cases: Sequence[RankedCase], rate: int) -> ChosenThreshold:
    """Choose the threshold for a number of false alarms a scan.

    A candidate is an alarm if its probability is at least the threshold. Equal probabilities are alarms together. Where
    more candidates than allowed have a probability of exactly 1, the threshold is 1, and `false_alarms` says how many.

    >>> case = RankedCase(false=np.array([0.9, 0.5, 0.5, 0.1]), nodules=np.array([0.7, 0.4]))
    >>> one = choose_threshold([case], 1)
    >>> one.threshold > 0.5, one.false_alarms, one.detected
    (True, 1.0, 1)
    """
    false = np.sort(np.concatenate([case.false for case in cases]))[::-1]
    nodules = np.concatenate([case.nodules for case in cases])
    allowed = rate * len(cases)
    # just above the first probability that would be one alarm too many
    threshold = 0.0 if len(false) <= allowed else min(1.0, math.nextafter(float(false[allowed]), 2.0))
    return ChosenThreshold(
        rate=rate,
        threshold=threshold,
        false_alarms=float((false >= threshold).sum()) / len(cases),
        detected=int((nodules >= threshold).sum()),
        nodules=len(nodules),
    )


@dataclass(frozen=True, kw_only=True)
class ClassifierTuning:
    """What was chosen for a classifier."""

    calibration: CropCalibration | NotCalibrated
    thresholds: tuple[ChosenThreshold, ...]
    """For RATES, of calibrated probabilities, or of the output without a calibration."""
    malignancy: MalignancyCalibration | NotCalibrated | None = None
    """None for a classifier without malignancy."""


def tune_classifier(
    classifier: Classifier, cases: Sequence[Case], advance: Callable[[str], None] = lambda _: None, *, ratings: bool
) -> ClassifierTuning:
    """Fit the calibrations, and choose the thresholds for RATES.

    `ratings`: whether the malignancies of the store are ratings (`slicemill.ct.points.has_ratings`).

    Raises
    ------
    ConfigError
        The cases have no nodule, or a malignancy is out of range.
    """
    judged: list[JudgedCase] = []
    nodules: list[JudgedNodules] = []
    for case in cases:
        judged.append(judge_case(classifier, case))
        if classifier.gives_malignancy:
            nodules.append(judge_nodules(classifier, case, ratings=ratings))
        advance(case.case_id)
    if not sum(len(case.hits) for case in judged):
        raise ConfigError(f"the {len(cases)} cases have no nodule, so that no threshold can be compared.")
    fitted = fit_calibration(
        np.concatenate([case.probability for case in judged]),
        np.concatenate([case.means for case in judged]),
        np.concatenate([case.is_nodule for case in judged]),
    )
    known = None if isinstance(fitted, NotCalibrated) else fitted
    ranked = [rank_case(case, known) for case in judged]
    return ClassifierTuning(
        calibration=fitted,
        thresholds=tuple(choose_threshold(ranked, rate) for rate in RATES),
        malignancy=fit_malignancy(join_nodules(nodules)) if nodules else None,
    )


def join_nodules(parts: Sequence[JudgedNodules]) -> JudgedNodules:
    """Return the nodules of several cases as one."""
    return JudgedNodules(
        output=np.concatenate([part.output for part in parts]),
        diameter_mm=np.concatenate([part.diameter_mm for part in parts]),
        malignant=np.concatenate([part.malignant for part in parts]),
    )


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
    """Write thresholds and calibrations into a classifier's file, or one of both models, atomically.

    `card` has the metadata of the classifier. Earlier calibrations are replaced or removed; the rest stays unchanged.
    """
    malignancy = None if isinstance(chosen.malignancy, NotCalibrated) else chosen.malignancy
    known = None if isinstance(chosen.calibration, NotCalibrated) else chosen.calibration
    thresholds = {str(one.rate): one.threshold for one in chosen.thresholds}
    sensitivity = {str(one.rate): one.detected / one.nodules for one in chosen.thresholds}
    card = replace(
        card,
        thresholds=thresholds,
        sensitivity=sensitivity,
        tuned=tuned,
        calibration=known,
        malignancy_calibration=malignancy,
    )
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
