"""The real scans next to the checkout: every file is done or has one clear reason."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from slicemill.common.files import read_lines
from slicemill.ct.formats.open import is_dicom
from slicemill.ct.labels import make_labels
from slicemill.ct.naming import find_files, find_unread_scans
from slicemill.ingest.discover import discover
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store.reader import open_store
from slicemill.store.tables import read_table

HERE = Path(__file__).parents[1]
MASKS_ALONE = "msd-labels-only"
FOLDERS = ["nifti-edge-cases", "totalsegmentator-example", "msd-spleen-8", MASKS_ALONE]
LARGE = ("totalsegmentator-example", "msd-spleen-8")
TUMOR = Params(labels=make_labels({"tumor": 1}))

pytestmark = pytest.mark.real


def slow_if(is_slow, name):
    return pytest.param(name, marks=pytest.mark.slow) if is_slow else name


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "slicemill", *map(str, words)], cwd=HERE, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def sarcoma(tmp_path_factory):
    data = HERE.parent / "shared" / "data" / "sts-tumour-ct"
    if not data.is_dir():
        pytest.skip("the real scans (../shared/data) are not here")
    store = tmp_path_factory.mktemp("real") / "store"
    report = ingest(discover(data), store, TUMOR, IngestOptions())
    assert report.count("done") == 17
    return data, store


def test_seventeen_sarcomas_are_stored_voxel_for_voxel(sarcoma):
    data, store = sarcoma
    for case in open_store(store).values():
        for array, name in ((case.image, "CT_image"), (case.label, "CT_mask")):
            source = nib.load(data / case.info.case_id / f"{name}.nii.gz")
            assert np.array_equal(np.asarray(source.dataobj).T, array[:]), "the sources are in LPS order"
        assert case.info.max_rounding_error_hu == 0


def test_the_manifest_has_the_voxel_counts_that_the_source_states(sarcoma):
    stated = {"STS_004": 94963, "STS_019": 5564, "STS_034": 173131, "STS_048": 113615}
    rows = {row["case_id"]: row for row in read_table(sarcoma[1], "manifest")}
    assert len(rows) == 17
    assert {case_id: rows[case_id]["voxels_tumor"] for case_id in stated} == stated
    assert all(row["orientation"] == "LPS" and row["has_tumor"] for row in rows.values())


def test_a_collection_of_masks_alone_is_refused(real_data, tmp_path):
    done = command("ingest", real_data / MASKS_ALONE, tmp_path / "store")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "only 0 pairs by name" in done.stderr
    assert "--no-masks" in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [slow_if(name in LARGE, name) for name in FOLDERS if name != MASKS_ALONE])
def test_ingest_accounts_for_every_odd_file_without_a_traceback(name, real_data, tmp_path):
    folder, store = real_data / name, tmp_path / "store"
    done = command("ingest", folder, store, "--workers", "2")
    assert "Traceback" not in done.stderr
    collection = discover(folder)
    files = {case.image for case in collection.cases} | {case.mask for case in collection.cases if case.mask}
    named = files | {path for path, _ in collection.left_out}
    assert named >= set(find_files(folder)) | set(find_unread_scans(folder))
    assert all(is_dicom(path) for path in named - set(find_files(folder)) - set(find_unread_scans(folder)))
    failed = {line["case_id"]: line["reason"] for line in read_lines(store / "failures.jsonl")}
    assert set(open_store(store).case_ids) | set(failed) == {case.case_id for case in collection.cases}
    assert all(reason and "\n" not in reason for reason in failed.values())
    assert done.returncode == (1 if failed else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(slow_if(name in (*LARGE, MASKS_ALONE), name) for name in FOLDERS),
        *("sts-tumour-ct/STS_019", "sts-tumour-ct/STS_025"),
    ],
)
def test_infer_accounts_for_every_odd_file_without_a_traceback(name, real_data, model, tmp_path):
    files = find_files(real_data / name)
    if name == MASKS_ALONE:  # one of each of its folders: they are large, and alike within a folder
        files = list({file.parent: file for file in files}.values())
    done = command("infer", model, *files, "--out", tmp_path / "out", "--provider", "cpu")
    assert "Traceback" not in done.stderr
    lines = [line for line in read_lines(tmp_path / "out" / "ledger.jsonl") if line["status"] != "begun"]
    assert len(lines) == len(files)
    for line in lines:
        assert (line["status"] == "done") == (tmp_path / "out" / line["name"]).exists()
        assert line["status"] == "done" or line["reason"]
    assert done.returncode == (0 if all(line["status"] == "done" for line in lines) else 1)
