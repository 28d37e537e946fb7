"""Other programs open each case of a store as an OME-Zarr image, and place its voxels where we do."""

import json
import shutil

import dask
import nibabel as nib
import numpy as np
import pytest
import zarr

from slicemill.ct.geometry import voxel_to_mm
from slicemill.ct.labels import LITS_LABELS
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.store.ome_zarr import placement_error_mm
from slicemill.store.reader import open_store
from slicemill.store.writer import prepare_store
from tests.ct.grids import reorient


@pytest.fixture(autouse=True)
def computed_here():
    """Let arrays of dask be computed in this process, also while a test of it has a cluster."""
    with dask.config.set(scheduler="threads"):
        yield


STRAIGHT = np.array([[-0.7, 0, 0, 120], [0, 0.8, 0, -97], [0, 0, 2.5, 400], [0, 0, 0, 1]])
ORIENTATIONS = ("RAS", "LPS", "SAR", "PIL", "LAI", "ASL")
"""Axis orders and directions of files; `tests/ct` has all 48."""


def ingested(folder, affine, shape=(7, 6, 5), labels=LITS_LABELS):
    """Store a scan with this affine to RAS mm, and its mask, and return the case."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    paths = [folder / "a.nii", folder / "mask.nii"]
    for path, high in zip(paths, (2000, 3), strict=True):
        nib.save(nib.Nifti1Image(rng.integers(0, high, shape).astype(np.int16), affine), path)
    case = CaseFiles(case_id="a", patient_id="a", image=paths[0], mask=paths[1], root=folder)
    store = prepare_store(folder / "store")
    convert_case(case, Params(labels=labels), store)
    return open_store(store)["a"]


def tilted(affine, degrees):
    """Turn an affine about the patient's left-right axis."""
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


def ome_position(image, index):
    """Where a reader of OME-Zarr puts a voxel [z, y, x]: x, y, z mm."""
    placed = [image.translation[axis] + step * image.scale[axis] for axis, step in zip("zyx", index, strict=True)]
    return tuple(placed[::-1])


def open_with_ngff_zarr(folder):
    import ngff_zarr

    return ngff_zarr.from_ngff_zarr(str(folder), validate=True).images[0]


def test_ome_zarr_models_finds_no_fault_in_any_case(stored):
    from ome_zarr_models.v05 import Image

    for case in open_store(stored).values():
        image = Image.from_zarr(zarr.open_group(str(case.folder), mode="r"))
        assert image.labels.label_paths == ["segmentation"]
        segmentation = image.labels.get_image_labels_group("segmentation").attributes.ome.image_label
        assert {item.label_value: item.model_extra["name"] for item in segmentation.properties} == {
            1: "liver",
            2: "tumor",
        }
        assert [color.label_value for color in segmentation.colors] == [1, 2]


def test_a_case_without_a_mask_is_an_image_without_labels(collection, tmp_path):
    from ome_zarr_models.v05 import Image

    shutil.copy(collection / "volume-0.nii", tmp_path)
    case = CaseFiles(case_id="a", patient_id="a", image=tmp_path / "volume-0.nii", mask=None, root=tmp_path)
    store = prepare_store(tmp_path / "store")
    convert_case(case, Params(labels=LITS_LABELS), store)
    folder = store / "scans.zarr/a"
    assert Image.from_zarr(zarr.open_group(str(folder), mode="r")).labels is None
    assert sum(path.is_file() for path in folder.rglob("*")) == 3


def test_ngff_zarr_reads_our_voxels_and_the_segmentation(stored):
    for case in open_store(stored).values():
        image, segmentation = (open_with_ngff_zarr(case.folder / name) for name in ("", "labels/segmentation"))
        assert np.array_equal(np.asarray(image.data), case.image[:])
        assert np.array_equal(np.asarray(segmentation.data), case.label[:])
        assert segmentation.scale == image.scale
        assert segmentation.translation == image.translation
        assert set(image.axes_units.values()) == {"millimeter"}


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_a_straight_scan_lies_where_nibabel_puts_it(axcodes, tmp_path):
    turned = reorient(nib.Nifti1Image(np.zeros((7, 6, 5), np.int16), STRAIGHT), axcodes)
    case = ingested(tmp_path, turned.affine, turned.shape)
    image = open_with_ngff_zarr(case.folder)
    source = nib.load(tmp_path / "a.nii")
    corners = nib.affines.apply_affine(np.diag([-1, -1, 1, 1]) @ source.affine, [[0, 0, 0], np.array(source.shape) - 1])
    ends = np.array([ome_position(image, (0, 0, 0)), ome_position(image, np.array(case.image.shape) - 1)])
    assert np.allclose(np.sort(ends, axis=0), np.sort(corners, axis=0), atol=1e-4)
    assert case.spacing_mm == pytest.approx(tuple(image.scale[axis] for axis in "zyx"))
    assert [image.axes_orientations[axis].value.value for axis in "zyx"] == [
        "inferior-to-superior",
        "anterior-to-posterior",
        "right-to-left",
    ]
    assert "metadata" not in ome(case)


def ome(case):
    document = json.loads((case.folder / "zarr.json").read_text())
    return document["attributes"]["ome"]["multiscales"][0]


def test_rounding_in_a_header_makes_no_scan_oblique(tmp_path):
    case = ingested(tmp_path, tilted(STRAIGHT, 1e-4))
    assert 0 < placement_error_mm(case.info) < 0.01
    assert "metadata" not in ome(case)


@pytest.mark.parametrize("kind", ["oblique", "sheared"])
def test_a_scan_that_scale_and_translation_cannot_place_states_how_far_it_is_off(kind, tmp_path):
    shear = np.eye(4)
    shear[1, 2] = 0.3
    case = ingested(tmp_path, tilted(STRAIGHT, 15) if kind == "oblique" else shear @ STRAIGHT, (30, 20, 10))
    image, note = open_with_ngff_zarr(case.folder), ome(case)["metadata"]
    assert note["placement"] == "first voxel"
    assert ome_position(image, (0, 0, 0)) == pytest.approx(voxel_to_mm(case.affine, (0, 0, 0)))
    corners = np.array(np.meshgrid(*((0, extent - 1) for extent in case.image.shape))).T.reshape(-1, 3)
    apart = [np.subtract(ome_position(image, corner), voxel_to_mm(case.affine, corner)) for corner in corners]
    assert note["largest_error_mm"] == pytest.approx(max(map(np.linalg.norm, apart)), abs=1e-3)
    assert note["largest_error_mm"] > 1
    segmentation = json.loads((case.folder / "labels/segmentation/zarr.json").read_text())
    assert segmentation["attributes"]["ome"]["multiscales"][0]["metadata"] == note


def test_label_names_of_any_kind_are_listed(tmp_path):
    from ome_zarr_models.v05 import Image

    from slicemill.ct.labels import make_labels

    case = ingested(tmp_path, STRAIGHT, labels=make_labels({"a/b ü": 1, "tumor": 2, "ignore": 9}))
    image = Image.from_zarr(zarr.open_group(str(case.folder), mode="r"))
    properties = image.labels.get_image_labels_group("segmentation").attributes.ome.image_label.properties
    assert [(item.label_value, item.model_extra["name"]) for item in properties] == [
        (1, "a/b ü"),
        (2, "tumor"),
        (9, "ignore"),
    ]
