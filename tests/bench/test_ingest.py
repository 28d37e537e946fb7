"""The benchmarks of ingest and store run and write complete records. Rates are not checked."""

import numpy as np
import pytest

from slicemill.bench.harness.conversions import PEERS
from slicemill.bench.harness.subject import phantom_subject
from slicemill.bench.records.readme import format_record
from slicemill.bench.stages import real_size
from slicemill.bench.stages.ingest import run
from slicemill.bench.stages.ingest_lits import PLAN
from slicemill.bench.stages.ingest_memory import write_repeated
from slicemill.ct.scan import ScanReader


def test_the_plan_is_lits_number_of_scans_and_slices():
    assert sum(PLAN.values()) == 131
    assert sum(length * count for length, count in PLAN.items()) == 58_638
    assert (min(PLAN), max(PLAN)) == (74, 987)


def test_a_repeated_phantom_reads_back_slice_by_slice(tmp_path, rng):
    image = rng.integers(-1000, 1000, (3, 16, 16)).astype(np.int16)
    label = rng.integers(0, 3, (3, 16, 16)).astype(np.uint8)
    for suffix in (".nii", ".nii.gz"):
        files = write_repeated(tmp_path / suffix, suffix, (image, label), 8)
        with ScanReader(files.image, "image") as reader:
            assert np.array_equal(reader.read(), image[[0, 1, 2, 2, 1, 0, 0, 1]])
        with ScanReader(files.mask, "mask") as reader:
            assert np.array_equal(reader.read(), label[[0, 1, 2, 2, 1, 0, 0, 1]])


@pytest.mark.parametrize("peer", PEERS, ids=[peer.name for peer in PEERS])
def test_every_peer_writes_something_for_every_slice(peer, tmp_path):
    subject = phantom_subject(9, size=64)
    for suffix in (".nii", ".nii.gz"):
        files = subject.write(tmp_path, suffix)
        out = tmp_path / f"out{suffix}"
        out.mkdir()
        peer.convert(files.image, files.mask, out)
        assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) > 5000


def test_the_store_of_a_real_series_is_measured_in_both_profiles(tmp_path, monkeypatch):
    monkeypatch.setattr(real_size, "read_series", lambda _: phantom_subject(4, size=64).image)
    scan = real_size.measure_real_size(tmp_path / "series")
    assert (scan.series, scan.shape) == ("series", (4, 64, 64))
    for size in (scan.compact, scan.fast):
        assert size.files > 1
        assert size.over_nii_gz == pytest.approx(size.bytes / scan.nii_gz_bytes, abs=1e-3)


@pytest.mark.slow
def test_the_ingest_benchmark_ends_in_a_table(tmp_path):
    record = run(tmp_path, phantom_subject(12, size=96), rounds=3)
    table = format_record(record)
    for peer in PEERS:
        assert peer.name in table
    assert "two workers over one" in table
    assert set(record["formats"]) == {".nii.gz", ".nii"}
    for measured in record["formats"].values():
        assert 0.3 < measured["cpu_over_kernels"] < 30
        assert measured["slices_per_second"] > 1


@pytest.mark.slow
def test_the_store_benchmark_ends_in_a_table(tmp_path):
    from slicemill.bench.stages.store import run as run_store

    record = run_store(tmp_path, phantom_subject(16, size=96), rounds=3)
    assert "zarr-python, our store" in format_record(record)
    assert 0.1 < record["ratios"]["of the bare decode"] < 1.5


@pytest.mark.slow
def test_the_full_size_run_goes_through_the_command(tmp_path, monkeypatch):
    from slicemill.bench.stages.ingest_lits import run as run_lits

    monkeypatch.setattr("slicemill.bench.stages.ingest_lits.DEPTH", 12)
    monkeypatch.setattr("slicemill.bench.stages.ingest_lits.SIZE", 64)
    monkeypatch.setattr("slicemill.bench.stages.ingest_lits.PLAN", {5: 2, 11: 1})
    record = run_lits(tmp_path / "lits", suffix=".nii.gz", workers=2)
    assert (record["cases"], record["slices"]) == (3, 21)
    assert record["raw_gb"] == pytest.approx(21 * 64 * 64 * 3 / 1e9, abs=0.01)
    assert record["peak_worker_mib"] > 30
    assert "3 cases" in format_record(record)
    assert not (tmp_path / "lits").exists()


@pytest.mark.slow
def test_the_loader_benchmark_ends_in_a_table(tmp_path, monkeypatch):
    from slicemill.bench.records.readme import format_record
    from slicemill.bench.stages.loader import run as run_loader

    monkeypatch.setattr("slicemill.bench.stages.loader.REPEATS", 2)
    record = run_loader(tmp_path, phantom_subject(32, size=96), rounds=3)
    assert "PNG folder, DataLoader with 2 workers" in format_record(record)
    assert record["waited"]["batches"] == 2 * 32 // 16 - 1
    assert 0 < record["ratios"]["of the bare decode into batches"] < 2
