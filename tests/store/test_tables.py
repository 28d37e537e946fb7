import csv
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from slicemill.common.errors import StoreError
from slicemill.store.reader import open_store
from slicemill.store.tables import read_table, reindex

COLUMNS = [
    "case_id",
    "patient_id",
    "image_path",
    "image_name",
    "mask_path",
    "mask_name",
    "nz",
    "ny",
    "nx",
    "spacing_z_mm",
    "spacing_y_mm",
    "spacing_x_mm",
    "orientation",
    "voxels_liver",
    "voxels_tumor",
    "has_tumor",
    "tumor_percent_scan",
    "tumor_percent_organ",
    "tumor_volume_ml",
    "organ_volume_ml",
    "n_lesions",
    "max_axial_diameter_mm",
    "hu_min",
    "hu_max",
    "source_sha256",
    "warnings",
    "fingerprint",
]


def test_the_manifest_has_the_counts_that_numpy_finds_in_the_voxels(stored):
    rows = read_table(stored, "manifest")
    assert list(rows[0]) == COLUMNS
    store = open_store(stored)
    for row in rows:
        case = store[row["case_id"]]
        image, label = case.image[:], case.label[:]
        liver, tumor = int((label == 1).sum()), int((label == 2).sum())
        voxel_ml = row["spacing_z_mm"] * row["spacing_y_mm"] * row["spacing_x_mm"] / 1000
        assert (row["nz"], row["ny"], row["nx"]) == image.shape
        assert (row["voxels_liver"], row["voxels_tumor"], row["has_tumor"]) == (liver, tumor, tumor > 0)
        assert row["tumor_percent_scan"] == pytest.approx(100 * tumor / label.size)
        assert row["tumor_percent_organ"] == pytest.approx(100 * tumor / (liver + tumor))
        assert row["tumor_volume_ml"] == pytest.approx(tumor * voxel_ml)
        assert row["organ_volume_ml"] == pytest.approx((liver + tumor) * voxel_ml)
        assert (row["hu_min"], row["hu_max"]) == (image.min(), image.max())


def test_the_slice_table_has_a_row_for_every_slice(stored):
    rows = read_table(stored, "slices")
    store = open_store(stored)
    assert len(rows) == sum(len(case.image) for case in store.values())
    for row in rows[::17]:
        label = store[row["case_id"]].label[row["z"]]
        assert (row["voxels_liver"], row["voxels_tumor"]) == (int((label == 1).sum()), int((label == 2).sum()))
        assert row["has_tumor"] == bool((label == 2).any())


def test_the_lesion_table_has_the_manifests_number_of_rows(stored):
    lesions = read_table(stored, "lesions")
    for row in read_table(stored, "manifest"):
        assert sum(lesion["case_id"] == row["case_id"] for lesion in lesions) == row["n_lesions"]


def test_the_csv_is_the_same_table(stored):
    with (stored / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case_id"] for row in rows] == [row["case_id"] for row in read_table(stored, "manifest")]
    assert list(rows[0]) == COLUMNS


def test_reindex_builds_the_same_tables_from_the_groups_alone(stored, tmp_path):
    copy = shutil.copytree(stored, tmp_path / "copy")
    for name in ("manifest.parquet", "manifest.csv", "slices.parquet", "lesions.parquet", "ledger.jsonl"):
        (copy / name).unlink()
    with pytest.raises(StoreError, match="store reindex"):
        read_table(copy, "manifest")
    reindex(copy)
    for name in ("manifest", "slices", "lesions"):
        assert read_table(copy, name) == read_table(stored, name)


def test_a_damaged_table_is_one_clear_error(stored, tmp_path):
    copy = shutil.copytree(stored, tmp_path / "copy")
    content = bytearray((copy / "manifest.parquet").read_bytes())
    content[-20:] = bytes(20)
    (copy / "manifest.parquet").write_bytes(content)
    with pytest.raises(StoreError, match="store reindex"):
        read_table(copy, "manifest")


def test_without_a_mask_the_columns_are_null_and_not_zero(tmp_path):
    from slicemill.ct.labels import LITS_LABELS
    from slicemill.ct.phantom import write_nifti
    from slicemill.ingest.convert import convert_case
    from slicemill.ingest.discover import CaseFiles
    from slicemill.ingest.params import Params
    from slicemill.store.writer import prepare_store

    write_nifti(tmp_path / "a.nii", np.zeros((2, 4, 4), np.int16), (1.0, 1.0, 1.0))
    store = prepare_store(tmp_path / "store")
    case = CaseFiles(case_id="a", patient_id="a", image=tmp_path / "a.nii", mask=None, root=tmp_path)
    convert_case(case, Params(labels=LITS_LABELS), store)
    (row,) = reindex(store)
    for name in ("mask_path", "has_tumor", "tumor_volume_ml", "organ_volume_ml", "n_lesions", "max_axial_diameter_mm"):
        assert row[name] is None, name
    assert read_table(store, "lesions") == []


def test_a_table_that_cannot_be_read_says_why_and_a_lack_of_memory_is_no_damage(stored, tmp_path, monkeypatch):
    with pytest.raises(StoreError, match=r"manifest\.parquet: cannot be read \(No such file or directory\); `"):
        read_table(tmp_path, "manifest")
    shutil.copytree(stored, tmp_path / "copy")
    (tmp_path / "copy" / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"cannot be read \(.*Parquet.*\); `slicemill store reindex"):
        read_table(tmp_path / "copy", "manifest")

    for error in (pa.ArrowException("Failed to launch worker thread"), pa.ArrowMemoryError("malloc of size 64 failed")):
        monkeypatch.setattr("pyarrow.parquet.ParquetFile", lambda *_, raised=error: _raise(raised))
        with pytest.raises(type(error)):
            read_table(stored, "manifest")


def _raise(error):
    raise error


def test_a_table_is_read_without_threads(stored):
    """Threads of Arrow abort one process in fifteen that ends soon: `store manifest --csv` with exit status 134."""
    script = """
import sys, psutil
from slicemill.store.tables import read_table
before = psutil.Process().num_threads()
assert read_table(sys.argv[1], "manifest")
print(psutil.Process().num_threads() - before)
"""
    done = subprocess.run([sys.executable, "-c", script, stored], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
