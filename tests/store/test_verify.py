import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from slicemill.store.reader import open_store
from slicemill.store.tables import reindex
from slicemill.store.verify import verify

HERE = Path(__file__).parents[2]


@pytest.fixture
def copy(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "copy")


def problems(store, source=None):
    return verify(open_store(store), source, workers=2, advance=lambda *_: None)


def test_a_store_as_it_was_written_has_no_problem(stored, collection):
    assert problems(stored, collection) == []


@pytest.mark.slow
def test_a_flipped_bit_anywhere_in_a_store_is_found(copy, rng):
    files = sorted(
        path for path in copy.rglob("*") if path.is_file() and path.suffix != ".jsonl" and path.parent.name != ".claims"
    )
    assert {path.name for path in files} >= {
        "0",
        "zarr.json",
        "manifest.parquet",
        "manifest.csv",
        "slices.parquet",
        "lesions.parquet",
    }
    for path in files:
        data = path.read_bytes()
        size = len(data)
        for place in {0, size // 2, size - 1, *rng.integers(0, size, 6).tolist()}:
            changed = bytearray(data)
            changed[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            assert problems(copy), (path, place)
        path.write_bytes(data)
    assert problems(copy) == []


def test_what_differs_from_the_source_is_counted_and_placed(copy, collection, tmp_path):
    source = shutil.copytree(collection, tmp_path / "source")
    path = source / "volume-0.nii"
    scan = nib.load(path)
    voxels = np.asarray(scan.dataobj).copy()
    voxels[3, 4, 5] += 1
    voxels[3, 4, 6] += 1
    nib.save(nib.Nifti1Image(voxels, scan.affine, scan.header), path)
    (source / "segmentation-2.nii").unlink()
    found = problems(copy, source)
    assert len(found) == 3
    assert any("volume-0.nii: 2 voxels differ from the store, the first at slice" in line for line in found)
    assert any("volume-0.nii: changed since it was ingested" in line for line in found)
    assert any("segmentation-2.nii: is not in the collection" in line for line in found)


def test_a_case_that_is_gone_or_new_is_named(copy):
    shutil.rmtree(copy / "scans.zarr" / "volume-1")
    assert problems(copy) == ["volume-1: is in the tables but not in the store; ingest its collection again."]
    reindex(copy)
    assert problems(copy) == []


def test_bytes_between_slices_and_false_statistics_are_found(copy):
    shard = copy / "scans.zarr" / "volume-1" / "image" / "c/0/0/0"
    data = shard.read_bytes()
    size = len(open_store(copy)["volume-1"].image) * 16 + 4
    shard.write_bytes(data[:-size] + b"x" + data[-size:])
    assert any("belong to no slice" in line for line in problems(copy))
    shard.write_bytes(data)
    document = copy / "scans.zarr" / "volume-2" / "zarr.json"
    low = min(low for low in open_store(copy)["volume-2"].info.slice_stats.hu_min if low is not None)
    head, key, statistics = document.read_text().partition('"slice_stats"')
    document.write_text(head + key + statistics.replace(f"{low},", f"{low + 1},", 1))
    reindex(copy)
    assert problems(copy) == [
        "volume-2: its slice statistics do not match its voxels; ingest it again with --overwrite."
    ]


@pytest.mark.slow
def test_the_command_reports_problems_and_exits_1(copy, collection):
    words = [sys.executable, "-m", "slicemill", "store", "verify", str(copy), "--source", str(collection)]
    good = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
    assert (good.returncode, good.stdout) == (0, "6 cases read completely and compared with the source: 0 problems\n")
    shard = copy / "scans.zarr" / "volume-1" / "labels/segmentation/0/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-3])
    bad = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert "problem: volume-1: " in bad.stdout
    assert "Traceback" not in bad.stderr
