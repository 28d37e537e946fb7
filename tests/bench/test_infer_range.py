"""The comparison of the organ's range with all slices runs, is checked for equal masks, and ends in a table."""

import pytest

from slicemill.bench.records.readme import format_record
from slicemill.bench.stages import infer_range


@pytest.mark.slow
def test_both_kinds_of_scans_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(infer_range, "SIZE", 64)
    record = infer_range.run(tmp_path, slices=60, rounds=1)
    trunk, abdomen = record["rows"]["trunk"], record["rows"]["abdomen"]
    assert trunk["slices"] == 120
    assert trunk["labeled"] < 0.75 * trunk["slices"]
    assert trunk["liver_share"] < abdomen["liver_share"]
    assert all(row["equal"] for row in record["rows"].values())
    assert "| trunk |" in format_record(record)
