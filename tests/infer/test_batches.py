"""Tiles and batches: every pixel goes into the network once, and its label comes back to it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slicemill.infer.network.model import NetworkOutput
from slicemill.infer.runtime.capacity import Capacity
from slicemill.infer.slices.batches import Batcher
from slicemill.infer.slices.tiles import cover_axis
from tests.infer.fakes import planned


@given(st.integers(1, 700), st.integers(8, 256))
def test_tiles_cover_every_pixel_once_within_their_side(extent, side):
    spans = cover_axis(extent, side)
    taken = [pixel for span in spans for pixel in range(span.keep_from, span.keep_to)]
    assert taken == list(range(extent))
    for span in spans:
        assert span.start <= span.keep_from
        assert span.keep_to <= span.start + side
        if extent > side:
            assert 0 <= span.start <= extent - side


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    st.tuples(st.integers(4, 32), st.integers(4, 32)),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([1.0, 2.6]),
    st.integers(1, 20),
    st.booleans(),
    st.booleans(),
)
def test_every_label_comes_back_to_its_pixel_from_batches_across_scans(
    shapes, size, context, step, labels, alike, in_place
):
    """A network that outputs the remainder of the middle slice of its window."""
    shapes = [(z, *size) for z, _, _ in shapes] if alike else shapes
    volumes = [
        np.arange(number, number + np.prod(shape), dtype=np.int64).reshape(shape).astype(np.int16)
        for number, shape in enumerate(shapes)
    ]
    capacity = Capacity(labels, max(context, 2 * labels))
    batcher, scans = Batcher(capacity), [planned(volume, size, context, step) for volume in volumes]
    for scan in scans:
        batcher.add(scan)
    image, whole = np.empty((capacity.rows, *size), np.int16), []
    while batcher.waiting:
        batch = batcher.next()
        shown = batch.fill(image, in_place=in_place)
        assert 1 <= len(batch.units) <= labels
        assert len(set(batch.rows)) == len(batch.rows) == len(shown) <= capacity.rows
        label = (shown[batch.neighbors[:, context // 2]] % 251).astype(np.uint8)
        for place in batch.targets().values() if in_place else ():
            place[:], label = label, place
        whole += batch.put(NetworkOutput(label))
    assert sorted(map(id, whole)) == sorted(map(id, scans)), "each scan is whole once"
    for volume, scan in zip(volumes, scans, strict=True):
        assert np.array_equal(scan.assembly.result().label, volume % 251)


def test_slices_that_the_network_takes_unchanged_are_not_copied():
    volume = np.arange(6 * 16, dtype=np.int16).reshape(6, 4, 4)
    room = np.zeros((9, 4, 4), np.int16)
    for size, step, kept in (((4, 4), 1.0, True), ((4, 4), 2.0, False), ((4, 6), 1.0, False)):
        batcher, scan = Batcher(Capacity(3, 9)), planned(volume, size, 3, step)
        batcher.add(scan)
        batcher.next()
        batch = batcher.next()
        image = batch.fill(np.zeros((9, *size), np.int16), in_place=True)
        assert np.shares_memory(image, volume) == kept
        assert np.shares_memory(batch.targets().get("label", room), scan.assembly.label) == (size == (4, 4))
        assert not np.shares_memory(batch.fill(np.zeros((9, *size), np.int16)), volume)
    turned = planned(np.moveaxis(np.zeros((4, 4, 6), np.int16), 2, 0), (4, 4), 3, 1.0)
    assert turned.view_slices(0, 3) is None, "its slices are not contiguous"


def test_windows_are_neighboring_slices_with_edges_repeated():
    volume = np.arange(5, dtype=np.int16)[:, None, None] * np.ones((5, 4, 4), np.int16)
    batcher = Batcher(Capacity(2, 6))
    batcher.add(planned(volume, (4, 4), 3, 1.0))
    windows = []
    while batcher.waiting:
        batch = batcher.next()
        image = np.empty((len(batch.rows), 4, 4), np.int16)
        batch.fill(image)
        windows += [image[row][:, 0, 0].tolist() for row in batch.neighbors]
    assert windows == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4]]


def test_a_batch_continues_in_the_next_scan_with_each_slice_once():
    batcher = Batcher(Capacity(4, 12))
    for slices in (3, 1, 4):
        batcher.add(planned(np.zeros((slices, 4, 4), np.int16), (4, 4), 3, 1.0))
    sizes = []
    while batcher.waiting:
        batch = batcher.next()
        sizes.append((len(batch.units), len(batch.rows)))
    assert sizes == [(4, 4), (4, 4)]
