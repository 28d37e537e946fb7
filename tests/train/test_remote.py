"""Training from a bucket: the same losses, bit for bit, as from a disk."""

from dataclasses import replace

import pytest

from slicemill.store.cache import SliceCache
from slicemill.train.loop import train
from slicemill.train.run.checkpoint import read_state
from tests.conftest import TINY
from tests.train.helpers import no_log


@pytest.mark.slow
def test_training_from_a_bucket_gives_the_losses_of_training_from_a_disk(bucket, stored, trained, tmp_path):
    place, _ = bucket
    for path in stored.rglob("*"):
        if path.is_file():
            (place / "store" / path.relative_to(stored).as_posix()).upload(path)
    cache = SliceCache(tmp_path, 100_000)
    state = train(place / "store", tmp_path / "run", TINY, cache=cache, log=no_log)
    local = read_state(trained)
    for metrics, other in zip(state.history, local.history, strict=True):
        timed = {"slices_per_second": 0.0, "wait_share": 0.0}
        assert replace(metrics, **timed) == replace(other, **timed)
    assert cache.hits > 0
