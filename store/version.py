"""Versions of a stored case: an open case is read in one version, or not at all.

The writer replaces a case as a whole, with a new group document. A reader notes the version of that document before it
reads anything of the case, and checks it after each file that it opens.
"""

import os
from dataclasses import dataclass

from slicemill.common.errors import StoreError
from slicemill.common.files import MAX_DOCUMENT_BYTES, Location
from slicemill.common.remote import RemotePath, Status
from slicemill.store.layout import DOCUMENT, GROUP


def stored_version(root: Location, case_id: str) -> str | None:
    """Return a version tag of the stored case, which changes when a run replaces it, or None if it is absent."""
    return _read_tag(root / GROUP / case_id)


def _read_tag(folder: Location) -> str | None:
    try:
        return _make_tag((folder / DOCUMENT).stat())
    except OSError:
        return None


def _make_tag(status: Status | os.stat_result) -> str:
    return f"{status.st_mtime_ns}/{status.e_tag if isinstance(status, Status) else status.st_ino}"


@dataclass(frozen=True, slots=True)
class CaseVersion:
    """The version in which a case was opened."""

    folder: Location
    tag: str | None

    def check(self) -> None:
        """Check that the case still has this version.

        Raises
        ------
        StoreError
            Another version has replaced it, or it was removed.
        """
        if _read_tag(self.folder) != self.tag:
            raise self.replaced()

    def replaced(self) -> StoreError:
        """Return the error about a case that was replaced."""
        return StoreError("was replaced or removed while it was open. Open the store again.", where=self.folder)


def read_versioned(folder: Location) -> tuple[CaseVersion, bytes | None]:
    """Return the present version of the case in a folder, and in a bucket the group document of this very version.

    One request does both. None stands for a document that is still to be read, or cannot be.
    """
    if not isinstance(folder, RemotePath):
        return note_version(folder), None
    try:
        data, status = (folder / DOCUMENT).read_with_status(MAX_DOCUMENT_BYTES)
    except OSError:
        return CaseVersion(folder, None), None
    return CaseVersion(folder, _make_tag(status)), data


def note_version(folder: Location) -> CaseVersion:
    """Return the present version of the case in a folder."""
    return CaseVersion(folder, _read_tag(folder))
