"""The suite: records with a headline, comparison of two records, and scans of the user instead of phantoms."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from slicemill.bench.cli import bench
from slicemill.bench.harness.catalog import STAGES
from slicemill.bench.harness.clock import Timing
from slicemill.bench.harness.headline import TimedContender, check, headline
from slicemill.bench.harness.pagecache import drop_from_cache
from slicemill.bench.harness.subject import CASE_ID, phantom_subject, scan_subject
from slicemill.bench.records.compare import compare, machine_differences
from slicemill.bench.records.figures import draw_stages, draw_time_shares
from slicemill.bench.records.readme import format_record
from slicemill.bench.records.suite import SuiteOptions, all_table, run_stage, share_of_convolution
from slicemill.bench.records.suite_page import PAGE, PICTURE, SHARES, write_page
from slicemill.bench.schema.base import Headline, Limit, Peer
from slicemill.common.documents import to_document
from slicemill.common.errors import ConfigError, GeometryError
from slicemill.common.files import read_json
from slicemill.ct.phantom import write_collection
from slicemill.infer.run.timing import STAGES as STOPWATCH
from tests.ct.grids import reorient

HERE = Path(__file__).parents[2]


def record_of(*rates, seed=0, spread=0.02, rounds=9):
    """A record of a benchmark whose contenders take 1 / rate seconds a unit, more or less."""
    rng = np.random.default_rng(seed)
    results = {}
    for number, rate in enumerate(rates):
        seconds = tuple(float(8 / rate * (1 + spread * rng.standard_normal())) for _ in range(rounds))
        results[f"way {number}"] = Timing(name="", seconds=seconds).rate(8)
    results = to_document(results)
    return {"benchmark": "store", "results": results, "machine": {"cpu": "a", "versions": {"numpy": "2"}}}


def test_a_headline_weighs_different_amounts_of_work():
    times = {
        "ours": TimedContender(timing=Timing(name="", seconds=(1.0, 2.0, 3.0)), amount=10),
        "limit": TimedContender(timing=Timing(name="", seconds=(0.5, 1.0, 1.5)), amount=10),
        "peer": TimedContender(timing=Timing(name="", seconds=(1.0, 2.0, 3.0)), amount=2),
    }
    record = headline(times, contender="ours", limit="limit", bound="memory", peers={"peer": "less"}, verified="all")
    assert record.per_second == 5.0
    assert record.limit.fraction == 0.5
    assert record.peers == {"peer": Peer(per_second=1.0, times=5.0, what="less")}


def test_a_check_that_fails_is_a_bug():
    check("one is one", holds=True)
    with pytest.raises(RuntimeError, match="one is two"):
        check("one is two", holds=False)


def test_a_change_is_distinguished_from_noise():
    before = record_of(100, 100, 100, seed=1)
    after = record_of(101, 150, 50, seed=2)
    same, faster, slower = compare(before, after)
    assert [change.verdict for change in (same, faster, slower)] == ["no difference", "faster", "slower"]
    assert faster.low < 1.5 < faster.high
    assert slower.ratio == pytest.approx(0.5, rel=0.05)


def test_a_wide_spread_is_no_difference():
    (change,) = compare(record_of(100, spread=0.4, seed=1), record_of(108, spread=0.4, seed=2))
    assert change.verdict == "no difference"


def test_records_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="different benchmarks"):
        compare(record_of(1), {**record_of(1), "benchmark": "train"})
    with pytest.raises(ConfigError, match="in common"):
        compare(record_of(1), {"benchmark": "store", "results": {}})
    other = {**record_of(1), "machine": {"cpu": "b", "versions": {"numpy": "3"}}}
    assert machine_differences(record_of(1), other) == ["cpu: a -> b", "numpy: 2 -> 3"]
    old, new = tmp_path / "a.json", tmp_path / "b.json"
    old.write_text(json.dumps(record_of(100)))
    new.write_text(json.dumps(record_of(200)))
    done = CliRunner().invoke(bench, ["compare", str(old), str(new)])
    assert done.exit_code == 0
    assert "faster" in done.output


def test_the_mask_of_a_users_scan_may_be_in_another_axis_order_and_not_elsewhere(tmp_path):
    list(write_collection(tmp_path / "scans", cases=1, size=64, seed=3))
    expected = scan_subject(tmp_path / "scans", 5)
    (path,) = (tmp_path / "scans").glob("segmentation*")
    mask = nib.load(path)
    turned = nib.Nifti1Image(np.asarray(mask.dataobj).copy(), mask.affine)
    nib.save(reorient(turned, "ASR"), path)
    assert np.array_equal(scan_subject(tmp_path / "scans", 5).label, expected.label)
    nib.save(nib.Nifti1Image(turned.dataobj, turned.affine @ np.diag([1.0, 1, -1, 1])), path)
    with pytest.raises(GeometryError, match="must have the same grid as its image"):
        scan_subject(tmp_path / "scans", 5)


def test_a_users_scan_replaces_the_phantom(tmp_path):
    list(write_collection(tmp_path / "scans", cases=2, size=64, seed=3))
    subject = scan_subject(tmp_path / "scans", 5)
    assert subject.image.shape[0] == 5
    assert "5 of its" in subject.name
    case = subject.store(tmp_path / "store")[CASE_ID]
    assert np.array_equal(case.image[:], subject.image)
    assert np.array_equal(case.label[:], subject.label)
    for path in (tmp_path / "scans").glob("segmentation*"):
        path.unlink()
    with pytest.raises(ConfigError, match="has a mask"):
        scan_subject(tmp_path / "scans", 5)


def test_labels_that_are_not_lits_are_named_by_their_value(tmp_path):
    subject = phantom_subject(4, size=64)
    label = np.where(subject.label > 0, 7, 0).astype(np.uint8)
    changed = type(subject)(name="x", image=subject.image, label=label, spacing_mm=subject.spacing_mm)
    changed.write(tmp_path / "scans", ".nii")
    assert scan_subject(tmp_path / "scans", 9).labels.values == {"label 7": 7}


def test_files_are_dropped_from_the_cache_and_keep_their_bytes(tmp_path):
    path = tmp_path / "a"
    data = os.urandom(1 << 16)
    path.write_bytes(data)
    drop_from_cache([path])
    assert path.read_bytes() == data


def test_every_stage_is_a_command_that_accepts_the_options_of_the_suite():
    suite = SuiteOptions(quick=True, cold=True)
    assert list(suite.commands()) == ["limits", *STAGES]
    for words in suite.commands().values():
        done = CliRunner().invoke(bench, [*words, "--json", "x", "--help"])
        assert done.exit_code == 0, done.output
    assert list(SuiteOptions(only=("store",)).commands()) == ["limits", "store"]


def test_arithmetic_is_shown_as_a_part_of_the_bare_convolution():
    limits = {"convolution, float32": SimpleNamespace(most=300.0)}
    limit = Limit(name="bare", per_second=6.0, fraction=0.5)
    headline = Headline(
        ours="ours", per_second=3.0, bound="", limit=limit, peers={}, verified="", gflop=50.0, arithmetic="float32"
    )
    assert share_of_convolution(headline, limits) == 0.5
    assert share_of_convolution(replace(headline, arithmetic="bfloat16"), limits) is None
    assert share_of_convolution(replace(headline, gflop=None, arithmetic=None), limits) is None


def test_time_shares_are_drawn(tmp_path):
    record = read_json(HERE / "bench" / "results" / "infer.json")
    stages = {stage: {"seconds": 1.0, "share": 1 / len(STOPWATCH)} for stage in STOPWATCH}
    for network in record["results"]["whole"].values():
        network["stages"] = {"with post-processing": stages, "without post-processing": stages}
    draw_time_shares(tmp_path / SHARES, record)
    assert (tmp_path / SHARES).stat().st_size > 5000


def test_a_stage_that_fails_is_reported_with_its_reason(tmp_path):
    assert "no such folder" in run_stage(["store", "--data", str(tmp_path / "none")])


def test_the_page_shows_every_part_of_a_committed_run(tmp_path):
    record = read_json(max((HERE / "bench" / "results" / "runs").glob("*.json")))
    draw_stages(tmp_path / PICTURE, record)
    page = write_page(tmp_path, record).read_text()
    assert '<img alt="bars of every stage with its limit" src="data:image/png' in page
    for name in record["stages"]:
        assert f"<h2>{name}: every contender</h2>" in page
    assert "<td>memory copy</td>" in page
    assert "<h2>Failed</h2>" not in page
    page = write_page(tmp_path, record | {"limits": None, "failed": {"infer": "no <b>luck</b>"}}).read_text()
    assert "<p>not measured</p>" in page
    assert "<td>no &lt;b&gt;luck&lt;/b&gt;</td>" in page


@pytest.mark.slow
def test_stages_end_in_one_record_table_page_and_picture(tmp_path):
    words = ["all", "--quick", "--only", "loader", "--out", str(tmp_path / "out")]
    list(write_collection(tmp_path / "scans", cases=1, size=64, seed=3))
    done = CliRunner().invoke(bench, [*words, "--data", str(tmp_path / "scans")])
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "out").glob("*.json")
    record = json.loads(path.read_text())
    assert list(record["stages"]) == ["loader"]
    assert record["failed"] == {}
    for stage in record["stages"].values():
        assert stage["headline"]["verified"]
        assert stage["headline"]["limit"]["fraction"] > 0
    assert "memory copy" in format_record(record["limits"])
    assert "PNG folder" in all_table(record)
    page = (tmp_path / "out" / PAGE).read_text()
    assert "PNG folder, DataLoader with 2 workers" in page
    assert "http:" not in page
    assert "https:" not in page
    assert (tmp_path / "out" / PICTURE).exists()
    changes = compare(record, record)
    assert {change.verdict for change in changes} == {"no difference"}


@pytest.mark.slow
def test_the_export_benchmark_verifies_its_model_file(tmp_path):
    from slicemill.bench.stages.export import run

    record = run(tmp_path, phantom_subject(4, size=64), rounds=1)
    assert record["parity"]["pixels"] == record["proof_slices"] * 64 * 64
    assert "torch.onnx.export" in format_record(record)
    assert record["model_mb"] > 1
