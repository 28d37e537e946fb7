"""DICOM collections in an object store become the same cases as in a folder."""

import numpy as np
import pytest

from slicemill.common.errors import ReadError
from slicemill.common.files import write_bytes
from slicemill.ct.formats.dicom import folders
from slicemill.ct.formats.dicom.discover import find_dicom
from slicemill.ct.formats.open import mark_files, open_source
from slicemill.store.reader import open_store
from slicemill.store.verify import verify
from tests.ct.dicom.made import make_series, make_volume, save_series, write_series
from tests.ingest.test_dicom import ingest
from tests.ingest.test_dicom_masks import write_patient

pytestmark = pytest.mark.slow
JPEG_LS = "1.2.840.10008.1.2.4.80"


@pytest.fixture
def collection(tmp_path, bucket):
    """A folder and a prefix of a bucket with the same files: formats, a flat folder, a gap, a SEG, and no scans."""
    folder = tmp_path / "in"
    write_series(folder / "plain", make_volume((5, 20, 24)))
    save_series(folder / "packed", make_series(make_volume((5, 20, 24), seed=2)), JPEG_LS)
    for number in (1, 2):
        some = make_series(
            make_volume((4, 20, 24), seed=number), SeriesInstanceUID=f"1.2.{number}", SeriesNumber=number
        )
        save_series(folder / "flat", some, name=f"S{number}_{{:03d}}")
    gap = make_series(make_volume((6, 20, 24), seed=5))
    save_series(folder / "gap", [one for k, one in enumerate(gap) if k != 3])
    write_patient(folder, "masked", "binary", 7)
    (folder / "plain" / "DICOMDIR").write_bytes(b"x")
    (folder / "plain" / "notes").write_bytes(b"text")
    remote = bucket[0] / "collection"
    for path in folder.rglob("*"):
        if path.is_file():
            write_bytes(remote / path.relative_to(folder).as_posix(), path.read_bytes())
    return folder, remote


def statuses(report):
    return {one.case_id: one.status for one in report.outcomes}


def test_a_bucket_gives_the_cases_of_the_folder(collection, tmp_path):
    folder, remote = collection
    here, here_report = ingest(folder, tmp_path / "here", labels="liver=1,tumor=2")
    there, report = ingest(str(remote), tmp_path / "there", labels="liver=1,tumor=2")
    assert statuses(report) == statuses(here_report)
    assert sorted(statuses(report).values()) == ["done"] * 5 + ["failed"]
    reasons = [[(one.path.name, one.reason) for one in found.left_out] for found in (here, there)]
    assert sorted(reasons[0]) == sorted(reasons[1])
    assert "1 slice is missing in a series of 5" in report.failures[0].reason
    local = open_store(tmp_path / "here")
    for case_id, case in open_store(tmp_path / "there").items():
        assert np.array_equal(case.image[:], local[case_id].image[:])
        assert np.array_equal(case.affine, local[case_id].affine)
        assert case.info.image.sha256 == local[case_id].info.image.sha256
        assert (case.label is None) == (local[case_id].label is None)
    assert sum(case.label is not None for case in open_store(tmp_path / "there").values()) == 1
    assert verify(open_store(tmp_path / "there"), remote, workers=1, advance=lambda *_: None) == []


def test_a_second_run_converts_only_what_changed(collection, tmp_path):
    _, remote = collection
    ingest(str(remote), tmp_path / "store", labels="liver=1,tumor=2")
    before = statuses(ingest(str(remote), tmp_path / "store", labels="liver=1,tumor=2")[1])
    assert set(before.values()) == {"unchanged", "failed before"}
    longer = make_series(make_volume((6, 20, 24)))
    save_series(tmp_path / "more", longer[5:])
    (path,) = (tmp_path / "more").iterdir()
    write_bytes(remote / "plain" / "IM006", path.read_bytes())
    after = statuses(ingest(str(remote), tmp_path / "store", labels="liver=1,tumor=2")[1])
    assert {case_id for case_id, status in after.items() if status == "done"} == {"plain"}
    assert open_store(tmp_path / "store")["plain"].image.shape == (6, 20, 24)


def put_flat(remote, folder, count=3):
    """Write a prefix of several series; return it."""
    for number in range(1, count + 1):
        some = make_series(make_volume((3, 4, 5), seed=number), SeriesInstanceUID=f"1.2.{number}")
        save_series(folder, some, name=f"S{number}_{{:03d}}")
    for path in folder.iterdir():
        write_bytes(remote / path.name, path.read_bytes())
    return remote


@pytest.mark.parametrize("reuse", [1e9, 0])
def test_all_series_of_a_prefix_need_one_listing_as_long_as_it_is_current(reuse, tmp_path, bucket, monkeypatch):
    remote = put_flat(bucket[0] / "flat", tmp_path / "in")
    listed = []
    original = folders.list_folder
    monkeypatch.setattr(folders, "list_folder", lambda folder: listed.append(folder) or original(folder))
    monkeypatch.setattr(folders, "REUSE", reuse)
    series = find_dicom(remote).series
    for one in series:
        mark_files(one.location)
        source = open_source(one.location)
        list(source.planes(8, 1))
        source.finish()
    assert len(series) == 3
    assert listed == [remote] * (1 if reuse else 1 + 2 * len(series))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", JPEG_LS])
def test_an_object_that_is_replaced_after_its_prefix_was_listed_is_not_read(syntax, tmp_path, bucket, monkeypatch):
    monkeypatch.setattr(folders, "REUSE", 1e9)
    save_series(tmp_path / "in", make_series(make_volume((3, 4, 5))), syntax)
    save_series(tmp_path / "other", make_series(make_volume((3, 4, 5), seed=2)), syntax)
    remote = bucket[0] / "p1"
    for path in (tmp_path / "in").iterdir():
        write_bytes(remote / path.name, path.read_bytes())
    (found,) = find_dicom(remote).series
    source = open_source(remote / "IM001")
    assert source.series.planes == found.series.planes
    write_bytes(remote / "IM002", (tmp_path / "other" / "IM002").read_bytes())
    with pytest.raises(ReadError, match="IM002: changed during reading"):
        list(source.planes(8, 1))
