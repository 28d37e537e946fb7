"""LUNA16's rules, and curves, each by hand."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import InputError, UsageError
from slicemill.ingest.convert import convert_case
from slicemill.ingest.request import IngestRequest
from slicemill.measure.evaluation.findings import FindingFiles, read_findings
from slicemill.measure.evaluation.froc import NoFindings, ScanHits, analyze_free_response, make_curve
from slicemill.measure.evaluation.luna16 import find_hits, keep_most_probable
from slicemill.measure.evaluation.luna16 import score_points as score_findings
from slicemill.store.writer import prepare_store
from tests.ingest.luna import CENTERS, HEADER, UID, make_collection, make_scan, place, write_table

NONE = np.empty((0, 4))


def score_points(results, annotations, scans=None, **options):
    return score_findings(results, read_findings(FindingFiles(annotations=annotations, scans=scans, **options)))


def points(*rows):
    return np.array(rows, dtype=float).reshape(-1, 4)


def test_a_candidate_on_the_rim_is_no_hit():
    nodule = points((0, 0, 0, 10))
    assert find_hits(points((5, 0, 0, 0.9)), nodule, NONE) == ScanHits(found=(), missed=1, false=(0.9,))
    assert find_hits(points((4.999, 0, 0, 0.9)), nodule, NONE) == ScanHits(found=(0.9,), missed=0, false=())


def test_doubles_are_neither_hits_nor_false_and_the_most_probable_counts():
    found = find_hits(points((1, 0, 0, 0.3), (0, 1, 0, 0.8), (90, 0, 0, 0.5)), points((0, 0, 0, 10)), NONE)
    assert found == ScanHits(found=(0.8,), missed=0, false=(0.5,))


def test_a_candidate_may_hit_two_nodules():
    found = find_hits(points((3, 0, 0, 0.7)), points((0, 0, 0, 10), (6, 0, 0, 10)), NONE)
    assert found == ScanHits(found=(0.7, 0.7), missed=0, false=())


def test_what_hits_an_excluded_finding_counts_as_nothing_and_a_negative_diameter_is_10_mm():
    found = find_hits(points((4.9, 0, 0, 0.7), (5.1, 0, 0, 0.6)), NONE, points((0, 0, 0, -1)))
    assert found == ScanHits(found=(), missed=0, false=(0.6,))


def test_of_more_than_100_candidates_those_above_the_101st_are_kept():
    many = points(*((0, 0, 0, 1 - n / 1000) for n in range(150)))
    assert len(keep_most_probable(many)) == 100
    many[95:105, 3] = many[99, 3]
    assert len(keep_most_probable(many)) == 95, "all that tie with the cut are dropped"
    assert len(keep_most_probable(many[:100])) == 100


def test_the_curve_the_cpm_and_both_read_offs_are_those_drawn_by_hand():
    scans = [
        ScanHits(found=(0.9,), false=(0.8,)),
        ScanHits(found=(0.5,), missed=1, false=(0.6, 0.4)),
        ScanHits(),
        ScanHits(missed=1),
    ]
    curve = make_curve(scans)
    assert curve.false_per_scan.tolist() == [0, 0, 0.25, 0.5, 0.5, 0.75]
    assert curve.sensitivity.tolist() == [0, 0.25, 0.25, 0.25, 0.5, 0.5]
    assert curve.between().tolist() == [0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert curve.at_or_above().tolist() == [0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5]
    response = analyze_free_response(scans)
    assert response.cpm == pytest.approx((2 * 0.25 + 5 * 0.5) / 7)
    low, high = response.cpm_interval
    assert low < response.cpm < high


def test_bootstrap_samples_without_a_finding_are_left_out_and_counted():
    found = analyze_free_response([ScanHits(found=(0.9,)), *[ScanHits()] * 9])
    assert (found.cpm, found.cpm_interval, found.cpm_of_mean_curve) == (1, (1, 1), 1)
    assert 1 - 0.9**10 - 0.06 < found.resamples / 1000 < 1 - 0.9**10 + 0.06
    assert found.band.low.min() == 1
    assert analyze_free_response([ScanHits(found=(0.9,))] * 10).resamples == 1000


def test_without_findings_there_is_no_sensitivity():
    assert analyze_free_response([ScanHits(false=(0.5,))]) == NoFindings(scans=1)


def test_luna16s_files_are_read_and_scans_without_candidates_count(tmp_path):
    (tmp_path / "scans.csv").write_text("a\nb\n")
    (tmp_path / "truth.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\na,0,0,0,10\n")
    (tmp_path / "out.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,probability\na,1,1,1,0.9\na,50,0,0,0.95\nc,0,0,0,0.1\n"
    )
    found = score_points(tmp_path / "out.csv", tmp_path / "truth.csv", tmp_path / "scans.csv").as_json()
    assert found["curve"] == {"false_per_scan": [0.0, 0.5, 0.5], "sensitivity": [0.0, 0.0, 1.0]}
    assert found["candidates_of_unlisted_scans"] == 1
    (tmp_path / "truth.csv").write_text("seriesuid,coordX,coordY,coordZ\na,0,0,0\n")
    with pytest.raises(InputError, match="has no column diameter_mm"):
        score_points(tmp_path / "out.csv", tmp_path / "truth.csv", tmp_path / "scans.csv")


def test_another_column_ranks_the_detections(tmp_path):
    truth = write_rows(tmp_path / "truth.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm", "a,0,0,0,10")
    found = write_rows(
        tmp_path / "out.csv",
        "seriesuid,coordX,coordY,coordZ,probability,segmentation_mean",
        "a,1,1,1,0.2,0.8",
        "a,50,0,0,0.9,0.1",
    )
    scans = write_rows(tmp_path / "scans.csv", "a")
    for column, first in (("probability", 0.0), ("segmentation_mean", 1.0)):
        out = tmp_path / column
        assert froc_command(found, truth, "--scans", scans, "--ranked-by", column, "--out", out)[0] == 0
        document = json.loads((out / "froc.json").read_text())
        assert (document["ranked_by"], document["sensitivity_between"][0]) == (column, first)
    others = write_rows(tmp_path / "others.csv", "seriesuid,coordX,coordY,coordZ,probability", "a,1,1,1,0.2")
    for words, expected in (
        ((others, truth, "--scans", scans, "--ranked-by", "segmentation_mean"), (1, "has no column segmentation_mean")),
        ((found, truth, "--scans", scans, "--ranked-by", "coordX"), (2, "--ranked-by")),
        (
            (found, truth, "--scans", scans, "--ranked-by", "segmentation_mean", "--malignancy-threshold", "0.4"),
            (2, "malignancy goes with probability"),
        ),
    ):
        code, text = froc_command(*words)
        assert code == expected[0]
        assert expected[1] in text


def test_findings_that_are_not_scored_are_counted_and_told(tmp_path):
    truth = write_rows(
        tmp_path / "truth.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm", "s1,0,0,0,9", "S3,0,0,0,9", "S3,9,0,0,9"
    )
    found = write_rows(tmp_path / "out.csv", "seriesuid,coordX,coordY,coordZ,probability", "s1,1,1,1,0.9")
    scans = write_rows(tmp_path / "scans.csv", "s1", "s3")
    code, text = froc_command(found, truth, "--scans", scans, "--out", tmp_path)
    assert (code, "not counted: 2 findings in 1 unlisted scan, the first S3" in text) == (0, True), text
    written = json.loads((tmp_path / "froc.json").read_text())
    assert (written["findings"], written["findings_of_unlisted_scans"]) == (1, 2)
    scans.write_text("s1\nS3\n")
    assert "not counted" not in froc_command(found, truth, "--scans", scans)[1]


def test_rows_that_a_store_left_out_and_cases_that_are_not_scored_are_told(tmp_path):
    table = make_collection(tmp_path / "luna")
    with table.open("a") as file:
        file.write(f"{UID.format(1)},900,900,900,9\n{UID.format(2)},900,900,900,9\n")
    one = IngestRequest(source=tmp_path / "luna", points=table)
    collection, store = one.collection(), prepare_store(tmp_path / "store")
    for case in collection.cases:
        convert_case(case, one.params(collection), store)
    found = write_rows(tmp_path / "out.csv", "seriesuid,coordX,coordY,coordZ,probability", f"{UID.format(1)},0,0,0,0.5")
    code, text = froc_command(found, store)
    assert (code, "2 rows of the table of nodules left out" in text) == (0, True), text
    assert "not counted" not in text
    text = froc_command(found, store, "--scans", write_rows(tmp_path / "scans", UID.format(1)))[1]
    assert "1 row of the table of nodules left out" in text
    assert f"not counted: 1 finding in 1 unlisted scan, the first {UID.format(2)}" in text


def froc_command(*arguments):
    result = CliRunner().invoke(commands(), ["froc", *map(str, arguments)])
    return result.exit_code, " ".join(f"{result.output} {result.exception or ''}".split())


def test_names_and_tables_that_cannot_be_read_as_they_stand_are_refused(tmp_path):
    (tmp_path / "truth.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\na,0,0,0,10\nb,0,0,0,10\n")
    (tmp_path / "out.csv").write_text("seriesuid,coordX,coordY,coordZ,probability\na,1,1,1,0.9\n")
    files = tmp_path / "out.csv", tmp_path / "truth.csv", tmp_path / "scans.csv"
    files[2].write_text("a\nb\n", encoding="utf-8-sig")
    found = score_points(*files).as_json()
    assert (found["findings"], found["candidates_of_unlisted_scans"]) == (2, 0), "a byte order mark is no name"
    files[2].write_text("a\nb\na\n")
    with pytest.raises(InputError, match="a occurs more than once"):
        score_points(*files)
    files[2].write_bytes(b"a\nb\xe9\n")
    with pytest.raises(InputError, match=r"scans.csv: must be UTF-8; it contains the byte 0xe9"):
        score_points(*files)
    files[2].write_text("a\nb\n")
    files[0].write_bytes(b"seriesuid,coordX,coordY,coordZ,probability\n\xe9,1,1,1,0.9\n")
    with pytest.raises(InputError, match=r"out.csv: must be UTF-8"):
        score_points(*files)
    files[0].write_text(f"seriesuid,coordX,coordY,coordZ,probability\n{'a' * 200_000},1,1,1,0.9\n")
    with pytest.raises(InputError, match=r"out.csv, line 2: cannot be read as CSV \(field larger"):
        score_points(*files)


def write_rows(path, header, *rows):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def banded(tmp_path):
    """Two scans of one patient and one of another; a small, a middle and a large finding, two of them hit."""
    write_rows(tmp_path / "scans.csv", "a", "b", "c")
    write_rows(
        tmp_path / "truth.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm,texture",
        "a,0,0,0,5,solid", "a,100,0,0,8,ground glass", "b,0,0,0,10,solid",
    )  # fmt: skip
    write_rows(
        tmp_path / "out.csv", "seriesuid,coordX,coordY,coordZ,probability", "a,1,0,0,0.9", "a,50,0,0,0.8", "b,1,0,0,0.7"
    )
    write_rows(tmp_path / "patients.csv", "seriesuid,patient_id", "a,p", "b,p", "c,q")
    return tmp_path


def test_each_diameter_band_has_a_curve_in_which_other_findings_count_as_nothing(banded):
    found = score_points(banded / "out.csv", banded / "truth.csv", banded / "scans.csv", group="texture")
    assert (found.response.findings, found.resampled) == (3, "scans")
    small, middle, large = (found.parts[name] for name in ("below 6 mm", "6 to 10 mm", "10 mm and above"))
    assert small.curve.sensitivity.tolist() == [0, 1, 1]
    assert small.curve.false_per_scan.tolist() == [0, 0, 1 / 3]
    assert (middle.findings, middle.cpm) == (1, 0)
    assert large.curve.sensitivity.tolist() == [0, 0, 1]  # after the false positive of scan a
    assert large.curve.false_per_scan.tolist() == pytest.approx([0, 1 / 3, 1 / 3])
    solid, glass = found.parts["texture solid"], found.parts["texture ground glass"]
    assert (solid.findings, glass.findings, glass.cpm) == (2, 1, 0)


def test_a_column_of_many_values_is_refused_as_groups(banded):
    truth = banded / "truth.csv"
    asked = FindingFiles(annotations=truth, scans=banded / "scans.csv", group="solidity")
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm,solidity"
    for count in (20, 21):
        write_rows(truth, header, *(f"a,{n},0,0,5,{n / 7}" for n in range(count)))
        if count == 20:
            assert len(set(read_findings(asked).groups["a"])) == 20
    with pytest.raises(UsageError, match="--by solidity: the column has 21 values"):
        read_findings(asked)


def test_intervals_over_patients_draw_all_scans_of_a_patient_together(banded):
    files = banded / "out.csv", banded / "truth.csv", banded / "scans.csv"
    found = score_points(*files, patients=banded / "patients.csv")
    assert found.resampled == "patients"
    assert found.response.cpm == score_points(*files).response.cpm
    hits = [ScanHits(found=(0.9,)), ScanHits(missed=1), ScanHits(found=(0.8,)), ScanHits(missed=1)]
    assert analyze_free_response(hits).cpm_interval == (0, 1)
    assert analyze_free_response(hits, ["p", "p", "q", "q"]).cpm_interval == (0.5, 0.5)
    write_rows(banded / "patients.csv", "seriesuid,patient_id", "a,p", "b,p")
    with pytest.raises(InputError, match="has no patient of c"):
        score_points(*files, patients=banded / "patients.csv")


def test_the_findings_of_a_store_are_grouped_by_its_words(tmp_path):
    table = make_collection(tmp_path / "luna")
    lines = table.read_text().splitlines()
    write_rows(table, f"{lines[0]},kind", f"{lines[1]},solid", f"{lines[2]},ground glass")
    one = IngestRequest(source=tmp_path / "luna", points=table)
    collection, store = one.collection(), prepare_store(tmp_path / "store")
    for case in collection.cases:
        convert_case(case, one.params(collection), store)
    write_rows(
        tmp_path / "out.csv", "seriesuid,coordX,coordY,coordZ,probability",
        f"{UID.format(1)},{','.join(map(str, place(CENTERS[1][0])))},0.9",
    )  # fmt: skip
    parts = score_points(tmp_path / "out.csv", store, group="kind").parts
    assert (parts["kind solid"].cpm, parts["kind ground-glass"].cpm) == (1, 0)


def test_a_store_has_its_findings_scans_and_patients(tmp_path):
    make_collection(tmp_path / "luna")
    one = IngestRequest(source=tmp_path / "luna", points=tmp_path / "luna" / "annotations.csv")
    collection, store = one.collection(), prepare_store(tmp_path / "store")
    for case in collection.cases:
        convert_case(case, one.params(collection), store)
    rows = [f"{UID.format(number)},{','.join(map(str, place(center)))},0.9" for number, (center, _) in CENTERS.items()]
    write_rows(tmp_path / "out.csv", "seriesuid,coordX,coordY,coordZ,probability", *rows)
    found = score_points(tmp_path / "out.csv", store)
    assert (found.response.scans, found.response.findings, found.response.cpm, found.resampled) == (3, 2, 1, "patients")
    by_table = score_points(
        tmp_path / "out.csv", tmp_path / "luna" / "annotations.csv",
        write_rows(tmp_path / "scans.csv", *(UID.format(number) for number in (1, 2, 3))),
    )  # fmt: skip
    assert by_table.response.curve.sensitivity.tolist() == found.response.curve.sensitivity.tolist()
    assert score_points(tmp_path / "out.csv", store, tmp_path / "scans.csv").response.scans == 3
    with pytest.raises(UsageError, match="patients of its own"):
        score_points(tmp_path / "out.csv", store, excluded=tmp_path / "scans.csv")
    with pytest.raises(InputError, match="no finding has the column texture"):
        score_points(tmp_path / "out.csv", store, group="texture")
    with pytest.raises(UsageError, match="--scans"):
        score_points(tmp_path / "out.csv", tmp_path / "luna" / "annotations.csv")


@pytest.fixture
def folders(tmp_path):
    """A store of p1/ct.mha and p2/ct.mha, with a nodule at another place in each, and candidates of it by any name."""
    for patient, number in (("p1", 1), ("p2", 2)):
        make_scan(tmp_path / "in" / patient / "ct.mha", [CENTERS[number]])
    rows = [(f"p{number}/ct", *place(center), size) for number, (center, size) in CENTERS.items()]
    table = write_table(tmp_path / "annotations.csv", HEADER, rows)
    one = IngestRequest(source=tmp_path / "in", points=table)
    collection, store = one.collection(), prepare_store(tmp_path / "store")
    for case in collection.cases:
        convert_case(case, one.params(collection), store)
    return store


def write_found(folder, *names):
    """Write a candidate in the nodule of p1/ct.mha for each name."""
    cells = ",".join(map(str, place(CENTERS[1][0])))
    return write_rows(
        folder / "out.csv", "seriesuid,coordX,coordY,coordZ,probability", *(f"{n},{cells},0.9" for n in names)
    )


@pytest.mark.parametrize("name", ["p1/ct", "p1"])
def test_a_scan_of_a_store_is_known_by_its_case_id_and_its_path(folders, tmp_path, name):
    found = score_points(write_found(tmp_path, name), folders)
    assert (found.unlisted_candidates, found.response.findings) == (0, 2)
    assert found.response.curve.sensitivity.tolist() == [0, 0.5]
    listed = score_points(write_found(tmp_path, name), folders, write_rows(tmp_path / "scans", name))
    assert (listed.response.scans, listed.response.curve.sensitivity.tolist()) == (1, [0, 1])
    other = score_points(write_found(tmp_path, name), folders, write_rows(tmp_path / "scans", "p2/ct"))
    assert (other.unlisted_candidates, other.response.cpm) == (1, 0)


def test_a_name_of_two_scans_of_a_store_is_refused_in_candidates_and_in_the_list(folders, tmp_path):
    message = r"{}: the name ct is that of 2 scans of the store, p1, p2; use the case id"
    with pytest.raises(InputError, match=message.format("out.csv")):
        score_points(write_found(tmp_path, "ct"), folders)
    with pytest.raises(InputError, match=message.format("out.csv")):  # of a scan that is perhaps not listed
        score_points(write_found(tmp_path, "ct"), folders, write_rows(tmp_path / "scans", "p1"))
    with pytest.raises(InputError, match=message.format("scans")):
        score_points(write_found(tmp_path, "p1"), folders, write_rows(tmp_path / "scans", "ct"))


def test_two_names_of_one_scan_are_refused_in_candidates_and_in_the_list(folders, tmp_path):
    message = "{}: p1 and p1/ct are both the scan p1"
    with pytest.raises(InputError, match=message.format("out.csv")):
        score_points(write_found(tmp_path, "p1", "p1/ct"), folders)
    with pytest.raises(InputError, match=message.format("scans")):
        score_points(write_found(tmp_path, "p1"), folders, write_rows(tmp_path / "scans", "p1", "p1/ct"))
