"""Phantoms: reproducible, with the tissues, noise and variety that they promise."""

import numpy as np
import pytest
from scipy import ndimage

from slicemill.common.errors import InputError
from slicemill.ct.phantom import AXCODES, collection_specs, make_phantom, write_collection
from slicemill.ct.phantom_canvas import PhantomSpec

SPEC = PhantomSpec(seed=3, shape=(32, 128, 128), tumors=4)


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(SPEC)


def test_the_same_spec_gives_the_same_voxels(phantom):
    again = make_phantom(SPEC)
    assert np.array_equal(again.image, phantom.image)
    assert np.array_equal(again.label, phantom.label)


def test_a_phantom_has_the_tissues_of_an_abdomen(phantom):
    image, label = phantom.image, phantom.label
    assert image.min() == -1024
    assert image.max() > 350, "bone"
    assert (image < -700).mean() > 0.2, "air"
    assert abs(float(np.median(image[label == 1])) - 105) < 15, "liver"
    assert 800 < (label > 0).sum() * np.prod(phantom.spacing_mm) / 1000 < 2500, "liver volume in ml"


def test_noise_is_correlated_and_of_15_to_25_hu(phantom):
    inside = ndimage.binary_erosion(phantom.label == 1, iterations=4)
    noise = (phantom.image - ndimage.gaussian_filter(phantom.image.astype(float), (0, 4, 4)))[inside]
    assert 12 < noise.std() < 30
    pairs = inside[:, :, 1:] & inside[:, :, :-1]
    flat = phantom.image - ndimage.gaussian_filter(phantom.image.astype(float), (0, 4, 4))
    assert np.corrcoef(flat[:, :, 1:][pairs], flat[:, :, :-1][pairs])[0, 1] > 0.2


def test_tumors_differ_from_liver_by_20_to_60_hu():
    for seed in range(5):
        phantom = make_phantom(PhantomSpec(seed=seed, shape=(32, 128, 128), tumors=1))
        core = ndimage.binary_erosion(phantom.label == 2)
        if core.sum() > 50:
            offset = abs(float(np.median(phantom.image[core])) - float(np.median(phantom.image[phantom.label == 1])))
            assert 8 < offset < 72


def test_no_tumor_is_no_tumor():
    assert not (make_phantom(PhantomSpec(seed=3, shape=(16, 64, 64), tumors=0)).label == 2).any()


def test_a_collection_varies_in_size_depth_spacing_orientation_and_tumors():
    specs = list(collection_specs(12, 128, 0))
    assert len({spec.shape for _, spec, _ in specs}) > 6
    assert len({spec.spacing_mm for _, spec, _ in specs}) == 12
    assert {codes for *_, codes in specs} == set(AXCODES)
    assert sum(spec.tumors == 0 for _, spec, _ in specs) == 2


def test_an_existing_collection_is_not_drawn_again(tmp_path):
    first = [image.stat().st_mtime_ns for image, _ in write_collection(tmp_path, cases=2, size=32, seed=0)]
    assert [image.stat().st_mtime_ns for image, _ in write_collection(tmp_path, cases=2, size=32, seed=0)] == first
    assert {path.name for path in tmp_path.iterdir()} == {
        "dataset.json", "volume-0.nii", "segmentation-0.nii", "volume-1.nii.gz", "segmentation-1.nii.gz",
    }  # fmt: skip


def test_a_folder_of_other_options_is_refused(tmp_path):
    list(write_collection(tmp_path, cases=1, size=32, seed=0))
    assert len(list(write_collection(tmp_path, cases=2, size=32, seed=0))) == 2, "more cases may follow"
    with pytest.raises(InputError, match=r"drawn with other options \(seed 0, not 1, small_tumors False, not True\)"):
        next(write_collection(tmp_path, cases=2, size=32, seed=1, small_tumors=True))


@pytest.mark.parametrize("name", ["dataset.json", "volume-3.nii", "notes.txt"])
def test_a_folder_with_other_files_is_refused(tmp_path, name):
    (tmp_path / name).write_text('{"name": "Task03_Liver"}')
    with pytest.raises(InputError, match="has files that are no phantoms of ours"):
        next(write_collection(tmp_path, cases=1, size=32, seed=0))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_half_of_the_tumors_are_small_if_requested():
    counts = {}
    for small in (False, True):
        phantom = make_phantom(PhantomSpec(seed=7, shape=(64, 128, 128), tumors=12, small_tumors=small))
        sizes_ml = np.bincount(ndimage.label(phantom.label == 2)[0].ravel())[1:] * np.prod(phantom.spacing_mm) / 1000
        counts[small] = int((sizes_ml < 2.5).sum())
    assert counts[True] >= 4 > counts[False]


def test_a_trunk_reaches_from_hips_to_shoulders_with_the_liver_in_about_a_third():
    specs = [spec for _, spec, _ in collection_specs(6, 64, 1, trunk=True)]
    assert all(400 < spec.height_mm < 620 for spec in specs)
    phantom = make_phantom(specs[1])
    liver = (phantom.label > 0).any((1, 2))
    assert 0.2 < liver.mean() < 0.45
    assert 800 < (phantom.label > 0).sum() * np.prod(phantom.spacing_mm) / 1000 < 2500, "liver volume in ml"
    lungs = ((phantom.image > -900) & (phantom.image < -700)).mean((1, 2))
    above, below = np.flatnonzero(liver)[-1] + 1, np.flatnonzero(liver)[0]
    assert lungs[above:].mean() > 0.1
    assert lungs[:below].mean() < 0.03
