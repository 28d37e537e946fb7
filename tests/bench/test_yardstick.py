"""The yardstick: nnU-Net gets our folds and our cases, and is scored as we are."""

import json
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from slicemill.bench.peers.environment import FILES
from slicemill.bench.records.readme import TABLES
from slicemill.bench.studies import study as study_module
from slicemill.bench.studies import yardstick as yardstick_module
from slicemill.bench.studies.runs import Run
from slicemill.bench.studies.study import Study
from slicemill.bench.studies.table import Table
from slicemill.bench.studies.yardstick import Duel, run_duel, write_dataset
from slicemill.common.errors import ConfigError
from slicemill.common.files import read_json, write_json
from slicemill.store.reader import open_store

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
said = {{"iterations": 30, "batch": 4, "patch": [64, 64], "minutes": 1.0, "argv": sys.argv[1:]}}
(folder / "peer.json").write_text(json.dumps(said))
"""


@pytest.fixture
def nothing_installed(monkeypatch, stored, tmp_path):
    """Stands for nnU-Net's environment and for our own trainings; all else is as it is."""

    def prepare(study, shell):
        for fold in range(study.table.folds):
            write_json(
                study.place.split(fold),
                {"train": ["volume-0", "volume-5"], "validation": ["volume-1"], "test": [f"volume-{2 + fold}"]},
            )
        study.place.store.symlink_to(stored)
        return open_store(stored)

    def ours(run, place, sought, shell, tell):
        cases = [
            {
                "case_id": case_id,
                "patient_id": case_id,
                "part": "test",
                "regions": {
                    name: {"dice": 0.75, "reference_ml": 4.0, "predicted_ml": 4.0, "overlap_ml": 3.0}
                    for name in ("liver", "tumor")
                },
            }
            for case_id in sought["split"]["test"]
        ]
        row = {"variant": run.variant, "fold": run.fold, "seed": run.seed, **sought, "cases": cases,
               "training": {"minutes": 1.0, "slices_per_second": 20.0}, "machine": {"commit": "abc"}}  # fmt: skip
        write_json(place.result(run), row)
        return row

    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python").write_text(PEER)
    (tools / "nnUNetv2_plan_and_preprocess").write_text("#!/bin/sh\nenv | grep ^nnUNet_ | sort\n")
    for path in tools.iterdir():
        path.chmod(0o755)
    monkeypatch.setattr(yardstick_module, "prepare", prepare)
    monkeypatch.setattr(yardstick_module, "environment", lambda *_: tools / "python")
    monkeypatch.setattr(yardstick_module, "carry_out", ours)
    monkeypatch.setattr(study_module, "prepare", prepare)


def duel(out, **more):
    table = Table(variants={"default": {}}, settings={"width": 4}, folds=2, epochs=2, steps=3)
    return Duel(study=Study(table=table, out=out, phantoms=6, only_folds=(0,)), minutes=more.get("minutes", 1.5))


def test_nnunet_gets_our_fold_and_is_scored_as_we_are(nothing_installed, stored, tmp_path):
    record = run_duel(duel(tmp_path))
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
    found, truth = case.image[:] > 60, case.label[:] > 0
    assert theirs == pytest.approx(2 * (found & truth).sum() / (found.sum() + truth.sum()), abs=1e-4)
    assert record["gain"]["liver"]["mean"] == pytest.approx(0.75 - theirs, abs=1e-4)
    assert record["contenders"]["nnU-Net 2D"]["training"][0]["argv"][-5:-2] == ["1.5", "--iterations", "10"]
    assert read_json(tmp_path / "results" / "default-1-5-minutes_fold-0_seed-0.json")["settings"]["max_minutes"] == 1.5


def test_folds_that_are_done_are_not_done_again(nothing_installed, tmp_path, monkeypatch):
    first = run_duel(duel(tmp_path))

    def never(*_):
        raise AssertionError("done again")

    monkeypatch.setattr(yardstick_module, "peer_run", never)
    monkeypatch.setattr(yardstick_module, "prepare", lambda study, shell: open_store(study.place.store))
    again = run_duel(duel(tmp_path))
    assert again["contenders"] == first["contenders"]


def test_the_table_says_how_much_both_saw(nothing_installed, tmp_path):
    shown = TABLES["yardstick"](run_duel(duel(tmp_path)))
    assert "| nnU-Net 2D | " in shown
    assert "30 steps over 120 slices of 64x64 and ours (variant default) about 1,200 slices" in shown
    assert re.search(r"liver: slicemill over nnU-Net 0\.\d{3}, better in 1 of 1 patients", shown)


def test_masks_lie_on_the_grid_of_their_scans(stored, tmp_path):
    store = open_store(stored)
    write_dataset(tmp_path, store, {"train": ["volume-0"], "validation": ["volume-1"], "test": []})
    image, mask = (
        nib.load(tmp_path / "imagesTr" / "volume-1_0000.nii.gz"),
        nib.load(tmp_path / "labelsTr" / "volume-1.nii.gz"),
    )
    assert np.allclose(image.affine, mask.affine)
    assert image.shape == mask.shape


def test_the_versions_of_the_peer_are_pinned_by_name_and_version_alone():
    lines = (FILES / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[A-Za-z0-9_-]+==[0-9.]+", line) for line in lines)
    assert any(line.startswith("nnunetv2==") for line in lines)
    compile((FILES / "peer.py").read_text(), "peer.py", "exec")


def test_a_duel_without_time_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--minutes 0: must be above 0"):
        duel(tmp_path, minutes=0)


def test_a_contender_of_other_minutes_is_another_run(tmp_path):
    assert duel(tmp_path).run("nnunet-2d", 0) == Run(variant="nnunet-2d-1-5-minutes", fold=0, seed=0)
    assert duel(tmp_path, minutes=20).run("default", 1).name == "default-20-minutes_fold-1_seed-0"
    assert Path(duel(tmp_path).study.place.result(duel(tmp_path).run("default", 0))).parent.name == "results"
