"""What the files of a folder are: series, scouts, copies, stacks, other objects."""

import zipfile
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from slicemill.common.errors import ScanError
from slicemill.ct.formats.dicom.discover import find_dicom
from slicemill.ct.formats.dicom.folders import read_folder
from slicemill.ct.formats.dicom.lookup import find_series, open_series, read_series
from slicemill.ct.formats.dicom.series import Refused, Series
from slicemill.ct.scan import ScanReader
from tests.ct.dicom.made import make_series, make_slice, make_volume, save, save_series, write_series
from tests.ct.dicom.test_orders import read


def found(folder):
    """Return the names of the series below a folder, and the reasons of the other files by name."""
    result = find_dicom(folder)
    return [one.relative for one in result.series], {path.name: why for path, why in result.left_out}


def test_two_series_of_a_folder_are_two_cases_named_by_their_numbers(tmp_path):
    slices = make_series(make_volume()) + make_series(make_volume(seed=2), SeriesInstanceUID="1.9", SeriesNumber=12)
    save_series(tmp_path / "p1", slices)
    result = find_dicom(tmp_path)
    assert [one.relative for one in result.series] == ["p1_3", "p1_12"]
    assert [one.location.name for one in result.series] == ["IM001", "IM006"]
    for one, seed in zip(result.series, (1, 2), strict=True):
        assert np.array_equal(read(one.location)[0], make_volume(seed=seed) - 1024)


def test_series_with_one_number_get_a_second_number(tmp_path):
    save_series(tmp_path / "p1", make_series(make_volume()) + make_series(make_volume(seed=2), SeriesInstanceUID="1.9"))
    assert found(tmp_path)[0] == ["p1_3_1", "p1_3_2"]


def test_a_series_number_that_is_text_names_nothing(tmp_path):
    slices = make_series(make_volume()) + make_series(make_volume(), SeriesInstanceUID="1.9", SeriesNumber=4)
    folder = save_series(tmp_path / "p1", slices)
    for path in sorted(folder.iterdir())[:5]:
        dataset = pydicom.dcmread(path)
        dataset["SeriesNumber"] = pydicom.DataElement(0x00200011, "LO", "Doe")
        pydicom.dcmwrite(path, dataset)
    assert found(tmp_path)[0] == ["p1_1", "p1_4"]


def test_scouts_are_left_out_by_their_type_and_by_their_number(tmp_path):
    slices = make_series(make_volume())
    scout = make_slice(make_volume()[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    other = make_slice(make_volume()[0], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    save_series(tmp_path / "p1", [scout, *slices, other])
    names, left_out = found(tmp_path)
    assert names == ["p1"]
    assert "LOCALIZER" in left_out["IM001"]
    assert "a scout or a stray slice: 1 of its series" in left_out["IM007"]


def test_other_objects_are_named_for_what_they_are(tmp_path):
    classes = {
        "1.2.840.10008.5.1.4.1.1.66.4": "a DICOM segmentation (SEG)",
        "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT",
        "1.2.840.10008.5.1.4.1.1.88.67": "structured report",
        "1.2.840.10008.5.1.4.1.1.7": "secondary capture",
        "1.2.840.10008.5.1.4.1.1.128": "PET",
        "1.2.840.10008.5.1.4.1.1.481.2": "dose",
    }
    for number, uid in enumerate(classes):
        save(make_slice(make_volume()[0], SOPClassUID=uid), tmp_path / f"o{number}")
    names, left_out = found(tmp_path)
    assert names == []
    for number, what in enumerate(classes.values()):
        assert what in left_out[f"o{number}"]
    with pytest.raises(ScanError, match="holds no CT series"):
        read_series(tmp_path)


def test_a_copied_file_counts_once_and_a_changed_copy_refuses_the_series(tmp_path):
    slices = make_series(make_volume())
    folder = save_series(tmp_path / "p1", slices)
    sha256 = read(folder)[2]
    (folder / "IM003 (copy)").write_bytes((folder / "IM003").read_bytes())
    names, left_out = found(tmp_path)
    assert names == ["p1"]
    assert left_out["IM003 (copy)"] == "a copy of IM003"
    assert read(folder)[2] == sha256
    slices[2].PixelData = bytes(len(slices[2].PixelData))
    save(slices[2], folder / "IM003 (copy)")
    with pytest.raises(ScanError, match=r"IM003 and IM003 \(copy\) have one SOPInstanceUID"):
        read(folder)


class TestStacks:
    @pytest.mark.parametrize("tag", ["AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime"])
    def test_phases_are_scans_of_their_own(self, tag, tmp_path):
        slices = make_series(make_volume(), **{tag: 1}) + make_series(make_volume(seed=2), **{tag: 2})
        folder = save_series(tmp_path / "p1", slices)
        series = read_series(folder)
        assert [one.number for one in series] == ["3_1", "3_2"]
        for one, seed in zip(series, (1, 2), strict=True):
            assert np.array_equal(read(one.location)[0], make_volume(seed=seed) - 1024)
            assert any("one of 2 stacks" in warning for warning in one.warnings)

    def test_two_slices_at_one_position_without_a_difference_are_refused(self, tmp_path):
        slices = [*make_series(make_volume()), make_slice(make_volume()[0], (-10, -20, -25))]
        save_series(tmp_path / "p1", slices)
        with pytest.raises(ScanError, match=r"6 slices at 5 positions: IM003, IM006 lie at one position. No tag"):
            read(tmp_path / "p1")

    def test_incomplete_stacks_are_refused_with_the_tags_that_differ(self, tmp_path):
        slices = make_series(make_volume(), AcquisitionNumber=1)
        slices += make_series(make_volume(seed=2), AcquisitionNumber=2)[:3]
        save_series(tmp_path / "p1", slices)
        with pytest.raises(
            ScanError, match="They differ in AcquisitionNumber .0020,0012.; ContentTime|They differ in Acq"
        ):
            read(tmp_path / "p1")

    def test_slices_side_by_side_are_refused(self, tmp_path):
        slices = make_series(make_volume()) + make_series(make_volume(), start=(90, -20, -30))
        save_series(tmp_path / "p1", slices)
        with pytest.raises(ScanError, match="lie side by side in one plane, 100 mm apart"):
            read(tmp_path / "p1")


def test_parts_of_a_series_in_two_folders_are_not_two_scans(tmp_path):
    slices = make_series(make_volume((8, 4, 4)))
    save_series(tmp_path / "a", slices[:4])
    save_series(tmp_path / "b", slices[4:])
    names, left_out = found(tmp_path)
    assert names == []
    assert "a part of a series that lies in 2 folders" in left_out["a"]


def test_a_copied_folder_is_a_scan_of_its_own(tmp_path):
    slices = make_series(make_volume())
    save_series(tmp_path / "a", slices)
    save_series(tmp_path / "b", slices)
    assert found(tmp_path)[0] == ["a", "b"]


def test_files_are_found_by_content_whatever_their_name(tmp_path):
    for number, one in enumerate(make_series(make_volume())):
        save(one, tmp_path / "p1" / ["IM0", "CT.1.3.12.2", "x.dcm", "slice.IMA", "noext"][number])
    for name in ("._IM0", "Thumbs.db", "VERSION", "LOCKFILE", "notes.txt"):
        (tmp_path / "p1" / name).write_bytes(b"something else")
    (tmp_path / "p1" / "viewer").write_bytes(b"MZ" + bytes(300))
    names, left_out = found(tmp_path)
    assert names == ["p1"]
    assert left_out == {"viewer": "is not DICOM, in a folder of DICOM files"}
    assert read(tmp_path / "p1")[0].shape == (5, 6, 7)


@pytest.mark.parametrize("implicit", [False, True])
def test_files_without_preamble_are_read_if_they_say_their_class(implicit, tmp_path):
    folder = save_series(tmp_path / "p1", make_series(make_volume()))
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.file_meta
        dataset.preamble = None
        pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[:1] == b"\x08"
    assert np.array_equal(read(folder)[0], make_volume() - 1024)


def test_dicomdir_is_not_followed(tmp_path):
    folder = save_series(tmp_path / "p1", make_series(make_volume()))
    save(make_slice(make_volume()[0], (-10, -20, -32.5)), tmp_path / "outside" / "IM")
    record, index = pydicom.Dataset(), pydicom.Dataset()
    record.DirectoryRecordType = "IMAGE"
    record.add_new(0x00041500, "LO", ["..", "outside", "IM"])
    index.file_meta = pydicom.dataset.FileMetaDataset()
    index.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    index.SOPClassUID, index.SOPInstanceUID = "1.2.840.10008.1.3.10", "1.2"
    index.DirectoryRecordSequence = [record]
    pydicom.dcmwrite(folder / "DICOMDIR", index, enforce_file_format=True)
    assert len(read_folder(folder).series[0].planes) == 5


def test_a_location_is_a_folder_or_a_file_of_a_series(tmp_path):
    folder = save_series(tmp_path / "p1", make_series(make_volume()))
    assert open_series(folder) == open_series(folder / "IM004")
    (folder / "notes").write_text("no DICOM")
    with pytest.raises(ScanError, match="is not a file of a CT series"):
        find_series(folder / "notes")
    with pytest.raises(ScanError, match="cannot be read"):
        find_series(folder / "absent")
    save_series(folder, make_series(make_volume(), SeriesInstanceUID="1.9"), name="Z{}")
    with pytest.raises(ScanError, match=r"holds 2 CT series \(IM001, Z1\); name the first file"):
        find_series(folder)


def test_a_truncated_slice_and_a_damaged_header_refuse_the_series(tmp_path):
    folder = save_series(tmp_path / "p1", make_series(make_volume()))
    data = (folder / "IM003").read_bytes()
    (folder / "IM003").write_bytes(data[:-10])
    with pytest.raises(ScanError, match=r"IM003.*(ends early|bytes)"):
        read(folder)
    (folder / "IM003").write_bytes(data)
    (folder / "IM005").write_bytes(data[:200])
    with pytest.raises(ScanError, match=r"IM005 in the same folder cannot be read and may be one of its slices"):
        read(folder)


def test_a_link_that_leads_nowhere_may_be_a_slice(tmp_path):
    """As in collections of which only a part was fetched: the series would end early without a word."""
    folder = save_series(tmp_path / "p1", make_series(make_volume()))
    (folder / "IM005").rename(tmp_path / "fetched")
    (folder / "IM005").symlink_to(tmp_path / "fetched")
    assert read(folder)[0].shape == make_volume().shape
    (tmp_path / "fetched").unlink()
    with pytest.raises(ScanError, match=r"IM005 in the same folder cannot be read and may be one of its slices"):
        read(folder)
    assert "No such file" in dict(find_dicom(tmp_path).left_out)[folder / "IM005"]


def test_a_file_that_changes_after_the_listing_is_no_silent_mixture(tmp_path):
    folder = save_series(tmp_path / "p1", make_series(make_volume()))
    with ScanReader(folder, "image") as reader:
        save(make_slice(make_volume()[1], (0, 0, 0), PatientID="longer than before"), folder / "IM003")
        with pytest.raises(ScanError, match=r"IM003: changed during reading"):
            reader.read()


class TestZip:
    def make(self, path, members):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return path

    def slices(self, tmp_path, **tags):
        folder = save_series(tmp_path / "source", make_series(make_volume(), **tags))
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def test_an_archive_is_one_scan_and_its_members_names_are_no_paths(self, tmp_path):
        names = ["../../etc/x", "/etc/passwd", "C:\\x", "deep/er/a", "plain"]
        members = dict(zip(names, self.slices(tmp_path).values(), strict=True))
        path = self.make(tmp_path / "in" / "scan.zip", members) if (tmp_path / "in").mkdir() is None else None
        result = find_dicom(tmp_path / "in")
        assert [(one.location, one.relative) for one in result.series] == [(path, "scan")]
        assert np.array_equal(read(path)[0], make_volume() - 1024)
        assert read(path)[2] == read(tmp_path / "source")[2]
        assert {one.name for one in tmp_path.rglob("*")} >= {"scan.zip"}
        assert not (tmp_path.parent / "etc").exists()

    def refusal(self, path):
        result = find_dicom(path.parent)
        assert result.series == ()
        return dict(result.left_out)[path]

    def test_bombs_links_encryption_and_several_series_are_left_out_with_the_reason(self, tmp_path, monkeypatch):
        (tmp_path / "in").mkdir()
        path = self.make(tmp_path / "in" / "a.zip", {"x": bytes(50 << 20)})
        assert "zip bomb" in self.refusal(path)
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(link, "/etc/passwd")
        assert "is a link" in self.refusal(path)
        path.write_bytes(b"PK\3\4 nothing")
        assert "no readable zip" in self.refusal(path)
        self.make(path, {"x": b"1"})
        data = bytearray(path.read_bytes())
        data[6] |= 1
        data[data.rindex(b"PK\1\2") + 8] |= 1
        path.write_bytes(data)
        assert "encrypted" in self.refusal(path)
        members = self.slices(tmp_path)
        other = self.slices(tmp_path, SeriesInstanceUID=generate_uid())
        self.make(path, members | {f"b/{name}": data for name, data in other.items()})
        assert "an archive of 2 CT series; unpack it" in self.refusal(path)
        monkeypatch.setattr("slicemill.ct.formats.dicom.archive.MAX_MEMBERS", 3)
        assert "at most 3 are read" in self.refusal(path)

    @pytest.mark.parametrize(
        ("members", "reason"),
        [
            ({}, "an archive without DICOM; unpack it"),
            ({"scan.nii.gz": b"x", "notes": b"text"}, "an archive without DICOM; unpack it"),
            ({"Inner.ZIP": b"PK"}, "an archive without DICOM; unpack it"),
        ],
    )
    def test_an_archive_without_a_scan_is_named(self, members, reason, tmp_path):
        (tmp_path / "in").mkdir()
        assert reason in self.refusal(self.make(tmp_path / "in" / "a.zip", members))

    def test_the_members_beside_the_scan_of_an_archive_are_counted(self, tmp_path):
        save(make_slice(make_volume()[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG"), tmp_path / "seg")
        (tmp_path / "in").mkdir()
        members = {
            **self.slices(tmp_path),
            "seg": (tmp_path / "seg").read_bytes(),
            "viewer.zip": b"PK",
            "DICOMDIR": b"x",
        }
        path = self.make(tmp_path / "in" / "a.zip", members)
        result = find_dicom(tmp_path / "in")
        assert [one.location for one in result.series] == [path]
        (left_out,) = result.left_out
        assert left_out[0] == path
        assert left_out[1].startswith("2 members beside its scan (")
        assert "SEG" in left_out[1]

    def test_a_damaged_member_is_an_error_of_the_archive(self, tmp_path):
        path = self.make(tmp_path / "scan.zip", self.slices(tmp_path))
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
        path.write_bytes(data)
        with pytest.raises(ScanError, match="scan.zip"):
            read(path)


def test_refused_series_are_told_from_good_ones(tmp_path):
    save_series(tmp_path / "p1", make_series(make_volume()))
    write_series(tmp_path / "p1" / "deeper", PhotometricInterpretation="MONOCHROME1")
    kinds = {one.relative: type(one.series) for one in find_dicom(tmp_path).series}
    assert kinds == {"p1": Series, "p1/deeper": Refused}


@pytest.mark.parametrize("vr", [b"U\xe0", b"D\0", b"\0\0"])
@pytest.mark.parametrize("tag", [b"\x28\0\x54\x10", b"\x20\0\x32\0"])
def test_an_unknown_type_of_an_element_is_a_damaged_file(vr, tag, tmp_path):
    """The tag walker leaves such a file to pydicom, which raises NotImplementedError."""
    write_series(tmp_path / "in" / "p1")
    path = tmp_path / "in" / "p1" / "IM005"
    content = path.read_bytes()
    at = content.index(tag)
    path.write_bytes(content[: at + 4] + vr + content[at + 6 :])
    with pytest.raises(ScanError, match="IM005"):
        open_series(tmp_path / "in" / "p1")


def test_damage_inside_a_deflated_file_is_named(tmp_path):
    volume = make_volume()
    save_series(tmp_path / "in" / "p1", make_series(volume), "1.2.840.10008.1.2.1.99")
    path = tmp_path / "in" / "p1" / "IM005"
    content = path.read_bytes()
    start = 132
    while content[start : start + 2] == b"\x02\0":
        is_long = content[start + 4 : start + 6] == b"OB"
        length = int.from_bytes(
            content[start + 8 : start + 12] if is_long else content[start + 6 : start + 8], "little"
        )
        start += (12 if is_long else 8) + length
    inner = zlib.decompress(content[start:], -15)
    packer = zlib.compressobj(wbits=-15)
    path.write_bytes(content[:start] + packer.compress(inner[:4] + b"??" + inner[6:]) + packer.flush())
    with pytest.raises(ScanError, match="its inflated elements are damaged"):
        open_series(tmp_path / "in" / "p1")


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1"])
def test_a_slice_with_too_few_pixels_is_named(syntax, tmp_path):
    slices = make_series(make_volume())
    slices[3].PixelData = slices[3].PixelData[:40]
    save_series(tmp_path / "p1", slices, syntax)
    with pytest.raises(ScanError, match="IM004"), ScanReader(tmp_path / "p1", "image") as reader:
        reader.read()
