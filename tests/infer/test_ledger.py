"""The ledger of an output folder: what a line has, and which lines count."""

import json
from dataclasses import replace

import pytest

from slicemill.infer.inputs.gather import gather
from slicemill.infer.network.model import open_model
from slicemill.infer.run.ledger import RunLedger
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.outputs import output_names
from slicemill.infer.run.summary import ScanOutcome

KEYS = [
    *("name", "source", "status", "stamp", "model_sha256", "options", "provider"),
    *("slices", "labeled", "answer", "reason"),
]


@pytest.fixture
def opened(model):
    return open_model(model, "cpu")


@pytest.fixture
def job(collection):
    return gather([collection / "volume-0.nii"])[0][0]


def append(out, opened, job, status="done", **values):
    ledger = RunLedger(out, opened, InferOptions(separate=True, postprocess=False))
    ledger.append(job, ScanOutcome(name=job.name, status=status, **values))
    return json.loads((out / "ledger.jsonl").read_text().splitlines()[-1])


def find(out, opened, job, **options):
    return RunLedger(out, opened, InferOptions(separate=True, postprocess=False, **options)).find_outcome(job)


def test_a_line_has_these_keys_in_this_order(opened, job, tmp_path):
    line = append(tmp_path, opened, job, slices=4, answer="tumor: no")
    assert list(line) == [*KEYS, "extras"]
    assert line["extras"] == ["liver", "tumor"]
    assert line["options"] == {"separate": True, "postprocess": False}
    assert line["stamp"] == [job.path.stat().st_size, job.path.stat().st_mtime_ns]
    assert list(append(tmp_path, opened, job, "failed", reason="full disk", passing=True)) == [*KEYS, "passing"]


def test_a_line_of_an_older_version_without_slices_still_counts(opened, job, tmp_path):
    line = append(tmp_path, opened, job, answer="tumor: no")
    del line["slices"]
    (tmp_path / "ledger.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / job.name).touch()
    known = find(tmp_path, opened, job)
    assert (known.status, known.answer) == ("skipped", "tumor: no")


def test_lines_of_other_commands_and_torn_lines_are_ignored(opened, job, tmp_path):
    line = append(tmp_path, opened, job)
    others = ['{"case_id": "a", "status": "done"}', "[1]", json.dumps(line)[:60], "{}"]
    (tmp_path / "ledger.jsonl").write_text("\n".join([*others, json.dumps(line), *others, ""]))
    assert RunLedger(tmp_path, opened, InferOptions()).names == [job.name]


@pytest.mark.parametrize(
    ("values", "options", "status"),
    [
        ({"passing": True}, {}, None),
        ({}, {}, "failed"),
        ({}, {"retry_failed": True}, None),
        ({}, {"overwrite": True}, None),
    ],
)
def test_a_failure_is_final_unless_it_may_pass_or_the_options_ask_again(values, options, status, opened, job, tmp_path):
    append(tmp_path, opened, job, "failed", reason="damaged", **values)
    known = find(tmp_path, opened, job, **options)
    assert (known and known.status) == status
    assert RunLedger(tmp_path, opened, InferOptions()).find_outcome(job) is None, "other options"


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"name": ' + "9" * 5000 + "}", "\0\0", '{"name": ["a"], "status": "done"}']
)
def test_a_hostile_line_costs_only_itself(line, opened, job, tmp_path):
    good = append(tmp_path, opened, job)
    (tmp_path / "ledger.jsonl").write_text("\n".join([line, json.dumps(good), line, ""]))
    assert RunLedger(tmp_path, opened, InferOptions()).names == [job.name]


def begin(out, opened, job, *extras):
    """Write a job's line and files as a run does."""
    append(out, opened, job)
    for name in output_names(job, extras):
        (out / name).write_bytes(b"ours")


@pytest.mark.parametrize("first", ["volume-0.nii", "volume-0.nii.gz", "volume-0.NII"])
def test_scans_that_differ_in_the_suffix_only_share_no_report(first, opened, job, tmp_path):
    """Segmented in two runs: within one run, `gather` refuses them."""
    other = replace(job, name=first if first != job.name else "volume-0.nii.gz")
    begin(tmp_path, opened, other, "liver")
    found = find(tmp_path, opened, job)
    assert found.status == "failed"
    assert f"{tmp_path / other.name}: its report and the one of {job.path} would both be volume-0.json" in found.reason
    assert find(tmp_path, opened, job, overwrite=True) is None
    RunLedger(tmp_path, opened, InferOptions(separate=True)).remove_earlier(job)
    assert {path.name for path in tmp_path.iterdir()} == {"ledger.jsonl", ".claims"}


def test_a_mask_of_another_tool_never_gets_a_report_of_infer(opened, job, tmp_path):
    (tmp_path / "volume-0.nii.gz").write_bytes(b"theirs")
    for overwrite in (False, True):
        found = find(tmp_path, opened, replace(job, name="volume-0.nii"), overwrite=overwrite)
        assert "no run recorded here wrote it; choose another --out" in found.reason
    RunLedger(tmp_path, opened, InferOptions()).remove_earlier(replace(job, name="volume-0.nii"))
    assert (tmp_path / "volume-0.nii.gz").exists()


@pytest.mark.parametrize("name", ["volume-0.json", "volume-0.png", "volume-0_liver.nii"])
def test_a_file_of_another_tool_is_replaced_only_on_request(name, opened, job, tmp_path):
    (tmp_path / name).write_bytes(b"theirs")
    for _ in range(2):
        found = find(tmp_path, opened, job)
        assert f"{tmp_path / name}: was not made from" in found.reason
        append(tmp_path, opened, job, "failed", reason=found.reason)
    assert find(tmp_path, opened, job, overwrite=True) is None


def test_a_scan_that_failed_does_not_own_the_mask_of_another_scan(opened, job, tmp_path):
    """Its name is the same, its folder another one; it failed after --overwrite, and may be readable now."""
    other = replace(job, path=tmp_path / "other" / job.name)
    begin(tmp_path, opened, job)
    append(tmp_path, opened, job)
    append(tmp_path, opened, other, "failed", reason="damaged", passing=True)
    assert f"{tmp_path / job.name}: was not made from {other.path}" in find(tmp_path, opened, other).reason
    assert find(tmp_path, opened, other, overwrite=True) is None
    assert find(tmp_path, opened, job) is None, "its mask may be made again"


def test_files_that_another_run_has_begun_since_the_ledger_was_read_are_of_this_scan(opened, job, tmp_path):
    """Of two runs that start at once, one looks at the folder after the other has written the first mask."""
    early, late = [RunLedger(tmp_path, opened, InferOptions()) for _ in range(2)]
    early.append(job, ScanOutcome(name=job.name, status="done"), begun=True)
    (tmp_path / job.name).touch()
    assert late.find_outcome(job) is None
    early.append(job, ScanOutcome(name=job.name, status="done"))
    assert late.update_outcome(job).reason == "done before with this model"
    assert "was not made from" in late.find_outcome(replace(job, path=tmp_path / "other" / job.name)).reason


def test_runs_claim_scans_that_share_a_report_one_after_the_other(opened, job, tmp_path):
    ledger = RunLedger(tmp_path, opened, InferOptions())
    with ledger.claim(job):
        assert ledger.claim(replace(job, name="volume-0.nii.gz")) is None
