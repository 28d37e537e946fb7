"""Malignancy by patient: yes or no by the highest candidate of all the patient's scans.

1. A candidate's score is its probability times its malignancy. The latter is the probability of a malignant nodule if
   it is one at all, so the product is that of a malignant nodule. A patient's score is the highest; 0 without any.
2. The answer is yes from the threshold on.
3. A patient is malignant if a nodule of a scored scan is; benign if all its nodules are, or if it has none. A patient
   with neither, because a nodule has no value or 3 of 5, is left out and counted.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import InputError, UsageError
from slicemill.common.files import write_csv
from slicemill.common.tables import Row, read_table
from slicemill.common.terminal import count_noun, table_rows
from slicemill.ct.overlap import Detection, area_under_roc, score_detection
from slicemill.ct.points import is_malignant
from slicemill.measure.evaluation.findings import SCAN, Findings

THRESHOLD = 0.5
RESAMPLES = 1000
COLUMNS = ("patient_id", "scans", "score", "answer", "reference")


@dataclass(frozen=True, kw_only=True)
class PatientAnswer:
    """A patient."""

    patient: str
    scans: int
    score: float
    answer: bool
    reference: bool | None
    """None if it is not known."""


@dataclass(frozen=True, kw_only=True)
class MalignancyScores:
    """The answers of all patients, and how they agree with the reference."""

    threshold: float
    patients: tuple[PatientAnswer, ...]
    detection: Detection
    """Of the patients with a reference."""
    auc_interval: tuple[float, float]
    """95 % bootstrap interval over patients; NaN if only one class occurs."""

    @property
    def left_out(self) -> int:
        """Return the number of patients without a reference."""
        return sum(patient.reference is None for patient in self.patients)

    def as_json(self) -> dict[str, object]:
        """Return what is written to froc.json."""
        one, (low, high) = self.detection, self.auc_interval
        return {
            "threshold": self.threshold,
            "patients": len(self.patients) - self.left_out,
            "patients_left_out": self.left_out,
            "auc": _number(one.auc),
            "auc_interval": None if math.isnan(low) else [low, high],
            "true_positive": one.true_positive,
            "false_negative": one.false_negative,
            "false_positive": one.false_positive,
            "true_negative": one.true_negative,
        }


def score_malignancy(results: Path, findings: Findings, threshold: float | None) -> MalignancyScores | None:
    """Compare the answers by patient with the findings of a store; None if there is no malignancy in one of the two.

    Parameters
    ----------
    results
        Table of candidates with the columns ``probability`` and ``malignancy``, from 0 to 1.
    threshold
        Lowest score that is a yes; None is THRESHOLD, and accepts tables without malignancy.

    Raises
    ------
    UsageError
        A threshold is given, and there is no malignancy, or it is not a share.
    InputError
        A value is no probability, or a malignancy in the store is none.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"--malignancy-threshold {threshold:g}: must be from 0 to 1.")
    is_known = any(value is not None for values in findings.malignancy.values() for value in values)
    # what nothing is compared with is not read: others may use the column for something else
    scores = read_scores(results, findings) if is_known and findings.patients is not None else None
    if scores is None or findings.patients is None:
        if threshold is not None:
            lacking = f"{results} has no malignancy" if is_known else "the findings have no malignancy in a store"
            raise UsageError(f"--malignancy-threshold: {lacking}. Remove it.")
        return None
    limit = THRESHOLD if threshold is None else threshold
    patients = tuple(_answer_patients(findings, findings.patients, scores, limit))
    judged = [one for one in patients if one.reference is not None]
    truth, values = [one.reference is True for one in judged], [one.score for one in judged]
    return MalignancyScores(
        threshold=limit,
        patients=patients,
        detection=score_detection(truth, [one.answer for one in judged], values),
        auc_interval=_resample_auc(np.array(truth, dtype=bool), np.array(values, dtype=np.float64)),
    )


def read_scores(results: Path, findings: Findings) -> dict[str, float] | None:
    """Return the highest score of each scan with candidates; None if the table has no malignancy.

    Raises
    ------
    InputError
        A probability or malignancy is not a number from 0 to 1, or is there for some candidates only.
    """
    rows = read_table(results, required=(SCAN, "probability"), keeps_further=True)
    given = [bool(row.cells.get("malignancy")) for row in rows]
    if not any(given):
        return None
    if not all(given):
        line = rows[given.index(False)].line
        raise InputError(f"line {line} has no malignancy, but others have. Use one classifier.", where=results)
    scans = findings.aliases.resolve_all(dict.fromkeys(row.cells[SCAN] for row in rows), results)
    scores: dict[str, float] = {}
    for row in rows:
        scan = scans[row.cells[SCAN]]
        score = _read_share(row, "probability", results) * _read_share(row, "malignancy", results)
        scores[scan] = max(scores.get(scan, 0.0), score)
    return scores


def _read_share(row: Row, column: str, where: Path) -> float:
    try:
        value = row.number(column)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InputError(f"line {row.line}: {column} is {row.cells[column]!r}; it must be from 0 to 1.", where=where)
    return value


def _answer_patients(
    findings: Findings, patient_of: Mapping[str, str], scores: Mapping[str, float], limit: float
) -> list[PatientAnswer]:
    """Return the answer of each patient, in order of their names."""
    scans: dict[str, list[str]] = defaultdict(list)
    for scan in findings.scans:
        scans[patient_of[scan]].append(scan)
    patients = []
    for patient, own in sorted(scans.items()):
        score = max(scores.get(scan, 0.0) for scan in own)
        values = [value for scan in own for value in findings.malignancy.get(scan, ())]
        patients.append(
            PatientAnswer(
                patient=patient,
                scans=len(own),
                score=score,
                answer=score >= limit,
                reference=find_reference(values, ratings=findings.ratings),
            )
        )
    return patients


def find_reference(values: Sequence[float | None], *, ratings: bool) -> bool | None:
    """Return whether a patient with nodules of these values is malignant; None if it is not known.

    >>> [find_reference(values, ratings=True) for values in ([], [1.0, 3.0], [3.0, 4.0])]
    [False, None, True]

    Raises
    ------
    InputError
        A value is neither a rating nor a share.
    """
    try:
        nodules = [is_malignant(value, ratings=ratings) for value in values]
    except ValueError as error:
        raise InputError(f"malignancy {error}. Correct the table of points, and ingest again.") from None
    return True if True in nodules else None if None in nodules else False


def _resample_auc(truth: npt.NDArray[np.bool_], score: npt.NDArray[np.float64]) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, len(truth), len(truth)) for _ in range(RESAMPLES if len(truth) else 0)]
    areas = [area for rows in drawn if not math.isnan(area := area_under_roc(truth[rows], score[rows]))]
    if not areas:
        return math.nan, math.nan
    low, high = np.percentile(areas, (2.5, 97.5))
    return float(low), float(high)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def describe_malignancy(scores: MalignancyScores | None) -> list[str]:
    """Return lines about the answers: AUC and the confusion table; none without scores."""
    if scores is None:
        return []
    one, (low, high), left_out = scores.detection, scores.auc_interval, scores.left_out
    area = f"AUC {one.auc:.4f} (95 % interval {low:.4f} to {high:.4f} over resampled patients)"
    rows = [
        ["malignant", one.true_positive, one.false_negative],
        ["benign or without nodules", one.false_positive, one.true_negative],
    ]
    patients = count_noun(len(scores.patients) - left_out, "patient")
    lines = [
        f"malignancy of {patients} by the highest candidate: {'no AUC of one class' if math.isnan(one.auc) else area}",
        *table_rows(["reference", f"malignant from {scores.threshold:g}", "below"], rows),
    ]
    if left_out:
        lines.append(f"{count_noun(left_out, 'patient')} left out: nodules without malignancy or with 3 of 5")
    return lines


def write_patients(path: Path, scores: MalignancyScores | None) -> None:
    """Write a row a patient as CSV; without scores, remove the table of an earlier run."""
    if scores is None:
        path.unlink(missing_ok=True)
        return
    words = {True: "malignant", False: "benign", None: ""}
    rows = [
        dict(zip(COLUMNS, (one.patient, one.scans, one.score, words[one.answer], words[one.reference]), strict=True))
        for one in scores.patients
    ]
    write_csv(path, rows, COLUMNS)
