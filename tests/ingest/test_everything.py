"""All real samples in one collection: each file is of a case, or is named with a reason, or is a text."""

import re

import pytest

from slicemill.ct.formats.dicom.lookup import find_series
from slicemill.ct.formats.open import scan_files
from slicemill.ingest.request import IngestRequest

pytestmark = pytest.mark.usefixtures("one_worker")

TEXTS = re.compile(r"(README|SOURCE|LICENSE|COPYING|NOTICE).*|.*\.(md|csv|txt)", re.IGNORECASE)


def files_of(path):
    """Return the files of an image or mask; a folder holds one series."""
    if path.is_dir():
        return {plane.header.file.path for plane in find_series(path).planes}
    return set(scan_files(path))


@pytest.mark.real
def test_every_file_is_of_a_case_or_is_named_with_a_reason(real_data):
    collection = IngestRequest(source=real_data, store=None).collection()
    assert len({case.case_id for case in collection.cases}) == len(collection.cases) > 50
    used = {file for case in collection.cases for path in (case.image, *case.mask_files) for file in files_of(path)}
    left_out = {one.path for one in collection.left_out}
    assert all(one.reason for one in collection.left_out)
    stems = {path.with_suffix("") for path in left_out}
    unnamed = [
        path
        for path in real_data.rglob("*")
        if path.is_file()
        and path not in used | left_out
        and not TEXTS.fullmatch(path.name)
        and path.with_suffix("") not in stems  # the voxels of a header that is left out
    ]
    assert unnamed == []
    assert sum(case.dicom is not None for case in collection.cases) >= 4
    assert any(case.mask is not None and case.mask.name == "liver.dcm" for case in collection.cases)
