"""Batches in progress at a time on a CPU: as many threads as cores, stopped together, with their memory counted."""

import os
import subprocess
import sys
import weakref
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from slicemill.common.errors import ModelError, ProviderError
from slicemill.infer import single
from slicemill.infer.network import model as network_model
from slicemill.infer.network.lanes import HostLane, estimate_lane_memory, make_compute_limit, make_lane
from slicemill.infer.network.model import NetworkOutput, open_model
from slicemill.infer.parity_check import check_parity
from slicemill.infer.runtime.capacity import CPU_LANES, Capacity, batch_capacity, count_lanes, session_threads
from slicemill.infer.single import Watch, segment_volume
from slicemill.infer.slices.assembly import VolumeAssembly, plan_scan, select_outputs
from slicemill.infer.slices.batches import NetworkScan

SPACING = (3.0, 1.0, 1.0)


def with_cores(monkeypatch, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))


@pytest.mark.parametrize("cores", [1, 2, 7, 8, 9, 16, 64])
def test_threads_are_as_many_as_cores(cores, monkeypatch):
    """Runs of one session share its threads: each adds one thread, the rest are one pool."""
    with_cores(monkeypatch, cores)
    assert 1 <= count_lanes("cpu") <= CPU_LANES
    assert count_lanes("cpu") + session_threads() - 1 == cores


@pytest.mark.parametrize("cores", [1, 2, 5, 9])
def test_labels_are_the_same_however_many_lanes(cores, model, monkeypatch, rng):
    volume = rng.integers(-200, 300, (11, 64, 64)).astype(np.int16)
    expected = segment_volume(open_model(model, "cpu"), volume, SPACING)
    with_cores(monkeypatch, cores)
    found = segment_volume(open_model(model, "cpu"), volume, SPACING)
    assert np.array_equal(found.label, expected.label)
    assert np.array_equal(found.tumor_probability, expected.tumor_probability)


@pytest.mark.parametrize("shape", [(9, 64, 64), (7, 100, 80)])
def test_slices_are_told_once_as_soon_as_all_their_tiles_are_labeled(shape, model, monkeypatch, rng):
    with_cores(monkeypatch, 2)
    opened = open_model(model, "cpu")
    monkeypatch.setattr(single, "batch_capacity", lambda *_: batch_capacity(opened.info, "cpu", 2))
    told, done = {}, []

    def labeled(label, slices):
        assert not told.keys() & set(slices)
        told.update({z: label[z].copy() for z in slices})
        done.append(len(told))

    volume = rng.integers(-200, 300, shape).astype(np.int16)
    result = segment_volume(opened, volume, SPACING, Watch(labeled=labeled))
    assert 0 < min(count for count in done if count) < shape[0], "before the scan is complete"
    assert np.array_equal([told[z] for z in range(shape[0])], result.label)


@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError("CUDA error 700"), ProviderError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_lane_that_fails_ends_the_others(error, raised, model, monkeypatch):
    with_cores(monkeypatch, 2)
    done = []

    def failing(*given):
        lane = make_lane(*given)
        run = lane.run

        def counted(*words):
            done.append(1)
            if len(done) == 3:
                raise error
            return run(*words)

        lane.run = counted
        return lane

    opened = open_model(model, "cpu")
    monkeypatch.setattr(single, "make_lane", failing)
    monkeypatch.setattr(single, "batch_capacity", lambda *_: batch_capacity(opened.info, "cpu", 1))
    with pytest.raises(raised):
        segment_volume(opened, np.zeros((300, 64, 64), np.int16), SPACING)
    assert len(done) < 100


def test_labels_are_the_same_written_in_place_or_to_the_lanes_own_room(model, rng):
    opened = open_model(model, "cpu")
    lane = make_lane(opened, Capacity(4, 12), ("label", "tumor"))
    image = rng.integers(-200, 300, (6, 64, 64)).astype(np.int16)
    window = np.array([[0, 1, 2], [1, 2, 3], [2, 3, 4]], np.int32)
    own = lane.run(image, window, nullcontext())
    there = {name: np.full((3, 64, 64), 77, np.uint8) for name in ("label", "tumor")}
    assert not own.in_place
    for into in (there, {"label": there["label"]}):
        found = lane.run(image, window, nullcontext(), into)
        assert found.label is there["label"]
        assert found.in_place == (into is there)
        assert np.array_equal(found.label, own.label)
        assert np.array_equal(found.tumor, own.tumor)
    assert np.shares_memory(found.tumor, own.tumor)


@pytest.mark.parametrize("in_place", [False, True])
def test_an_answer_is_put_in_place_unless_it_is_there(in_place, model, rng):
    plan = plan_scan(open_model(model, "cpu").info, (3, 64, 64), SPACING)
    volume, tumor = VolumeAssembly(plan), rng.integers(0, 256, (3, 64, 64)).astype(np.uint8)
    targets = volume.targets(0, 3)
    assert set(targets) == {"label", "tumor"}
    targets["label"][:] = 1
    targets["tumor"][:] = 0
    for index in range(3):
        volume.put(index, plan.tiles[0], NetworkOutput(targets["label"], tumor, in_place=in_place), index)
    assert np.array_equal(volume.result().tumor_probability, np.zeros_like(tumor) if in_place else tumor)
    assert (volume.result().label == 1).all()


def test_one_scan_on_another_device_than_the_cpu_is_compared_with_it_first(model, monkeypatch, rng):
    """A device that labels as the CPU does, in its place, and one that outputs other labels."""
    volume = rng.integers(-200, 300, (5, 64, 64)).astype(np.int16)
    expected = segment_volume(open_model(model, "cpu"), volume, SPACING)
    monkeypatch.setattr(single, "make_lane", HostLane)
    opened = open_model(model, "cpu")
    opened.provider = "cuda"
    assert np.array_equal(segment_volume(opened, volume, SPACING).label, expected.label)
    assert opened.parity_checked

    class Wrong(HostLane):
        def run(self, *given):
            output = super().run(*given)
            output.label[:] = 1 - np.minimum(output.label, 1)
            return output

    monkeypatch.setattr(single, "make_lane", Wrong)
    fresh = open_model(model, "cpu")
    fresh.provider = "cuda"
    with pytest.raises(ModelError, match="labels on cuda differ from those on the CPU in 100.00% of the pixels"):
        segment_volume(fresh, volume, SPACING)
    assert not fresh.parity_checked


@pytest.mark.parametrize("context", [1, 3])
def test_a_batch_of_one_slice_is_compared_too(context, model, monkeypatch, rng):
    """A network of others, or one of large slices: there is no room for two."""
    opened, seen = open_model(model, "cpu"), []
    opened.info = replace(opened.info, card=replace(opened.info.card, context=context))
    plan = plan_scan(opened.info, (5, 64, 64), SPACING)
    scan = NetworkScan(plan, rng.integers(-200, 300, (5, 64, 64)).astype(np.int16))

    class Recording:
        image = np.zeros((context, 64, 64), np.int16)

        def run(self, image, neighbors, lock):
            seen.append((len(image), neighbors.shape))
            return NetworkOutput(np.zeros((len(neighbors), 64, 64), np.uint8))

    monkeypatch.setattr(opened, "run_on_cpu", lambda _, neighbors: (np.zeros((len(neighbors), 64, 64), np.uint8), None))
    check_parity(opened, scan, Recording())
    assert seen == [(context, (1, context))]


def test_the_memory_of_lanes_is_that_of_all_but_the_one_that_was_tried(model, monkeypatch):
    with_cores(monkeypatch, 1)
    opened = open_model(model, "cpu")
    capacity = batch_capacity(opened.info, "cpu", 64)
    assert estimate_lane_memory(opened, capacity, select_outputs(opened.info)) == 0
    with_cores(monkeypatch, 4)
    fresh = open_model(model, "cpu")
    taken = estimate_lane_memory(fresh, capacity, select_outputs(fresh.info))
    assert taken % 3 == 0
    assert taken > 3 * 64 * 64 * 64 * 4 * 4, "a batch of 64 slices, 4 channels of float32 at the least"


AFTER_FREEING = """
import os, sys
from pathlib import Path

import numpy as np

os.sched_getaffinity = lambda _: set(range(4))
from slicemill.infer.network.lanes import estimate_lane_memory
from slicemill.infer.network.model import open_model
from slicemill.infer.runtime.capacity import batch_capacity
from slicemill.infer.slices.assembly import select_outputs

opened = open_model(Path(sys.argv[1]), "cpu")
mebibyte = 1 << 20
np.ones(30 * mebibyte, np.uint8)  # freed once, blocks as large as this come from the heap from now on
blocks = [np.ones(20 * mebibyte, np.uint8) for _ in range(8)]
top = [np.ones(mebibyte, np.uint8) for _ in range(8)]
del blocks
print(estimate_lane_memory(opened, batch_capacity(opened.info, "cpu", 64), select_outputs(opened.info)))
assert top[0].all()
"""


def test_their_memory_is_counted_where_the_process_has_freed_as_much_before(model):
    """What it freed stays with it otherwise, and the network's would hide there. In a process without other threads."""
    done = subprocess.run(
        [sys.executable, "-c", AFTER_FREEING, str(model)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3 * 64 * 64 * 64 * 4 * 4


def test_a_network_that_fails_on_an_empty_batch_is_reported_in_a_sentence(model):
    opened = open_model(model, "cpu")

    class Broken:
        def io_binding(self):
            raise RuntimeError("no memory")

    opened.session = Broken()
    with pytest.raises(ProviderError, match="--provider cpu: the network fails on an empty batch .no memory."):
        estimate_lane_memory(opened, batch_capacity(opened.info, "cpu"), ("label",))


def test_a_device_that_fails_in_the_comparison_with_the_cpu_is_reported_in_a_sentence(model, rng):
    opened = open_model(model, "cpu")
    scan = NetworkScan(plan_scan(opened.info, (5, 64, 64), SPACING), rng.integers(0, 9, (5, 64, 64)).astype(np.int16))

    class Failing(HostLane):
        def run(self, *_):
            raise RuntimeError("CUDA failure 700: an illegal memory access ; GPU=0")

    with pytest.raises(ProviderError, match=r"fails on its first slices \(CUDA failure 700: an illegal"):
        check_parity(opened, scan, Failing(opened, Capacity(4, 12), ("label",)))
    assert not opened.parity_checked


def test_the_comparison_with_the_cpu_has_the_logits_behind_the_labels(model, rng):
    opened = open_model(model, "cpu")
    image = rng.integers(-200, 300, (6, 64, 64)).astype(np.int16)
    neighbors = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    label, logits = opened.run_on_cpu(image, neighbors)
    assert np.array_equal(label, opened.run(image, neighbors).label)
    assert logits.shape == (2, 3, 64, 64)
    assert np.array_equal(opened.info.labels.table()[logits.argmax(axis=1)], label)


def test_buffers_that_cannot_be_allocated_are_reported_in_a_sentence(model, monkeypatch):
    opened = open_model(model, "cpu")

    def full(*_):
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")

    monkeypatch.setattr("slicemill.infer.network.lanes.HostLane", full)
    with pytest.raises(
        ProviderError, match=r"buffers of a batch cannot be allocated \(CUDA failure 2: out of memory\)"
    ):
        make_lane(opened, Capacity(4, 12), ("label",))


def test_the_number_of_lanes_is_a_setting(model):
    assert open_model(model, "cpu").lanes == count_lanes("cpu")
    opened = open_model(model, "cpu", lanes=3)
    assert opened.lanes == 3
    limit = make_compute_limit(opened)
    with limit, limit, limit:
        assert not limit._free.acquire(blocking=False)
    with limit.exclude_all():
        assert not limit._free.acquire(blocking=False)
    assert all(limit._free.acquire(blocking=False) for _ in range(3))


def test_a_rebuilt_model_has_dropped_its_old_session_first(model, monkeypatch):
    opened = open_model(model, "cpu")
    old, real, alive = weakref.ref(opened.session), network_model.make_session, []

    def make(*arguments):
        alive.append(old() is not None)
        return real(*arguments)

    monkeypatch.setattr(network_model, "make_session", make)
    opened.rebuild()
    assert (alive, opened.rebuilt) == ([False], 1)

    def refuse(*_):
        raise ProviderError("does not run here")

    monkeypatch.setattr(network_model, "make_session", refuse)
    with pytest.raises(ProviderError, match="does not run here"):
        opened.rebuild()
    with pytest.raises(ProviderError, match=r"cpu: the device failed\."):
        opened.session  # noqa: B018 (a property)
