"""Ingest with tables of points: rows and their scans, masks, candidates, and what is left out."""

import shutil
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import InputError, PairingError, ScanError, StoreError, UsageError
from slicemill.ct.geometry import voxel_ml
from slicemill.ct.points import mm_to_voxel, voxels_to_mm
from slicemill.ingest.convert import convert_case
from slicemill.ingest.point_tables import read_candidates, read_points
from slicemill.ingest.request import IngestRequest
from slicemill.store.reader import open_store
from slicemill.store.tables import read_table, reindex
from slicemill.store.verify import verify
from slicemill.store.writer import prepare_store
from tests.conftest import REAL
from tests.ct.dicom.made import write_series
from tests.ingest.luna import (
    CENTERS,
    HEADER,
    SHAPE,
    SPACING,
    UID,
    make_collection,
    make_scan,
    place,
    write,
    write_table,
)
from tests.ingest.runs import HERE

pytestmark = pytest.mark.usefixtures("one_worker")

LUNG, NODULE, IGNORED = 1, 2, 3


@pytest.fixture
def luna(tmp_path):
    make_collection(tmp_path / "luna")
    return tmp_path / "luna"


def request(luna, store, **options):
    return IngestRequest(source=luna, store=store, points=luna / "annotations.csv", workers=1, **options)


def convert(luna, tmp_path, **options):
    """Convert the cases in this process, and return the opened store and the collection."""
    store = prepare_store(tmp_path / "store")
    one = request(luna, store, **options)
    collection = one.collection()
    for case in collection.cases:
        convert_case(case, one.params(collection), store)
    return open_store(store), collection


def table(luna, *rows, name="annotations.csv", header=HEADER, **options):
    return write_table(luna / name, header, rows, **options)


def test_a_nodule_gets_its_label_and_a_point_in_the_store(luna, tmp_path):
    store, collection = convert(luna, tmp_path, lungs=luna.parent / "seg-lungs")
    assert len(store) == 3
    for number, (center, diameter) in CENTERS.items():
        case = store[UID.format(number)]
        (point,) = case.points
        assert (point.id, point.kind, point.mask, point.flags) == ("nodule-1", "nodule", "density", ())
        assert (point.xyz_mm, point.diameter_mm) == (place(center), diameter)
        assert mm_to_voxel(case.affine, point.xyz_mm) == pytest.approx(center)
        label = np.asarray(case.label)
        assert label[center] == NODULE
        assert (label == NODULE).sum() * voxel_ml(case.affine) == pytest.approx(point.volume_ml)
        assert case.info.slice_stats.voxels["nodule"][center[0]] > 0
        assert len(case.lesions) == 1
        assert label[2, 2, 2] == 0  # LUNA16's trachea is no lung
        assert label[2, 20, 2] == label[2, 20, 40] == LUNG
    empty = store[UID.format(3)]
    assert empty.points == ()
    assert empty.info.slice_stats.voxels["nodule"] == [0] * SHAPE[0]
    assert empty.candidates is None
    assert any("1 scan without a row of a nodule: taken as scans without nodules" in note for note in collection.notes)
    assert verify(store, None, workers=1, advance=lambda *_: None)[1:] == [  # the tables were not built yet
        f"{case_id}: is not in the tables; `slicemill store reindex` adds it." for case_id in store
    ]


def test_without_lungs_there_is_no_label_of_lung(luna, tmp_path):
    store, _ = convert(luna, tmp_path)
    info = store[UID.format(1)].info
    assert dict(info.labels.values) == {"nodule": NODULE, "ignore": IGNORED}
    assert (info.labels.organ, info.labels.tumor) == (None, "nodule")
    assert info.mask.name == "annotations.csv"


@pytest.mark.parametrize("orientation", ["LPS", "RAI", "ARS", "SPL"])
def test_the_label_is_the_same_in_every_order_of_the_file(orientation, luna, tmp_path):
    one = UID.format(1)
    make_scan(luna / "subset1" / f"{one}.mhd", [CENTERS[1]], orientation=orientation)
    store, _ = convert(luna, tmp_path, lungs=luna.parent / "seg-lungs", geometry="resample")
    label = np.asarray(store[one].label)
    assert label[CENTERS[1][0]] == NODULE
    middle = np.argwhere(label == NODULE).mean(axis=0)
    assert middle == pytest.approx(CENTERS[1][0], abs=0.2)


@pytest.mark.parametrize(
    ("separator", "comma", "encoding", "end"),
    [
        (",", ".", "utf-8", "\n"),
        (";", ",", "utf-8-sig", "\r\n"),
        ("\t", ".", "utf-16", "\r\n"),
        (";", ".", "utf-8", "\r"),
    ],
)
def test_tables_of_spreadsheets_are_read(separator, comma, encoding, end, tmp_path):
    rows = [[UID.format(1), -12.5, 3.25, -400.125, 7.5], [UID.format(2), 1e1, 2, 3, -1]]
    lines = [separator.join(HEADER), *(separator.join(str(cell).replace(".", comma) if number else cell
             for number, cell in enumerate(row)) for row in rows)]  # fmt: skip
    path = tmp_path / "a.csv"
    path.write_bytes((end.join(lines) + end).encode(encoding))
    found = read_points(path, "nodule").rows
    assert [(row.names, row.xyz_mm, row.diameter_mm) for row in found] == [
        ((UID.format(1),), (-12.5, 3.25, -400.125), 7.5), ((UID.format(2),), (10.0, 2.0, 3.0), -1.0)
    ]  # fmt: skip
    path.write_bytes((end.join([lines[0].replace("diameter_mm", "class"), lines[1].rpartition(separator)[0] + separator
                                + "1"]) + end).encode(encoding))  # fmt: skip
    (rows,) = read_candidates(path).by_names.values()
    assert rows[:, :5].tolist() == [[-12.5, 3.25, -400.125, 1, 2]]
    assert np.isnan(rows[0, 5])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((UID.format(1), "x", 0, 0, 5), "line 2: must have a number in coordx; it has 'x'"),
        ((UID.format(1), "", 0, 0, 5), "line 2: must have a number in coordx; it has ''"),
        ((UID.format(1), 0, "inf", 0, 5), "line 2: must have a number in coordy"),
        (("", 0, 0, 0, 5), "line 2: must name its scan in the column seriesuid or case_id"),
    ],
)
def test_a_row_that_is_no_point_is_refused(row, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_points(table(tmp_path, row), "nodule")


@pytest.mark.parametrize(
    ("cells", "message"),
    [((0, 0, 0, 2), "the class 0 or 1; it has 0, 0, 0 and the class 2"), ((0, "nan", 0, 1), "finite positions"),
     ((0, "", 0, 1), "must have numbers in coordX to class")],
)  # fmt: skip
def test_a_candidate_that_is_none_is_refused(cells, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_candidates(table(tmp_path, (UID.format(1), *cells), header=(*HEADER[:4], "class")))


def test_further_columns_are_kept_unless_they_could_name_a_person(luna, tmp_path):
    header = (*HEADER, "malignancy", "readers", "texture", "patient_age", "birthdate", "comment", "kind", "place")
    row = (UID.format(1), *place(CENTERS[1][0]), 9.0, 3.5, 4, 2, 61, 19500101, "Mrs X", "Ground glass", "pleura")
    table(luna, row, header=header)
    store, collection = convert(luna, tmp_path)
    (point,) = store[UID.format(1)].points
    assert (point.malignancy, point.readers, dict(point.further)) == (3.5, 4, {"texture": 2.0})
    assert dict(point.words) == {"kind": "ground-glass", "place": "pleura"}
    reindex(store.root)
    assert read_table(store.root, "points")[0]["further_kind"] == "ground-glass"
    told = " ".join(collection.notes)
    assert "column birthdate is not kept: it may identify a person" in told
    assert "column comment is not kept: it has text" in told
    assert b"Mrs X" not in b"".join(path.read_bytes() for path in store.root.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("column", "cell"),
    [("AnnotationID", "100570_1_19990102"), ("lesion", "100570_1"), ("pid", "100570"), ("ssn", "123456789"),
     ("subject", "17"), ("patnr", "17"), ("dob", "19500101"), ("age", "61"), ("label", "100570"), ("x1", "17")],
)  # fmt: skip
def test_numbers_of_unknown_columns_are_not_kept_and_told(column, cell, tmp_path):
    header = (*HEADER, column, "Agreement Level", "internal_structure")
    found = read_points(table(tmp_path, (UID.format(1), 1, 2, 3, 9.0, cell, 4, "yes"), header=header), "nodule")
    assert dict(found.rows[0].further) == {"agreement level": 4.0, "internal_structure": 1.0}
    (note,) = found.notes
    assert f"the column {column.lower()} is not kept" in note
    assert cell not in note


def test_a_name_of_digits_and_underscores_is_no_position(tmp_path):
    with pytest.raises(InputError, match="must have a number in coordx; it has '1_0'"):
        read_points(table(tmp_path, (UID.format(1), "1_0", 2, 3, 9.0)), "nodule")


def test_rows_that_cannot_be_used_are_listed(luna, tmp_path):
    center, size = CENTERS[1]
    good = place(center)
    other = (20, 30, 30)
    table(
        luna,
        (UID.format(1), *good, size),
        (UID.format(1), *good, size),  # line 3 repeats line 2
        (UID.format(2), *place(CENTERS[2][0]), 12.0),
        (UID.format(2), *place(CENTERS[2][0]), 7.0),  # line 5 contradicts line 4
        (UID.format(3), *place(other), 0),  # line 6: no diameter
        (UID.format(3), *place((20, 8, 8)), -1),  # line 7
        (UID.format(3), *place((20, 100, 8)), 5),  # line 8: outside
        (UID.format(9), *good, 5),  # line 9: no such scan
        (UID.format(3), *place((5, 8, 30)), 6),
    )
    store, collection = convert(luna, tmp_path)
    assert [one.line for one in collection.unmatched_points] == [9]
    left_out = {one.line: one.reason for case in store.values() for one in case.info.points_left_out}
    assert left_out == {
        3: "repeats line 2",
        5: "contradicts line 4 about the same point: it is left out of training",
        6: "its diameter is 0 mm: a ball of 10 mm is left out of training",
        7: "its diameter is -1 mm: a ball of 10 mm is left out of training",
        8: f"its point lies {0.8 * 60.5:.1f} mm outside of the scan",
    }
    assert [point.id for point in store[UID.format(1)].points] == ["nodule-1"]
    assert [(point.kind, point.diameter_mm) for point in store[UID.format(2)].points] == [("excluded", 12.0)]
    label = np.asarray(store[UID.format(2)].label)
    assert label[CENTERS[2][0]] == IGNORED
    assert not (label == NODULE).any()
    third = store[UID.format(3)]
    assert [(point.id, point.diameter_mm) for point in third.points] == [
        ("excluded-1", None), ("excluded-2", None), ("nodule-1", 6.0)
    ]  # fmt: skip
    assert np.asarray(third.label)[other] == IGNORED
    assert [warning for warning in third.info.warnings if "line 8" in warning]


def test_a_table_that_names_no_scan_is_refused(luna, tmp_path):
    table(luna, ("someone-else", 0, 0, 0, 5))
    with pytest.raises(PairingError, match="the first, someone-else: names no scan"):
        request(luna, tmp_path / "store").collection()


def test_a_collection_without_nodules_needs_another_row_that_names_a_scan(luna, tmp_path):
    table(luna, ("someone-else", 0, 0, 0, 5))
    one = request(luna, tmp_path / "store", excluded=table(luna, (UID.format(1), 0, 0, 0, 5), name="x.csv"))
    found = {case.case_id: len(case.points.rows) for case in one.collection().cases}
    assert found == {UID.format(1): 1, UID.format(2): 0, UID.format(3): 0}


def test_excluded_findings_are_ignored_with_a_rim(luna, tmp_path):
    place_of = (6, 10, 30)
    table(luna, (UID.format(1), *place(place_of), 6.0), name="excluded.csv")
    store, _ = convert(luna, tmp_path, excluded=luna / "excluded.csv", lungs=luna.parent / "seg-lungs")
    case = store[UID.format(1)]
    assert [(point.id, point.kind, point.mask) for point in case.points] == [
        ("nodule-1", "nodule", "density"), ("excluded-1", "excluded", "ball")
    ]  # fmt: skip
    label = np.asarray(case.label)
    z, y, x = np.indices(SHAPE)
    distance = np.sqrt(sum(((a - c) * s) ** 2 for a, c, s in zip((z, y, x), place_of, SPACING[::-1], strict=True)))
    assert (label[distance <= 5.0] == IGNORED).all()
    assert not (label[(distance > 5.0) & (distance < 7)] == IGNORED).any()


@pytest.mark.parametrize("center", [(0, 20, 20), (23, 20, 20), (10, 0, 0), (10, 39, 43)])
def test_a_nodule_on_the_border_is_drawn_as_far_as_the_scan_goes(center, luna, tmp_path):
    make_scan(luna / "subset1" / f"{UID.format(1)}.mhd", [(center, 9.0)])
    table(luna, (UID.format(1), *place(center), 9.0))
    store, _ = convert(luna, tmp_path)
    case = store[UID.format(1)]
    assert np.asarray(case.label)[center] == NODULE
    assert 0.2 < case.points[0].volume_ml / (np.pi / 6 * 0.729) < 0.75
    edge = [-0.5 if voxel == 0 else voxel for voxel in center]  # the outer face of the first voxel is inside
    table(luna, (UID.format(1), *place(edge), 9.0))
    shutil.rmtree(tmp_path / "store")
    store, _ = convert(luna, tmp_path)
    assert store[UID.format(1)].info.points_left_out == ()


def test_two_nodules_in_one_voxel_are_both_kept_and_flagged(luna, tmp_path):
    near = place(np.add(CENTERS[1][0], 0.2))
    table(luna, (UID.format(1), *place(CENTERS[1][0]), 9.0), (UID.format(1), *near, 8.0))
    store, _ = convert(luna, tmp_path)
    first, second = store[UID.format(1)].points
    assert first.flags == ()
    assert second.flags == ("its center is in the same voxel as that of nodule-1",)


def test_thick_slices_keep_a_small_nodule(luna, tmp_path):
    spacing = (0.7, 0.7, 2.5)
    make_scan(luna / "subset1" / f"{UID.format(1)}.mhd", [((10, 20, 20), 5.0)], spacing=spacing)
    table(luna, (UID.format(1), *place((10, 20, 20), spacing), 5.0))
    store, _ = convert(luna, tmp_path)
    (point,) = store[UID.format(1)].points
    assert point.mask == "density"
    assert 0.5 < point.volume_ml / (np.pi / 6 * 0.125) < 1.5


def test_lungs_must_be_there_and_have_known_values(luna, tmp_path):
    (luna.parent / "seg-lungs" / f"{UID.format(3)}.mhd").unlink()
    with pytest.raises(ScanError, match="has no segmentation in the folder of --lungs"):
        convert(luna, tmp_path, lungs=luna.parent / "seg-lungs")
    write(luna.parent / "seg-lungs" / f"{UID.format(3)}.mhd", np.full(SHAPE, 7, dtype=np.uint8))
    with pytest.raises(InputError, match=r"has the values 3 and 4 .* it has \[7\]"):
        convert(luna, tmp_path, lungs=luna.parent / "seg-lungs")
    write(luna.parent / "seg-lungs" / f"{UID.format(3)}.mhd", np.zeros(SHAPE, dtype=np.uint8))
    store, _ = convert(luna, tmp_path, lungs=luna.parent / "seg-lungs")
    assert "its segmentation of lungs has no lung" in store[UID.format(3)].info.warnings


def test_options_that_need_or_exclude_each_other(luna):
    with pytest.raises(UsageError, match="--lungs needs --points"):
        IngestRequest(source=luna, lungs=luna)
    with pytest.raises(UsageError, match="excludes --mask"):
        IngestRequest(source=luna, points=luna / "annotations.csv", labels="nodule=1")


def candidates(luna):
    center = CENTERS[1][0]
    rows = [
        (UID.format(1), *place(center), 1),  # line 2: at the center
        (UID.format(1), *place(np.add(center, (0, 2, 0))), 1),  # line 3: the same nodule
        (UID.format(1), *place((2, 2, 2)), 0),  # line 4
        (UID.format(1), *place((2, 3, 2)), 0),  # line 5: 0.8 mm from line 4
        (UID.format(2), *place((4, 20, 20)), 1),  # line 6: class 1 without nodule
        (UID.format(1), *place(np.add(center, (0, 0, 1))), 0),  # line 7: class 0 in a nodule
        (UID.format(1), *place((0, 300, 0)), 0),  # line 8: outside
        ("absent", 0, 0, 0, 0),  # line 9
        (UID.format(1), *place((20, 30, 40)), 0),  # line 10
    ]
    return table(luna, *rows, name="candidates.csv", header=(*HEADER[:4], "class"))


def test_candidates_are_in_the_store_and_in_the_tables(luna, tmp_path):
    store, collection = convert(luna, tmp_path, candidates=candidates(luna), lungs=luna.parent / "seg-lungs")
    assert [(one.table, one.line, one.rows) for one in collection.unmatched_points] == [("candidates", 9, 1)]
    case = store[UID.format(1)]
    assert case.candidates.shape == (6, 6)
    assert case.candidates[:, 4].tolist() == [2, 3, 4, 5, 7, 10]
    assert case.candidates[0, :3].tolist() == list(place(CENTERS[1][0]))
    assert case.candidates_in_lung.tolist() == [1, 1, 0, 0, 1, 1]
    assert store[UID.format(3)].candidates.shape == (0, 6)
    assert [one.reason for one in case.info.points_left_out] == ["1 candidate lies outside of the scan"]
    import zarr

    assert np.array_equal(zarr.open_array(case.folder / "candidates", mode="r")[:, :6], case.candidates, equal_nan=True)
    reindex(store.root)
    rows = {row["row"]: row for row in read_table(store.root, "candidates")}
    assert sorted(rows) == [2, 3, 4, 5, 6, 7, 10]
    assert {line for line, row in rows.items() if row["conflict"]} == {6, 7}
    assert {line: row["duplicate_of"] for line, row in rows.items() if row["duplicate_of"]} == {3: 2, 5: 4}
    assert rows[2]["nearest_nodule"] == "nodule-1"
    assert rows[2]["in_lung"] is True
    assert rows[10]["nearest_nodule_mm"] == pytest.approx(np.linalg.norm(np.subtract(place((20, 30, 40)),
                                                                                    place(CENTERS[1][0]))))  # fmt: skip
    (first, _) = read_table(store.root, "points")
    assert (first["case_id"], first["point_id"], first["voxel_z"]) == (UID.format(1), "nodule-1", 10)
    assert verify(open_store(store.root), None, workers=1, advance=lambda *_: None) == []


def test_more_candidates_than_a_store_is_read_with_are_not_written(luna, tmp_path, monkeypatch):
    monkeypatch.setattr("slicemill.store.candidates.MAX_CANDIDATES", 5)
    with pytest.raises(StoreError, match=r"the table has 6 candidates in this scan; a case may have at most 5"):
        convert(luna, tmp_path, candidates=candidates(luna))
    assert UID.format(1) not in open_store(tmp_path / "store")
    monkeypatch.setattr("slicemill.store.candidates.MAX_CANDIDATES", 6)
    store, _ = convert(luna, tmp_path, candidates=candidates(luna))
    assert len(store[UID.format(1)].candidates) == 6


def test_candidates_that_infer_found_get_their_class_from_the_nodules(luna, tmp_path):
    center = CENTERS[1][0]
    places = [center, np.add(center, (0, 2, 0)), (2, 2, 2)]
    rows = [(UID.format(1), *place(one), 0.5, 3.0) for one in places]
    found = table(luna, *rows, name="found.csv", header=(*HEADER[:4], "probability", "diameter_mm"))
    store, _ = convert(luna, tmp_path, candidates=found)
    assert store[UID.format(1)].candidates[:, 3].tolist() == [1, 1, 0]
    reindex(store.root)
    assert not any(row["conflict"] for row in read_table(store.root, "candidates"))
    wrong = table(luna, (UID.format(1), 0, 0, 0, 5), name="wrong.csv")
    with pytest.raises(InputError, match=r"must have the column class, 1 or 0, or the column probability"):
        read_candidates(wrong)


def test_damaged_candidates_are_a_problem_of_their_case(luna, tmp_path):
    store, _ = convert(luna, tmp_path, candidates=candidates(luna))
    reindex(store.root)
    chunk = store[UID.format(1)].folder / "candidates" / "c" / "0" / "0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    (problem,) = verify(open_store(store.root), None, workers=1, advance=lambda *_: None)
    assert "checksum" in problem


def test_the_command_ingests_lists_and_notices_a_changed_table(luna, tmp_path):
    store = tmp_path / "store"
    shutil.move(tmp_path / "seg-lungs", luna)  # as LUNA16 has it
    words = ["ingest", str(luna), str(store), "--points", str(luna / "annotations.csv"), "--lungs",
             str(luna / "seg-lungs"), "--candidates", str(candidates(luna)), "--workers", "1"]  # fmt: skip
    first = CliRunner().invoke(commands(), words)
    assert first.exit_code == 0, first.output
    assert "note: 2 nodules and 0 findings excluded, in 2 scans; 8 candidates" in first.output
    assert "--candidates: 1 row left out: names no scan of this collection" in first.output
    listed = (store / "points_left_out.csv").read_text().splitlines()
    assert listed == [
        "case_id,table,line,rows,reason",
        f"{UID.format(1)},candidates,8,1,1 candidate lies outside of the scan",
        ",candidates,9,1,names no scan of this collection",
    ]
    assert "3 unchanged" in CliRunner().invoke(commands(), words).output
    table(luna, *((UID.format(n), *place(c), d + (n == 2)) for n, (c, d) in CENTERS.items()))
    again = CliRunner().invoke(commands(), words)
    assert "1 done, 2 unchanged" in again.output
    assert open_store(store)[UID.format(2)].points[0].diameter_mm == 13.0
    without = CliRunner().invoke(commands(), [*words[:3], "--workers", "1"])
    assert without.exit_code == 1
    assert "other parameters" in without.output


def test_the_real_nodule_has_about_the_volume_of_its_ball(tmp_path):
    source = REAL / "luna16-style-nodule"
    if not source.is_dir():
        pytest.skip("needs ../shared/data")
    (scan,) = source.glob("*.mhd")
    folder = tmp_path / "luna"
    folder.mkdir()
    table(folder, (scan.stem, -57.43923954, 131.2325201, -520.3592267, 15.48525426))
    one = IngestRequest(source=scan, points=folder / "annotations.csv")
    collection = one.collection()
    store = prepare_store(tmp_path / "store")
    convert_case(collection.cases[0], one.params(collection), store)
    (case,) = open_store(store).values()
    (point,) = case.points
    assert 0.8 < point.volume_ml / (np.pi / 6 * 1.548525426**3) < 1.1
    assert point.flags == ()


def test_dicom_series_are_matched_by_their_uid_which_is_not_stored(tmp_path):
    volume = np.full((12, 20, 24), 174, dtype=np.uint16)
    volume[5:8, 8:12, 10:14] = 1064
    folder = tmp_path / "in" / "scan-1"
    write_series(folder, volume)
    uid = str(pydicom.dcmread(next(folder.iterdir())).SeriesInstanceUID)
    plain = prepare_store(tmp_path / "plain")
    found = IngestRequest(source=tmp_path / "in").collection()
    affine = convert_case(found.cases[0], IngestRequest(source=tmp_path / "in").params(found), plain).affine_lps
    nodule = voxels_to_mm(affine, (6.0, 9.5, 11.5))
    points = table(tmp_path, (uid, *nodule, 6.0))
    one = IngestRequest(source=tmp_path / "in", points=points)
    collection = one.collection()
    assert len(collection.cases[0].points.rows) == 1
    store = prepare_store(tmp_path / "store")
    info = convert_case(collection.cases[0], one.params(collection), store)
    assert np.asarray(open_store(store)[info.case_id].label)[6, 9, 11] == NODULE
    assert uid.encode() not in b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())


def test_the_preview_shows_every_nodule_and_its_outline(luna, tmp_path):
    store, _ = convert(luna, tmp_path)
    done = CliRunner().invoke(commands(), ["store", "preview", str(store.root), "--points"])
    assert done.exit_code == 0, done.output
    picture = np.asarray(Image.open(store.root / "preview-points.png"))
    is_red = (picture == (255, 70, 70)).all(axis=2)
    assert [bool(half.any()) for half in np.array_split(is_red, 2, axis=0)] == [True, True]
    assert [bool(third.any()) for third in np.array_split(is_red, 3, axis=1)] == [True] * 3
    empty = CliRunner().invoke(commands(), ["store", "preview", str(store.root), "--points", "--case", UID.format(3)])
    assert "no case has nodules" in empty.output


@pytest.mark.slow
def test_the_candidates_of_a_whole_challenge_are_read_in_bounded_memory(tmp_path):
    header = ",".join((*HEADER[:4], "class"))
    with (tmp_path / "candidates.csv").open("w") as file:
        print(header, file=file)
        for number in range(755_000):
            print(
                f"{UID.format(number // 850)},{-100.5 + number % 97},{number % 89}.25,{-number % 83}.125,0", file=file
            )
    program = (
        "import pathlib; from slicemill.common.terminal import peak_mib\n"
        "from slicemill.ingest.point_tables import read_candidates\n"
        f"found = read_candidates(pathlib.Path({str(tmp_path / 'candidates.csv')!r}))\n"
        "print(sum(map(len, found.by_names.values())), round(peak_mib()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=HERE)
    rows, mib = map(int, done.stdout.split())
    assert rows == 755_000
    assert mib < 512
