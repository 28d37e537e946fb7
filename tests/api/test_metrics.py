"""Scores of arrays equal those of evaluation, of scipy and by hand; arrays that are no masks are refused."""

import math

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

import slicemill
from slicemill import metrics
from slicemill.common.errors import InputError, UsageError
from slicemill.store.reader import open_store

BLOBS = [ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(20, 30, 40)), 2) > 0.02 for seed in (0, 1)]


def test_overlap_is_that_of_the_definition():
    one, other = BLOBS
    both = (one & other).sum()
    assert metrics.dice(one, other) == pytest.approx(2 * both / (one.sum() + other.sum()))
    assert metrics.overlap(one, other).precision == pytest.approx(both / one.sum())
    assert metrics.dice(one.astype(np.uint8), other.astype(float)) == metrics.dice(one, other)
    assert math.isnan(metrics.dice(one & False, other & False))


def test_distances_do_not_depend_on_the_order_of_axes():
    one, other = BLOBS
    found = metrics.surface_distances(one, other, (2.5, 0.8, 0.7))
    turned = metrics.surface_distances(one.T, other.T, (0.7, 0.8, 2.5))
    for name in ("assd", "rmsd", "mssd", "hd95"):
        assert getattr(found, name) == pytest.approx(getattr(turned, name))
    assert found.surface_dice(1.0) == turned.surface_dice(1.0)
    assert math.isnan(metrics.surface_distances(one & False, other, (1, 1, 1)).assd)


def test_lesions_are_the_components_of_scipy():
    one, other = BLOBS
    found = metrics.detect_lesions(one, other)
    structure = np.ones((3, 3, 3))
    assert found.predictions == ndimage.label(one, structure)[1]
    assert found.references == ndimage.label(other, structure)[1]
    assert metrics.detect_lesions(one, one, overlap_above=0.99).true_positive == found.predictions
    assert metrics.f1(found.true_positive, found.predictions, found.references) <= 1
    with pytest.raises(UsageError, match="at least 0 and below 1"):
        metrics.detect_lesions(one, other, overlap_above=1.0)


def test_candidates_are_ranked_by_their_mean_probability():
    prediction, reference = np.zeros((2, 1, 1, 9), dtype=bool)
    prediction[..., 0:2] = prediction[..., 5:7] = reference[..., 1:3] = reference[..., 8] = True
    probability = np.linspace(0, 0.8, 9).reshape(1, 1, 9)
    hits = metrics.scan_hits(prediction, reference, probability)
    assert (hits.found, hits.missed) == ((pytest.approx(0.05),), 1)
    assert hits.false == (pytest.approx(0.55),)
    as_bytes = metrics.scan_hits(prediction, reference, np.rint(255 * probability).astype(np.uint8))
    assert as_bytes.found[0] == pytest.approx(hits.found[0], abs=0.003)
    result = metrics.froc([hits, metrics.scan_hits(reference, reference, probability)])
    assert result.scans == 2
    assert result.findings == 4
    for bad in (probability * 2, probability - 0.1, probability * np.nan):
        with pytest.raises(InputError, match="floats from 0 to 1"):
            metrics.scan_hits(prediction, reference, bad)
    with pytest.raises(InputError, match="must have one shape"):
        metrics.scan_hits(prediction, reference, probability[..., 1:])


def test_a_curve_needs_scans_and_findings():
    with pytest.raises(InputError, match="at least one scan"):
        metrics.froc([])
    assert isinstance(metrics.froc([metrics.scan_hits(np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))]), metrics.NoFindings)


@pytest.mark.parametrize("score", [metrics.dice, metrics.detect_lesions, metrics.scan_hits])
def test_segmentations_and_other_shapes_are_refused(score):
    mask = np.zeros((2, 3, 4))
    with pytest.raises(InputError, match="compare one label: label == 2"):
        score(mask + 2, mask)
    with pytest.raises(InputError, match="compare one label"):
        score(mask, mask + np.nan)
    with pytest.raises(InputError, match="must have one shape"):
        score(mask, mask[1:])


def test_distances_need_three_lengths():
    mask = np.ones((2, 3, 4))
    for spacing in ((1, 1), (1, 1, 0), (1, 1, math.inf)):
        with pytest.raises(UsageError, match="three lengths"):
            metrics.surface_distances(mask, mask, spacing)
    with pytest.raises(InputError, match="must have 3 axes"):
        metrics.surface_distances(mask[0], mask[0], (1, 1, 1))


def test_lesions_of_a_file_are_those_of_its_stored_case(stored, collection):
    """A mask in nibabel's order, in SimpleITK's order, and as stored: one result."""
    import SimpleITK

    for case_id, case in open_store(stored).items():
        path = next(collection.glob(f"{case_id.replace('volume', 'segmentation')}.nii*"))
        image, itk = nib.load(path), SimpleITK.ReadImage(str(path))
        affine = np.eye(4)
        affine[:3, :3] = np.array(itk.GetDirection()).reshape(3, 3) * np.array(itk.GetSpacing())
        affine[:3, 3] = itk.GetOrigin()
        found = [
            slicemill.find_lesions(np.asarray(image.dataobj) == 2, image.affine, axes="xyz-ras"),
            slicemill.find_lesions(SimpleITK.GetArrayFromImage(itk) == 2, affine, axes="zyx-lps"),
            slicemill.find_lesions(case.label[:] == 2, case.affine, axes="zyx-lps"),
        ]
        for lesions in found:
            assert len(lesions) == len(case.lesions)
            for one, stored_one in zip(lesions, case.lesions, strict=True):
                assert one.bbox_zyx == stored_one.bbox_zyx
                assert one.volume_ml == pytest.approx(stored_one.volume_ml, abs=1e-3)
                assert one.max_axial_diameter_mm == pytest.approx(stored_one.max_axial_diameter_mm, abs=0.02)
                assert one.centroid_lps_mm == pytest.approx(stored_one.centroid_lps_mm, abs=0.02)


def test_lesions_need_a_mask_and_its_axes():
    mask = np.zeros((3, 4, 5))
    with pytest.raises(InputError, match="pass one label"):
        slicemill.find_lesions(mask + 2, np.eye(4), axes="zyx-lps")
    with pytest.raises(UsageError, match="needs the order of its axes"):
        slicemill.find_lesions(mask, np.eye(4), axes=None)
    with pytest.raises(InputError, match="must have 3 axes"):
        slicemill.find_lesions(mask[0], np.eye(4), axes="zyx-lps")
