"""The table of docs/reference/odd-scans.md, case by case: each policy, and the warning in the manifest."""

import base64
import gzip
import hashlib
import os
import struct
import threading
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from slicemill.common.errors import GeometryError, InputError, PairingError, ScanError
from slicemill.common.files import read_lines
from slicemill.ct.formats.nifti.header import blank_text, parse_grid, read_header
from slicemill.ct.formats.nifti.names import scan_files
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.scan import ScanReader
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles, discover
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store.reader import open_store
from slicemill.store.tables import read_table
from slicemill.store.writer import prepare_store

pytestmark = pytest.mark.usefixtures("one_worker")

AFFINE = np.array([[-0.8, 0, 0, 9], [0, -0.8, 0, 8], [0, 0, 2.5, -7], [0, 0, 0, 1]])
PAIRS = [nib.Nifti1Pair, nib.Nifti2Pair]


@pytest.fixture
def ct(rng):
    """int16[i, j, k], HU, as nibabel takes it."""
    return rng.integers(-1000, 1500, (12, 10, 6), dtype=np.int16)


def save(path, data, affine=AFFINE, kind=nib.Nifti1Image, **fields):
    picture = kind(data, affine)
    for name, value in fields.items():
        picture.header[name] = value
    nib.save(picture, path)
    return path


def convert(image, mask=None, name="store", **params):
    case = CaseFiles(case_id="x", patient_id="x", image=image, mask=mask, root=image.parent)
    store = prepare_store(image.parent / name)
    info = convert_case(case, Params(labels=LITS_LABELS, **params), store)
    return info, open_store(store)["x"]


class TestGeometry:
    def test_a_mask_whose_header_is_lost_is_refused_by_name_and_accepted_on_the_images_grid(self, tmp_path, ct):
        image = save(tmp_path / "a.nii", ct)
        mask = save(tmp_path / "a_seg.nii", np.zeros(ct.shape, np.uint8), np.eye(4))
        with pytest.raises(
            GeometryError,
            match=r"differ by .* mm. The segmentation's header looks lost \(its affine is the identity\).*trust-image",
        ):
            convert(image, mask)
        info, _ = convert(image, mask, geometry="trust-image")
        assert any(w.startswith("segmentation: the header may be lost") for w in info.warnings)
        assert any("the image's was trusted" in w for w in info.warnings)

    def test_an_image_whose_header_is_lost_is_not_to_be_trusted(self, tmp_path, ct):
        image, mask = (
            save(tmp_path / "a.nii", ct, np.eye(4)),
            save(tmp_path / "a_seg.nii", np.zeros(ct.shape, np.uint8)),
        )
        with pytest.raises(GeometryError, match="The image's header looks lost .*: correct it"):
            convert(image, mask)

    @pytest.mark.parametrize(
        ("linear", "warning"),
        [
            (np.eye(3), "the header may be lost: its voxels are cubes of exactly 1 mm"),
            ([[0.8, 0, 0], [0, 0.8, -1], [0, 0.3, 2.5]], "oblique: an axis leans"),
            ([[0.8, 0, 0], [0, 0.8, 1], [0, 0, 2.5]], "sheared: two axes are 21.8 degrees off the right angle"),
        ],
    )
    def test_odd_geometry_is_stored_as_it_is_with_a_warning_in_the_manifest(self, linear, warning, tmp_path, ct):
        affine = AFFINE.copy()
        affine[:3, :3] = linear
        collection = tmp_path / "scans"
        collection.mkdir()
        save(collection / "volume-1.nii.gz", ct, affine)
        ingest(discover(collection), tmp_path / "store", Params(labels=LITS_LABELS), IngestOptions(workers=1))
        case = open_store(tmp_path / "store")["volume-1"]
        grid = parse_grid(base64.b64decode(case.info.image.header_b64))
        assert np.array_equal(grid.to_file(case.image[:]).T, ct)
        assert np.array_equal(grid.affine, nib.load(collection / "volume-1.nii.gz").affine)
        assert warning in read_table(tmp_path / "store", "manifest")[0]["warnings"]

    def test_a_qform_that_cannot_be_read_is_a_warning_where_there_is_an_sform(self, tmp_path, ct):
        path = save(tmp_path / "a.nii", ct, qform_code=1, quatern_b=5.0, quatern_c=5.0, quatern_d=5.0)
        assert "the qform cannot be read; the sform is used" in convert(path)[0].warnings

    @pytest.mark.parametrize(("unit", "name", "length_mm"), [(1, "meters", 1000.0), (3, "micrometers", 0.001)])
    @pytest.mark.parametrize("form", ["sform", "qform", "spacing"])
    def test_lengths_in_other_units_are_converted_with_a_warning(self, unit, name, length_mm, form, tmp_path, ct):
        scaled = np.diag([1 / length_mm] * 3 + [1.0]) @ AFFINE
        path = save(tmp_path / "a.nii", ct, scaled)
        fields = nib.load(path).header
        fields.set_qform(scaled)
        fields["sform_code"], fields["qform_code"], fields["xyzt_units"] = form == "sform", form == "qform", unit
        path.write_bytes(fields.binaryblock + path.read_bytes()[348:])
        header = read_header(path)
        if form != "spacing":
            assert np.allclose(header.grid.affine, AFFINE, rtol=1e-5, atol=1e-4)
        assert np.allclose(np.linalg.norm(header.grid.affine[:3, :3], axis=0), [0.8, 0.8, 2.5], rtol=1e-6)
        assert f"the header gives lengths in {name}; they were converted to mm" in header.warnings

    def test_an_image_in_meters_and_its_mask_in_mm_lie_on_one_grid(self, tmp_path, ct):
        scaled = np.diag([0.001] * 3 + [1.0]) @ AFFINE
        image = read_header(save(tmp_path / "a.nii", ct, scaled, xyzt_units=1)).grid
        mask = read_header(save(tmp_path / "b.nii", ct, AFFINE, xyzt_units=2)).grid
        assert image.distance_mm(mask) < 0.01

    @pytest.mark.parametrize(("unit", "shown"), [(1, "meters, so a voxel measures"), (3, "micrometers, so a voxel")])
    def test_a_unit_that_makes_impossible_voxels_is_refused(self, unit, shown, tmp_path, ct):
        with pytest.raises(
            GeometryError, match=rf"a\.nii: the header gives lengths in {shown}.*Correct its xyzt_units"
        ):
            convert(save(tmp_path / "a.nii", ct, AFFINE, xyzt_units=unit))

    @pytest.mark.parametrize("place", [1e7, 1e30])
    def test_an_affine_of_kilometers_is_refused(self, place, tmp_path, ct):
        affine = AFFINE.copy()
        affine[0, 3] = place
        with pytest.raises(GeometryError, match="must have numbers within 1,000,000 mm"):
            convert(save(tmp_path / "a.nii", ct, affine))


class TestVoxels:
    def test_float64_that_holds_integers_is_exact_and_no_warning(self, tmp_path, ct):
        info, case = convert(save(tmp_path / "a.nii.gz", ct.astype(np.float64)))
        assert np.array_equal(case.image[:].T, ct)
        assert (info.max_rounding_error_hu, info.warnings) == (0, ())

    def test_slope_and_intercept_give_hu(self, tmp_path):
        path = save(tmp_path / "a.nii", np.arange(24, dtype=np.uint16).reshape(2, 3, 4) * 100)
        content = bytearray(path.read_bytes())
        struct.pack_into("<2f", content, 112, 2.0, -1024.0)
        path.write_bytes(content)
        _, case = convert(path)
        assert np.array_equal(case.image[:].T, np.arange(24).reshape(2, 3, 4) * 200 - 1024)

    def test_an_intercept_with_a_slope_of_0_is_a_warning_and_not_applied(self, tmp_path, ct):
        path = save(tmp_path / "a.nii", ct)
        content = bytearray(path.read_bytes())
        struct.pack_into("<2f", content, 112, 0.0, -1024.0)
        path.write_bytes(content)
        info, case = convert(path)
        assert np.array_equal(case.image[:].T, ct)
        assert any("scl_inter -1024 is not applied" in warning for warning in info.warnings)

    def test_a_slope_with_an_intercept_that_is_no_number_is_refused(self, tmp_path, ct):
        path = save(tmp_path / "a.nii", ct)
        content = bytearray(path.read_bytes())
        struct.pack_into("<2f", content, 112, 2.0, float("nan"))
        path.write_bytes(content)
        with pytest.raises(ScanError, match="scl_slope is 2, but scl_inter is nan"):
            convert(path)

    def test_unsigned_values_without_the_intercept_are_never_shifted(self, tmp_path, rng):
        raw = rng.integers(0, 2500, (4, 4, 4), dtype=np.uint16)
        info, case = convert(save(tmp_path / "a.nii", raw))
        assert np.array_equal(case.image[:].T, raw)
        assert any("may lack the intercept of -1024" in warning for warning in info.warnings)

    def test_color_is_refused(self, tmp_path):
        color = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        with pytest.raises(ScanError, match="A color or complex picture is not a CT"):
            convert(save(tmp_path / "a.nii", color))

    def test_one_volume_in_four_dimensions_and_one_slice_are_a_warning(self, tmp_path, ct):
        info, _ = convert(save(tmp_path / "a.nii", ct[..., None]))
        assert info.warnings == ("4 dimensions hold one volume; the further ones were dropped",)
        info, case = convert(save(tmp_path / "b.nii", ct[:, :, 0]))
        assert (case.image.shape, "a single slice" in info.warnings) == ((1, 10, 12), True)

    def test_a_scan_of_3000_slices_is_a_scan(self, tmp_path, rng):
        volume = rng.integers(-1000, 1000, (6, 5, 3000), dtype=np.int16)
        _, case = convert(save(tmp_path / "a.nii.gz", volume))
        assert np.array_equal(case.image[:].T, volume)


class TestStreams:
    def test_a_header_that_claims_100_gigabytes_costs_neither_memory_nor_disk(self, tmp_path):
        header = nib.Nifti1Header()
        header.set_data_dtype(np.int16)
        header.set_data_shape((5000, 5000, 2000))
        header["vox_offset"] = 352
        content = gzip.compress(header.binaryblock + bytes(4))
        assert len(content) < 150
        (tmp_path / "a.nii.gz").write_bytes(content)
        tracemalloc.start()
        with pytest.raises(ScanError, match=r"claims 100,000,000,352 bytes \(5000x5000x2000 of int16\)"):
            convert(tmp_path / "a.nii.gz")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
        tracemalloc.stop()
        assert sum(path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file()) < 1000

    @pytest.mark.parametrize(("said", "written"), [("a.nii", "b.nii.gz"), ("a.nii.gz", "b.nii")])
    def test_a_name_that_is_wrong_about_gzip_is_read_by_its_bytes_with_a_warning(self, said, written, tmp_path, ct):
        save(tmp_path / written, ct).rename(tmp_path / said)
        info, case = convert(tmp_path / said)
        assert np.array_equal(case.image[:].T, ct)
        assert any(f"the name {said} says" in warning for warning in info.warnings)

    def test_a_folder_a_broken_link_a_circle_and_a_pipe_are_each_one_clear_error(self, tmp_path):
        names = ("volume-1.nii.gz", "volume-2.nii.gz", "volume-3.nii.gz", "volume-4.nii.gz")
        folder, broken, circle, pipe = (tmp_path / name for name in names)
        folder.mkdir()
        broken.symlink_to(tmp_path / "nowhere")
        circle.symlink_to(circle)
        os.mkfifo(pipe)
        errors = {}

        def tell():
            for path in (folder, broken, circle, pipe):
                try:
                    convert(path)
                except InputError as error:
                    errors[path] = str(error)

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), "a pipe was waited for"
        for path, words in (
            (folder, "a scan is a file"),
            (broken, "No such file"),
            (circle, "Too many levels"),
            (pipe, "a pipe"),
        ):
            assert words in errors[path]
            assert str(path) in errors[path]

    def test_unreadable_files_do_not_stop_the_rest_of_a_collection(self, tmp_path, ct):
        collection = tmp_path / "scans"
        collection.mkdir()
        save(collection / "volume-1.nii", ct)
        (collection / "volume-2.nii").symlink_to(tmp_path / "nowhere")
        (collection / "volume-3.nii").symlink_to("volume-3.nii")
        os.mkfifo(collection / "volume-4.nii")
        report = ingest(discover(collection), tmp_path / "store", Params(labels=LITS_LABELS), IngestOptions(workers=1))
        assert (report.count("done"), report.count("failed")) == (1, 3)
        assert {line["case_id"] for line in read_lines(tmp_path / "store" / "failures.jsonl")} == {
            "volume-2",
            "volume-3",
            "volume-4",
        }

    def test_a_file_that_may_not_be_read_is_one_clear_error(self, tmp_path, ct, monkeypatch):
        path = save(tmp_path / "a.nii", ct)
        opened = type(path).open

        def refuse(self, *args, **kwargs):
            if self.name == "a.nii":
                raise PermissionError(13, "Permission denied", str(self))
            return opened(self, *args, **kwargs)

        monkeypatch.setattr(type(path), "open", refuse)
        with pytest.raises(ScanError, match=r"a\.nii: cannot be read: Permission denied"):
            convert(path)

    def test_a_scan_stored_twice_is_an_error_that_names_both(self, tmp_path, ct):
        save(tmp_path / "a.nii", ct)
        save(tmp_path / "a.nii.gz", ct)
        with pytest.raises(PairingError, match=r"a\.nii and .*a\.nii\.gz would both become case 'a'"):
            discover(tmp_path)


class TestExtensions:
    TEXT = b"Jane Doe, born 1960"

    def extended(self, path, ct, content=TEXT):
        picture = nib.Nifti1Image(ct, AFFINE)
        picture.header.extensions.append(nib.nifti1.Nifti1Extension("comment", content))
        nib.save(picture, path)
        return path

    def test_extensions_are_left_out_with_a_warning_unless_text_is_kept(self, tmp_path, ct):
        path = self.extended(tmp_path / "a.nii.gz", ct)
        info, case = convert(path)
        header = base64.b64decode(info.image.header_b64)
        assert (len(header), self.TEXT in header) == (348, False)
        assert info.warnings == (
            "32 bytes of header extensions were left out: they may name a person; --keep-text keeps them",
        )
        assert np.array_equal(case.image[:].T, ct)

    def test_kept_extensions_come_back_bit_for_bit_and_never_into_a_mask(self, tmp_path, ct):
        path = self.extended(tmp_path / "a.nii.gz", ct)
        info, case = convert(path, keep_text=True)
        header = base64.b64decode(info.image.header_b64)
        assert header == gzip.decompress(path.read_bytes())[:384]
        assert info.warnings == ()
        grid = parse_grid(header)
        assert np.array_equal(grid.affine, nib.load(path).affine)
        write_volume(
            tmp_path / "mask.nii", blank_text(header), np.uint8, grid.to_file(np.ones(case.image.shape, np.uint8))
        )
        assert self.TEXT not in (tmp_path / "mask.nii").read_bytes()
        assert np.array_equal(nib.load(tmp_path / "mask.nii").dataobj, np.ones(ct.shape))

    def test_extensions_of_more_than_a_megabyte_are_left_out_even_then(self, tmp_path, ct):
        info, _ = convert(self.extended(tmp_path / "a.nii.gz", ct, bytes(2 << 20)), keep_text=True)
        assert len(base64.b64decode(info.image.header_b64)) == 348
        assert "bytes of header extensions were left out: at most 1,048,576 are kept" in info.warnings[0]


class TestPairs:
    @pytest.mark.parametrize("kind", PAIRS)
    @pytest.mark.parametrize("name", ["a.hdr", "a.hdr.gz"])
    def test_a_pair_is_read_as_the_single_file_would_be(self, name, kind, tmp_path, ct):
        path = save(tmp_path / name, ct, kind=kind)
        mask = save(tmp_path / f"seg_{name}", np.ones(ct.shape, np.uint8), kind=kind)
        info, case = convert(path, mask)
        assert np.array_equal(case.image[:].T, ct)
        assert case.label[:].all()
        assert info.warnings == ()
        content = b"".join(file.read_bytes() for file in scan_files(path))
        assert (info.image.bytes, info.image.sha256) == (len(content), hashlib.sha256(content).hexdigest())

    @pytest.mark.parametrize(
        ("header", "image"), [("a.hdr", "a.img.gz"), ("a.hdr.gz", "a.img"), ("A.HDR", "A.IMG"), ("A.Hdr", "A.img")]
    )
    def test_the_halves_of_a_pair_may_be_compressed_each_on_its_own(self, header, image, tmp_path, ct):
        save(tmp_path / "b.hdr", ct, kind=nib.Nifti1Pair)
        for source, target in (("b.hdr", header), ("b.img", image)):
            content = (tmp_path / source).read_bytes()
            (tmp_path / target).write_bytes(gzip.compress(content) if target.endswith(".gz") else content)
        assert np.array_equal(convert(tmp_path / header)[1].image[:].T, ct)

    def test_voxels_start_where_the_header_says_in_the_img(self, tmp_path, ct):
        path = save(tmp_path / "a.hdr", ct, kind=nib.Nifti1Pair)
        header = bytearray(path.read_bytes())
        struct.pack_into("<f", header, 108, 16.0)
        path.write_bytes(header)
        (tmp_path / "a.img").write_bytes(bytes(16) + (tmp_path / "a.img").read_bytes())
        assert np.array_equal(convert(path)[1].image[:].T, ct)

    def test_a_pair_that_is_no_nifti_pair_is_refused_with_the_way_out(self, tmp_path, ct):
        analyze = save(tmp_path / "a.hdr", ct, kind=nib.AnalyzeImage)
        with pytest.raises(ScanError, match=r"Analyze 7\.5 files hold no orientation: convert it"):
            convert(analyze)
        alone = save(tmp_path / "b.hdr", ct, kind=nib.Nifti1Pair)
        (tmp_path / "b.img").unlink()
        with pytest.raises(ScanError, match=r"b\.img: cannot be read: No such file"):
            convert(alone)
        save(tmp_path / "c.nii", ct).rename(tmp_path / "c.hdr")
        (tmp_path / "c.img").touch()
        with pytest.raises(ScanError, match=r"c\.hdr: .*of a single file; rename it to \.nii"):
            convert(tmp_path / "c.hdr")
        (tmp_path / "d.hdr").write_bytes(bytes(100))
        (tmp_path / "d.img").write_bytes(bytes(1000))
        with pytest.raises(ScanError, match=r"d\.hdr: is not a NIfTI file: it has 100 bytes"):
            convert(tmp_path / "d.hdr")

    def test_a_truncated_img_and_a_header_of_megabytes_are_refused(self, tmp_path, ct):
        path = save(tmp_path / "a.hdr", ct, kind=nib.Nifti1Pair)
        image = tmp_path / "a.img"
        image.write_bytes(image.read_bytes()[:-1])
        with pytest.raises(ScanError, match=r"a\.img: the header claims 1,440 bytes"):
            convert(path)
        (tmp_path / "b.hdr").write_bytes(gzip.compress(bytes(17 << 20)))
        (tmp_path / "b.img").touch()
        with pytest.raises(ScanError, match="at most 16,777,216 bytes"):
            convert(tmp_path / "b.hdr")

    @pytest.mark.parametrize("kind", PAIRS)
    def test_a_mask_of_a_pair_is_a_single_file_on_its_grid(self, kind, tmp_path, ct):
        header = read_header(save(tmp_path / "a.hdr", ct, kind=kind))
        label = np.ones(header.grid.stored_shape, np.uint8)
        write_volume(tmp_path / "mask.nii.gz", blank_text(header.raw), np.uint8, header.grid.to_file(label))
        mask = nib.load(tmp_path / "mask.nii.gz")
        assert isinstance(mask, nib.Nifti1Image)
        assert np.array_equal(mask.affine, nib.load(tmp_path / "a.hdr").affine)
        with ScanReader(tmp_path / "mask.nii.gz", "mask") as reader:
            assert np.array_equal(reader.read(), label)

    def test_a_changed_img_is_a_changed_scan(self, tmp_path, ct):
        collection = tmp_path / "scans"
        collection.mkdir()
        save(collection / "volume-1.hdr", ct, kind=nib.Nifti1Pair)

        def run(**options):
            params, chosen = Params(labels=LITS_LABELS), IngestOptions(workers=1, **options)
            return ingest(discover(collection), tmp_path / "store", params, chosen)

        assert run().count("done") == 1
        assert run().count("unchanged") == run(rehash=True).count("unchanged") == 1
        (collection / "volume-1.img").write_bytes(np.ascontiguousarray(ct.T[::-1]).tobytes())
        assert run().count("done") == 1
        assert np.array_equal(open_store(tmp_path / "store")["volume-1"].image[:], ct.T[::-1])
