"""Stores and collections by URL, against a real HTTP S3 server on this machine (moto's)."""

import io
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import InputError, StoreError
from slicemill.common.files import parse_location, read_lines
from slicemill.common.locks import try_claim
from slicemill.common.remote import RemotePath
from slicemill.ct.labels import LITS_LABELS
from slicemill.ingest.discover import discover
from slicemill.ingest.pair_table import from_csv
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store.reader import open_store
from slicemill.store.tables import read_table
from slicemill.store.verify import verify

HERE = Path(__file__).parents[2]
LITS = Params(labels=LITS_LABELS)


def upload(folder, place):
    for path in folder.rglob("*"):
        if path.is_file():
            (place / path.relative_to(folder).as_posix()).upload(path)


def tree(place):
    return {path.relative_to(place).as_posix(): path.read_bytes() for path, _ in place.files()}


def test_credentials_and_region_are_read_from_the_aws_files(bucket, tmp_path, monkeypatch):
    import slicemill.common.remote

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = fromfile\naws_secret_access_key = TOPSECRET\n"
    )
    (tmp_path / "config").write_text("[default]\nregion = us-east-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    slicemill.common.remote._open_bucket.cache_clear()
    place, seen = bucket
    (place / "a").write_bytes(b"x")
    assert (place / "a").read_bytes() == b"x"
    assert any("Credential=fromfile/" in (line[3] or "") for line in seen.lines)


def test_a_url_is_scheme_bucket_and_key():
    place = parse_location("s3://scans/lits//a/")
    assert (place.bucket, place.key, str(place)) == ("s3://scans", "lits/a", "s3://scans/lits/a")
    assert str(place / "volume-1.nii") == "s3://scans/lits/a/volume-1.nii"
    assert (place / "b/c").relative_to(place).as_posix() == "b/c"
    assert (place.name, str(place.parent), str(place.parent.parent.parent)) == ("a", "s3://scans/lits", "s3://scans")


@pytest.mark.parametrize("url", ["http://host/x", "s3://", "ftp://a/b"])
def test_a_scheme_that_is_not_known_is_refused(url):
    with pytest.raises(StoreError, match="expected a local path or one of s3://BUCKET"):
        parse_location(url)


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/x", "s3://bucket/x?token=secret"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(StoreError, match="do not belong in a URL") as caught:
        parse_location(url)
    assert "secret" not in str(caught.value)


def test_one_of_many_writers_creates_an_object(bucket):
    place = bucket[0] / "claim"
    answers = []
    threads = [threading.Thread(target=lambda n=n: answers.append(place.create(bytes([n])))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 7 + [True]
    seen = place.stat()
    assert place.replace_if(b"new", seen)
    assert not place.replace_if(b"late", seen)
    assert place.read_bytes() == b"new"


@pytest.mark.slow
def test_from_bucket_to_bucket_the_store_is_byte_for_byte_the_local_one(bucket, collection, stored):
    place, _ = bucket
    upload(collection, place / "lits")
    report = ingest(discover(place / "lits"), place / "stores/a", LITS, IngestOptions(workers=2))
    assert report.count("done") == 6, report.failures
    found = tree(place / "stores/a")
    local = {path.relative_to(stored).as_posix(): path.read_bytes() for path in stored.rglob("*") if path.is_file()}
    ledger = [name for name in found if name.startswith("ledger.jsonl/")]
    assert len(ledger) == 1
    for name in (*ledger, "ledger.jsonl", *(name for name in local if name.startswith(".claims/"))):
        found.pop(name, None), local.pop(name, None)
    assert found == local
    assert len(read_lines(place / "stores/a/ledger.jsonl")) == 6
    again = ingest(discover(place / "lits"), place / "stores/a", LITS, IngestOptions(workers=1))
    assert again.count("unchanged") == 6
    assert [row["case_id"] for row in read_table(place / "stores/a", "manifest")] == [f"volume-{n}" for n in range(6)]
    assert verify(open_store(place / "stores/a"), place / "lits", workers=2, advance=lambda *_: None) == []


@pytest.mark.slow
def test_a_table_of_pairs_may_hold_urls(bucket, collection, tmp_path):
    place, _ = bucket
    upload(collection, place / "lits")
    table = tmp_path / "pairs.csv"
    table.write_text(f"image,mask\n{place}/lits/volume-0.nii,{place}/lits/segmentation-0.nii\n")
    report = ingest(from_csv(table), tmp_path / "store", LITS, IngestOptions(workers=1))
    assert report.count("done") == 1, report.failures
    assert open_store(tmp_path / "store")["volume-0"].info.image.name == "lits/volume-0.nii"


@pytest.fixture
def opened(bucket, stored):
    """The store of the collection, by its URL, and the requests that the server saw."""
    place, seen = bucket
    upload(stored, place / "store")
    return open_store(place / "store"), seen


@pytest.mark.parametrize("case_id", [f"volume-{number}" for number in range(6)])
def test_a_warm_slice_is_one_request_and_so_is_a_window_of_seven(case_id, opened, stored):
    store, seen = opened
    case, local = store[case_id], open_store(stored)[case_id]
    for array, same in ((case.image, local.image), (case.label, local.label)):
        array.read(0)
        assert len(seen.during(lambda array=array: array.read(11))) == 1
        out = {}
        requests = seen.during(lambda array=array, out=out: out.update(window=array.read_many(range(8, 15))))
        assert len(requests) == 1
        assert requests[0][2].startswith("bytes=")
        assert np.array_equal(out["window"], same[8:15])
        assert np.array_equal(array.read_many([0, 0, 1, 2]), same[:][[0, 0, 1, 2]])
        assert np.array_equal(array[:], same[:])


def test_a_cold_slice_is_the_documents_the_index_and_the_slice(opened):
    store, seen = opened
    assert store.case_ids
    requests = seen.during(lambda: store["volume-1"].image.read(3))
    assert len(requests) == 7, "three documents, the index, the slice, and two looks at the case's version"
    assert sum(method == "HEAD" for method, *_ in requests) == 2


def test_opening_every_case_takes_four_requests_each(opened):
    store, seen = opened
    assert len(seen.during(lambda: store.case_ids)) == 1
    requests = seen.during(lambda: [store[case_id] for case_id in store.case_ids])
    assert len(requests) == 4 * len(store), "three documents, and a look at the case's version"


def test_a_missing_object_is_one_clear_error(bucket):
    with pytest.raises(StoreError, match="s3://.*/nowhere: is not a slice store"):
        open_store(bucket[0] / "nowhere")
    with pytest.raises(InputError, match="there is no such folder"):
        discover(bucket[0] / "nowhere")


def test_one_holder_has_a_claim_and_gives_it_back(bucket):
    root = bucket[0] / "store"
    with try_claim(root, "volume-1") as first:
        with try_claim(root, "volume-1") as second:
            assert first.held()
            assert second is None
        with try_claim(root, "volume-2") as other:
            assert other
    with try_claim(root, "volume-1") as again:
        assert again


@pytest.mark.slow
def test_the_claim_of_a_dead_run_is_taken_over_and_that_of_a_live_one_is_not(bucket, monkeypatch):
    root = bucket[0] / "store"
    monkeypatch.setattr("slicemill.common.locks.BEAT_SECONDS", 0.3)
    monkeypatch.setattr("slicemill.common.locks.STALE_SECONDS", 2.5)
    (root / ".claims" / "volume-1").create(b'{"holder": "dead.1.abc", "beat": ""}')
    with try_claim(root, "volume-1") as ours:
        assert not ours
    with try_claim(root, "volume-2") as live:
        assert live
        time.sleep(4.2)  # the server's clock counts whole seconds
        with try_claim(root, "volume-2") as ours:
            assert not ours
        with try_claim(root, "volume-1") as ours:
            assert ours


def test_a_delayed_run_whose_claim_was_taken_over_publishes_nothing(bucket, collection, monkeypatch):
    from slicemill.ingest.convert import convert_case
    from slicemill.ingest.plan import Task
    from slicemill.ingest.stamps import locate
    from slicemill.ingest.work import run_case
    from slicemill.store.writer import prepare_store

    root = bucket[0] / "store"
    prepare_store(root)
    monkeypatch.setattr("slicemill.common.locks.STALE_SECONDS", -1.0)
    (case,) = (case for case in discover(collection).cases if case.case_id == "volume-0")

    def held_up(case, params, store, *, threads, holds_claim, check_files):
        with try_claim(root, case.case_id) as taken:
            assert taken
            return convert_case(case, params, store, threads=threads, holds_claim=holds_claim)

    monkeypatch.setattr("slicemill.ingest.work.convert_case", held_up)
    outcome = run_case(Task(case=case, place=locate(case), seen=None, megabytes=1), LITS, root, 1)
    assert (outcome.status, outcome.passing) == ("failed", True)
    assert "another run has taken over the case" in outcome.reason
    assert not [name for name in tree(root / "scans.zarr") if name.startswith("volume-0")]


@pytest.mark.slow
def test_requests_and_output_contain_no_secret(bucket, collection, tmp_path):
    place, seen = bucket
    done = subprocess.run(
        [sys.executable, "-m", "slicemill", "ingest", str(collection), f"{place}/store", "--workers", "1"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "TOPSECRET" not in done.stdout + done.stderr + repr(seen.lines)
    shown = CliRunner().invoke(commands(), ["store", "info", f"{place}/store"])
    assert "6 of 6 patients" in shown.output
    assert all(b"TOPSECRET" not in data for data in tree(place).values())


def test_a_stream_returns_every_byte_for_reads_of_any_size(bucket, rng):
    data = rng.integers(0, 256, 9_000_001, dtype=np.uint8).tobytes()
    place = bucket[0] / "big"
    place.write_bytes(data)
    with place.open_stream() as stream:
        assert bytes(stream.peek()[:10]) == data[:10]
        parts = []
        while part := stream.read(int(rng.integers(1, 3_000_000))):
            parts.append(part)
    assert b"".join(parts) == data
    end, status = place.read_end(7)
    assert (end, status.st_size) == (data[-7:], len(data))


@pytest.mark.slow
def test_a_case_that_is_replaced_leaves_nothing_of_the_old_one(bucket, collection, tmp_path):
    place, _ = bucket
    root = place / "store"
    few = tmp_path / "few"
    few.mkdir()
    for name in ("volume-0.nii", "segmentation-0.nii"):
        shutil.copy(collection / name, few)
    assert ingest(discover(few), root, LITS, IngestOptions(workers=1)).count("done") == 1
    (few / "segmentation-0.nii").unlink()
    report = ingest(discover(few), root, LITS, IngestOptions(workers=1, overwrite=True))
    assert report.count("done") == 1, report.failures
    assert not [name for name in tree(root / "scans.zarr") if "label" in name]
    assert isinstance(root, RemotePath)
    assert io.BytesIO((root / "manifest.csv").read_bytes()).readline().startswith(b"case_id")
