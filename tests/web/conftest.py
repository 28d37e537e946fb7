"""A scan with a mask, and servers that show it."""

from pathlib import Path

import pytest

from slicemill.ct.labels import LITS_LABELS
from slicemill.web.entries import ViewRequest, find_entries
from tests.web.made import make_image, make_mask, write_scan

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A scan and its mask."""
    folder = tmp_path_factory.mktemp("files")
    return write_scan(folder / "ct.nii.gz", make_image(), "RAS"), write_scan(folder / "mask.nii", make_mask(), "LAS")


@pytest.fixture(scope="session")
def entries(files):
    scan, mask = files
    return find_entries(ViewRequest(path=scan, masks=(mask,), labels=LITS_LABELS))


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium."""
    if not CHROMIUM.exists():
        pytest.skip(f"Chromium ({CHROMIUM}) is not here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()
