"""Predicted masks against references: Dice per case and global, tumor yes or no per case and slice, error pictures.

Definitions: `store.metrics`. The organ is scored with its tumors (`Labels.regions`). A case in which neither mask has a
region has no Dice there (NaN): it is left out of that mean and counted. Detection asks whether any tumor voxel was
predicted; its AUC ranks the tumor scores of the reports, or predicted tumor voxels where there is no report.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from store.errors import GeometryError, InputError, LabelError, PairingError
from store.files import read_json, write_csv, write_json
from store.geometry import SAME_GRID_MM, Grid, voxel_ml
from store.labels import Labels, format_labels, labels_from_json
from store.layout import AIR_HU
from store.metrics import Detection, Overlap, detection, mean_of, overlap
from store.naming import case_id_of, find_files, name_of
from store.nifti import grid_of_header, stem_of
from store.picture import Tile, draw_errors, gray, montage, save_png, spread
from store.progress import progress
from store.reader import Store, is_store, open_store
from store.scan import ScanReader
from store.screen import cell, peak_mib

Mask = npt.NDArray[np.bool_]
ERROR_SLICES = 6


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where the truth of a case lies."""

    case_id: str
    mask: Path | None = None
    image: Path | None = None
    store: Store | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A predicted mask with its reference."""

    prediction: Path
    name: str
    reference: Reference


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A case that was compared."""

    case_id: str
    regions: dict[str, Overlap]
    volumes_ml: dict[str, tuple[float, float]]
    """Reference and prediction."""
    tumor: tuple[list[bool], list[bool], list[float]] | None
    """Per slice: truth, answer, score."""
    tumor_score: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All cases, and those that could not be compared."""

    labels: Labels
    cases: tuple[Scored, ...]
    failures: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    """References without a prediction."""
    alone: tuple[str, ...]
    """Predictions without a reference."""


def pair_up(predictions: Path, references: Path) -> tuple[list[Pair], list[str], list[str]]:
    """Return the pairs, the references that have no prediction, and the predictions that have no reference.

    Raises
    ------
    PairingError
        There is nothing to compare, or two predictions are of one case.
    """
    files = [predictions] if predictions.is_file() else find_files(predictions)
    if not files:
        raise PairingError(f"{predictions}: holds no mask (.nii or .nii.gz); `slicemill infer` writes them.")
    root = predictions.parent if predictions.is_file() else predictions
    known, everything = _references(references)
    pairs: dict[str, Pair] = {}
    alone = []
    for file in files:
        relative = file.relative_to(root).as_posix()
        reference = next((known[key] for key in _keys(relative) if key in known), None)
        if reference is None:
            alone.append(relative)
        elif reference.case_id in pairs:
            raise PairingError(
                f"{pairs[reference.case_id].prediction} and {file} are both of the case {reference.case_id}; keep one of them."
            )
        else:
            pairs[reference.case_id] = Pair(prediction=file, name=relative, reference=reference)
    if not pairs:
        raise PairingError(
            f"{predictions}: none of its {len(files)} masks has the name of a reference in {references}."
        )
    return list(pairs.values()), [case_id for case_id in everything if case_id not in pairs], alone


def _keys(relative: str) -> list[str]:
    """Return the names under which a mask may be known, the most exact first: place and key, case id, key alone."""
    name = name_of(relative)
    return [f"{name.folder}/{name.key}", case_id_of(relative), *([f"*/{name.key}"] if name.key else [])]


def _references(references: Path) -> tuple[dict[str, Reference], list[str]]:
    """Return references by every name that is only theirs, and all their case ids."""
    if is_store(references):
        store = open_store(references)
        stored = [
            Reference(case_id=case_id, store=store) for case_id in store.case_ids if store[case_id].label is not None
        ]
        return {reference.case_id: reference for reference in stored}, [reference.case_id for reference in stored]
    if not references.exists():
        raise PairingError(f"{references}: there is no such folder or store.")
    files = [references] if references.is_file() else find_files(references)
    root = references.parent if references.is_file() else references
    names = {file: name_of(file.relative_to(root).as_posix()) for file in files}
    masks = [file for file in files if names[file].role == "mask"] or files
    images = {
        (names[file].folder, names[file].key): file
        for file in files
        if names[file].role == "image" and file not in masks
    }
    by_key: dict[str, list[Reference]] = {}
    for mask in masks:
        image = images.get((names[mask].folder, names[mask].key))
        relative = mask.relative_to(root).as_posix()
        case_id = case_id_of((image or mask).relative_to(root).as_posix())
        for key in dict.fromkeys([*_keys(relative), case_id]):
            by_key.setdefault(key, []).append(Reference(case_id=case_id, mask=mask, image=image))
    return {key: found[0] for key, found in by_key.items() if len(found) == 1}, sorted(
        {one.case_id for found in by_key.values() for one in found}
    )


def evaluate(predictions: Path, references: Path, out: Path | None, labels: Labels | None = None) -> Evaluation:
    """Compare every prediction with its reference; write tables and pictures into `out`.

    Raises
    ------
    LabelError
        Nothing says what the label values mean.
    """
    pairs, missing, alone = pair_up(predictions, references)
    labels = labels or _labels_of_reports(pairs) or _labels_of_store(pairs)
    if labels is None:
        raise LabelError(f"{predictions}: no report says what its label values mean; pass --labels liver=1,tumor=2.")
    cases: list[Scored] = []
    failures: list[tuple[str, str]] = []
    with progress("evaluate", len(pairs), "cases") as advance:
        for pair in pairs:
            try:
                cases.append(_score(pair, labels, out))
            except (InputError, OSError) as error:
                failures.append((pair.name, str(error)))
            advance(1, f"{len(failures)} failed")
    evaluation = Evaluation(
        labels=labels, cases=tuple(cases), failures=tuple(failures), missing=tuple(missing), alone=tuple(alone)
    )
    if out is not None:
        write_evaluation(out, evaluation)
    return evaluation


def _labels_of_reports(pairs: Sequence[Pair]) -> Labels | None:
    reports = [_report_of(pair) for pair in pairs]
    if not all(reports):
        return None
    found = [labels_from_json(report) for report in reports]
    if any(labels != found[0] for labels in found):
        raise LabelError(
            "the predictions come from models of different labels; evaluate them one model at a time, or pass --labels."
        )
    return found[0] if found else None


def _labels_of_store(pairs: Sequence[Pair]) -> Labels | None:
    for pair in pairs:
        if pair.reference.store is not None:
            return pair.reference.store[pair.reference.case_id].info.labels
    return None


def _report_of(pair: Pair) -> dict[str, Any]:
    """Return the report that `infer` wrote beside a mask; other JSON files and none are no report."""
    path = pair.prediction.with_name(stem_of(pair.prediction.name) + ".json")
    if not path.exists():
        return {}
    report = read_json(path)
    return report if "model_sha256" in report and "slice_tumor_scores" in report else {}


def _score(pair: Pair, labels: Labels, out: Path | None) -> Scored:
    predicted, truth, grid = _masks(pair)
    _check_values(truth, labels, pair.reference.case_id)
    _check_values(predicted, labels, pair.name)
    per_voxel = voxel_ml(grid.affine_lps)
    masks = {name: (np.isin(truth, values), np.isin(predicted, values)) for name, values in labels.regions().items()}
    tumor, score = None, math.nan
    if labels.tumor is not None:
        tumor, score = _tumor_answers(*masks[labels.tumor], _report_of(pair))
    if out is not None:
        name = labels.tumor or next(iter(masks))
        picture = error_picture(_image(pair, truth), *masks[name], f"{pair.reference.case_id}  {name}")
        save_png(out / f"{pair.reference.case_id}_errors.png", picture)
    return Scored(
        case_id=pair.reference.case_id,
        regions={name: overlap(*both) for name, both in masks.items()},
        volumes_ml={
            name: (float(both[0].sum()) * per_voxel, float(both[1].sum()) * per_voxel) for name, both in masks.items()
        },
        tumor=tumor,
        tumor_score=score,
    )


def _masks(pair: Pair) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], Grid]:
    """Return prediction, reference, and the grid of the reference, on which both lie."""
    reference = pair.reference
    with ScanReader(pair.prediction, "mask") as prediction:
        if reference.store is not None:
            case = reference.store[reference.case_id]
            assert case.label is not None  # noqa: S101 (only cases with a mask are references)
            grid = grid_of_header(base64.b64decode(case.info.image.header_b64))
            _check_grids(pair, prediction.grid, grid)
            truth = case.label[:]
        else:
            assert reference.mask is not None  # noqa: S101
            with ScanReader(reference.mask, "mask") as reader:
                grid = reader.grid
                _check_grids(pair, prediction.grid, grid)
                truth = reader.read()
                reader.finish()
        prediction.lie_on(grid)
        predicted = prediction.read()
        prediction.finish()
    return predicted, truth, grid


def _check_grids(pair: Pair, grid: Grid, other: Grid) -> None:
    if grid.shape != other.shape:
        raise GeometryError(
            f"{pair.prediction}: has shape {grid.shape}, its reference {pair.reference.case_id} has {other.shape}."
        )
    if (apart := grid.distance_mm(other)) > SAME_GRID_MM:
        raise GeometryError(
            f"{pair.prediction}: lies {apart:.3g} mm from its reference {pair.reference.case_id}; they must share one grid."
        )


def _check_values(label: npt.NDArray[np.uint8], labels: Labels, what: str) -> None:
    odd = sorted(
        {int(value) for value in np.flatnonzero(np.bincount(label.ravel(), minlength=256))}
        - {0, *labels.values.values()}
    )
    if odd:
        raise LabelError(
            f"{what}: holds the values {odd} outside the labels {format_labels(labels.values)}; pass --labels."
        )


def _image(pair: Pair, like: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Return the scan to draw on, or black where there is none of the masks' shape."""
    if pair.reference.store is not None:
        return pair.reference.store[pair.reference.case_id].image[:]
    if pair.reference.image is not None:
        with ScanReader(pair.reference.image, "image") as reader:
            if reader.grid.stored_shape == like.shape:
                volume: npt.NDArray[np.int16] = reader.read()
                return volume
    return np.full(like.shape, AIR_HU, dtype=np.int16)


def _tumor_answers(
    truth: Mask, predicted: Mask, report: dict[str, Any]
) -> tuple[tuple[list[bool], list[bool], list[float]], float]:
    """Return the answers per slice, and the score of the case: from the report's finite scores, else the predicted voxels."""
    flat = (truth.reshape(len(truth), -1), predicted.reshape(len(predicted), -1))
    scores, score = report.get("slice_tumor_scores"), report.get("tumor_score")
    if not (
        isinstance(scores, list) and len(scores) == len(truth) and all(map(_is_finite, scores)) and _is_finite(score)
    ):
        scores, score = np.count_nonzero(flat[1], axis=1).tolist(), int(predicted.sum())
    has_tumor, found = (np.count_nonzero(mask, axis=1).astype(bool).tolist() for mask in flat)
    return (has_tumor, found, [float(value) for value in scores]), float(score or 0)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def error_picture(image: npt.NDArray[np.int16], truth: Mask, predicted: Mask, title: str) -> Image.Image:
    """Draw slices with true positives green, false positives red, false negatives orange; the one with most errors among them."""
    wrong = (truth ^ predicted).reshape(len(truth), -1).sum(axis=1)
    filled = np.flatnonzero((truth | predicted).reshape(len(truth), -1).any(axis=1)).tolist()
    chosen = set(spread(filled or range(len(truth)), ERROR_SLICES - 1)) | {int(wrong.argmax())}
    tiles = [
        Tile(
            picture=np.concatenate([gray(image[z]), draw_errors(gray(image[z]), truth[z], predicted[z])], axis=1),
            caption=f"z={z}  Dice {cell(overlap(truth[z], predicted[z]).dice)}",
        )
        for z in sorted(chosen)
    ]
    return montage(
        tiles, min(3, len(tiles)), f"{title}   green: true positive, red: false positive, orange: false negative"
    )


def case_row(case: Scored) -> dict[str, Any]:
    """Return a case as a row of the table."""
    row: dict[str, Any] = {"case_id": case.case_id}
    for name, counts in case.regions.items():
        reference, predicted = case.volumes_ml[name]
        row |= {
            f"dice_{name}": _null(counts.dice),
            f"precision_{name}": _null(counts.precision),
            f"recall_{name}": _null(counts.recall),
            f"reference_{name}_ml": reference,
            f"predicted_{name}_ml": predicted,
        }
    if case.tumor is not None:
        row |= {"has_tumor": any(case.tumor[0]), "tumor_found": any(case.tumor[1]), "tumor_score": case.tumor_score}
    return row


def totals(evaluation: Evaluation) -> dict[str, Any]:
    """Return the scores over all cases."""
    regions = {}
    for name in evaluation.labels.regions():
        counts = [case.regions[name] for case in evaluation.cases]
        pooled = sum(counts, Overlap())
        dices = [count.dice for count in counts]
        regions[name] = {
            "dice_per_case": _null(mean_of(dices)),
            "cases_without_region": sum(math.isnan(dice) for dice in dices),
            "dice_global": _null(pooled.dice),
            "precision_global": _null(pooled.precision),
            "recall_global": _null(pooled.recall),
        }
    result: dict[str, Any] = {
        "mode": "corrected",
        "cases": len(evaluation.cases),
        "regions": regions,
        "tumor_by_case": None,
        "tumor_by_slice": None,
    }
    answers = [(case.tumor, case.tumor_score) for case in evaluation.cases if case.tumor is not None]
    if answers:
        by_case = detection(
            [any(tumor[0]) for tumor, _ in answers],
            [any(tumor[1]) for tumor, _ in answers],
            [score for _, score in answers],
        )
        slices = [[item for tumor, _ in answers for item in tumor[part]] for part in range(3)]
        result["tumor_by_case"] = detection_row(by_case)
        result["tumor_by_slice"] = detection_row(
            detection([bool(t) for t in slices[0]], [bool(a) for a in slices[1]], slices[2])
        )
    return result


def detection_row(found: Detection) -> dict[str, Any]:
    """Return yes-or-no scores as a record."""
    return {
        "positives": found.true_positive + found.false_negative,
        "negatives": found.true_negative + found.false_positive,
        "accuracy": _null(found.accuracy),
        "sensitivity": _null(found.sensitivity),
        "specificity": _null(found.specificity),
        "auc": _null(found.auc),
    }


def write_evaluation(out: Path, evaluation: Evaluation) -> None:
    """Write evaluation.json and evaluation.csv."""
    rows = [case_row(case) for case in evaluation.cases]
    write_json(
        out / "evaluation.json",
        {
            **totals(evaluation),
            **evaluation.labels.as_json(),
            "by_case": rows,
            "failures": [{"name": name, "reason": reason} for name, reason in evaluation.failures],
            "references_without_prediction": list(evaluation.missing),
            "predictions_without_reference": list(evaluation.alone),
            "peak_mib": round(peak_mib(), 1),
        },
    )
    write_csv(out / "evaluation.csv", rows)


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
