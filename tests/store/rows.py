"""Rows of the manifest for tests that need no store."""

from dataclasses import replace

from slicemill.store.tables import ManifestRow

PLAIN = ManifestRow(
    case_id="a",
    patient_id="a",
    image_path="a.nii",
    image_name="a.nii",
    mask_path=None,
    mask_name=None,
    nz=10,
    ny=512,
    nx=512,
    spacing_z_mm=5.0,
    spacing_y_mm=0.8,
    spacing_x_mm=0.8,
    orientation="RAS",
    voxels={},
    has_tumor=None,
    tumor_percent_scan=None,
    tumor_percent_organ=None,
    tumor_volume_ml=None,
    organ_volume_ml=None,
    n_lesions=None,
    max_axial_diameter_mm=None,
    hu_min=None,
    hu_max=None,
    source_sha256="",
    warnings="",
    fingerprint=None,
)
"""A case without a mask."""


def manifest(**fields):
    """Return a row of the manifest: that of a case without a mask, with some fields changed."""
    return replace(PLAIN, **fields)
