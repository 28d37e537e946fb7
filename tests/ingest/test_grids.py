"""Image and mask in other axis orders, on other grids, with labels that need rounding; and --strict."""

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import GeometryError, ScanError
from slicemill.ct.labels import LITS_LABELS
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles, discover
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store.reader import open_store
from slicemill.store.verify import verify
from slicemill.store.writer import prepare_store
from tests.ct.grids import AFFINE, reorient

pytestmark = pytest.mark.usefixtures("one_worker")

SHAPE = (13, 11, 9)


@pytest.fixture
def scan():
    """A CT with a tumor of 8 voxels of 200 HU."""
    voxels = np.full(SHAPE, 20, np.int16)
    voxels[:4] = -1000
    voxels[9:11, 3:5, 2:4] = 200
    return nib.Nifti1Image(voxels, AFFINE)


@pytest.fixture
def mask(scan):
    return nib.Nifti1Image(2 * (np.asarray(scan.dataobj) == 200).astype(np.uint8), AFFINE)


def put(folder, image, mask):
    folder.mkdir(exist_ok=True)
    nib.save(image, folder / "volume-1.nii")
    nib.save(mask, folder / "segmentation-1.nii.gz")
    return folder


def convert(folder, threads=1, **params):
    case = CaseFiles(
        case_id="x",
        patient_id="x",
        image=folder / "volume-1.nii",
        mask=folder / "segmentation-1.nii.gz",
        root=folder,
    )
    info = convert_case(case, Params(labels=LITS_LABELS, **params), prepare_store(folder / "store"), threads=threads)
    return info, open_store(folder / "store")["x"]


@pytest.mark.parametrize("geometry", ["error", "trust-image", "resample"])
@pytest.mark.parametrize("codes", ["LAS", "ASL", "RPI"])
@pytest.mark.parametrize(("of_image", "threads"), [("LPS", 1), ("LPI", 3), ("SRA", 3)])
def test_a_mask_in_another_axis_order_covers_its_tumor(of_image, threads, codes, geometry, scan, mask, tmp_path):
    folder = put(tmp_path / "c", reorient(scan, of_image), reorient(mask, codes))
    info, case = convert(folder, threads, geometry=geometry)
    assert np.array_equal(case.label[:] == 2, case.image[:] == 200)
    assert not any("segmentation" in warning for warning in info.warnings)
    assert info.lesions[0].voxels == 8


def test_voxels_that_are_not_where_they_were_are_told_from_a_turn(scan, mask, tmp_path):
    mirrored = nib.Nifti1Image(np.asarray(reorient(mask, "LAS").dataobj), AFFINE)
    folder = put(tmp_path / "c", scan, mirrored)
    assert not (convert(folder)[1].label[:][:, :6] == 2).any(), "the same header: what it says is stored"
    wrong = put(tmp_path / "d", scan, nib.Nifti1Image(mirrored.dataobj, reorient(mask, "LAS").affine + 0.01 * AFFINE))
    with pytest.raises(
        GeometryError,
        match=r"share one grid .* mm\. Correct the header that is wrong; if both are right, pass --geometry resample",
    ):
        convert(wrong)
    with pytest.raises(
        GeometryError, match="needs files of one axis order; the segmentation's is LAS, the image's LPS"
    ):
        convert(wrong, geometry="trust-image")


def test_a_mask_of_another_shape_is_refused_or_resampled_and_the_share_is_in_the_manifest(scan, tmp_path):
    """By hand: voxels of 1 x 1 x 5 mm, four in each of the image's."""
    fine = np.zeros((26, 22, 9), np.uint8)
    fine[18:22, 6:10, 2:4] = 2
    affine = AFFINE @ np.diag([0.5, 0.5, 1, 1])
    affine[:2, 3] += 0.5  # of four voxels, the image's center lies in one
    folder = put(tmp_path / "c", scan, nib.Nifti1Image(fine, affine))
    with pytest.raises(GeometryError, match="must have the same shape.*--geometry resample"):
        convert(folder)
    with pytest.raises(GeometryError, match="must have the same shape"):
        convert(folder, geometry="trust-image")
    report = ingest(
        discover(folder), tmp_path / "store", Params(labels=LITS_LABELS, geometry="resample"), IngestOptions(workers=1)
    )
    assert report.count("done") == 1
    case = open_store(tmp_path / "store")["volume-1"]
    assert np.array_equal(case.label[:] == 2, case.image[:] == 200)
    warning = "segmentation resampled to the image's grid by nearest neighbor: 0.00% of its labeled voxels changed"
    assert warning in (tmp_path / "store" / "manifest.csv").read_text()
    assert "labeled volume 0.16 ml before, 0.16 ml after" in report.outcomes[0].warnings[0]


@pytest.mark.parametrize("geometry", ["error", "trust-image", "resample"])
def test_verify_finds_turned_trusted_and_resampled_masks_equal_to_their_files(geometry, scan, mask, tmp_path):
    shift = np.zeros((4, 4))
    shift[0, 3] = 0 if geometry == "error" else 1.5
    moved = nib.Nifti1Image(mask.dataobj, AFFINE + shift)
    folder = put(tmp_path / "c", scan, moved if geometry == "trust-image" else reorient(moved, "SAL"))
    params = Params(labels=LITS_LABELS, geometry=geometry)
    assert ingest(discover(folder), tmp_path / "store", params, IngestOptions(workers=1)).count("done") == 1
    store = open_store(tmp_path / "store")
    assert verify(store, folder, workers=1, advance=lambda *_: None) == []
    put(folder, scan, nib.Nifti1Image(np.zeros_like(mask.dataobj), moved.affine))
    assert any("8 voxels differ" in line for line in verify(store, folder, workers=1, advance=lambda *_: None))


def test_rounded_labels_are_stored_with_a_warning(scan, mask, tmp_path):
    labels = (np.asarray(mask.dataobj) * 0.9999999).astype(np.float32)
    info, case = convert(put(tmp_path / "c", scan, nib.Nifti1Image(labels, AFFINE)))
    assert np.array_equal(case.label[:] == 2, case.image[:] == 200)
    assert info.warnings == ("segmentation: label values were rounded to integers, by at most 2.38e-07",)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (np.abs, r"no HU below 0 \(range 20..1000\)"),
        (lambda voxels: voxels * 0 + 7, "does not look like a CT"),
        (lambda voxels: (voxels + 0.25).astype(np.float32), "HU were rounded"),
    ],
)
def test_strict_refuses_what_is_else_a_warning(change, warning, scan, mask, tmp_path):
    folder = put(tmp_path / "c", nib.Nifti1Image(change(np.asarray(scan.dataobj)), AFFINE), mask)
    info, _ = convert(folder)
    assert len(info.warnings) == 1
    with pytest.raises(ScanError, match=rf"volume-1\.nii: --strict refuses a case with warnings: .*{warning}"):
        convert(folder, strict=True)


def test_strict_accepts_padding_and_an_empty_mask(scan, mask, tmp_path):
    voxels = np.asarray(scan.dataobj).copy()
    voxels[0] = -3024
    folder = put(tmp_path / "c", nib.Nifti1Image(voxels, AFFINE), nib.Nifti1Image(0 * np.asarray(mask.dataobj), AFFINE))
    info, _ = convert(folder, strict=True)
    assert [warning.split()[-1] for warning in info.warnings] == ["statistics", "empty"]


def test_options_that_are_not_used_do_not_change_the_parameters_of_older_stores():
    before = Params(labels=LITS_LABELS).as_json()
    assert "strict" not in before
    assert "placing" not in before
    hashes = {Params(labels=LITS_LABELS, geometry=one).sha256() for one in ("error", "trust-image", "resample")}
    assert len(hashes | {Params(labels=LITS_LABELS, strict=True).sha256()}) == 4


def test_the_command_resamples_and_refuses_by_its_options(scan, mask, tmp_path):
    shifted = nib.Nifti1Image(mask.dataobj, AFFINE + np.array([[0, 0, 0, 0.7]] + [[0] * 4] * 3))
    folder = put(tmp_path / "c", scan, shifted)

    def run(store, *options):
        words = ["ingest", str(folder), str(tmp_path / store), "--workers", "1", *options]
        return CliRunner().invoke(commands(), words)

    refused, resampled, strict = (
        run("a"),
        run("b", "--geometry", "resample"),
        run("d", "--geometry", "resample", "--strict"),
    )
    assert (refused.exit_code, resampled.exit_code, strict.exit_code) == (1, 0, 1)
    assert "warning: volume-1: segmentation resampled to the image's grid by nearest neighbor" in resampled.output
    assert "--strict refuses a case with warnings: segmentation resampled" in strict.output


@pytest.mark.parametrize("suffix", [".dcm"])
def test_a_folder_of_another_format_is_told_its_name_and_not_to_quote_a_pattern(suffix, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / f"a{suffix}").touch()
    result = CliRunner().invoke(commands(), ["ingest", str(tmp_path / "c"), str(tmp_path / "store")])
    assert result.exit_code == 1
    assert "is not DICOM, although its name says so" in result.output
    assert "quote" not in result.output
