"""Which uploaded files belong together: a header gets the data of its own folder, or is refused."""

import itertools
import zipfile
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own documentation's name)

from slicemill.common.errors import ScanError
from slicemill.ct.scan import ScanReader
from slicemill.web.serve.prepare import prepare
from slicemill.web.serve.records import INPUT, LIMITS, PrepareOrder
from slicemill.web.serve.uploads import Names

SHAPE = (3, 8, 8)


def write_scan(folder, suffix, hu):
    """Write a header with its data beside it, and return both with their names below the parent."""
    folder.mkdir(parents=True, exist_ok=True)
    voxels = np.full(SHAPE, hu, dtype=np.int16)
    if suffix == "hdr":
        nib.save(nib.Nifti1Pair(voxels.T, np.diag([-1, -1, 2.5, 1])), folder / "ct.img")
    else:
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / f"ct.{suffix}"))
    files = sorted(folder.iterdir())
    assert len(files) == 2
    return {f"{folder.name}/{file.name}": file.read_bytes() for file in files}


class Uploads:
    """Prepares files as a job does."""

    def __init__(self, folder):
        self.numbers = itertools.count()
        self.folder = folder

    def prepare(self, files, limits=LIMITS):
        folder = self.folder / f"job-{next(self.numbers)}"
        (folder / INPUT).mkdir(parents=True)
        names = Names()
        for shown, content in files:
            (folder / INPUT / names.add(shown).local).write_bytes(content)
        return prepare(folder, PrepareOrder(files=tuple(names.files), limits=limits, picture=None), Names())

    def read(self, files):
        """Return the HU of each scan by its name; the reason for those that are refused."""
        found = {}
        for one in self.prepare(files).candidates:
            if one.choice.refused is None:
                with ScanReader(one.path, "image", hashed=False) as reader:
                    found[one.choice.name] = int(reader.read()[0, 0, 0])
            else:
                found[one.choice.name] = one.choice.refused
        return found


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path)


def pack(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", ["mhd", "nhdr", "hdr"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_header_gets_the_data_of_its_own_folder(uploads, tmp_path, suffix, order):
    files = {**write_scan(tmp_path / "p1", suffix, 10), **write_scan(tmp_path / "p2", suffix, 20)}
    expected = {f"p1/ct.{suffix}": 10, f"p2/ct.{suffix}": 20}
    assert uploads.read(list(files.items())[::order]) == expected
    assert uploads.read([("all.zip", pack(tmp_path / "all.zip", files))]) == expected


@pytest.mark.parametrize("suffix", ["mhd", "nhdr"])
def test_two_archives_with_the_same_names_stay_apart(uploads, tmp_path, suffix):
    archives = []
    for number in (1, 2):
        scan = write_scan(tmp_path / f"p{number}", suffix, 10 * number)
        content = pack(tmp_path / f"{number}.zip", {name.split("/")[1]: data for name, data in scan.items()})
        archives.append((f"{number}.zip", content))
    assert uploads.read(archives) == {f"1.zip/ct.{suffix}": 10, f"2.zip/ct.{suffix}": 20}


@pytest.mark.parametrize("suffix", ["mhd", "nhdr", "hdr"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::3])
def test_files_of_the_same_name_are_refused(uploads, tmp_path, suffix, order):
    files = [*write_scan(tmp_path / "p1", suffix, 10).items(), *write_scan(tmp_path / "p2", suffix, 20).items()]
    flat = [(files[index][0].rpartition("/")[2], files[index][1]) for index in order]
    with pytest.raises(ScanError, match="there are two files"):
        uploads.read(flat)


@pytest.mark.parametrize(
    "field",
    [
        "ElementDataFile = 1.raw",
        "ElementDataFile = 2.raw",
        "ElementDataFile = ct.raw",
        "ElementDataFile = %d.raw 1 1 1",
        "ElementDataFile = LIST\n1.raw",
    ],
)
@pytest.mark.parametrize("suffix", ["mhd", "mha"])
def test_a_header_without_its_data_gets_no_data_of_others(uploads, tmp_path, field, suffix):
    first = write_scan(tmp_path / "p1", "mhd", 10)
    text = first["p1/ct.mhd"].decode()
    header = text[: text.index("ElementDataFile")] + field + "\n"
    found = uploads.read([*first.items(), (f"other/2.{suffix}", header.encode())])
    assert found.pop("p1/ct.mhd") == 10
    assert "is not among the files of its folder" in found[f"other/2.{suffix}"]


@pytest.mark.parametrize("field", ["data file: 1.raw", "Data  File: 1.raw", "datafile: LIST\n1.raw"])
@pytest.mark.parametrize("suffix", ["nhdr", "nrrd"])
def test_an_nrrd_header_without_its_data_gets_no_data_of_others(uploads, tmp_path, field, suffix):
    first = write_scan(tmp_path / "p1", "nhdr", 10)
    lines = first["p1/ct.nhdr"].decode().splitlines()
    header = "\n".join([*(line for line in lines if line and not line.startswith("data file")), field, ""])
    found = uploads.read([*first.items(), (f"other/2.{suffix}", header.encode())])
    assert found.pop("p1/ct.nhdr") == 10
    assert "is not among the files of its folder" in found[f"other/2.{suffix}"]


def test_a_list_of_data_files_is_refused(uploads, tmp_path):
    files = write_scan(tmp_path / "p1", "mhd", 10)
    text = files["p1/ct.mhd"].decode()
    files["p1/ct.mhd"] = text.replace("ElementDataFile = ct.raw", "ElementDataFile = LIST\nct.raw").encode()
    with pytest.raises(ScanError, match="in a list or by a pattern"):
        uploads.prepare(files.items())


def test_a_name_that_is_too_long_still_finds_its_data(uploads, tmp_path):
    files = {f"{'x' * 400}/{name}": data for name, data in write_scan(tmp_path / "p1", "mhd", 10).items()}
    (value,) = uploads.read(files.items()).values()
    assert value == 10


def test_the_limit_of_files_counts_all_archives_together(uploads, tmp_path):
    limits = replace(LIMITS, files=5)
    small = pack(tmp_path / "a.zip", {f"{number}": b"x" for number in range(3)})
    with pytest.raises(ScanError, match="no CT scan"):  # 3 + 2
        uploads.prepare([("a.zip", small), ("1", b"x"), ("2", b"x")], limits)
    with pytest.raises(ScanError, match="with its 3 members there are 6 files; at most 5"):
        uploads.prepare([("a.zip", small), ("b.zip", small)], limits)
    with pytest.raises(ScanError, match="with its 3 members there are 6 files; at most 5"):
        uploads.prepare([("a.zip", small), ("1", b"x"), ("2", b"x"), ("3", b"x")], limits)
