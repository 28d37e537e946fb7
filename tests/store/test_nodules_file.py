"""Files of two models: equal bytes for equal models, and everything else refused."""

import zipfile

import pytest

from slicemill.common.errors import ModelError
from slicemill.store.nodules_file import CLASSIFIER, SEGMENTATION, read_bundle, write_bundle


@pytest.fixture
def models(tmp_path):
    (tmp_path / "a").write_bytes(b"one" * 1000)
    (tmp_path / "b").write_bytes(b"two")
    return tmp_path / "a", tmp_path / "b"


def test_what_was_written_is_read_back_and_equal_models_give_equal_bytes(models, tmp_path):
    write_bundle(tmp_path / "m.nodules", *models)
    write_bundle(tmp_path / "n.nodules", *models)
    read = read_bundle(tmp_path / "m.nodules")
    assert (read.segmentation, read.classifier) == tuple(path.read_bytes() for path in models)
    assert (tmp_path / "m.nodules").read_bytes() == (tmp_path / "n.nodules").read_bytes()


@pytest.mark.parametrize(
    ("entries", "compression", "reason"),
    [
        ([(SEGMENTATION, b"x")], zipfile.ZIP_STORED, "exactly the entries"),
        ([(SEGMENTATION, b"x"), (CLASSIFIER, b"y"), ("../evil", b"z")], zipfile.ZIP_STORED, "exactly the entries"),
        ([(SEGMENTATION, b"x"), (CLASSIFIER, b"y"), (CLASSIFIER, b"z")], zipfile.ZIP_STORED, "exactly the entries"),
        ([(SEGMENTATION, bytes(10**6)), (CLASSIFIER, b"y")], zipfile.ZIP_DEFLATED, "without compression"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_archives_are_refused(entries, compression, reason, tmp_path):
    path = tmp_path / "m.nodules"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    with pytest.raises(ModelError, match=rf"m.nodules: .*{reason}"):
        read_bundle(path)


@pytest.mark.parametrize("keep", [0, 10, 1500, 3100])
def test_a_damaged_archive_is_refused(models, keep, tmp_path):
    path = tmp_path / "m.nodules"
    write_bundle(path, *models)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="is not a file of two models"):
        read_bundle(path)


def test_a_flipped_bit_is_found(models, tmp_path):
    path = tmp_path / "m.nodules"
    write_bundle(path, *models)
    data = bytearray(path.read_bytes())
    data[500] ^= 4
    path.write_bytes(data)
    with pytest.raises(ModelError, match="is not a file of two models"):
        read_bundle(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="is not a file of two models"):
        read_bundle(tmp_path / "none.nodules")
