"""What a case costs in `bench infer`: time and peak memory of each contender, and the table, also of early records."""

import json
from pathlib import Path

import pytest

from slicemill.bench.harness.clock import Timing, WallAndCpu
from slicemill.bench.harness.networks import write_marked_scans
from slicemill.bench.harness.subject import phantom_subject
from slicemill.bench.records.infer_table import COSTS
from slicemill.bench.records.readme import format_record
from slicemill.bench.stages.infer_whole import SESSION, WAYS, WITH_RULES, WholeWork
from tests.infer.networks import write_model

RECORD = Path(__file__).parents[2] / "bench" / "results" / "infer.json"


@pytest.fixture
def work(tmp_path):
    write_marked_scans(tmp_path / "scans", phantom_subject(6, size=32), 2)
    return WholeWork(model=write_model(tmp_path / "m.onnx", {"liver": 1, "tumor": 2}), scans=tmp_path / "scans")


def made_up_times(seconds):
    timing = {name: Timing(name=name, seconds=(seconds, seconds, 9 * seconds)) for name in WAYS}
    return WallAndCpu(wall=timing, cpu=timing)


def test_a_case_costs_its_share_of_the_median_round(work, monkeypatch):
    monkeypatch.setattr(WholeWork, "measure_peak_mib", lambda _, name: len(name))
    costs = work.case_costs(made_up_times(3.0))
    assert (costs.cases, costs.slices) == (2, 12)
    assert set(costs.contenders) == set(WAYS)
    assert (costs.contenders[SESSION].seconds, costs.contenders[SESSION].cpu_seconds) == (1.5, 1.5)
    assert costs.contenders[SESSION].peak_mib == len(SESSION)


@pytest.mark.slow
def test_every_contender_is_measured_in_a_process_of_its_own_without_torch(work):
    peaks = {name: work.measure_peak_mib(name) for name in WAYS}
    assert all(20 < peak < 400 for peak in peaks.values()), peaks


@pytest.mark.slow
def test_a_process_that_fails_is_no_figure(work):
    work.model.write_bytes(b"no model")
    with pytest.raises(RuntimeError, match=r"(?s)with post-processing: ended with 1: .*is not an ONNX model"):
        work.measure_peak_mib(WITH_RULES)


def test_the_table_says_what_a_case_costs():
    record = json.loads(RECORD.read_text())
    for network in record["results"]["whole"].values():
        cost = {"seconds": 4.12, "cpu_seconds": 8.05, "peak_mib": 1234}
        network["case_costs"] = {"cases": 4, "slices": 256, "contenders": dict.fromkeys(network["results"], cost)}
    shown = format_record(record)
    assert f"| inference on the CPU | slices/s | {' | '.join(COSTS)} |" in shown
    assert "| default network: from files to files with post-processing | 15.6 | 4.12 | 8.05 | 1,234 |" in shown
    assert "4 cases of 64 slices with the default network, 4 cases of 64 slices with the light network." in shown


def test_an_early_record_has_dashes_in_place_of_costs():
    record = json.loads(RECORD.read_text())
    for network in record["results"]["whole"].values():
        network.pop("case_costs", None)
    shown = format_record(record)
    assert "| default network: bare session | 15.0 | - | - | - |" in shown
    assert "Memory is" not in shown
