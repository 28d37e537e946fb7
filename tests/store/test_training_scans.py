"""A scan is compared with the ranges of the training scans, with stated margins."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from slicemill.common.documents import to_document
from slicemill.common.errors import ModelError
from slicemill.store.training_scans import (
    AREA_MARGIN,
    HU_MARGIN,
    SPACING_MARGIN,
    ScanTraits,
    decode_training_scans,
    describe_scan,
    find_differences,
    join_traits,
    summarize_scans,
)

ONE = ScanTraits(slice_spacing_mm=2.0, pixel_mm=0.8, body_cm2=400.0, body_hu=(-100.0, 20.0, 80.0))
OTHER = ScanTraits(slice_spacing_mm=5.0, pixel_mm=0.6, body_cm2=700.0, body_hu=(-110.0, 40.0, 200.0))


def test_the_ranges_are_those_of_all_scans_and_hold_each_of_them():
    trained = join_traits([ONE, OTHER])
    assert trained.cases == 2
    assert trained.slice_spacing_mm == (2.0, 5.0)
    assert trained.pixel_mm == (0.6, 0.8)
    assert trained.body_cm2 == (400.0, 700.0)
    assert trained.body_hu == ((-110.0, -100.0), (20.0, 40.0), (80.0, 200.0))
    assert find_differences(trained, ONE) == find_differences(trained, OTHER) == []


@pytest.mark.parametrize(
    ("name", "low", "high", "words"),
    [
        ("slice_spacing_mm", 2.0 / SPACING_MARGIN, 5.0 * SPACING_MARGIN, "slices are .* mm apart .2 to 5 mm in"),
        ("pixel_mm", 0.6 / SPACING_MARGIN, 0.8 * SPACING_MARGIN, "pixels are .* mm wide .0.6 to 0.8 mm in"),
        ("body_cm2", 400 / AREA_MARGIN, 700 * AREA_MARGIN, "body has .* cm² in a slice .400 to 700 cm² in"),
    ],
)
def test_each_size_has_a_factor_of_margin(name, low, high, words):
    trained = join_traits([ONE, OTHER])
    for inside in (low * 1.001, high * 0.999):
        assert find_differences(trained, replace(ONE, **{name: inside})) == []
    for outside in (low * 0.999, high * 1.001):
        (warning,) = find_differences(trained, replace(ONE, **{name: outside}))
        assert re.search(words, warning)
    assert find_differences(trained, replace(ONE, **{name: None})) == [], "what is not known is not compared"


@pytest.mark.parametrize(("index", "low", "high"), [(0, -110, -100), (1, 20, 40), (2, 80, 200)])
def test_each_percentile_has_a_margin_in_hu(index, low, high):
    trained = join_traits([ONE, OTHER])

    def compare(value):
        hu = list(ONE.body_hu)
        hu[index] = value
        return find_differences(trained, replace(ONE, body_hu=tuple(hu)))

    assert compare(low - HU_MARGIN) == compare(high + HU_MARGIN) == []
    for value in (low - HU_MARGIN - 1, high + HU_MARGIN + 1):
        (warning,) = compare(value)
        assert f"below {value:.0f} HU ({low} to {high} HU in training)" in warning


def test_one_warning_names_all_that_differs():
    (warning,) = find_differences(join_traits([ONE]), replace(OTHER, pixel_mm=9.0))
    assert warning.startswith("outside of what the model was trained on: its slices are 5 mm apart (2 to 2 mm in")
    assert warning.count(";") == 3


def test_traits_are_those_of_the_body(rng):
    volume = np.full((9, 40, 60), -1000, dtype=np.int16)
    volume[:, 10:30, 20:50] = rng.normal(40, 20, (9, 20, 30)).astype(np.int16)
    traits = describe_scan(volume.__getitem__, len(volume), (3.0, 0.5, 2.0))
    body = volume[[0, 2, 4, 6, 8], 10:30:2, 20:50:2]
    assert traits.slice_spacing_mm == 3.0
    assert traits.pixel_mm == 1.0
    assert traits.body_cm2 == 20 * 30 * 1.0 / 100
    assert np.allclose(traits.body_hu, np.percentile(body, (10, 50, 90)))


def test_air_has_no_body_and_is_not_compared():
    air = np.full((3, 8, 8), -1000, dtype=np.int16)
    traits = describe_scan(air.__getitem__, 3, (1.0, 1.0, 1.0))
    assert traits.body_hu is None
    assert traits.body_cm2 is None
    trained = join_traits([traits])
    assert (
        find_differences(trained, traits)
        == find_differences(trained, replace(ONE, slice_spacing_mm=1, pixel_mm=1))
        == []
    )


def test_a_damaged_description_names_the_file():
    assert decode_training_scans(None, "a.onnx") is None
    whole = '{"cases": 1, "slice_spacing_mm": [1, 2], "pixel_mm": [1, 2], "body_cm2": null, "body_hu": null}'
    assert decode_training_scans(whole, "a.onnx").pixel_mm == (1, 2)
    damaged = [
        whole.replace('"pixel_mm": [1, 2]', f'"pixel_mm": {text}') for text in ("[2, 1]", "[-1, 1]", "[1, 1e999]")
    ]
    damaged.append(whole.replace('"body_hu": null', '"body_hu": [[1, 2], [1, 2], [3, 2]]'))
    for text in ("{}", "[]", '{"cases": 1, "pixel_mm": [1]}', *damaged):
        with pytest.raises(ModelError, match=r"a\.onnx: its description of the training scans is damaged; export"):
            decode_training_scans(text, "a.onnx")


def test_a_sample_of_a_millimeter_is_within_its_own_range():
    tiny = ScanTraits(slice_spacing_mm=0.0002, pixel_mm=0.00031, body_cm2=0.4, body_hu=(0.0, 100.0, 200.0))
    assert find_differences(join_traits([tiny]), tiny) == []


def test_the_distance_of_a_single_slice_says_nothing(rng):
    one = rng.integers(0, 90, (1, 8, 8)).astype(np.int16)
    traits = describe_scan(one.__getitem__, 1, (10.0, 0.8, 0.8))
    assert traits.slice_spacing_mm is None
    assert find_differences(join_traits([ONE]), replace(traits, body_cm2=None, body_hu=None)) == []
    trained = join_traits([traits, ONE])
    assert trained.slice_spacing_mm == (2.0, 2.0)
    alone = join_traits([traits])
    assert alone.slice_spacing_mm is None
    assert summarize_scans(alone).startswith("single slices, pixels 0.8 to 0.8 mm")
    assert find_differences(alone, replace(ONE, body_cm2=None, body_hu=None)) == []
    assert decode_training_scans(json.dumps(to_document(alone)), "a.onnx") == alone
