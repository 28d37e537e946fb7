"""Averages over mirrored slices and overlapping tiles, compared with onnxruntime called by hand."""

import json

import nibabel as nib
import numpy as np
import onnxruntime
import pytest

from slicemill.common.errors import ConfigError
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.jobs import Job, load_scan
from slicemill.infer.network.model import open_model
from slicemill.infer.run.options import InferOptions, estimate_scan_bytes
from slicemill.infer.slices.assembly import plan_scan
from slicemill.infer.slices.tiles import PredictOptions, cover_axis, gaussian_weights, make_tiles
from slicemill.store.model_card import PostprocessRules
from slicemill.store.nodules_file import write_bundle
from slicemill.train.export.graph import ExportGraph, Flavor
from slicemill.train.export.model_file import add_metadata, describe_model, read_origin
from slicemill.train.export.onnx_graph import write_onnx
from slicemill.train.export.parity import measure_parity
from slicemill.train.export.trained import read_trained
from slicemill.web.serve.nodules import open_nodules
from tests.conftest import TINY
from tests.infer.networks import CROP_CARD, write_classifier
from tests.infer.test_bulk import run
from tests.infer.test_candidates import infer_command

SIDE = 64


@pytest.fixture(scope="module")
def telling(trained, tmp_path_factory):
    """The model of the run with the output `probability`, and with labels that are all there."""
    path = tmp_path_factory.mktemp("telling") / "m.onnx"
    best = read_trained(trained, None)
    graph = ExportGraph(best.network, TINY, LITS_LABELS, Flavor(probability=True)).eval()
    write_onnx(graph, best.parity_slices, path)
    parity = measure_parity(graph, path, best.parity_slices)
    add_metadata(path, describe_model(read_origin(trained), best, graph.flavor, parity, PostprocessRules()).as_json())
    return path


def probabilities(path, image, z):
    """The network's output for a tile and its neighbors, int16[z, 64, 64]."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    last = len(image) - 1
    window = np.array([[max(z - 1, 0), z, min(z + 1, last)]], np.int32)
    return session.run(["probability"], {"image": np.ascontiguousarray(image), "neighbors": window})[0][0]


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 100, 90)])
def test_averages_equal_those_computed_by_hand(shape, telling, tmp_path, rng):
    volume = rng.integers(-200, 300, shape, dtype=np.int16)
    write_nifti(tmp_path / "a.nii", volume, (5.0, 1.0, 1.0), "LPS")
    for predict in (
        PredictOptions(mirror=True),
        PredictOptions(overlap=True),
        PredictOptions(mirror=True, overlap=True),
    ):
        total, weights = np.zeros((3, *shape)), np.zeros(shape[1:])
        for y in cover_axis(shape[1], SIDE, 2 if predict.overlap else 4):
            for x in cover_axis(shape[2], SIDE, 2 if predict.overlap else 4):
                tile = volume[:, y.start : y.start + SIDE, x.start : x.start + SIDE]
                if not predict.overlap:
                    weight = np.zeros((SIDE, SIDE))
                    weight[y.inside, x.inside] = 1
                else:
                    weight = np.outer(gaussian_weights(SIDE), gaussian_weights(SIDE))
                weights[y.start : y.start + SIDE, x.start : x.start + SIDE] += weight
                for step in (1, -1) if predict.mirror else (1,):
                    for z in range(shape[0]):
                        answer = probabilities(telling, tile[:, :, ::step], z)[:, :, ::step]
                        part = total[:, z, y.start : y.start + SIDE, x.start : x.start + SIDE]
                        part += weight * answer / (2 if predict.mirror else 1)
        expected = total / weights
        out = tmp_path / f"{predict.mirror}-{predict.overlap}"
        assert run(telling, [tmp_path / "a.nii"], out, predict=predict, postprocess=False).count("done") == 1
        label = load_scan(Job(name="a", path=out / "a.nii")).volume
        sure = np.diff(np.sort(expected, axis=0)[-2:], axis=0)[0] > 1e-4
        assert np.array_equal(label[sure], expected.argmax(axis=0)[sure])
        assert sure.mean() > 0.99


def test_weights_of_all_tiles_add_up_to_one_at_every_pixel(telling):
    info = open_model(telling, "cpu").info
    for predict in (
        PredictOptions(mirror=True),
        PredictOptions(overlap=True),
        PredictOptions(mirror=True, overlap=True),
    ):
        plan = plan_scan(info, (2, 150, 50), (1.0, 1.0, 1.0), predict)
        total = np.zeros((150, 50))
        for view, weight in plan.weights.items():
            total[view.kept] += weight
        assert np.allclose(total, 1, atol=1e-5)


def test_tiles_that_are_averaged_overlap_by_half():
    tiles = make_tiles((128, 64), (64, 64), PredictOptions(overlap=True))
    assert [view.y.start for view in tiles] == [0, 32, 64]
    assert len(make_tiles((128, 64), (64, 64), PredictOptions(overlap=True, mirror=True))) == 6


def test_a_model_without_probabilities_cannot_average(model, tmp_path):
    opened = open_model(model, "cpu")
    with pytest.raises(
        ConfigError, match=r"--mirror: tiny.onnx outputs no probabilities; export it again with .*--probability"
    ):
        plan_scan(opened.info, (1, 64, 64), (1.0, 1.0, 1.0), PredictOptions(mirror=True))


def test_scans_done_with_other_options_are_done_again(telling, collection, tmp_path):
    scan = collection / "volume-0.nii"
    assert run(telling, [scan], tmp_path).count("done") == 1
    plain = (tmp_path / "volume-0.nii").read_bytes()
    assert run(telling, [scan], tmp_path, predict=PredictOptions(mirror=True)).count("done") == 1
    assert run(telling, [scan], tmp_path, predict=PredictOptions(mirror=True)).count("skipped") == 1
    assert run(telling, [scan], tmp_path, postprocess=False).count("done") == 1
    assert run(telling, [scan], tmp_path).count("done") == 1
    assert (tmp_path / "volume-0.nii").read_bytes() == plain


def test_probabilities_and_masks_of_single_labels_are_written_on_the_scans_grid(telling, collection, tmp_path):
    scan = collection / "volume-4.nii.gz"
    options = {"predict": PredictOptions(probability=True), "separate": True, "postprocess": False}
    assert run(telling, [scan], tmp_path, **options).count("done") == 1
    labels = nib.load(tmp_path / "volume-4.nii.gz")
    maps = {
        name: nib.load(tmp_path / f"volume-4_probability_{name}.nii.gz") for name in ("background", "liver", "tumor")
    }
    total = sum(picture.get_fdata() for picture in maps.values())
    assert np.abs(total - 1).max() < 3 / 255
    likely = np.stack([picture.get_fdata() for picture in maps.values()])
    sure = np.diff(np.sort(likely, axis=0)[-2:], axis=0)[0] > 2 / 255
    assert np.array_equal(np.asarray(labels.dataobj)[sure], likely.argmax(axis=0)[sure])
    for value, name in ((1, "liver"), (2, "tumor")):
        mask = nib.load(tmp_path / f"volume-4_{name}.nii.gz")
        assert np.array_equal(np.asarray(mask.dataobj) == 1, np.asarray(labels.dataobj) == value)
        assert np.array_equal(mask.affine, labels.affine)
    assert run(telling, [scan], tmp_path, **options).count("skipped") == 1


def test_probabilities_that_are_kept_take_memory(telling):
    info = open_model(telling, "cpu").info
    plans = [plan_scan(info, (4, 64, 64), (1.0, 1.0, 1.0), PredictOptions(probability=keep)) for keep in (False, True)]
    assert estimate_scan_bytes(plans[1]) - estimate_scan_bytes(plans[0]) == 3 * 4 * 64 * 64


def test_options_list_only_what_changes_outputs():
    assert InferOptions().as_json() == {}
    assert InferOptions(predict=PredictOptions(mirror=True), postprocess=False).as_json() == {
        "mirror left-right": True,
        "postprocess": False,
    }


def read_ledger(out):
    return json.loads((out / "ledger.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("learned", [True, False])
def test_a_classifier_of_mirrored_slices_makes_a_run_mirror(learned, telling, collection, tmp_path):
    judge = write_classifier(tmp_path / "c.onnx", card=CROP_CARD | {"mirror": learned})
    words = [telling, collection / "volume-0.nii", "--classifier", judge, "--out"]
    assert infer_command(*words, tmp_path / "plain")[0] == 0
    assert infer_command(*words, tmp_path / "mirrored", "--mirror")[0] == 0
    plain, mirrored = (read_ledger(tmp_path / name) for name in ("plain", "mirrored"))
    assert ("mirror left-right" in plain["options"]) == learned
    assert "mirror left-right" in mirrored["options"]
    warnings = [(tmp_path / name / "summary.csv").read_text() for name in ("plain", "mirrored")]
    assert "was trained on candidates" not in warnings[0]
    assert ("was trained on candidates of slices that were not mirrored" in warnings[1]) == (not learned)
    write_bundle(tmp_path / "both.nodules", telling, judge)
    assert open_nodules(tmp_path / "both.nodules", "cpu").predict == PredictOptions(mirror=learned)
