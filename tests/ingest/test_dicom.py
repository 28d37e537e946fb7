"""DICOM collections become stores: cases, patients, masks, privacy, and runs that go on."""

import json
import subprocess
import warnings

import numpy as np
import pydicom
import pytest

from slicemill.common.errors import PairingError, StoreError, UsageError
from slicemill.ct.phantom import write_collection
from slicemill.ingest.request import IngestRequest
from slicemill.store.patients import hash_patient, settle_salt
from slicemill.store.reader import open_store
from tests.ct.dicom.made import make_series, make_volume, save_series, write_series
from tests.ct.dicom.marked import MARKER, TAGS, mark
from tests.ct.grids import save
from tests.infer.commands import run_command
from tests.ingest.runs import HERE, command

pytestmark = pytest.mark.usefixtures("one_worker")


def ingest(source, store, **options):
    request = IngestRequest(source=source, store=store, workers=1, **options)
    collection = request.collection()
    report = request.run(collection)
    if report.bug:
        raise report.bug
    return collection, report


def test_a_folder_of_one_series_is_one_case_with_its_name(tmp_path):
    volume = write_series(tmp_path / "in" / "scan-1", make_volume((5, 20, 24)))
    collection, report = ingest(tmp_path / "in" / "scan-1", tmp_path / "store")
    assert [case.case_id for case in collection.cases] == ["scan-1"]
    case = open_store(tmp_path / "store")["scan-1"]
    assert np.array_equal(case.image[:], volume - 1024)
    assert case.info.image.name == "scan-1"
    assert report.count("done") == 1
    assert case.info.image.dicom.kvp is None
    assert case.info.image.dicom.slice_thickness_mm == 2.5
    assert case.info.image.dicom.uids is None


def test_a_second_run_changes_nothing_and_a_changed_slice_is_converted_again(tmp_path):
    folder = tmp_path / "in" / "p1"
    write_series(folder, make_volume((5, 20, 24)))
    write_series(tmp_path / "in" / "p2", make_volume((5, 20, 24), seed=2))
    assert ingest(tmp_path / "in", tmp_path / "store")[1].count("done") == 2
    assert ingest(tmp_path / "in", tmp_path / "store")[1].count("unchanged") == 2
    for path in folder.iterdir():
        path.touch()
    assert ingest(tmp_path / "in", tmp_path / "store")[1].count("unchanged") == 2  # the same content
    dataset = pydicom.dcmread(folder / "IM002")
    dataset.PixelData = make_volume((1, 20, 24), seed=3)[0].tobytes()
    pydicom.dcmwrite(folder / "IM002", dataset)
    report = ingest(tmp_path / "in", tmp_path / "store")[1]
    assert {one.case_id: one.status for one in report.outcomes} == {"p1": "done", "p2": "unchanged"}


def test_series_of_a_folder_other_formats_and_failures_in_one_run(tmp_path):
    list(write_collection(tmp_path / "in" / "lits", cases=1, size=32, seed=1))
    slices = make_series(make_volume((5, 20, 24)))
    slices += make_series(make_volume((5, 20, 24), seed=2), SeriesInstanceUID="1.9", SeriesNumber=4)
    save_series(tmp_path / "in" / "p1", slices)
    gap = make_series(make_volume((6, 20, 24)))
    save_series(tmp_path / "in" / "p2", [one for k, one in enumerate(gap) if k != 3])
    collection, report = ingest(tmp_path / "in", tmp_path / "store", no_masks=True)
    status = {one.case_id: one.status for one in report.outcomes}
    assert status == {"volume-0": "done", "p1_3": "done", "p1_4": "done", "p2": "failed"}
    (failure,) = report.failures
    assert "1 slice is missing in a series of 5" in failure.reason
    assert "--uneven longest" in failure.reason
    assert ingest(tmp_path / "in", tmp_path / "longest", no_masks=True, uneven="longest")[1].count("done") == 4
    assert open_store(tmp_path / "longest")["p2"].image.shape == (3, 20, 24)
    assert collection.left_out[0].reason.startswith("named like a mask")


def test_a_mask_pairs_with_the_series_beside_it(tmp_path):
    volume = write_series(tmp_path / "in" / "p1" / "CT", make_volume((5, 20, 24)))
    mask = (volume > 2000).astype(np.uint8)
    affine = np.diag([-0.7, -0.8, 2.5, 1])
    affine[:3, 3] = [10, 20, -30]
    save(tmp_path / "in" / "p1" / "mask.nii.gz", mask.T, affine)
    ingest(tmp_path / "in", tmp_path / "store", labels="tumor=1")
    case = open_store(tmp_path / "store")["p1"]
    assert np.array_equal(case.label[:], mask)


def test_a_dicom_series_can_be_a_mask(tmp_path):
    write_series(tmp_path / "in" / "p1" / "images" / "a", make_volume((5, 20, 24)))
    mask = (make_volume((5, 20, 24)) > 2000).astype(np.uint8)
    write_series(tmp_path / "in" / "p1" / "masks" / "a", mask, RescaleIntercept=0)
    ingest(tmp_path / "in", tmp_path / "store", labels="tumor=1")
    (case,) = open_store(tmp_path / "store").values()
    assert np.array_equal(case.label[:], mask)


class TestPatients:
    def make(self, folder):
        for name, patient in (("a", "anna"), ("b", "anna"), ("c", "berta")):
            write_series(folder / name, make_volume((3, 20, 24)), PatientID=patient)
        write_series(folder / "d", make_volume((3, 20, 24)), PatientID="")
        return folder

    def patients(self, store):
        return {case_id: case.info.patient_id for case_id, case in open_store(store).items()}

    def test_scans_of_a_patient_have_one_hash_and_the_salt_stays_with_the_store(self, tmp_path):
        source = self.make(tmp_path / "in")
        ingest(source, tmp_path / "store")
        salt = json.loads((tmp_path / "store" / "patients.json").read_text())["salt"]
        anna, berta = hash_patient("anna", salt), hash_patient("berta", salt)
        assert self.patients(tmp_path / "store") == {"a": anna, "b": anna, "c": berta, "d": "d"}
        assert len(anna) == 12
        assert ingest(source, tmp_path / "store")[1].count("unchanged") == 4
        ingest(source, tmp_path / "other")
        assert self.patients(tmp_path / "other")["a"] != anna

    def test_a_salt_file_makes_equal_stores_and_is_not_kept(self, tmp_path):
        source = self.make(tmp_path / "in")
        (tmp_path / "salt").write_text("a secret of ours\n")
        for name in ("one", "two"):
            ingest(source, tmp_path / name, salt=tmp_path / "salt")
        assert self.patients(tmp_path / "one") == self.patients(tmp_path / "two")
        documents = [sorted((tmp_path / name / "scans.zarr").rglob("*")) for name in ("one", "two")]
        for first, second in zip(*documents, strict=True):
            assert first.is_dir() or first.read_bytes() == second.read_bytes()
        assert not any(
            b"a secret of ours" in path.read_bytes() for path in (tmp_path / "one").rglob("*") if path.is_file()
        )
        with pytest.raises(StoreError, match="pass the same file with --salt"):
            ingest(source, tmp_path / "one")
        (tmp_path / "salt").write_text("another")
        with pytest.raises(StoreError, match="hashed with another salt"):
            ingest(source, tmp_path / "one", salt=tmp_path / "salt")
        (tmp_path / "salt").write_text("")
        with pytest.raises(UsageError, match="1 to 4,096 characters"):
            ingest(source, tmp_path / "one", salt=tmp_path / "salt")

    def test_one_of_several_runs_settles_the_salt(self, tmp_path):
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(lambda _: settle_salt(tmp_path, None), range(8)))) == 1

    def test_patient_and_prefix_options_keep_their_meaning(self, tmp_path):
        source = self.make(tmp_path / "in")
        ingest(source, tmp_path / "named", patient="([a-d])")
        assert set(self.patients(tmp_path / "named").values()) == {"a", "b", "c", "d"}
        ingest(source, tmp_path / "fixed", prefix="x/")
        patients = self.patients(tmp_path / "fixed")
        assert patients["x_a"] == patients["x_b"] != patients["x_c"]
        assert patients["x_d"] == "x_d"

    def test_one_id_for_all_is_noted(self, tmp_path):
        for name in "abc":
            write_series(tmp_path / "in" / name, make_volume((3, 20, 24)), PatientID="ANONYMOUS")
        notes = IngestRequest(source=tmp_path / "in").collection().notes
        assert any("all 3 DICOM series have one PatientID" in note for note in notes)


def test_series_uids_can_be_the_case_ids(tmp_path):
    write_series(tmp_path / "in" / "a", make_volume((3, 20, 24)), SeriesInstanceUID="1.3.6.1.4.1.14519.7")
    collection = IngestRequest(source=tmp_path / "in", case_id="series").collection()
    assert [case.case_id for case in collection.cases] == ["1.3.6.1.4.1.14519.7"]
    write_series(tmp_path / "in" / "b", make_volume((3, 20, 24)), SeriesInstanceUID="1.3.6.1.4.1.14519.7")
    with pytest.raises(PairingError, match="would both become case"):
        IngestRequest(source=tmp_path / "in", case_id="series").collection()


def test_uids_are_kept_on_request_only(tmp_path):
    write_series(tmp_path / "in" / "a", make_volume((3, 20, 24)))
    ingest(tmp_path / "in", tmp_path / "without")
    ingest(tmp_path / "in", tmp_path / "with", keep_uids=True)
    uid = pydicom.dcmread(tmp_path / "in" / "a" / "IM001").SOPInstanceUID.encode()
    holds = {
        name: uid in b"".join(p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file())
        for name in ("without", "with")
    }
    assert holds == {"without": False, "with": True}
    assert len(open_store(tmp_path / "with")["a"].info.image.dicom.uids.instances) == 3


def test_a_table_may_list_folders_and_files_of_series(tmp_path):
    write_series(tmp_path / "a", make_volume((3, 20, 24)), PatientID="anna")
    write_series(tmp_path / "b", make_volume((3, 20, 24)), PatientID="anna")
    (tmp_path / "cases.csv").write_text("image,mask\na,\nb/IM001,\n")
    request = IngestRequest(pairs=tmp_path / "cases.csv", store=tmp_path / "store", workers=1)
    report = request.run(request.collection())
    assert [one.status for one in report.outcomes] == ["done", "done"]
    patients = {case.info.patient_id for case in open_store(tmp_path / "store").values()}
    assert len(patients) == 1
    assert "anna" not in str(patients)


def bytes_below(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_no_text_of_a_header_enters_a_store_or_a_message(tmp_path):
    """Each kind of failure prints a message that names the file and the tag, and nothing of the header's text."""
    for damage in ("none", "gap", *TAGS):
        slices = [mark(one) for one in make_series(make_volume((5, 20, 24)))]
        for one in slices:
            if damage in TAGS:
                one.add_new(TAGS[damage], "LO", MARKER.upper())
        if damage == "gap":
            del slices[2]
        with warnings.catch_warnings(action="ignore"):  # pydicom's, about the values
            save_series(tmp_path / "in" / damage, slices)
    words = ("ingest", tmp_path / "in", tmp_path / "store", "--json", "--workers", "1", "--verbose")
    done = subprocess.run(command(*words), cwd=HERE, capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)
    statuses = {case["case_id"]: case["status"] for case in document["cases"]}
    sound = dict.fromkeys(("none", "number", "modality", "type"), "done")
    assert statuses == sound | dict.fromkeys(("gap", "photometric", "rescale"), "failed")
    assert {one["path"].split("/")[-2] for one in document["left_out"]} == {"class"}
    alone = run_command("ingest", tmp_path / "in" / "class", tmp_path / "none")
    assert alone.exit_code == 1
    written, said = bytes_below(tmp_path / "store"), done.stdout + done.stderr + alone.output + alone.stderr
    for text in (MARKER, MARKER.upper(), "19010203"):
        assert text not in said
        assert text.encode() not in written
        assert text.encode("utf-16-le") not in written


def test_verify_compares_series_with_the_store(tmp_path):
    from slicemill.store.verify import verify

    write_series(tmp_path / "in" / "p1", make_volume((5, 20, 24)))
    gap = make_series(make_volume((6, 20, 24)))
    save_series(tmp_path / "in" / "p2", [one for k, one in enumerate(gap) if k != 3])
    ingest(tmp_path / "in", tmp_path / "store", uneven="longest")

    def problems():
        return verify(open_store(tmp_path / "store"), tmp_path / "in", workers=1, advance=lambda *_: None)

    assert problems() == []
    dataset = pydicom.dcmread(tmp_path / "in" / "p1" / "IM002")
    dataset.PixelData = make_volume((1, 20, 24), seed=3)[0].tobytes()
    pydicom.dcmwrite(tmp_path / "in" / "p1" / "IM002", dataset)
    assert any("p1" in problem and "differ" in problem for problem in problems())
