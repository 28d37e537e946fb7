"""Judges candidates with a classifier: crops of several scans in one batch, and what is written about each.

Without a classifier the probability of a candidate is the mean of the segmentation's own. The peak of most is 1: on 40
synthetic chests it ranked with a CPM of 0.27, the mean with 0.40.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ConfigError
from slicemill.ct.crops import CROP_MM, SIDE, cut_crop
from slicemill.ct.labels import Labels
from slicemill.infer.calibration import WEIGHT, calibrate, segmentation_weight
from slicemill.infer.candidates.find import REACH_MM, Lump, LumpCounts, find_lumps
from slicemill.infer.candidates.records import CandidateRow, ScanCandidates
from slicemill.infer.inputs.jobs import LoadedScan
from slicemill.infer.malignancy import calibrate_malignancy
from slicemill.infer.network.classifier import BATCH, Classifier, CropScores
from slicemill.infer.slices.assembly import Segmentation
from slicemill.store.crop_card import Finder
from slicemill.store.model_card import ModelInfo

Crops = npt.NDArray[np.int16]


@dataclass(eq=False, kw_only=True)
class _Request:
    """Crops of one scan, up to BATCH, and their scores or the error, once they are there."""

    crops: Crops
    scores: CropScores | None = None
    error: Exception | None = None


@dataclass(kw_only=True)
class SharedClassifier:
    """A classifier that several threads use: one runs at a time, on the crops of all that wait."""

    classifier: Classifier
    _waiting: list[_Request] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    batches: int = 0
    """Batches that were run."""

    def score(self, crops: Crops) -> CropScores:
        """Return the probabilities of at most BATCH crops int16[n, 48, 48, 48]."""
        request = _Request(crops=crops)
        with self._lock:
            self._waiting.append(request)
        with self._turn:
            while request.scores is None and request.error is None:
                self._run(self._take())
        if request.error is not None:
            raise request.error
        assert request.scores is not None  # noqa: S101 (for mypy: the loop ended)
        return request.scores

    def _take(self) -> list[_Request]:
        """Take the requests that fit into a batch, the first ones first."""
        with self._lock:
            taken, count = 0, 0
            while taken < len(self._waiting) and (not taken or count + len(self._waiting[taken].crops) <= BATCH):
                count += len(self._waiting[taken].crops)
                taken += 1
            requests, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return requests

    def _run(self, requests: Sequence[_Request]) -> None:
        self.batches += 1
        try:
            scores = self.classifier.run(np.concatenate([request.crops for request in requests]))
        except Exception as error:  # noqa: BLE001 (onnxruntime raises many types; each scan of the batch fails with it)
            for request in requests:
                request.error = error
            return
        first = 0
        for request in requests:
            part = slice(first, first + len(request.crops))
            malignancy = None if scores.malignancy is None else scores.malignancy[part]
            request.scores = CropScores(scores.nodule[part], malignancy)
            first = part.stop


class CandidateJudge:
    """Finds the candidates of a segmented scan and judges them; safe to use from several threads."""

    def __init__(self, model: ModelInfo, classifier: Classifier | None, *, mirrored: bool) -> None:
        """Check that the model outputs a probability of tumor. Without a classifier, the mean is the probability.

        `mirrored`: whether the segmentation averages over mirrored slices.

        Raises
        ------
        ConfigError
            It does not.
        """
        option = "--candidates" if classifier is None else "--classifier"
        if model.labels.tumor is None or not (model.gives_tumor or model.gives_probability):
            raise ConfigError(
                f"{option}: candidates are lumps of the probability of tumor, and the segmentation model outputs none. "
                "Name the label of nodules as tumor, or export it with --probability.",
                where=model.name,
            )
        self._model = model
        self.classifier = classifier
        self._calibration = None if classifier is None else classifier.card.calibration
        self._malignancy = None if classifier is None else classifier.card.malignancy_calibration
        self.shared = None if classifier is None else SharedClassifier(classifier=classifier)
        self.organ, self._values = find_organ(model.labels)
        self.mirrored = mirrored
        self.warning = ""
        if classifier is not None and not classifier.card.finder.may_be(Finder(sha256=model.sha256, mirror=mirrored)):
            self.warning = f"the classifier {classifier.path.name} was trained on candidates of " + (
                "another segmentation"
                if classifier.card.segmentation_sha256 not in (None, model.sha256)
                else f"slices that were {'' if classifier.card.mirror else 'not '}mirrored (infer --mirror)"
            )

    def judges(self, loaded: LoadedScan) -> bool:
        """Return whether a classifier judges the candidates of a scan. Of a single slice, its cube would be air."""
        return self.shared is not None and len(loaded.volume) > 1

    def judge(self, loaded: LoadedScan, segmentation: Segmentation, name: str) -> ScanCandidates:
        """Return the candidates of a scan whose labels are not post-processed yet, the most probable first.

        A classifier judges no single slice: nearly all of its cube would be air. `name` is the relative path of the
        scan's mask.
        """
        probability = segmentation.tumor_probability
        assert probability is not None  # noqa: S101 (the model outputs it)
        label = segmentation.label if self.organ is not None else None
        lumps, counts = find_lumps(probability, loaded.grid, label, self._values)
        if self.shared is not None and not self.judges(loaded):
            lumps = ()
        scores = self._score(loaded, lumps)
        rows = [_describe(lump, *score) for lump, score in zip(lumps, scores, strict=True)]
        # equal probabilities keep the order of the lumps
        rows.sort(key=lambda row: -row.probability)
        return ScanCandidates(
            scan=name,
            model_sha256=self._model.sha256,
            classifier="" if self.classifier is None else self.classifier.path.name,
            classifier_sha256="" if self.classifier is None else self.classifier.sha256,
            thresholds={} if self.classifier is None else dict(self.classifier.card.thresholds),
            sensitivity={} if self.classifier is None else dict(self.classifier.card.sensitivity),
            calibration=self._state_calibration(),
            malignancy_calibration=self._state_malignancy(),
            found=counts.found,
            outside_organ=counts.outside_organ,
            merged=counts.merged,
            cut=counts.cut,
            warnings=tuple(filter(None, [self.warning, self._explain_depth(loaded), self._explain(counts)])),
            candidates=tuple(replace(row, number=number) for number, row in enumerate(rows, start=1)),
        )

    def _state_calibration(self) -> dict[str, float] | None:
        one = self._calibration
        if one is None:
            return None
        return {**{name: one[name] for name in ("temperature", "shift")}, WEIGHT: segmentation_weight(one)}

    def _state_malignancy(self) -> dict[str, float] | None:
        one = self._malignancy
        if one is None or self.classifier is None or not self.classifier.gives_malignancy:
            return None
        return {name: one[name] for name in ("weight", "diameter_weight", "shift")}

    def _score(self, loaded: LoadedScan, lumps: Sequence[Lump]) -> list[tuple[float, float | None]]:
        """Return the probabilities of a nodule, and of malignancy, of each lump."""
        if self.shared is None:
            return [(lump.mean, None) for lump in lumps]
        found: list[tuple[float, float | None]] = []
        for first in range(0, len(lumps), BATCH):
            part = lumps[first : first + BATCH]
            crops = np.empty((len(part), SIDE, SIDE, SIDE), dtype=np.int16)
            for crop, lump in zip(crops, part, strict=True):
                crop[...] = cut_crop(loaded.volume, loaded.grid.affine_lps, lump.xyz_mm)
            scores = self.shared.score(crops)
            malignancy: list[float | None] = [None] * len(part)
            if scores.malignancy is not None:
                diameters = np.array([lump.diameter_mm for lump in part])
                malignancy = calibrate_malignancy(scores.malignancy, diameters, self._malignancy).tolist()
            means = np.array([lump.mean for lump in part])
            found += zip(calibrate(scores.nodule, means, self._calibration).tolist(), malignancy, strict=True)
        return found

    def _explain_depth(self, loaded: LoadedScan) -> str:
        """Return a warning for a scan that is thinner than the cubes that the classifier judges; else nothing."""
        count, thickness = len(loaded.volume), len(loaded.volume) * loaded.grid.spacing_mm[0]
        if self.shared is None or (count > 1 and thickness >= CROP_MM):
            return ""
        if count == 1:
            return f"not judged: a single slice, and the classifier judges cubes of {CROP_MM:g} mm"
        return f"{count} slices are {thickness:.3g} mm: the rest of the classifier's cubes of {CROP_MM:g} mm is air"

    def _explain(self, counts: LumpCounts) -> str:
        """Return what was taken away, as a phrase; empty if nothing was."""
        parts = []
        if counts.outside_organ:
            parts.append(f"{counts.outside_organ} candidates farther than {REACH_MM:g} mm from the {self.organ}")
        if counts.cut:
            parts.append(f"{counts.cut} candidates of the lowest peak, beyond the limit of a scan")
        return f"left out: {', '.join(parts)}" if parts else ""


def _describe(lump: Lump, nodule: float, malignancy: float | None) -> CandidateRow:
    return CandidateRow(
        number=0,
        x_mm=lump.xyz_mm[0],
        y_mm=lump.xyz_mm[1],
        z_mm=lump.xyz_mm[2],
        probability=nodule,
        diameter_mm=lump.diameter_mm,
        volume_ml=lump.volume_ml,
        slice=lump.slice,
        peak=lump.peak,
        segmentation_mean=lump.mean,
        malignancy=malignancy,
    )


def find_organ(labels: Labels) -> tuple[str | None, tuple[int, ...]]:
    """Return the name of the organ that candidates must be near, and its label values; None if the model has none.

    >>> find_organ(Labels({"lung": 1, "nodule": 2}, tumor="nodule"))
    ('lung', (1,))
    """
    organ = labels.organ or next((name for name in labels.values if name.lower() in ("lung", "lungs")), None)
    if organ is None:
        return None, ()
    return organ, (labels.values[organ],)
