"""Bulk inference end to end: masks on the scan's grid, nothing lost, nothing done twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import slicemill
from slicemill.common.documents import to_document
from slicemill.common.errors import ModelError, ScanError
from slicemill.common.files import read_lines, to_json
from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.gather import gather
from slicemill.infer.network import lanes
from slicemill.infer.network.model import open_model
from slicemill.infer.run import pipeline
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from slicemill.store.reader import open_store
from tests.contents import content
from tests.infer.commands import run_command

HERE = Path(__file__).parents[2]
FIELDS = (
    "dim",
    "pixdim",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
    "xyzt_units",
)


def run(model, inputs, out, **options):
    jobs, _ = gather(inputs)
    return infer(open_model(model, "cpu"), jobs, out, InferOptions(**options))


@pytest.fixture(scope="module")
def segmented(model, collection, tmp_path_factory):
    out = tmp_path_factory.mktemp("segmented")
    assert run(model, [collection], out).count("done") == 6
    return out


def test_every_mask_has_its_scans_name_header_geometry_and_trained_labels(segmented, collection):
    for scan in collection.glob("volume-*"):
        mask, source = nib.load(segmented / scan.name), nib.load(scan)
        for field in FIELDS:
            assert mask.header[field].tobytes() == source.header[field].tobytes(), field
        assert mask.get_data_dtype() == np.uint8
        assert mask.shape == source.shape
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}


def test_a_mask_is_at_the_labels_place_in_the_patient(segmented, model, stored):
    """The same patient in another axis order gets the same labels at the same millimetres."""
    case = open_store(stored)["volume-5"]
    assert case.info.source_axcodes == "PIR"
    write_nifti(segmented.parent / "lps.nii", case.image[:], case.info.spacing_mm, "LPS")
    result = slicemill.segment(segmented.parent / "lps.nii", model)
    label = result.label_lps
    turned = nib.as_closest_canonical(nib.load(segmented / "volume-5.nii"))
    assert np.array_equal(np.asarray(turned.dataobj)[::-1, ::-1].transpose(2, 1, 0), label)
    assert result.report.shape_zyx == label.shape


def test_the_python_function_returns_the_labels_and_report_of_the_files(segmented, model, collection):
    result = slicemill.segment(collection / "volume-2.nii", model, provider="cpu")
    label, report = result.label_lps, json.loads(to_json(to_document(result.report)))
    written = json.loads((segmented / "volume-2.json").read_text())
    assert report == written
    assert label.dtype == np.uint8
    voxel_ml = float(np.prod(report["spacing_mm_zyx"])) / 1000
    assert report["volumes_ml"]["liver"] == pytest.approx((label > 0).sum() * voxel_ml, rel=1e-3)
    assert report["tumor_found"] == bool((label == 2).any()) == bool(report["lesions"])
    assert len(report["slice_tumor_scores"]) == len(label)
    assert "not a medical device" in report["note"]


def test_every_scan_has_a_picture(segmented, collection):
    for scan in collection.glob("volume-*"):
        with Image.open(segmented / f"{scan.name.removesuffix('.gz').removesuffix('.nii')}.png") as picture:
            assert min(picture.size) > 250


def test_a_store_gives_the_same_labels_as_the_files(segmented, model, stored, tmp_path):
    assert run(model, [stored], tmp_path).count("done") == 6
    for index, suffix in ((0, ".nii"), (5, ".nii")):
        one, other = nib.load(tmp_path / f"volume-{index}.nii.gz"), nib.load(segmented / f"volume-{index}{suffix}")
        assert np.array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
        assert np.array_equal(one.affine, other.affine)


def test_a_damaged_case_of_a_store_fails_by_name_and_the_rest_is_segmented(model, stored, tmp_path):
    copy = shutil.copytree(stored, tmp_path / "store")
    document = copy / "scans.zarr" / "volume-1" / "zarr.json"
    document.write_text(document.read_text()[:200])
    for done, skipped in ((5, 0), (0, 5)):
        summary = run(model, [copy], tmp_path / "out")
        assert [summary.count(status) for status in ("done", "skipped", "failed")] == [done, skipped, 1]
        (failed,) = (outcome for outcome in summary.outcomes if outcome.status == "failed")
        assert "volume-1" in failed.reason


def test_the_same_command_again_skips_done_scans_and_repeats_changed_ones(model, collection, tmp_path):
    scans = shutil.copytree(collection, tmp_path / "scans")
    out = tmp_path / "out"
    run(model, [scans], out)
    again = run(model, [scans], out)
    assert (again.count("skipped"), again.count("done")) == (6, 0)
    (out / "volume-0.nii").unlink()
    os.utime(scans / "volume-2.nii")
    third = run(model, [scans], out)
    assert [outcome.name for outcome in third.outcomes if outcome.status == "done"] == ["volume-0.nii", "volume-2.nii"]
    assert run(model, [scans], out, overwrite=True).count("done") == 6


def test_one_bad_scan_fails_by_name_and_the_rest_is_segmented(model, collection, tmp_path):
    scans = shutil.copytree(collection, tmp_path / "scans")
    (scans / "volume-1.nii.gz").write_bytes((scans / "volume-1.nii.gz").read_bytes()[:9000])
    done = run_command("infer", model, scans, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "6 scans: 5 done, 0 skipped (done before), 1 failed; 6 files left out" in done.stdout
    assert "volume-1.nii.gz: ends early or is damaged" in done.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["scans"] == {"done": 5, "skipped": 0, "failed": 1}
    assert {row["path"] for row in summary["left_out"]} == {str(path) for path in scans.glob("segmentation-*")}
    assert all(row["reason"] for row in summary["left_out"])
    assert not (tmp_path / "out" / "volume-1.nii.gz").exists()


def test_a_disk_that_cannot_be_written_fails_the_scan_and_not_the_run(model, collection, tmp_path, monkeypatch):
    real = pipeline.write_volume

    def full(path, *parts):
        if path.name == "volume-2.nii":
            raise OSError(28, "No space left on device", str(path))
        real(path, *parts)

    monkeypatch.setattr(pipeline, "write_volume", full)
    summary = run(model, [collection], tmp_path)
    assert (summary.count("done"), summary.count("failed")) == (5, 1)
    assert "No space left on device" in next(
        outcome.reason for outcome in summary.outcomes if outcome.status == "failed"
    )
    monkeypatch.undo()
    assert run(model, [collection], tmp_path).count("done") == 1


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_loses_nothing_and_repeats_nothing(model, collection, segmented, tmp_path, rng):
    out = tmp_path / "out"
    words = [sys.executable, "-m", "slicemill", "infer", str(model), str(collection), "--out", str(out)]
    for _ in range(6):
        process = subprocess.Popen(words, cwd=HERE, stdout=subprocess.DEVNULL)
        time.sleep(float(rng.uniform(0.3, 1.1)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for mask in out.glob("volume-*.nii*"):
            assert nib.load(mask).get_fdata().size > 0
    assert subprocess.run(words, cwd=HERE, check=True, stdout=subprocess.DEVNULL).returncode == 0
    done = [line["name"] for line in read_lines(out / "ledger.jsonl") if line["status"] == "done"]
    assert sorted(done) == sorted(path.name for path in collection.glob("volume-*")), "each scan is done once"
    for scan in collection.glob("volume-*"):
        assert content(out / scan.name) == content(segmented / scan.name)


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 200, 90), (2, 1, 1), (700, 8, 8)])
def test_masks_of_scans_of_any_size_have_the_scans_size(shape, model, tmp_path, rng):
    write_nifti(tmp_path / "a.nii", rng.integers(-1000, 500, shape, dtype=np.int16), (1.0, 1.0, 1.0))
    assert slicemill.segment(tmp_path / "a.nii", model).label_lps.shape == shape


def test_a_mask_never_replaces_a_scan(model, collection, tmp_path):
    scans = shutil.copytree(collection, tmp_path / "scans")
    before = (scans / "volume-0.nii").read_bytes()
    for inputs, out in (([scans], scans), ([scans / "volume-0.nii"], tmp_path / "x" / ".." / "scans")):
        with pytest.raises(ScanError, match="an output would overwrite this scan"):
            run(model, inputs, out, overwrite=True)
    assert (scans / "volume-0.nii").read_bytes() == before


def test_scans_of_one_name_from_two_folders_do_not_replace_each_other(model, collection, tmp_path):
    for patient, number in (("P1", 0), ("P2", 2)):
        (tmp_path / patient).mkdir()
        shutil.copy(collection / f"volume-{number}.nii", tmp_path / patient / "CT_image.nii")
        shutil.copy(collection / f"volume-{number}.nii", tmp_path / patient / "abdomen.nii")
        assert run(model, [tmp_path / patient / "CT_image.nii"], tmp_path / "out").count("done") == 1
    assert (tmp_path / "out" / "P1" / "CT_image.nii").exists()
    assert (tmp_path / "out" / "P2" / "CT_image.nii").exists()
    assert run(model, [tmp_path / "P1" / "abdomen.nii"], tmp_path / "out").count("done") == 1
    second = run(model, [tmp_path / "P2" / "abdomen.nii"], tmp_path / "out")
    assert second.count("failed") == 1
    assert "was not made from" in second.outcomes[0].reason
    assert run(model, [tmp_path / "P2" / "abdomen.nii"], tmp_path / "out", overwrite=True).count("done") == 1


def test_a_mask_without_its_last_ledger_line_still_counts_as_ours(model, collection, tmp_path):
    scan = collection / "volume-0.nii"
    run(model, [scan], tmp_path)
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines(keepends=True)
    assert '"done"' in lines[-1]
    (tmp_path / "ledger.jsonl").write_text("".join(lines[:-1]))
    assert run(model, [scan], tmp_path).count("done") == 1
    assert run(model, [scan], tmp_path).count("skipped") == 1


def test_a_mask_that_we_did_not_write_is_not_replaced(model, collection, tmp_path):
    (tmp_path / "volume-0.nii").write_bytes(b"a mask drawn by hand")
    assert run(model, [collection / "volume-0.nii"], tmp_path).count("failed") == 1
    assert (tmp_path / "volume-0.nii").read_bytes() == b"a mask drawn by hand"


@pytest.mark.slow
def test_a_name_that_is_not_utf8_is_left_out_and_the_rest_is_segmented(model, collection, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(collection / "volume-0.nii", scans / "a.nii")
    shutil.copy(os.fsencode(collection / "volume-0.nii"), os.fsencode(scans) + b"/caf\xe9.nii")
    done = run_command("infer", model, scans, "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert "not valid UTF-8; rename it" in done.stdout
    assert "1 scans: 1 done" in done.stdout
    done = run_command("ingest", scans, tmp_path / "store")
    assert done.exit_code == 0
    assert "1 cases: 1 done" in done.stdout


def test_a_model_that_gives_labels_only_still_reports_tumor(model, collection, tmp_path):
    import onnx

    opened = onnx.load(model)
    del opened.graph.output[1]
    onnx.save(opened, tmp_path / "m.onnx")
    result = slicemill.segment(collection / "volume-2.nii", tmp_path / "m.onnx")
    assert np.array_equal(result.label, slicemill.segment(collection / "volume-2.nii", model).label)
    assert result.report.tumor_found == bool((result.label == 2).any())
    assert result.report.mean_tumor_probability is None


def test_an_upper_case_suffix_is_compressed_too(model, collection, tmp_path):
    shutil.copy(collection / "volume-1.nii.gz", tmp_path / "CT.NII.GZ")
    assert run(model, [tmp_path / "CT.NII.GZ"], tmp_path / "out").count("done") == 1
    (mask,) = (tmp_path / "out").rglob("CT.NII.GZ")
    assert mask.read_bytes()[:2] == b"\x1f\x8b"


def test_the_mask_of_a_hdr_and_img_is_one_compressed_file(model, collection, tmp_path):
    nib.save(nib.Nifti1Pair.from_image(nib.load(collection / "volume-1.nii.gz")), tmp_path / "volume-1.hdr")
    out = tmp_path / "out"
    assert run(model, [tmp_path / "volume-1.hdr"], out).count("done") == 1
    single = run(model, [collection / "volume-1.nii.gz"], tmp_path / "single")
    assert single.count("done") == 1
    mask, same = nib.load(out / "volume-1.nii.gz"), nib.load(tmp_path / "single" / "volume-1.nii.gz")
    assert np.array_equal(mask.dataobj, same.dataobj)
    assert np.array_equal(mask.affine, same.affine)


def test_another_provider_is_compared_with_the_cpu_before_the_first_scan(model, collection, tmp_path, monkeypatch):
    jobs, _ = gather([collection / "volume-0.nii"])
    opened = open_model(model, "cpu")
    opened.provider = "cuda"
    monkeypatch.setattr(lanes, "ON_DEVICE", ())
    assert infer(opened, jobs, tmp_path / "same").count("done") == 1
    honest = opened.run_on_cpu

    def other(*given):
        label, logits = honest(*given)
        return (label + 1) % 3, np.roll(logits, 1, axis=1)

    monkeypatch.setattr(opened, "run_on_cpu", other)
    with pytest.raises(ModelError, match="labels on cuda differ from those on the CPU"):
        infer(opened, jobs, tmp_path / "other")
    assert not (tmp_path / "other" / "volume-0.nii").exists()
    summary = json.loads((tmp_path / "other" / "summary.json").read_text())
    assert summary["scans"] == {"done": 0, "skipped": 0, "failed": 1}
