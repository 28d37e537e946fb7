"""Slices for pages: which are kept, what they hold, and how large they are."""

import base64
import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicemill.common.html import render
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.lesions import MAX_PARTS
from slicemill.ct.page_slices import (
    LOW_HU,
    MOST_SIDE,
    NEAR,
    STEP_HU,
    SlicedLesion,
    SlicedMask,
    list_parts,
    make_page_slices,
)

SPACING = (5.0, 0.8, 0.7)


def make_lesion(number, first, last):
    return SlicedLesion(id=number, first_z=first, key_z=(first + last) // 2, last_z=last, text=f"Lesion {number}")


def pack(image, labels, lesions=(), most_mb=8.0):
    masks = [SlicedMask(name=f"mask {number}", label=label) for number, label in enumerate(labels)]
    return make_page_slices(image, masks, LITS_LABELS, SPACING, lesions, most_mb)


def unpack(packed):
    """Read the data as its description says: int[z, y, x], HU, and uint8[z, y, x] of each mask."""
    data = gzip.decompress(base64.b64decode(packed.data))
    counts = np.frombuffer(data, "<u4", len(packed.masks))
    at = 4 * len(counts)
    lengths = []
    for count in counts:
        lengths.append(np.frombuffer(data, "<u4", count, at))
        at += 4 * count
    masks = []
    for count, one in zip(counts, lengths, strict=True):
        masks.append(np.repeat(np.frombuffer(data, "u1", count, at), one).reshape(packed.shape))
        at += count
    grays = np.frombuffer(data, "u1", -1, at).reshape(packed.shape)
    return LOW_HU + STEP_HU * grays.astype(int), masks


def make_noise(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(-1500, 900, shape).astype(np.int16), rng.integers(0, 3, shape).astype(np.uint8)


def test_voxels_of_a_small_scan_come_back():
    image, label = make_noise((20, 30, 40))
    other = label[::-1].copy()
    packed = pack(image, [label, other], [make_lesion(1, 8, 9)])
    assert packed.slices == tuple(range(8 - NEAR, 9 + NEAR + 1))
    assert (packed.slice_count, packed.reduced, packed.spacing_mm) == (20, 1, SPACING)
    hu, masks = unpack(packed)
    kept = list(packed.slices)
    expected = np.clip(image[kept], LOW_HU, LOW_HU + 255 * STEP_HU)
    assert np.abs(hu - expected).max() <= STEP_HU / 2
    np.testing.assert_array_equal(masks[0], label[kept])
    np.testing.assert_array_equal(masks[1], other[kept])


def test_a_large_slice_is_reduced_and_no_tumor_is_lost():
    image = np.full((3, 600, 300), 40, dtype=np.int16)
    label = np.zeros(image.shape, dtype=np.uint8)
    label[:, 100:200, 100:200] = 1
    label[1, 401, 299] = 2
    packed = pack(image, [label])
    assert packed.reduced == 3
    assert packed.shape == (3, 200, 100)
    assert max(packed.shape[1:]) <= MOST_SIDE
    assert packed.spacing_mm == (SPACING[0], SPACING[1] * 3, SPACING[2] * 3)
    hu, (mask,) = unpack(packed)
    assert (np.abs(hu - 40) <= STEP_HU / 2).all()
    assert np.argwhere(mask == 2).tolist() == [[1, 133, 99]]
    assert (mask == 1).sum() == pytest.approx(3 * (100 / 3) ** 2, rel=0.05)


def test_without_lesions_the_labelled_slices_are_kept_and_without_labels_all():
    image, label = make_noise((20, 30, 40))
    empty = np.zeros_like(label)
    assert pack(image, [empty]).slices == tuple(range(20))
    empty[5, 3, 3] = empty[9, 3, 3] = 1
    assert pack(image, [empty]).slices == (5, 6, 7, 8, 9)


@pytest.mark.parametrize("most_mb", [0.05, 0.2, 1])
def test_the_size_is_kept_and_the_slices_of_lesions_stay(most_mb):
    image, label = make_noise((90, 128, 128))
    label[:, :, 3:] = 1
    lesions = [make_lesion(1, 10, 60), make_lesion(2, 71, 73)]
    packed = pack(image, [label], lesions, most_mb)
    assert len(packed.data) <= most_mb * (1 << 20)
    assert {35, 72} <= set(packed.slices)
    assert [one.id for one in packed.lesions] == [1, 2]
    if most_mb == 1:
        assert len(packed.slices) > 30, "the size is used"


def test_what_does_not_fit_is_left_out():
    image, label = make_noise((10, 128, 128))
    assert pack(image, [label], [make_lesion(1, 3, 4)], most_mb=0) is None
    assert pack(image, [label], [make_lesion(1, 3, 4)], most_mb=0.001) is None


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 10)), max_size=5))
def test_any_lesions_give_slices_of_the_scan(count, spans):
    image, label = make_noise((count, 4, 5))
    lesions = [
        make_lesion(number, first, min(first + more, count - 1))
        for number, (first, more) in enumerate(spans, 1)
        if first < count
    ]
    packed = pack(image, [label], lesions)
    assert set(packed.slices) <= set(range(count))
    assert list(packed.slices) == sorted(set(packed.slices))
    assert {one.key_z for one in lesions} <= set(packed.slices)
    np.testing.assert_array_equal(unpack(packed)[1][0], label[list(packed.slices)])


def test_of_noise_no_part_is_listed():
    noise = np.zeros((60, 60, 60), dtype=bool)
    noise[::2, ::2, ::2] = True
    assert noise.sum() > MAX_PARTS
    assert list_parts(noise, "tumor", np.eye(4)) is None
    assert len(list_parts(noise[:3, :3, :3], "tumor", np.eye(4))) == 8


MANY = f"more than {MAX_PARTS:,} separate parts"


@pytest.mark.parametrize(("lesions", "says"), [(None, MANY), ((), "previous lesion")])
def test_a_page_without_a_list_of_lesions_says_why(lesions, says):
    image, label = make_noise((5, 8, 8))
    slices = pack(image, [label], lesions)
    assert slices.lesions == ()
    texts = {"title": "a", "case_id": "a", "region": "tumor", "header": [], "rows": []}
    page = render("measure/evaluation/error_page.html", slices=slices, **texts).decode()
    assert [text for text in (MANY, "previous lesion") if text in page] == [says]
