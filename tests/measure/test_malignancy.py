"""Malignancy by patient: the highest candidate, the reference, and the confusion table, each by hand."""

import csv
import json

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import InputError, UsageError
from slicemill.ingest.convert import convert_case
from slicemill.ingest.request import IngestRequest
from slicemill.measure.evaluation.findings import FindingFiles, Findings, read_findings
from slicemill.measure.evaluation.malignancy import describe_malignancy, find_reference, score_malignancy
from slicemill.store.reader import open_store
from slicemill.store.writer import prepare_store
from slicemill.train.crops.samples import are_rated
from tests.ingest.luna import CENTERS, HEADER, UID, make_collection, place, write_table

COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "probability", "malignancy")


def make_findings(malignancy, patients, *, ratings=False):
    return Findings(
        scans=tuple(patients),
        included={},
        excluded={},
        malignancy=malignancy,
        ratings=ratings,
        patients=patients,
    )


def write_candidates(folder, *rows):
    return write_table(folder / "candidates.csv", COLUMNS, [(scan, 0, 0, 0, *scores) for scan, *scores in rows])


PATIENTS = {"s1": "p1", "s2": "p1", "s3": "p2", "s4": "p3", "s5": "p4"}


def test_a_patient_is_judged_by_the_highest_candidate_of_all_its_scans(tmp_path):
    findings = make_findings({"s1": (0.2,), "s2": (1.0,), "s3": (0.1,), "s5": (0.9,)}, PATIENTS)
    table = write_candidates(
        tmp_path,
        ("s1", 0.1, 1.0),  # surely malignant, if it is a nodule
        ("s2", 0.9, 0.8),
        ("s2", 0.99, 0.1),
        ("s3", 0.7, 0.9),
        ("s4", 0.6, 0.2),
        ("elsewhere", 1.0, 1.0),
    )
    scored = score_malignancy(table, findings, None)
    assert [(one.patient, one.scans, one.answer, one.reference) for one in scored.patients] == [
        ("p1", 2, True, True),
        ("p2", 1, True, False),
        ("p3", 1, False, False),  # without nodules
        ("p4", 1, False, True),  # without candidates
    ]
    assert [one.score for one in scored.patients] == pytest.approx([0.72, 0.63, 0.12, 0.0])
    document = scored.as_json()
    names = ("true_positive", "false_negative", "false_positive", "true_negative", "auc", "threshold", "patients")
    assert [document[name] for name in names] == [1, 1, 1, 1, 0.5, 0.5, 4]
    strict = score_malignancy(table, findings, 0.65).as_json()
    assert [strict[name] for name in names] == [1, 1, 0, 2, 0.5, 0.65, 4]
    assert any("malignant from 0.65" in line for line in describe_malignancy(score_malignancy(table, findings, 0.65)))


def test_the_area_is_that_of_scipy_and_lies_in_its_interval(tmp_path):
    rng = np.random.default_rng(5)
    truth, scores = rng.random(60) < 0.4, np.round(rng.random(60), 1)
    patients = {f"s{number}": f"p{number:02}" for number in range(60)}
    findings = make_findings({f"s{number}": (float(one),) for number, one in enumerate(truth)}, patients)
    table = write_candidates(tmp_path, *((f"s{number}", 1.0, one) for number, one in enumerate(scores)))
    scored = score_malignancy(table, findings, None)
    expected = mannwhitneyu(scores[truth], scores[~truth]).statistic / truth.sum() / (~truth).sum()
    assert scored.detection.auc == pytest.approx(expected)
    low, high = scored.auc_interval
    assert low < expected < high


def test_patients_whose_nodules_say_nothing_are_left_out_and_counted(tmp_path):
    findings = make_findings(
        {"s1": (3.0,), "s2": (1.0,), "s3": (None,), "s4": (3.0, 5.0), "s5": (2.0,)}, PATIENTS, ratings=True
    )
    scored = score_malignancy(write_candidates(tmp_path, ("s4", 1.0, 0.9)), findings, None)
    assert [one.reference for one in scored.patients] == [None, None, True, False]
    assert (scored.left_out, scored.as_json()["patients"], scored.detection.auc) == (2, 2, 1.0)
    assert describe_malignancy(scored)[-1].startswith("2 patients left out")
    one_class = score_malignancy(
        write_candidates(tmp_path, ("s4", 1.0, 0.9)), make_findings({"s1": (1.0,)}, {"s1": "p1"}), None
    )
    assert (one_class.as_json()["auc"], one_class.as_json()["auc_interval"]) == (None, None)
    assert "no AUC of one class" in describe_malignancy(one_class)[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("s1", 1.5, 0.5), r"line 3: probability is '1\.5'; it must be from 0 to 1"),
        (("s1", 0.5, "nan"), "line 3: malignancy is 'nan'; it must be from 0 to 1"),
        (("s1", 0.5, ""), "line 3 has no malignancy, but others have"),
    ],
)
def test_values_that_are_no_probabilities_are_refused(tmp_path, row, message):
    table = write_candidates(tmp_path, ("s1", 0.5, 0.5), row)
    with pytest.raises(InputError, match=rf"candidates\.csv.*{message}"):
        score_malignancy(table, make_findings({"s1": (1.0,)}, PATIENTS), None)


def test_a_malignancy_that_is_neither_rating_nor_share_is_refused():
    with pytest.raises(InputError, match="malignancy is 0.5; the values of a store must all be from 0 to 1, or all"):
        find_reference([0.5, 4.0], ratings=True)


def test_without_malignancy_there_is_no_answer_and_a_threshold_is_refused(tmp_path):
    findings = make_findings({"s1": (1.0,)}, PATIENTS)
    table = write_candidates(tmp_path, ("s1", 0.5, ""))
    assert score_malignancy(table, findings, None) is None
    with pytest.raises(UsageError, match="--malignancy-threshold: .* has no malignancy"):
        score_malignancy(table, findings, 0.5)
    table = write_candidates(tmp_path, ("s1", 0.5, 0.5))
    unknown = make_findings({"s1": (None,)}, PATIENTS)
    assert score_malignancy(table, unknown, None) is None
    with pytest.raises(UsageError, match="the findings have no malignancy"):
        score_malignancy(table, unknown, 0.5)
    with pytest.raises(UsageError, match="must be from 0 to 1"):
        score_malignancy(table, findings, 1.5)


def test_scores_that_nothing_is_compared_with_may_have_any_values(tmp_path):
    """LUNA16's tables have any scores, and a column malignancy may be anyone's."""
    table = write_candidates(tmp_path, ("s1", 7.5, 0.5), ("s2", -1, ""), ("s3", 0.1, 4))
    assert score_malignancy(table, make_findings({"s1": (None,)}, PATIENTS), None) is None
    write_table(tmp_path / "findings.csv", HEADER, [("s1", 0, 0, 0, 9)])
    (tmp_path / "scans").write_text("s1\ns2\n")
    done = CliRunner().invoke(
        commands(), ["froc", str(table), str(tmp_path / "findings.csv"), "--scans", str(tmp_path / "scans")]
    )
    assert done.exit_code == 0, done.output


def test_ratings_of_excluded_findings_tell_what_the_values_are(tmp_path):
    """Nodules that are all rated 1 are benign: 1 of 5, and no probability. Training takes them so, too."""
    make_collection(tmp_path / "luna")
    rows = [(UID.format(n), *place(center), size, 1) for n, (center, size) in CENTERS.items()]
    columns = (*HEADER, "malignancy")
    points = write_table(tmp_path / "luna" / "annotations.csv", columns, rows)
    first, ((z, y, x), _) = next(iter(CENTERS.items()))
    row = (UID.format(first), *place((z, y, x + 4)), 4, 3)
    excluded = write_table(tmp_path / "luna" / "annotations_excluded.csv", columns, [row])
    one = IngestRequest(source=tmp_path / "luna", points=points, excluded=excluded)
    collection, store = one.collection(), prepare_store(tmp_path / "store")
    for case in collection.cases:
        convert_case(case, one.params(collection), store)
    findings = read_findings(FindingFiles(annotations=tmp_path / "store"))
    opened = open_store(tmp_path / "store")
    kinds = {(point.kind, point.malignancy) for case in opened.values() for point in case.points}
    assert kinds == {("nodule", 1.0), ("excluded", 3.0)}
    assert findings.ratings
    assert findings.ratings == are_rated(opened.values())


@pytest.mark.slow
def test_froc_writes_the_answers_of_a_stores_patients(tmp_path):
    make_collection(tmp_path / "luna")
    rows = [(UID.format(n), *place(center), size, 5 if n == 1 else 2) for n, (center, size) in CENTERS.items()]
    write_table(tmp_path / "luna" / "annotations.csv", (*HEADER, "malignancy"), rows)
    one = IngestRequest(source=tmp_path / "luna", points=tmp_path / "luna" / "annotations.csv")
    collection, store = one.collection(), prepare_store(tmp_path / "store")
    for case in collection.cases:
        convert_case(case, one.params(collection), store)
    found = [(UID.format(n), *place(center), 0.9, 0.8 if n == 1 else 0.3) for n, (center, _) in CENTERS.items()]
    table = write_table(tmp_path / "found.csv", COLUMNS, found)

    def froc(*options):
        return CliRunner().invoke(
            commands(), ["froc", str(table), str(store), "--out", str(tmp_path / "out"), *options]
        )

    done = froc()
    assert done.exit_code == 0, done.output
    assert "malignancy of 3 patients by the highest candidate: AUC 1.0000" in done.stdout
    document = json.loads((tmp_path / "out" / "froc.json").read_text())["malignancy"]
    assert (document["true_positive"], document["true_negative"], document["patients_left_out"]) == (1, 2, 0)
    answers = list(csv.DictReader((tmp_path / "out" / "malignancy.csv").read_text().splitlines()))
    assert sorted((row["answer"], row["reference"]) for row in answers) == [
        ("benign", "benign"), ("benign", "benign"), ("malignant", "malignant"),
    ]  # fmt: skip
    write_table(table, COLUMNS, [(*row[:-1], "") for row in found])
    assert froc().exit_code == 0
    assert json.loads((tmp_path / "out" / "froc.json").read_text())["malignancy"] is None
    assert not (tmp_path / "out" / "malignancy.csv").exists(), "that of an earlier table"
    refused = froc("--malignancy-threshold", "0.4")
    assert refused.exit_code
