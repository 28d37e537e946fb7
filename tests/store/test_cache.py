import os

import numpy as np
import pytest

from slicemill.store.cache import SliceCache


def fetcher(data, asked):
    def fetch():
        asked.append(data)
        return data

    return fetch


def test_a_slice_is_fetched_once_and_comes_back_as_it_was(tmp_path, rng):
    cache, asked = SliceCache(tmp_path, 10_000), []
    slices = [rng.integers(0, 256, 50 + z, dtype=np.uint8).tobytes() for z in range(20)]
    for _ in range(3):
        for z, data in enumerate(slices):
            assert cache.get("shard", z, fetcher(data, asked)) == data
    assert asked == slices
    assert (cache.hits, cache.misses) == (40, 20)
    assert list(tmp_path.iterdir()) == []


def test_a_full_cache_keeps_what_it_has_and_takes_no_more(tmp_path):
    cache, asked = SliceCache(tmp_path, 250), []
    for _ in range(2):
        for z in range(5):
            cache.get("shard", z, fetcher(bytes([z]) * 100, asked))
    assert cache.hits == 2
    assert os.fstat(cache._descriptor).st_size <= 250


def test_a_full_disk_ends_the_caching_and_nothing_else(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    cache, asked = SliceCache(tmp_path, 10_000), []
    cache.get("shard", 0, fetcher(b"kept", asked))
    monkeypatch.setattr("os.pwrite", full)
    assert cache.get("shard", 1, fetcher(b"lost", asked)) == b"lost"
    assert cache.get("shard", 1, fetcher(b"lost", asked)) == b"lost"
    assert cache.get("shard", 0, fetcher(b"kept", asked)) == b"kept"
    assert asked == [b"kept", b"lost", b"lost"]


@pytest.mark.parametrize("limit", [0, 30_000, 10**9])
def test_slices_of_a_store_in_a_bucket_come_through_the_cache(limit, bucket, stored, tmp_path):
    from slicemill.store.reader import open_store

    place, seen = bucket
    for path in stored.rglob("*"):
        if path.is_file():
            (place / "store" / path.relative_to(stored).as_posix()).upload(path)
    cache = SliceCache(tmp_path, limit)
    case, local = open_store(place / "store", cache)["volume-1"], open_store(stored)["volume-1"]
    case.image.read(0)
    requests = []
    for _ in range(2):
        start = len(seen.lines)
        for z in range(len(local.image)):
            assert np.array_equal(case.image.read(z), local.image[z])
        requests.append(len(seen.lines) - start)
    assert requests[1] <= requests[0]
    assert requests[1] == {0: len(local.image), 10**9: 0}.get(limit, requests[1])
    assert 0 < requests[1] < len(local.image) or limit != 30_000
