"""The report of a scan."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicemill.common.documents import from_document, to_document
from slicemill.ct.lesions import Lesion
from slicemill.infer.report import ScanReport, slice_score

LESION = Lesion(
    id=1, voxels=20, volume_ml=2.0, centroid_lps_mm=(1.0, 2.0, 3.0), bbox_zyx=(0, 0, 0, 2, 3, 4), key_z=1,
    max_axial_diameter_mm=5.0,
)  # fmt: skip


def report(**values):
    return ScanReport(
        scan="a.nii", model="m.onnx", model_sha256="0", labels={"liver": 1, "tumor": 2}, organ="liver", tumor="tumor",
        shape_zyx=(2, 3, 4), spacing_mm_zyx=(5.0, 1.0, 1.0), volumes_ml={"liver": 1500.0, "tumor": 2.0}, provider="cpu",
        warnings=(), **values,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ({}, "liver 1500.0 ml, tumor 2.0 ml"),
        ({"tumor_found": False, "lesions": ()}, "tumor: no"),
        ({"tumor_found": False, "tumor_score": 0.17, "lesions": ()}, "tumor: no (highest tumor score 0.17)"),
        (
            {"tumor_found": False, "tumor_score": 0.83, "lesions": ()},
            "tumor: no (highest tumor score 0.83 removed by the rules)",
        ),
        (
            {"tumor_found": True, "tumor_volume_ml": 2.0, "lesions": (LESION,), "mean_tumor_probability": 0.75},
            "tumor: yes, 2.0 ml in 1 lesion (mean probability of its voxels 0.75)",
        ),
        ({"tumor_found": True, "tumor_volume_ml": 2.0, "lesions": (LESION,)}, "tumor: yes, 2.0 ml in 1 lesion"),
        ({"tumor_found": True, "tumor_volume_ml": 2.0, "lesions": (LESION,) * 2}, "tumor: yes, 2.0 ml in 2 lesions"),
    ],
)
def test_the_answer_is_tumor_yes_or_no_or_the_volumes(values, answer):
    assert report(**values).answer == answer


def test_a_report_is_read_back_from_its_document():
    written = report(tumor_found=True, tumor_volume_ml=2.0, lesions=(LESION,), slice_tumor_scores=(0.5, 0.25))
    document = to_document(written)
    assert list(document)[:4] == ["scan", "model", "model_sha256", "labels"]
    assert list(document)[-3:] == ["note", "provider", "warnings"]
    assert from_document(ScanReport, document, "a.json") == written


@given(st.integers(1, 60), st.integers(1, 30), st.sampled_from([0, 1, 3, 255]), st.integers(0, 50))
def test_a_slices_score_is_the_mean_of_its_strongest_voxels(count, side, most, seed):
    rng = np.random.default_rng(seed)
    probability = np.minimum(rng.integers(0, 256, (side, side + 1)), most).astype(np.uint8)
    strongest = np.sort(probability.ravel())[::-1][:count]
    assert slice_score(probability, count) == pytest.approx(strongest.mean() / 255, abs=6e-5)
