"""The command `infer`: what it prints, where masks go, and what it refuses."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from slicemill.common.errors import UsageError
from slicemill.infer.inputs.gather import gather
from slicemill.infer.request import default_output
from slicemill.infer.runtime.capacity import count_lanes
from slicemill.ingest.discover import discover
from tests.infer.commands import run_command


def test_a_dry_run_shows_what_would_be_segmented(model, collection, tmp_path):
    done = run_command("infer", model, collection, "--out", tmp_path / "out", "--dry-run")
    assert done.exit_code == 0
    assert "6 scans: 6 to segment, 0 done before, 0 would fail. Nothing was written" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_what_would_fail_and_why(model, collection, tmp_path):
    (tmp_path / "volume-0.nii").write_bytes(b"a mask drawn by hand")
    done = run_command("infer", model, collection / "volume-0.nii", "--out", tmp_path, "--dry-run")
    assert re.search(r"volume-0.nii +failed +.*volume-0.nii: was not made from", done.stdout)
    assert "1 scans: 0 to segment, 0 done before, 1 would fail. Nothing was written" in done.stdout


def test_the_first_line_names_model_provider_device_batch_and_why(model, collection, tmp_path):
    done = run_command(
        "infer", model, collection / "volume-0.nii", "--out", tmp_path, "--provider", "cpu", "--batch", "5"
    )
    cores = len(os.sched_getaffinity(0))
    assert done.stdout.splitlines()[0] == (
        "model tiny.onnx (slices 64x64, context 3, fp32) on cpu "
        f"({cores} core{'' if cores == 1 else 's'}), 5 slices a batch, {count_lanes('cpu')} at a time: requested; "
        f"scans use at most half of the free memory; output: {tmp_path}"
    )


def test_the_last_lines_show_the_time_of_each_stage(model, collection, tmp_path):
    done = run_command("infer", model, collection / "volume-0.nii", "--out", tmp_path, "--provider", "cpu")
    stages = json.loads((tmp_path / "summary.json").read_text())["stages"]
    for name, row in stages.items():
        assert re.search(rf"^{name} +{row['seconds']:.1f} +{row['share']:.0%}$", done.stdout, re.MULTILINE)
    assert re.search(r"the network ran \d+% of the run; peak memory of this process: [\d,]+ MiB", done.stdout)


def test_without_out_masks_go_next_to_the_scans_folder_and_are_found_again(model, collection, tmp_path):
    scans = shutil.copytree(collection, tmp_path / "scans")
    beside = tmp_path / "scans-tiny"
    assert run_command("infer", model, scans / "volume-0.nii", scans / "volume-2.nii").exit_code == 0
    assert {path.name for path in beside.glob("volume-*.nii*")} == {"volume-0.nii", "volume-2.nii"}
    done = run_command("infer", model, f"{scans}/")
    assert "6 scans: 4 done, 2 skipped (done before), 0 failed" in done.stdout
    assert sorted(path.name for path in scans.iterdir()) == sorted(path.name for path in collection.iterdir())


def test_out_is_required_where_nothing_can_be_written_next_to_the_scans(collection, tmp_path, monkeypatch):
    def refused(*inputs):
        with pytest.raises(UsageError, match="--out is missing"):
            default_output([str(one) for one in inputs], Path("liver.fp16.onnx"))

    def found(*inputs):
        return default_output([str(one) for one in inputs], Path("models/liver.fp16.onnx"))

    scans = tmp_path / "data" / "scans"
    shutil.copytree(collection, scans / "siteA")
    (tmp_path / "link").symlink_to(scans)
    one, other = scans / "siteA" / "volume-0.nii", scans / "siteB" / "volume-9.nii"
    assert found(scans) == found(f"{scans}/") == found(f"file://{scans}") == scans.with_name("scans-liver")
    assert found(one) == found(scans / "siteA" / "*.nii") == scans / "siteA-liver"
    assert found(one, other) == scans.with_name("scans-liver"), "one is not there and fails by itself"
    assert found(tmp_path / "link") == tmp_path / "link-liver"
    monkeypatch.chdir(scans)
    assert found(".") == found("siteA/../") == scans.with_name("scans-liver")
    for inputs in (
        (scans, collection),
        (scans, one),
        ("s3://bucket/scans",),
        (one, "s3://bucket/a.nii"),
        ("/",),
        ("/proc",),
    ):
        refused(*inputs)
    refused(tmp_path / "nowhere" / "a.nii")
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused(scans)


def test_results_below_the_input_are_left_out_unless_named(model, collection, tmp_path):
    scans = shutil.copytree(collection, tmp_path / "data" / "scans")
    assert run_command("infer", model, scans).exit_code == 0
    done = run_command("infer", model, scans.parent, "--out", tmp_path / "out")
    assert "6 scans: 6 done" in done.stdout
    assert f"left out: {scans}-tiny: results of an earlier run; to segment them, pass this folder itself" in done.stdout
    assert len(gather([f"{scans}-tiny"])[0]) == 6
    kept = discover(scans.parent)
    assert {case.image.parent for case in kept.cases} == {scans}
    assert "a result of infer" in dict(kept.left_out)[scans.with_name("scans-tiny") / "volume-0.nii"]


@pytest.mark.parametrize(
    ("status", "words", "message"),
    [
        (1, ["nowhere.onnx", "COLLECTION"], "nowhere.onnx: cannot be read"),
        (1, ["MODEL", "nowhere.nii"], "there is no such file"),
        (2, ["MODEL", "COLLECTION", "--provider", "tpu"], "is not one of"),
        (2, ["MODEL", "COLLECTION", "--device", "first"], "expected numbers of GPUs"),
        (2, ["MODEL", "COLLECTION", "--device", "1", "--provider", "cpu"], "omit --device"),
        (2, ["MODEL", "COLLECTION", "--provider", "tpu", "--scheduler", "tcp://127.0.0.1:9"], "is not one of"),
        (2, ["MODEL", "COLLECTION", "--window", "300,-200"], "--window 300,-200: window 300.0..-200.0"),
        (2, ["MODEL", "COLLECTION", "--watch", "."], "pass scans, folders, patterns"),
    ],
)
def test_wrong_arguments_have_a_message_and_an_exit_status(status, words, message, model, collection, tmp_path):
    known = {"COLLECTION": str(collection), "MODEL": str(model)}
    done = run_command("infer", *[known.get(word, word) for word in words], "--out", tmp_path / "out")
    assert done.exit_code == status
    assert message in " ".join((done.stderr + done.stdout).replace("│", " ").split())
    assert "Traceback" not in done.stderr
