"""Bad input: each problem is one clear sentence, and the other scans are segmented."""

import json
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from slicemill.common.errors import ScanError
from slicemill.common.files import read_lines
from slicemill.ct.phantom import write_nifti
from slicemill.ct.window import Window
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import open_scan
from slicemill.infer.inputs.pictures import open_picture
from slicemill.infer.network.model import open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import CLAIMED_ELSEWHERE, infer
from tests.infer.commands import run_command

HERE = Path(__file__).parents[2]
SPACING = (3.0, 1.0, 1.0)


def run(model, inputs, out, window=None, **options):
    return infer(open_model(model, "cpu"), gather(inputs, window)[0], out, InferOptions(**options))


def noise(shape):
    return np.random.default_rng(0).integers(-200, 300, shape, dtype=np.int16)


def read_picture(path, window):
    with open_picture(path, window) as picture:
        return picture.decode()


def command(*words, **settings):
    return subprocess.run(
        [sys.executable, "-m", "slicemill", "infer", *map(str, words)],
        cwd=HERE, capture_output=True, text=True, check=False, **settings)  # fmt: skip


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_with_a_window_is_a_scan_of_one_slice(suffix, model, tmp_path):
    gray = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = tmp_path / f"0017.{suffix}"
    Image.fromarray(gray).save(path)
    write_nifti(tmp_path / "ct-1.nii", noise((2, 64, 64)), SPACING)
    first = run(model, [path, tmp_path / "ct-1.nii"], tmp_path / "out")
    assert [outcome.status for outcome in first.outcomes] == ["failed", "done"]
    expected = (
        f"{path}: gray values of a picture are not HU; pass the window that it was made with, like --window -200,300."
    )
    assert first.outcomes[0].reason == expected
    assert run(model, [path], tmp_path / "out", Window(-200, 300)).count("done") == 1, (
        "another window is another input, which is tried again"
    )
    with Image.open(path) as picture:
        hu = np.rint(-200 + np.asarray(picture) * (500 / 255)).astype(np.int16)
    write_nifti(tmp_path / "same-1.nii", hu[None], (1.0, 1.0, 1.0), "LPS")
    run(model, [tmp_path / "same-1.nii"], tmp_path / "same")
    mask = nib.load(tmp_path / "out" / f"0017.{suffix}.nii.gz")
    same = nib.load(tmp_path / "same" / "same-1.nii")
    assert np.array_equal(np.asarray(mask.dataobj), np.asarray(same.dataobj))
    assert nib.aff2axcodes(mask.affine) == ("L", "P", "S")
    report = json.loads((tmp_path / "out" / f"0017.{suffix}.json").read_text())
    assert "has no pixel size" in report["warnings"][0]


def test_damaged_or_colored_pictures_and_impossible_windows_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ScanError, match="a.png: cannot be read as a picture"):
        read_picture(tmp_path / "a.png", Window(0, 1))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(ScanError, match=r"c.png: \d+% of its pixels are colored; at most 2% may be"):
        read_picture(tmp_path / "c.png", Window(0, 1))
    Image.new("CMYK", (8, 8)).save(tmp_path / "c.jpg")
    with pytest.raises(ScanError, match="c.jpg: must be gray, 8 or 16 bits; its mode is CMYK"):
        read_picture(tmp_path / "c.jpg", Window(0, 1))
    deep = np.array([[0, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_picture(tmp_path / "deep.png", Window(-200, 300)).tolist() == [[[-200, 300]]]
    with pytest.raises(ScanError, match=r"HU must fit in -32768..32767; its window is 0..99999"):
        read_picture(tmp_path / "deep.png", Window(0, 99999))


@pytest.mark.parametrize(("mode", "dtype"), [("L", np.uint8), ("I;16", np.uint16)])
def test_a_picture_is_decoded_only_when_it_is_read_and_takes_little_more_than_its_voxels(mode, dtype, tmp_path):
    columns = np.linspace(0, np.iinfo(dtype).max, 1000, dtype=dtype)
    Image.fromarray(np.tile(columns, (2000, 1))).save(tmp_path / "big.png")
    job = gather([tmp_path / "big.png"], Window(-200, 300))[0][0]
    tracemalloc.start()
    try:
        with open_scan(job) as scan:
            assert scan.grid.stored_shape == (1, 2000, 1000)
            assert tracemalloc.get_traced_memory()[1] < 2e6, "less than a byte a pixel: nothing is decoded yet"
            assert scan.read(np.empty).volume.shape == (1, 2000, 1000)
            assert tracemalloc.get_traced_memory()[1] < 2e6 * 6
    finally:
        tracemalloc.stop()


@pytest.mark.real
def test_files_of_other_formats_fail_by_name_and_the_rest_is_segmented(real_data, model, tmp_path):
    others = sorted(
        path
        for path in real_data.rglob("*")
        if path.suffix in (".zraw", ".raw") and "nifti-edge-cases" not in path.parts
    )
    assert {path.suffix for path in others} >= {".raw", ".zraw"}
    write_nifti(tmp_path / "ct-1.nii", noise((1, 64, 64)), SPACING)
    summary = run(model, [*others, tmp_path / "ct-1.nii"], tmp_path / "out")
    assert [outcome.status for outcome in summary.outcomes] == ["failed"] * len(others) + ["done"]
    for path, outcome in zip(others, summary.outcomes, strict=False):
        assert outcome.reason.startswith(f"{path}: is not DICOM, and its name must end in .nii")


def test_a_scan_of_one_slice_is_a_scan(model, tmp_path):
    write_nifti(tmp_path / "ct-1.nii", noise((1, 64, 64)), SPACING)
    assert run(model, [tmp_path / "ct-1.nii"], tmp_path / "out").count("done") == 1


@pytest.mark.slow
def test_3000_slices_stay_within_the_memory_limit(model, tmp_path):
    write_nifti(tmp_path / "long-1.nii.gz", noise((3000, 64, 64)), SPACING)
    write_nifti(tmp_path / "short-2.nii.gz", noise((2, 64, 64)), SPACING)
    done = command(model, tmp_path, "--out", tmp_path / "out", "--provider", "cpu", "--max-memory", "0.6")
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["peak_mib"] < 0.6e9 / 2**20
    less = command(model, tmp_path, "--out", tmp_path / "less", "--provider", "cpu", "--max-memory", "0.2")
    assert less.returncode == 1
    assert "raise --max-memory" in less.stdout + less.stderr


@pytest.mark.parametrize("root", [False, True])
def test_an_output_folder_without_write_permission_is_named(root, model, collection, tmp_path):
    if root != (os.geteuid() == 0):
        pytest.skip("root may write into any folder but the kernel's own")
    out = Path("/sys/none") if root else tmp_path / "out"
    root or out.mkdir(mode=0o500)
    done = run_command("infer", model, collection / "volume-0.nii", "--out", out)
    assert done.exit_code == 1
    assert str(out) in done.stderr
    assert done.stderr.count("\n") == 1
    assert "not permitted" in done.stderr or "ermission denied" in done.stderr


@pytest.mark.slow
def test_a_full_disk_fails_scans_and_the_same_command_finishes_them_later(model, tmp_path):
    """Reports, pictures and masks together take some 100 KB a scan."""
    scans, disk = tmp_path / "in", tmp_path / "disk"
    disk.mkdir()
    for number in range(8):
        write_nifti(scans / f"ct-{number}.nii.gz", noise((8, 64, 64)), SPACING)
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here; it takes root")
    out = disk / "out"
    words = (model, scans, "--out", out, "--provider", "cpu")
    try:
        full = command(*words)
        assert full.returncode == 1
        assert "Traceback" not in full.stderr
        assert "No space left on device" in full.stdout + full.stderr
        assert not list(out.rglob(".*.part*"))
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        assert command(*words).returncode == 0
        assert run(model, [scans], tmp_path / "roomy").count("done") == 8
        for mask in (tmp_path / "roomy").glob("*.nii.gz"):
            assert np.array_equal(nib.load(out / mask.name).dataobj, nib.load(mask).dataobj)
        done = [line["name"] for line in read_lines(out / "ledger.jsonl") if line["status"] == "done"]
        assert sorted(done) == sorted(path.name for path in scans.iterdir())
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_an_output_folder_that_is_a_file_is_named(model, collection, tmp_path):
    (tmp_path / "out").write_bytes(b"a file")
    done = run_command("infer", model, collection / "volume-0.nii", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert f"slicemill: {tmp_path / 'out'}: File exists. Correct that, or the path" in done.stderr


def test_two_runs_into_one_folder_segment_every_scan_once(model, tmp_path):
    for number in range(12):
        write_nifti(tmp_path / "in" / f"ct-{number}.nii.gz", noise((6, 64, 64)), SPACING)
    summaries = []
    threads = [
        threading.Thread(target=lambda: summaries.append(run(model, [tmp_path / "in"], tmp_path / "out")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [line["name"] for line in read_lines(tmp_path / "out" / "ledger.jsonl") if line["status"] == "done"]
    assert sorted(done) == sorted(f"ct-{number}.nii.gz" for number in range(12))
    assert sum(summary.count("done") for summary in summaries) == 12
    for summary in summaries:
        assert summary.count("failed") == 0
        reasons = {outcome.reason for outcome in summary.outcomes if outcome.status == "skipped"}
        assert reasons <= {CLAIMED_ELSEWHERE, "done before with this model"}


@pytest.mark.timeout(60)
def test_a_picture_too_wide_for_a_mask_or_no_file_fails_alone(model, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("L", (40_000, 2)).save(folder / "wide.png")
    Image.new("L", (48, 40)).save(folder / "good.png")
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(ScanError, match=r"wide\.png: has 40,000 x 2 pixels; a mask as NIfTI-1 has at most 32,767"):
        read_picture(folder / "wide.png", Window(-200, 300))
    with pytest.raises(OSError, match="is not a regular file"):
        read_picture(folder / "pipe.png", Window(-200, 300))
    summary = run(model, [folder / name for name in ("wide.png", "good.png")], tmp_path / "out", Window(-200, 300))
    assert {one.name: one.status for one in summary.outcomes} == {
        "wide.png.nii.gz": "failed",
        "good.png.nii.gz": "done",
    }


def test_a_large_picture_is_read_without_a_warning_of_pillow(tmp_path, monkeypatch):
    Image.new("L", (5, 3)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # it warns from here on, and refuses twice as many
    assert read_picture(tmp_path / "large.png", Window(-200, 300)).shape == (1, 3, 5)
    Image.new("L", (5, 5)).save(tmp_path / "bomb.png")
    with pytest.raises(ScanError, match="bomb.png: cannot be read as a picture"):
        read_picture(tmp_path / "bomb.png", Window(-200, 300))
