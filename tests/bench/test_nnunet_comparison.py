"""nnU-Net gets the same folds and cases as slicemill and is scored in the same way."""

import json
import re
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from slicemill.bench.peers.environment import NNUNET_FOLDER
from slicemill.bench.records.readme import format_record
from slicemill.bench.studies import nnunet_comparison
from slicemill.bench.studies.experiment import Experiment
from slicemill.bench.studies.nnunet_comparison import NnunetComparison, compare_with_nnunet, write_dataset
from slicemill.bench.studies.results import FoldRun
from slicemill.common.documents import to_document
from slicemill.common.errors import ConfigError
from slicemill.common.files import read_json, write_json
from slicemill.store.reader import open_store
from tests.bench.made_up import DESIGN, run_result, scored_case

PEER = f"""#!{sys.executable}
import json, pathlib, sys
import nibabel as nib
import numpy as np
folder = pathlib.Path(sys.argv[3])
(folder / "segmented").mkdir()
for path in (folder / "raw" / sys.argv[2] / "imagesTs").iterdir():
    image = nib.load(path)
    label = (np.asarray(image.dataobj) > 60).astype(np.uint8)
    nib.save(nib.Nifti1Image(label, image.affine), folder / "segmented" / path.name.replace("_0000", ""))
report = {{"iterations": 30, "batch": 4, "patch": [64, 64], "minutes": 1.0, "argv": sys.argv[1:]}}
(folder / "peer.json").write_text(json.dumps(report))
"""


@pytest.fixture
def fake_tools(monkeypatch, stored, tmp_path):
    """Replaces nnU-Net's environment and slicemill's trainings."""

    def prepare(experiment, runner):
        for fold in range(experiment.design.folds):
            write_json(
                experiment.folder.split_file(fold),
                {"train": ["volume-0", "volume-5"], "validation": ["volume-1"], "test": [f"volume-{2 + fold}"]},
            )
        experiment.folder.store.symlink_to(stored)
        return open_store(stored)

    def run_fold(request, folder, runner, log):
        run = request.run
        cases = [
            replace(scored_case(case_id, 0.75, volumes=(4.0, 4.0, 3.0), regions=("liver", "tumor")), case_id=case_id)
            for case_id in request.inputs.split["test"]
        ]
        result = run_result(run.variant, cases, run.fold, run.seed, **vars(request.inputs))
        result = replace(result, training=replace(result.training, minutes=1.0))
        write_json(folder.result_file(run), to_document(result))
        return result

    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python").write_text(PEER)
    (tools / "nnUNetv2_plan_and_preprocess").write_text("#!/bin/sh\nenv | grep ^nnUNet_ | sort\n")
    for path in tools.iterdir():
        path.chmod(0o755)
    monkeypatch.setattr(nnunet_comparison, "prepare", prepare)
    monkeypatch.setattr(nnunet_comparison, "prepare_environment", lambda *_: tools / "python")
    monkeypatch.setattr(nnunet_comparison, "run_fold", run_fold)


def make_comparison(out, minutes=1.5):
    design = replace(DESIGN, variants={"default": {}})
    experiment = Experiment(design=design, out=out, phantoms=6, only_folds=(0,))
    return NnunetComparison(experiment=experiment, minutes=minutes)


@pytest.mark.slow
def test_nnunet_gets_the_same_fold_and_the_same_scoring(fake_tools, stored, tmp_path, monkeypatch):
    first = compare_with_nnunet(make_comparison(tmp_path))
    record = to_document(first)
    folder = tmp_path / "runs" / "nnunet-2d-1-5-minutes_fold-0_seed-0"
    raw = folder / "raw" / "Dataset001_fold"
    assert {path.name for path in (raw / "imagesTr").iterdir()} == {f"volume-{n}_0000.nii.gz" for n in (0, 1, 5)}
    assert {path.name for path in (raw / "labelsTr").iterdir()} == {f"volume-{n}.nii.gz" for n in (0, 1, 5)}
    assert {path.name for path in (raw / "imagesTs").iterdir()} == {"volume-2_0000.nii.gz"}
    assert read_json(raw / "dataset.json")["labels"] == {"background": 0, "liver": 1, "tumor": 2}
    splits = json.loads((folder / "preprocessed" / "Dataset001_fold" / "splits_final.json").read_text())
    assert splits == [{"train": ["volume-0", "volume-5"], "val": ["volume-1"]}]
    assert f"nnUNet_preprocessed={folder / 'preprocessed'}" in (folder / "log.txt").read_text()
    case = open_store(stored)["volume-2"]
    theirs = record["contenders"]["nnU-Net 2D"]["liver"]["by_patient"]["volume-2"]
    predicted, truth = case.image[:] > 60, case.label[:] > 0
    assert theirs == pytest.approx(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()), abs=1e-4)
    assert record["gain"]["liver"]["mean"] == pytest.approx(0.75 - theirs, abs=1e-4)
    assert record["contenders"]["nnU-Net 2D"]["training"][0]["argv"][-5:-2] == ["1.5", "--iterations", "10"]
    assert read_json(tmp_path / "results" / "default-1-5-minutes_fold-0_seed-0.json")["settings"]["max_minutes"] == 1.5
    check_table(format_record(first.as_json()))
    check_again(first, tmp_path, monkeypatch)


def check_table(shown):
    assert "| nnU-Net 2D | " in shown
    assert "30 steps over 120 slices of 64x64 and ours (variant default) about 1,200 slices" in shown
    assert re.search(r"liver: slicemill over nnU-Net 0\.\d{3}, better in 1 of 1 patients", shown)


def check_again(first, folder, monkeypatch):
    """Finished folds are not repeated."""

    def never(*_):
        raise AssertionError("done again")

    monkeypatch.setattr(nnunet_comparison, "run_nnunet", never)
    monkeypatch.setattr(nnunet_comparison, "run_fold", never)
    monkeypatch.setattr(nnunet_comparison, "prepare", lambda experiment, runner: open_store(experiment.folder.store))
    again = compare_with_nnunet(make_comparison(folder))
    assert to_document(again)["contenders"] == to_document(first)["contenders"]


def test_masks_have_the_grid_of_their_scans(stored, tmp_path):
    store = open_store(stored)
    write_dataset(tmp_path, store, {"train": ["volume-0"], "validation": ["volume-1"], "test": []})
    image, mask = (
        nib.load(tmp_path / "imagesTr" / "volume-1_0000.nii.gz"),
        nib.load(tmp_path / "labelsTr" / "volume-1.nii.gz"),
    )
    assert np.allclose(image.affine, mask.affine)
    assert image.shape == mask.shape


def test_the_versions_of_the_peer_are_pinned_by_name_and_version_alone():
    lines = (NNUNET_FOLDER / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[A-Za-z0-9_-]+==[0-9.]+", line) for line in lines)
    assert any(line.startswith("nnunetv2==") for line in lines)
    compile((NNUNET_FOLDER / "peer.py").read_text(), "peer.py", "exec")


def test_a_comparison_without_time_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--minutes 0: must be above 0"):
        make_comparison(tmp_path, minutes=0)


def test_a_contender_of_other_minutes_is_another_run(tmp_path):
    run = make_comparison(tmp_path).run("nnunet-2d", 0)
    assert run == FoldRun(variant="nnunet-2d-1-5-minutes", fold=0, seed=0)
    longer = make_comparison(tmp_path, minutes=20)
    assert longer.run("default", 1).name == "default-20-minutes_fold-1_seed-0"
    assert longer.experiment.folder.result_file(run).parent.name == "results"
