"""Case ids: the names of the images, or their paths where names are equal."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath

from slicemill.ct.naming import derive_case_id

SHOWN = 3
"""Number of ids that a note lists."""


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
    """Return the ids, those that occur more than once replaced by longer ones, and a note about them."""
    images_of: dict[str, list[str]] = defaultdict(list)
    for path, case_id in ids.items():
        images_of[case_id].append(path)
    collided = [path for paths in images_of.values() if len(paths) > 1 for path in paths]
    if not collided:
        return dict(ids), []
    found = {path: longer[path] if len(images_of[case_id]) > 1 else case_id for path, case_id in ids.items()}
    examples = ", ".join(f"{path} is {found[path]}" for path in collided[:SHOWN])
    note = (
        f"{len(collided)} scans share a name with another one and get a case id of their path: {examples}. "
        "Each id counts as a patient; to keep scans of one patient together in a split, pass --patient."
    )
    return found, [note]


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
