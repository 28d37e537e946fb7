"""Collections of MetaImage and NRRD files: layouts, pairs across formats, hashes, and what is left out."""

import shutil

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own documentation's name)
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import PairingError
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.naming import derive_case_id, parse_name
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import discover
from slicemill.ingest.globs import match_pattern
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store.reader import open_store
from slicemill.store.writer import prepare_store
from tests.conftest import REAL

pytestmark = pytest.mark.usefixtures("one_worker")

UIDS = ["1.3.6.1.4.1.14519.5.2.1.6279.6001.1", "1.3.6.1.4.1.14519.5.2.1.6279.6001.11"]
rng = np.random.default_rng(0)
IMAGE = rng.integers(-1000, 1500, (6, 5, 4)).astype(np.int16)
MASK = rng.integers(0, 3, (6, 5, 4)).astype(np.uint8)


def write(path, voxels, orientation="LPS"):
    """Write voxels [z, y, x] of 0.8 x 0.8 x 2.5 mm by SimpleITK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.8, 0.8, 2.5))
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path), useCompression=path.name.endswith(".mha"))
    return path


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def pairs(collection):
    return {case.case_id: (case.name(case.image), case.mask and case.name(case.mask)) for case in collection.cases}


FORMATS = ["x.nii.gz", "x.nii", "x.mha", "x.mhd", "x.nrrd", "x.nhdr"]


@pytest.mark.parametrize("image", FORMATS)
@pytest.mark.parametrize("mask", FORMATS)
def test_a_scan_and_its_mask_in_any_two_formats(image, mask, tmp_path):
    write(tmp_path / "ct" / image, IMAGE, "LPS")
    write(tmp_path / "masks" / mask, MASK, "RAI")
    store = prepare_store(tmp_path / "store")
    (case,) = discover(tmp_path).cases
    assert (case.image.name, case.mask.name) == (image, mask)
    info = convert_case(case, Params(labels=LITS_LABELS), store)
    stored = open_store(store)["x"]
    assert np.array_equal(stored.image[:], IMAGE)
    assert np.array_equal(stored.label[:], MASK)
    assert info.spacing_mm == pytest.approx((2.5, 0.8, 0.8))


def test_luna16_is_found_as_it_is_downloaded(tmp_path):
    names = [f"subset{number}/{uid}.mhd" for number, uid in enumerate(UIDS)]
    lungs = [f"seg-lungs-LUNA16/{uid}.mhd" for uid in UIDS]
    for name in (*names, *lungs):
        write(tmp_path / name, MASK if "seg" in name else IMAGE)
    collection = discover(tmp_path)
    assert pairs(collection) == dict(zip(UIDS, zip(names, lungs, strict=True), strict=True))
    assert collection.left_out == ()


def test_dots_of_a_name_are_no_suffix():
    assert derive_case_id(f"subset0/{UIDS[0]}.mhd") == UIDS[0]
    assert parse_name(f"subset0/{UIDS[0]}.mhd").key != parse_name(f"subset0/{UIDS[1]}.mhd").key
    assert parse_name("a/1.2.3.4.56.mhd").key != parse_name("a/1.2.3.45.6.mhd").key


def test_a_segmentation_of_slicer_is_a_mask_whatever_its_name(tmp_path):
    collection = discover(touch(tmp_path, "p1.nrrd", "p1.seg.nrrd", "volume-2.nii", "s/volume-2.seg.nrrd"))
    assert pairs(collection) == {
        "p1": ("p1.nrrd", "p1.seg.nrrd"),
        "volume-2": ("volume-2.nii", "s/volume-2.seg.nrrd"),
    }


def test_headers_without_voxels_and_voxels_without_headers_are_named(tmp_path):
    write(tmp_path / "a.mhd", IMAGE)
    write(tmp_path / "b.mhd", IMAGE)
    (tmp_path / "b.raw").rename(tmp_path / "c.raw")
    write(tmp_path / "d.nhdr", IMAGE)
    shutil.copy(tmp_path / "a.mhd", tmp_path / "shares.mhd")
    (tmp_path / "IM1.dcm.gz").write_bytes(b"x")
    collection = discover(tmp_path)
    assert sorted(pairs(collection)) == ["a", "d", "shares"]
    assert {path.name: reason.split(";")[0] for path, reason in collection.left_out} == {
        "b.mhd": "a header without its file b.raw",
        "c.raw": "voxels without a header that names them",
        "IM1.dcm.gz": "DICOM in gzip",
    }


def test_one_scan_in_two_files_of_one_format_is_read_once(tmp_path):
    for suffix in ("mha", "mhd"):
        write(tmp_path / f"a.{suffix}", IMAGE)
    collection = discover(tmp_path)
    assert pairs(collection) == {"a": ("a.mha", None)}
    assert [(path.name, reason) for path, reason in collection.left_out] == [
        ("a.mhd", "a.mha has the same name and is read instead")
    ]
    write(tmp_path / "a.nii", IMAGE)
    with pytest.raises(PairingError, match="would both become case 'a'"):
        discover(tmp_path)


def test_what_measure_writes_for_slicer_is_no_second_mask(tmp_path):
    collection = discover(
        touch(tmp_path, "ct/1.nii", "masks/1.nii", "measured/1.seg.nrrd", "measured/1.json", "measured/1.html")
    )
    assert pairs(collection) == {"1": ("ct/1.nii", "masks/1.nii")}
    assert [path.name for path, reason in collection.left_out if "which measure wrote" in reason] == ["1.seg.nrrd"]


def test_patterns_and_tables_take_every_format(tmp_path):
    write(tmp_path / "ct" / "1.2.3.mha", IMAGE)
    write(tmp_path / "seg" / "1.2.3.nrrd", MASK)
    assert list(match_pattern(f"{tmp_path}/ct/*.mha").values()) == [tmp_path / "ct" / "1.2.3.mha"]
    (tmp_path / "pairs.csv").write_text("image,mask\nct/1.2.3.mha,seg/1.2.3.nrrd\n")
    for number, source in enumerate(
        (["--pairs", tmp_path / "pairs.csv"], ["--image", f"{tmp_path}/ct/*.mha", "--mask", f"{tmp_path}/seg/*.nrrd"])
    ):
        store = tmp_path / f"store-{number}"
        done = CliRunner().invoke(
            commands(), ["ingest", *map(str, source), "--labels", "a=1,b=2", "--tumor", "b", str(store)]
        )
        assert done.exit_code == 0, done.output
        (case,) = open_store(store).values()
        assert np.array_equal(case.label[:], MASK)


def test_a_run_knows_files_of_voxels_that_have_not_changed(tmp_path):
    write(tmp_path / "in" / "a.mhd", IMAGE)
    run = lambda: ingest(discover(tmp_path / "in"), tmp_path / "store", Params(labels=None), IngestOptions())  # noqa: E731
    assert run().count("done") == 1
    assert run().count("unchanged") == 1
    done = CliRunner().invoke(
        commands(), ["store", "verify", str(tmp_path / "store"), "--source", str(tmp_path / "in")]
    )
    assert done.exit_code == 0, done.output
    changed = bytearray((tmp_path / "in" / "a.raw").read_bytes())
    changed[0] ^= 1
    (tmp_path / "in" / "a.raw").write_bytes(changed)
    assert run().count("done") == 1, "a changed file of voxels is a changed scan"


@pytest.mark.real
@pytest.mark.parametrize("folder", ["elastix-lung-ct", "luna16-style-nodule", "metaio-edge-cases"])
def test_real_collections_are_stored_or_named(folder, tmp_path):
    if not (REAL / folder).is_dir():
        pytest.skip("the real scans (../shared/data) are not here")
    collection = discover(REAL / folder)
    report = ingest(collection, tmp_path / "store", Params(labels=None), IngestOptions())
    stored = open_store(tmp_path / "store").case_ids
    assert report.count("done") == len(stored) > 0
    assert len(stored) + report.count("failed") == len(collection.cases)
    for case in collection.cases:
        if case.case_id in stored:
            image = sitk.ReadImage(str(case.image))
            voxels = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))
            assert np.array_equal(open_store(tmp_path / "store")[case.case_id].image[:], np.rint(voxels))
