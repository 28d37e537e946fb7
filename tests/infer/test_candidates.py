"""Candidates: lumps of the probability compared with scipy, and runs that judge them with a classifier."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import ConfigError, ModelError
from slicemill.common.files import read_lines
from slicemill.ct.crops import cut_crop
from slicemill.ct.geometry import Grid, voxel_ml
from slicemill.ct.phantom import write_nifti
from slicemill.infer.candidates.find import MOST, _Nearness, find_lumps
from slicemill.infer.candidates.judge import CandidateJudge, SharedClassifier
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import load_scan
from slicemill.infer.network.classifier import open_classifier
from slicemill.infer.network.model import open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from slicemill.measure.evaluation.findings import FindingFiles, read_findings, read_points
from slicemill.measure.evaluation.luna16 import score_points
from slicemill.store.nodules_file import write_bundle
from tests.infer.networks import CROP_CARD, write_classifier, write_lung_model, write_model

HERE = Path(__file__).parents[2]
SPACING = (1.25, 0.8, 0.8)
SCANS = 6


def make_grid(shape, spacing_zyx=(1.0, 1.0, 1.0)):
    """Return a grid of axes that point to L, P and S."""
    z, y, x = spacing_zyx
    return Grid(shape=shape[::-1], affine=np.diag([-x, -y, z, 1.0]))


def test_lumps_are_scipys_components_centers_and_peaks():
    rng = np.random.default_rng(2)
    shape = (20, 30, 25)
    probability = np.where(rng.random(shape) < 0.02, rng.integers(1, 256, shape), 0).astype(np.uint8)
    grid = make_grid(probability.shape, (1.5, 3.0, 3.0))
    lumps, counts = find_lumps(probability, grid)
    mask = probability >= 26
    numbers, found = ndimage.label(mask, np.ones((3, 3, 3)))
    assert 100 < found <= MOST
    assert counts.found == found
    # centers nearer than 2 mm are merged, which the voxels of 3 mm here exclude but along z
    index = np.arange(1, found + 1)
    centers = np.array(ndimage.center_of_mass(probability, numbers, index)) * (1.5, 3.0, 3.0)
    assert counts.merged == 0
    ours = {tuple(np.round(lump.xyz_mm, 6)) for lump in lumps}
    assert ours == {tuple(np.round(center[::-1], 6)) for center in centers}
    peaks = sorted(ndimage.maximum(probability, numbers, index), reverse=True)
    assert [round(lump.peak * 255) for lump in lumps] == peaks
    means = sorted(ndimage.mean(probability, numbers, index) / 255)
    assert sorted(lump.mean for lump in lumps) == pytest.approx(means)
    assert sum(lump.volume_ml for lump in lumps) == pytest.approx(mask.sum() * voxel_ml(grid.affine))


def test_a_ball_has_its_diameter_and_center():
    z, y, x = np.indices((30, 30, 30))
    ball = (z - 14) ** 2 + (y - 12) ** 2 + (x - 16) ** 2 <= 36
    (lump,), _ = find_lumps((ball * 255).astype(np.uint8), make_grid((30, 30, 30)))
    assert lump.xyz_mm == pytest.approx((16, 12, 14))
    assert (lump.slice, lump.peak) == (14, 1)
    assert lump.diameter_mm == pytest.approx(12, abs=0.3)


def test_lumps_nearer_than_two_millimeters_are_one():
    probability = np.zeros((5, 10, 20), dtype=np.uint8)
    probability[2, 5, [3, 5, 9]] = 100, 200, 150
    (first, second), counts = find_lumps(probability, make_grid(probability.shape, (1.0, 0.9, 0.9)))
    assert (counts.found, counts.merged) == (3, 1)
    assert first.peak == pytest.approx(200 / 255)
    assert first.xyz_mm[0] == pytest.approx(0.9 * (3 * 100 + 5 * 200) / 300)
    assert second.peak == pytest.approx(150 / 255)
    assert find_lumps(probability, make_grid(probability.shape, (1.0, 1.0, 1.0)))[1].merged == 0


def test_at_most_300_are_kept_by_peak_and_the_rest_is_counted():
    probability = np.zeros((40, 40, 40), dtype=np.uint8)
    places = np.argwhere(np.ones((13, 13, 13)))[: MOST + 50] * 3
    values = np.random.default_rng(0).permutation(len(places)) % 200 + 50
    probability[tuple(places.T)] = values
    lumps, counts = find_lumps(probability, make_grid(probability.shape))
    assert (len(lumps), counts.cut) == (MOST, 50)
    assert [round(lump.peak * 255) for lump in lumps] == sorted(values, reverse=True)[:MOST]


def test_lumps_far_from_the_lung_are_counted_and_left_out():
    probability, label = np.zeros((30, 40, 60), dtype=np.uint8), np.zeros((30, 40, 60), dtype=np.uint8)
    label[:, :, :20] = 1
    probability[15, 20, [10, 23, 35]] = 255  # inside, 4 mm away, 16 mm away
    lumps, counts = find_lumps(probability, make_grid(label.shape), label, (1,))
    assert sorted(lump.xyz_mm[0] for lump in lumps) == [10, 23]
    assert (counts.found, counts.outside_organ) == (3, 1)
    label[:] = 0
    lumps, counts = find_lumps(probability, make_grid(label.shape), label, (1,))
    assert (lumps, counts.outside_organ) == ((), 3)


@pytest.mark.parametrize(
    "spacing", [(0.7, 0.7, 0.7), (1.25, 0.6, 0.6), (5.0, 0.7, 0.7), (1.0, 1.0, 1.0), (3.0, 2.0, 0.5)]
)
def test_no_lump_within_five_millimeters_of_the_lung_is_lost(spacing):
    shape = tuple(int(14 / along) + 8 for along in spacing)
    places = np.indices(shape).reshape(3, -1).T
    rng = np.random.default_rng(4)
    for _ in range(4):
        organ = np.array([rng.integers(0, count) for count in shape])
        label = np.zeros(shape, dtype=np.uint8)
        label[tuple(organ)] = 1
        near = _Nearness(label, (1,), spacing).holds(tuple(places.T))
        distance = np.linalg.norm((places - organ) * spacing, axis=1)
        assert near[distance <= 5].all()
        assert not near[distance > 15].any()


def test_a_lump_near_the_lung_along_a_diagonal_is_kept():
    probability, label = np.zeros((30, 30, 30), dtype=np.uint8), np.zeros((30, 30, 30), dtype=np.uint8)
    label[15, 7, 7] = 1  # the last row and column of its block of 4
    probability[15, 12, 12] = 255  # 4.95 mm away, and in the first row and column of the block after the next
    _, counts = find_lumps(probability, make_grid(label.shape, (0.7, 0.7, 0.7)), label, (1,))
    assert (counts.found, counts.outside_organ) == (1, 0)


def test_a_scan_without_probability_has_no_candidates():
    lumps, counts = find_lumps(np.zeros((3, 4, 5), np.uint8), make_grid((3, 4, 5)), np.ones((3, 4, 5), np.uint8), (1,))
    assert (lumps, counts.found, counts.cut) == ((), 0, 0)


def test_crops_of_several_threads_share_batches_and_get_their_own_scores(tmp_path):
    class Slow:
        def __init__(self, classifier):
            self.classifier = classifier

        def run(self, crops):
            time.sleep(0.05)
            return self.classifier.run(crops)

    classifier = open_classifier(write_classifier(tmp_path / "c.onnx"), "cpu")
    shared = SharedClassifier(classifier=Slow(classifier))
    rng = np.random.default_rng(1)
    parts = [rng.integers(-1000, 400, (3, 48, 48, 48)).astype(np.int16) for _ in range(12)]
    found = [None] * len(parts)

    def score(index):
        found[index] = shared.score(parts[index]).nodule

    threads = [threading.Thread(target=score, args=(index,)) for index in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part, scores in zip(parts, found, strict=True):
        np.testing.assert_allclose(scores, classifier.run(part).nodule, atol=1e-6)
    assert shared.batches < len(parts)


def test_an_error_of_a_batch_reaches_each_scan_in_it(tmp_path):
    class Broken:
        def run(self, crops):
            raise ModelError("broken")

    shared = SharedClassifier(classifier=Broken())
    for _ in range(2):
        with pytest.raises(ModelError, match="broken"):
            shared.score(np.zeros((2, 48, 48, 48), np.int16))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return write_lung_model(folder / "lung.onnx"), write_classifier(folder / "cls.onnx", malignancy=True)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Scans of lung with balls, small and large, in two folders; one without any."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(11)
    z, y, x = np.indices((30, 64, 64))
    for number in range(SCANS):
        voxels = rng.normal(-850, 20, (30, 64, 64))
        for cz, cy, cx in ((8, 20, 20), (20, 40, 25), (15, 30, 50))[: number % 4]:
            radius = float(rng.uniform(2, 6))
            squares = ((z - cz) * 1.25) ** 2 + ((y - cy) * 0.8) ** 2 + ((x - cx) * 0.8) ** 2
            voxels[squares <= radius**2] = 40 - 25 * number
        write_nifti(folder / f"p{number % 2}" / f"scan-{number}.nii.gz", voxels.astype(np.int16), SPACING)
    return folder


def run(models, scans, out, **options):
    classifier = open_classifier(models[1], "cpu")
    opened = InferOptions(z_range="all", classifier_sha256=classifier.sha256, **options)
    return infer(open_model(models[0], "cpu"), gather([scans])[0], out, opened, classifier=classifier)


def read_rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def without_scores(out):
    """Return the candidates of a run without probabilities, and the probabilities."""
    rows = read_rows(out / "candidates.csv")
    scores = [(float(row.pop("probability")), float(row.pop("malignancy"))) for row in rows]
    return rows, np.array(scores)


@pytest.fixture(scope="module")
def whole(models, scans, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert run(models, scans, out).count("done") == SCANS
    return out


def test_the_table_has_each_ball_with_its_place_size_and_probability(models, scans, whole):
    rows = read_rows(whole / "candidates.csv")
    assert list(rows[0])[:5] == ["seriesuid", "coordX", "coordY", "coordZ", "probability"]
    assert {row["seriesuid"] for row in rows} == {"scan-1", "scan-2", "scan-3", "scan-5"}
    assert len(rows) == 1 + 2 + 3 + 1
    classifier = open_classifier(models[1], "cpu")
    jobs = {job.stem.rpartition("/")[2]: job for job in gather([scans])[0]}
    for row in rows:
        loaded = load_scan(jobs[row["seriesuid"]])
        place = [float(row[f"coord{axis}"]) for axis in "XYZ"]
        crop = cut_crop(loaded.volume, loaded.grid.affine_lps, place)
        scores = classifier.run(crop[None])
        assert float(row["probability"]) == pytest.approx(float(scores.nodule[0]), abs=1e-5)
        assert float(row["malignancy"]) == pytest.approx(float(scores.malignancy[0]), abs=1e-5)
        assert 3 < float(row["diameter_mm"]) < 14
        assert int(row["slice"]) in (8, 15, 20)


def test_low_probabilities_are_in_the_table_and_the_json_has_the_counts(whole):
    document = json.loads((whole / "candidates.json").read_text())
    assert [scan["scan"] for scan in document["scans"]] == sorted(scan["scan"] for scan in document["scans"])
    assert len(document["scans"]) == SCANS
    for scan in document["scans"]:
        probabilities = [one["probability"] for one in scan["candidates"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert [one["number"] for one in scan["candidates"]] == list(range(1, len(probabilities) + 1))
        assert scan["found"] - scan["outside_organ"] - scan["merged"] - scan["cut"] == len(probabilities)
        # post-processing removes lesions below 0.05 ml from the mask, and no candidate
        assert json.loads((whole / scan["scan"]).with_suffix("").with_suffix(".candidates.json").read_text()) == scan


def test_what_was_written_scores_the_same_in_luna16s_rules(whole, tmp_path):
    points = read_points(whole / "candidates.csv", "probability")
    annotations = tmp_path / "annotations.csv"
    lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm"]
    lines += [f"{name},{row[0]},{row[1]},{row[2]},6" for name, rows in points.items() for row in rows[:1]]
    annotations.write_text("\n".join(lines) + "\n")
    names = [f"scan-{number}" for number in range(SCANS)]
    (tmp_path / "uids.csv").write_text("\n".join(names) + "\n")
    result = score_points(
        whole / "candidates.csv", read_findings(FindingFiles(annotations=annotations, scans=tmp_path / "uids.csv"))
    )
    assert result.unlisted_candidates == 0
    response = result.as_json()
    assert response["findings"] == len(points)
    assert sum(map(len, points.values())) == 7


@pytest.mark.parametrize("options", [{"batch": 1, "readers": 1, "writers": 1}, {"batch": 50, "writers": 4}])
def test_candidates_do_not_depend_on_batch_order_and_threads(models, scans, whole, tmp_path, options):
    classifier = open_classifier(models[1], "cpu")
    settings = InferOptions(z_range="all", classifier_sha256=classifier.sha256, **options)
    jobs = gather([scans])[0][::-1]
    infer(open_model(models[0], "cpu"), jobs, tmp_path, settings, classifier=classifier)
    (rows, scores), (expected, probabilities) = without_scores(tmp_path), without_scores(whole)
    assert rows == expected
    np.testing.assert_allclose(scores, probabilities, atol=1e-4)


def test_another_classifier_judges_all_scans_again(models, scans, whole, tmp_path):
    run(models, scans, tmp_path)
    assert run(models, scans, tmp_path).count("skipped") == SCANS
    before = (tmp_path / "candidates.csv").read_text()
    assert before == (whole / "candidates.csv").read_text()
    (tmp_path / "candidates.csv").unlink()
    run(models, scans, tmp_path)
    assert (tmp_path / "candidates.csv").read_text() == before
    other = write_classifier(tmp_path / "other.onnx", malignancy=True, bias=50.0)
    assert run((models[0], other), scans, tmp_path).count("done") == SCANS
    assert (tmp_path / "candidates.csv").read_text() != before
    line = read_lines(tmp_path / "ledger.jsonl")[-1]
    assert any(open_classifier(other, "cpu").sha256 in name for name in line["options"])


def test_a_run_without_a_classifier_leaves_no_candidates_of_an_earlier_one(models, scans, tmp_path):
    run(models, scans, tmp_path)
    infer(open_model(models[0], "cpu"), gather([scans])[0], tmp_path, InferOptions())
    assert not list(tmp_path.rglob("scan-*.candidates.json"))


def test_candidates_of_the_segmentation_alone_are_those_that_a_classifier_judges(models, scans, whole, tmp_path):
    code, text = infer_command(models[0], scans, "--out", tmp_path, "--candidates")
    assert code == 0, text
    peaks = {}
    for scan in json.loads((tmp_path / "candidates.json").read_text())["scans"]:
        assert (scan["classifier"], scan["classifier_sha256"], scan["thresholds"]) == ("", "", {})
        for one in scan["candidates"]:
            assert 0.1 <= one["probability"] <= one["peak"]
            peaks[scan["scan"], one["x_mm"], one["y_mm"], one["z_mm"]] = one["peak"], one["diameter_mm"]
    judged = json.loads((whole / "candidates.json").read_text())["scans"]
    assert peaks == {
        (scan["scan"], one["x_mm"], one["y_mm"], one["z_mm"]): (one["peak"], one["diameter_mm"])
        for scan in judged
        for one in scan["candidates"]
    }
    rows = read_rows(tmp_path / "candidates.csv")
    assert len(rows) == len(peaks)
    assert {row["malignancy"] for row in rows} == {""}
    # other options: a run with a classifier judges all scans, and one without candidates removes them
    run(models, scans, tmp_path)
    assert without_scores(tmp_path)[0] == without_scores(whole)[0]


def test_candidates_of_a_model_without_probability_are_refused(scans, tmp_path):
    model = write_model(tmp_path / "m.onnx", {"lung": 1})
    code, text = infer_command(model, scans, "--out", tmp_path / "out", "--candidates")
    assert code
    assert "--candidates: candidates are lumps of the probability of tumor" in text


def command(models, scans, out):
    return [sys.executable, "-m", "slicemill", "infer", str(models[0]), str(scans), "--out", str(out),
            "--classifier", str(models[1]), "--provider", "cpu"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_runs_end_with_the_same_candidates(models, scans, whole, tmp_path):
    for number in range(2):
        out = tmp_path / str(number)
        for _ in range(2):
            ledger = out / "ledger.jsonl"
            lines = 1 + number + (len(read_lines(ledger)) if ledger.exists() else 0)
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen(command(models, scans, out), **quiet)
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if ledger.exists() and len(ledger.read_bytes().splitlines()) >= lines:
                    process.send_signal(signal.SIGKILL)
                time.sleep(0.005)
            process.wait()
        subprocess.run(command(models, scans, out), check=True, capture_output=True)
        (rows, scores), (expected, probabilities) = without_scores(out), without_scores(whole)
        assert rows == expected
        np.testing.assert_allclose(scores, probabilities, atol=1e-4)


def infer_command(*arguments):
    result = CliRunner().invoke(commands(), ["infer", *map(str, arguments), "--provider", "cpu"])
    return result.exit_code, " ".join(f"{result.output} {result.exception or ''}".split())


def test_the_name_of_a_scan_does_not_depend_on_its_shard_or_on_scans_that_fail(models, scans, tmp_path):
    for patient in ("p0", "p1"):
        (tmp_path / "in" / patient).mkdir(parents=True)
        shutil.copy(scans / "p1" / "scan-1.nii.gz", tmp_path / "in" / patient / "ct.nii.gz")
    shutil.copy(scans / "p1" / "scan-5.nii.gz", tmp_path / "in" / "p1" / "other.nii.gz")
    (tmp_path / "in" / "p2").mkdir()
    (tmp_path / "in" / "p2" / "other.nii.gz").write_bytes(b"broken")
    tables = []
    for shard in ("0/2", "1/2"):  # p0/ct and p1/other; p1/ct and p2/other
        out = tmp_path / "out"
        infer_command(models[0], tmp_path / "in", "--out", out, "--classifier", models[1], "--shard", shard)
        rows = read_rows(out / f"candidates-{shard.replace('/', '-of-')}.csv")
        tables.append({row["seriesuid"] for row in rows})
    assert tables == [{"p0/ct", "p1/other"}, {"p1/ct"}]


def test_one_file_of_both_models_gives_the_same_candidates(models, scans, whole, tmp_path):
    bundle = tmp_path / "lung.nodules"
    write_bundle(bundle, *models)
    code, text = infer_command(bundle, scans, "--out", tmp_path / "out")
    assert code == 0, text
    assert (tmp_path / "out" / "candidates.csv").read_text() == (whole / "candidates.csv").read_text()
    code, text = infer_command(bundle, scans, "--out", tmp_path / "out", "--classifier", models[1])
    assert code
    assert "has a classifier already" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--range", "organ"], "candidates may lie in every slice"),
        (["--scheduler", "tcp://x:1"], "cannot be combined with --scheduler or --watch"),
    ],
)
@pytest.mark.parametrize("judged", [True, False])
def test_options_that_do_not_fit_candidates_are_refused(models, scans, tmp_path, options, message, judged):
    words = ["--classifier", models[1]] if judged else ["--candidates"]
    code, text = infer_command(models[0], scans, "--out", tmp_path / "out", *words, *options)
    assert code
    assert f"{words[0]}: {message}" in text


def test_models_in_each_others_place_are_refused(models, scans, tmp_path):
    code, text = infer_command(models[0], scans, "--out", tmp_path / "out", "--classifier", models[0])
    assert code
    assert "segments slices; a classifier of candidates is needed" in text
    code, text = infer_command(models[1], scans, "--out", tmp_path / "out")
    assert code
    assert "is of kind crops" in text


def test_a_segmentation_without_tumor_is_refused(models, scans, tmp_path):
    classifier = open_classifier(models[1], "cpu")
    model = open_model(write_model(tmp_path / "m.onnx", {"lung": 1}), "cpu")
    with pytest.raises(ConfigError, match=r"candidates are lumps of the probability of tumor"):
        CandidateJudge(model.info, classifier, mirrored=False)


def test_a_classifier_of_another_segmentation_warns(models, scans, tmp_path):
    path = write_classifier(tmp_path / "c.onnx", malignancy=True, card=CROP_CARD | {"segmentation_sha256": "0" * 64})
    run((models[0], path), scans, tmp_path / "out")
    rows = read_rows(tmp_path / "out" / "summary.csv")
    assert all("was trained on candidates of another segmentation" in row["warnings"] for row in rows)


@pytest.mark.parametrize(
    ("slices", "warning"),
    [
        (1, "not judged: a single slice, and the classifier judges cubes of 48 mm"),
        (3, "3 slices are 3.75 mm: the rest of the classifier's cubes of 48 mm is air"),
        (40, ""),
    ],
)
def test_a_scan_thinner_than_a_crop_is_named_and_a_single_slice_is_not_judged(models, tmp_path, slices, warning):
    voxels = np.full((slices, 64, 64), -850, np.int16)
    voxels[slices // 2, 20:26, 20:26] = 40
    write_nifti(tmp_path / "in" / "a.nii.gz", voxels, SPACING)
    run(models, tmp_path / "in", tmp_path / "out")
    (found,) = (json.loads(path.read_text()) for path in (tmp_path / "out").rglob("*.candidates.json"))
    assert found["found"] == 1
    assert len(found["candidates"]) == (0 if slices == 1 else 1)
    assert found["warnings"] == [warning] * bool(warning)
    (row,) = read_rows(tmp_path / "out" / "summary.csv")
    expected = "tumor: " if slices == 1 else "candidates of nodules: 1; "
    assert row["answer"].startswith(expected), "what is not judged has the answer of its mask"


def test_a_scan_named_like_the_table_is_refused(models, tmp_path):
    write_nifti(tmp_path / "in" / "candidates.nii.gz", np.full((3, 64, 64), -850, np.int16), SPACING)
    code, text = infer_command(models[0], tmp_path / "in", "--out", tmp_path / "out", "--classifier", models[1])
    assert code
    assert "would overwrite the run's summary" in text
