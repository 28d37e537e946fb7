"""Case ids: the names of the images, or their paths where names are equal."""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath

from slicemill.common.errors import StoreError
from slicemill.common.terminal import count_noun
from slicemill.ct.naming import derive_case_id
from slicemill.store.layout import check_case_id

SHOWN = 3
"""Number of ids that a note lists."""
KEPT_BYTES = 100
"""Bytes of a name that is too long for an id; a hash of the whole name follows them."""


def choose_case_ids(stems: Mapping[str, str], top: str) -> tuple[dict[str, str], list[str]]:
    """Return the case id of each image, and notes about ids that were made from paths.

    Parameters
    ----------
    stems
        Path of an image relative to its collection -> its name without suffix and channel.
    top
        Name of the collection's folder, the id of an image at the top whose name identifies nothing.

    >>> choose_case_ids({"p1/venous.nii": "venous", "p2/venous.nii": "venous", "p2/late.nii": "late"}, "x")[0]
    {'p1/venous.nii': 'p1_venous', 'p2/venous.nii': 'p2_venous', 'p2/late.nii': 'late'}
    """
    ids = {path: _name_image(path, stem, top) for path, stem in stems.items()}
    return separate_case_ids(ids, {path: join_path(path, stem) for path, stem in stems.items()})


def separate_case_ids(ids: Mapping[str, str], longer: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return ids that are valid, those that occur more than once replaced by longer ones, and notes about changes."""
    valid = {path: fit_case_id(case_id) for path, case_id in ids.items()}
    changed = [path for path in ids if valid[path] != ids[path]]
    notes = []
    if changed:
        examples = ", ".join(f"{path} is {valid[path]}" for path in changed[:SHOWN])
        notes = [f"{count_noun(len(changed), 'name')} of scans cannot be a case id and was changed: {examples}."]
    images_of: dict[str, list[str]] = defaultdict(list)
    for path, case_id in valid.items():
        images_of[case_id].append(path)
    collided = [path for paths in images_of.values() if len(paths) > 1 for path in paths]
    if not collided:
        return valid, notes
    found = {
        path: fit_case_id(longer[path]) if len(images_of[case_id]) > 1 else case_id for path, case_id in valid.items()
    }
    examples = ", ".join(f"{path} is {found[path]}" for path in collided[:SHOWN])
    note = (
        f"{len(collided)} scans share a name with another one and get a case id of their path: {examples}. "
        "Each id counts as a patient; to keep scans of one patient together in a split, pass --patient."
    )
    return found, [*notes, note]


def fit_case_id(name: str) -> str:
    """Return a valid case id: the name if it is one, else the name without what an id must not have.

    >>> fit_case_id("volume-0"), fit_case_id("new\\nline"), fit_case_id("__x")
    ('volume-0', 'new_line', 'x')
    """
    try:
        return check_case_id(name)
    except StoreError:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
        plain = re.sub(r"[/\\\x00-\x1f]+", "_", name).lstrip("._") or f"scan_{digest}"
        try:
            return check_case_id(plain)
        except StoreError:
            start = os.fsencode(plain)[:KEPT_BYTES].decode(errors="ignore")
            return check_case_id(f"{start}_{digest}")


def _name_image(path: str, stem: str, top: str) -> str:
    parts = PurePosixPath(path)
    plain = parts.with_name(f"{stem}.nii").as_posix()
    derived = derive_case_id(plain if len(parts.parts) > 1 else f"{top}/{plain}")
    return stem if derived == stem.removesuffix("_0000") else derived  # a number that is no channel stays


def join_path(path: str, stem: str) -> str:
    """Return a case id made of the folders of a path and a name.

    >>> join_path("p1/ct/venous.nii", "venous")
    'p1_ct_venous'
    """
    folders = PurePosixPath(path).parent.parts
    return "_".join(part for part in (*folders, stem) if part not in ("", "/", ".", ".."))
