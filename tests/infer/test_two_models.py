"""Two models and one output folder: no file of one is left beside files of the other, and readers notice if one is."""

import re
import shutil
from contextlib import nullcontext

import nibabel as nib
import numpy as np
import pytest

from slicemill.common.errors import ConfigError, PairingError
from slicemill.common.locks import CLAIMS
from slicemill.ct.formats.nifti.header import read_signature
from slicemill.ct.labels import make_labels
from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.gather import gather
from slicemill.infer.network.model import open_model
from slicemill.infer.run.folder_claim import claim_folder
from slicemill.infer.run.ledger import RunLedger
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from slicemill.infer.run.summary import ScanOutcome
from slicemill.infer.slices.tiles import PredictOptions
from slicemill.measure.evaluation.evaluate import evaluate
from slicemill.measure.inputs.infer_output import read_own_report
from slicemill.measure.lesions.jobs import MeasureJob
from slicemill.measure.lesions.load import load_case
from tests.infer.networks import CARD, SIDE, write_threshold

MAPS = InferOptions(predict=PredictOptions(probability=True))
LABELS = make_labels({"tumor": 1})


@pytest.fixture
def models(tmp_path):
    """Two models with other thresholds and other label names."""
    first = write_threshold(tmp_path / "a.onnx")
    second = write_threshold(tmp_path / "b.onnx", 60.0, 0.01, CARD.replace("tumor = 1", "lesion = 1"))
    return open_model(first, "cpu"), open_model(second, "cpu")


@pytest.fixture
def jobs(tmp_path):
    volume = np.zeros((3, SIDE, SIDE), np.int16)
    volume[:, 4:8, 4:8], volume[:, 10:14, 10:14] = 50, 100
    write_nifti(tmp_path / "in" / "case-1.nii", volume, (3.0, 1.0, 1.0), "LPS")
    return gather([tmp_path / "in"])[0]


def names(out):
    return {path.name for path in out.iterdir() if path.name.startswith("case-1")}


BASE = {"case-1.nii", "case-1.json", "case-1.png"}


@pytest.mark.parametrize("options", [MAPS, InferOptions(separate=True)])
def test_what_one_model_wrote_is_gone_when_another_has_written(options, models, jobs, tmp_path):
    first, second = models
    out = tmp_path / "out"
    assert infer(first, jobs, out, options).count("done") == 1
    assert names(out) > BASE
    (out / "case-1_notes.nii").write_bytes(b"mine")
    assert infer(second, jobs, out).count("done") == 1
    assert names(out) == BASE | {"case-1_notes.nii"}
    assert read_signature(out / "case-1.nii") == second.info.sha256


def test_the_same_model_with_other_options_leaves_no_files_of_the_earlier_options(models, jobs, tmp_path):
    out = tmp_path / "out"
    infer(models[0], jobs, out, MAPS)
    infer(models[0], jobs, out, InferOptions(separate=True))
    assert names(out) == BASE | {"case-1_tumor.nii"}
    assert read_signature(out / "case-1_tumor.nii") == models[0].info.sha256


def test_files_of_killed_runs_are_removed_too_but_no_mask_of_another_scan(models, jobs, tmp_path):
    (job,), out = jobs, tmp_path / "out"
    begun = ScanOutcome(name=job.name, status="done")
    RunLedger(out, models[0], InferOptions(separate=True)).append(job, begun, begun=True)
    RunLedger(out, models[1], InferOptions(separate=True)).append(job, begun, begun=True)
    other = type(job)(name="case-1_lesion.nii", path=job.path.with_name("case-1_lesion.nii"))
    RunLedger(out, models[1], MAPS).append(other, ScanOutcome(name=other.name, status="done"))
    for name in ("case-1_tumor.nii", "case-1_lesion.nii", "case-1.nii", "case-1.json", "case-1_probability_tumor.nii"):
        (out / name).touch()
    RunLedger(out, models[1], InferOptions()).remove_earlier(job)
    assert names(out) == {"case-1_lesion.nii", "case-1_probability_tumor.nii"}  # no line says that infer wrote the map


def test_two_models_at_once_are_refused_and_the_same_model_twice_is_not(models, jobs, tmp_path):
    first, second = models
    out = tmp_path / "out"
    with claim_folder(out, first.info.sha256, InferOptions()):
        for model, options in ((second, InferOptions()), (first, MAPS)):
            with pytest.raises(ConfigError, match="out: another run writes results of another model, or with other"):
                infer(model, jobs, out, options)
        assert names(out) == set()
        assert infer(first, jobs, out, InferOptions(overwrite=True, part="-1-of-2")).count("done") == 1
    (out / CLAIMS / "run.0123.of-a-killed-run").touch()
    assert infer(second, jobs, out).count("done") == 1
    assert not [path for path in (out / CLAIMS).iterdir() if path.name.startswith("run.")]


class TestReaders:
    @pytest.fixture
    def folders(self, models, jobs, tmp_path):
        """Outputs of a model for tumor, and of another one with the same label."""
        second = open_model(write_threshold(tmp_path / "c.onnx", 60.0, 0.01), "cpu")
        infer(models[0], jobs, tmp_path / "a", MAPS)
        infer(second, jobs, tmp_path / "b", MAPS)
        return tmp_path / "a", tmp_path / "b"

    def judge(self, folder, tmp_path):
        reference = tmp_path / "references"
        write_nifti(reference / "case-1.nii", np.ones((3, SIDE, SIDE), np.uint8), (3.0, 1.0, 1.0), "LPS")
        result = evaluate(folder, reference, None, LABELS)
        reasons = [reason for _, reason in result.failures]
        assert len(result.cases) == 1 - len(reasons)
        job = MeasureJob(name="case-1", mask=folder / "case-1.nii", labels=LABELS)
        with pytest.raises(PairingError, match=re.escape(reasons[0])) if reasons else nullcontext():
            load_case(job)
        return reasons

    def test_files_of_one_run_are_read(self, folders, tmp_path):
        assert self.judge(folders[0], tmp_path) == []

    def test_a_map_of_another_model_is_refused(self, folders, tmp_path):
        first, second = folders
        shutil.copy(first / "case-1_probability_tumor.nii", second)
        (reason,) = self.judge(second, tmp_path)
        assert "case-1.nii: its probability map case-1_probability_tumor.nii is of another model (mask" in reason

    def test_a_map_without_a_model_beside_a_mask_with_one_is_refused(self, folders, tmp_path):
        path = folders[1] / "case-1_probability_tumor.nii"
        image = nib.load(path)
        image = nib.Nifti1Image(np.asarray(image.dataobj.get_unscaled()), image.affine, image.header)
        image.header["descrip"] = b""
        nib.save(image, path)
        (reason,) = self.judge(folders[1], tmp_path)
        assert "map none, like files of older versions" in reason

    def test_a_report_of_another_model_is_refused(self, folders, tmp_path):
        first, second = folders
        shutil.copy(first / "case-1.json", second)
        (reason,) = self.judge(second, tmp_path)
        assert "case-1.nii: its report case-1.json is of another model" in reason
        with pytest.raises(PairingError, match="its report case-1.json is of another model"):
            read_own_report(second / "case-1.nii")

    def test_a_mask_that_names_no_model_is_read_as_before(self, folders, tmp_path):
        first, second = folders
        image = nib.load(second / "case-1.nii")
        image.header["descrip"] = b"corrected by hand"
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), second / "case-1.nii")
        shutil.copy(first / "case-1_probability_tumor.nii", second)
        assert self.judge(second, tmp_path) == []
