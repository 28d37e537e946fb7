"""A scan with a mask, and servers that show it."""

import pytest

from slicemill.ct.labels import LITS_LABELS
from slicemill.web.entries import ViewRequest, find_entries
from tests.web.made import make_image, make_mask, write_scan


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A scan and its mask."""
    folder = tmp_path_factory.mktemp("files")
    return write_scan(folder / "ct.nii.gz", make_image(), "RAS"), write_scan(folder / "mask.nii", make_mask(), "LAS")


@pytest.fixture(scope="session")
def entries(files):
    scan, mask = files
    return find_entries(ViewRequest(path=scan, masks=(mask,), labels=LITS_LABELS))
