"""Candidates of nodules for the page: a file NAME.nodules segments, and judges the candidates of its segmentation."""

from dataclasses import dataclass
from pathlib import Path

from slicemill.common.documents import to_document
from slicemill.common.files import write_json
from slicemill.common.terminal import count_noun
from slicemill.ct.page_options import VIEWER_MB
from slicemill.infer.candidates.judge import CandidateJudge
from slicemill.infer.candidates.page import write_candidate_page
from slicemill.infer.candidates.records import ScanCandidates, write_candidate_csv
from slicemill.infer.inputs.jobs import LoadedScan
from slicemill.infer.network.model import Model
from slicemill.infer.network.nodules import open_judge, open_segmentation
from slicemill.infer.runtime.providers import Provider
from slicemill.infer.slices.assembly import Segmentation
from slicemill.infer.slices.tiles import PredictOptions
from slicemill.web.serve.records import CANDIDATES_CSV, CANDIDATES_JSON, CANDIDATES_PAGE, Answer

NAME = "scan"
"""The scan's name in the files: what the user calls it stays out of them."""
UNTUNED = "No threshold was chosen for this model with slicemill tune: every candidate counts."
TO_CHECK = "A person must check each candidate: models also mark healthy tissue."
MISSES = "This does not mean that there is no nodule: models miss nodules, and small ones most often."


@dataclass(frozen=True, kw_only=True)
class NodulesModel:
    """A segmentation model, and what judges its candidates."""

    model: Model
    judge: CandidateJudge | None
    """None for a model without a classifier."""

    @property
    def predict(self) -> PredictOptions:
        """Return whether slices are mirrored: the classifier learned candidates of such ones."""
        return PredictOptions(mirror=bool(self.judge and self.judge.mirrored))

    def find(self, loaded: LoadedScan, labels: Segmentation, mask: str) -> list[ScanCandidates]:
        """Return the candidates of a scan in a list, which is empty without a classifier or for a single slice.

        `labels` are not post-processed yet; `mask` is the name of the mask.
        """
        if self.judge is None or not self.judge.judges(loaded):
            return []
        return [self.judge.judge(loaded, labels, mask)]


def open_nodules(path: Path, provider: Provider) -> NodulesModel:
    """Open a model: an ONNX file, or a file NAME.nodules.

    Raises
    ------
    ModelError
        It is not a slicemill model of this contract.
    ProviderError
        The provider does not run here.
    ConfigError
        The segmentation outputs no probability of tumor, which candidates need.
    """
    model, classifier = open_segmentation(path, provider), open_judge(path, None, provider)
    judge = None
    if classifier is not None:
        judge = CandidateJudge(model.info, classifier, mirrored=bool(classifier.card.mirror))
    return NodulesModel(model=model, judge=judge)


def write_candidates(results: Path, found: ScanCandidates, loaded: LoadedScan) -> Answer:
    """Write the candidates as page, CSV and JSON into the folder of results, and return the answer in words."""
    write_json(results / CANDIDATES_JSON, to_document(found))
    write_candidate_csv(results / CANDIDATES_CSV, {NAME: found})
    write_candidate_page(results / CANDIDATES_PAGE, NAME, found, loaded.volume, loaded.grid.affine_lps, VIEWER_MB)
    return answer_candidates(found)


def answer_candidates(found: ScanCandidates) -> Answer:
    """Return the answer at the threshold at which the page opens: the lowest that was chosen, else none."""
    threshold = min((one.threshold for one in found.rates), default=None)
    above = [one for one in found.candidates if threshold is None or one.probability >= threshold]
    below = len(found.candidates) - len(above)
    warnings = tuple(f"Warning: {text}." for text in found.warnings)
    at = "" if threshold is None else " above the threshold"
    details = (
        [UNTUNED] if threshold is None else [f"Below the threshold of {threshold:.3f}, the list has {below} more."]
    )
    if not above:
        details = [MISSES, *(details if below else [])]
        return Answer(kind="none", headline=f"No candidate of a nodule{at}", details=(*details, *warnings))
    largest = max(above, key=lambda one: one.diameter_mm)
    return Answer(
        kind="found",
        headline=f"{count_noun(len(above), 'candidate')} of nodules{at}, largest {largest.diameter_mm:.1f} mm "
        f"(slice {largest.slice + 1}), highest probability {above[0].probability:.2f}",
        details=(TO_CHECK, *details, *warnings),
    )
