"""Headers of a folder's files to series: which files belong together, which are no scan, and which are copies.

1. Files are grouped by series, SOP class, frame of reference, size, spacing, orientation and kind of pixels.
2. A group with another orientation of one or two slices beside a large one of its series is a scout, and so is a file
   whose ImageType says LOCALIZER.
3. Files with one SOPInstanceUID are copies: one of them is used if their pixels are the same bytes, else the series is
   refused.
4. Several slices at one position are split by PHASE_TAGS into stacks of equal positions, else the series is refused.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slicemill.common.errors import ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.dicom.files import OpenFile
from slicemill.ct.formats.dicom.header import FileHeader
from slicemill.ct.formats.dicom.planes import KNOWN_CODES, Plane, show_uid
from slicemill.ct.formats.dicom.stack import check_side_by_side, find_places
from slicemill.ct.formats.dicom.uids import CT_CLASSES, describe_class

SAME_SPACING, SAME_DIRECTION = 1e-4, 1e-3
"""Largest differences of PixelSpacing (mm) and of ImageOrientationPatient within a group."""
SCOUT_SLICES = 2
"""Most slices of a group that is a scout beside a larger group of its series."""
PHASE_TAGS = (
    "AcquisitionNumber (0020,0012)",
    "TemporalPositionIndex (0020,9128) or Identifier (0020,0100)",
    "TriggerTime (0018,1060) or StackID (0020,9056)",
    "ContentTime (0008,0033)",
)
LeftOutFiles = list[tuple[Location, str]]


@dataclass(frozen=True, slots=True)
class Group:
    """Planes that may be one box."""

    planes: tuple[Plane, ...]
    notes: tuple[str, ...] = ()


def describe_other(header: FileHeader) -> str:
    """Return why a file is no CT slice; empty if it may be one."""
    identity = header.identity
    if identity.sop_class not in CT_CLASSES and not (not identity.sop_class and identity.modality == "CT"):
        modality = identity.modality if identity.modality in KNOWN_CODES else ""
        return f"{describe_class(show_uid(identity.sop_class) if identity.sop_class else '', modality)}, not a CT"
    if "LOCALIZER" in identity.image_type[2:3]:
        return "a scout (ImageType LOCALIZER), not a scan"
    return ""


def group_planes(planes: Iterable[Plane]) -> list[list[Plane]]:
    """Return planes in groups of one series, one grid within the slice, and one kind of pixels."""
    exact: dict[Any, list[list[Plane]]] = defaultdict(list)
    for plane in planes:
        identity, form = plane.header.identity, plane.header.format
        key = (
            identity.series_uid, identity.sop_class, identity.frame_of_reference_uid, form.rows, form.columns,
            form.bits_allocated, form.is_signed, form.photometric,
        )  # fmt: skip
        alike = exact[key]
        group = next((some for some in alike if _lies_like(plane, some[0])), None)
        if group is None:
            alike.append([plane])
        else:
            group.append(plane)
    return [group for alike in exact.values() for group in alike]


def _lies_like(plane: Plane, other: Plane) -> bool:
    if plane.spacing == other.spacing and plane.orientation == other.orientation:
        return True
    return bool(
        np.abs(np.subtract(plane.spacing, other.spacing)).max() <= SAME_SPACING
        and np.abs(np.subtract(plane.orientation, other.orientation)).max() <= SAME_DIRECTION
    )


def remove_scouts(groups: Sequence[list[Plane]]) -> tuple[list[list[Plane]], LeftOutFiles]:
    """Return the groups that are scans, and the files of scouts."""
    largest: dict[str, int] = defaultdict(int)
    for group in groups:
        uid = group[0].header.identity.series_uid
        largest[uid] = max(largest[uid], len(group))
    scans, scouts = [], []
    for group in groups:
        size = largest[group[0].header.identity.series_uid]
        if len(group) <= SCOUT_SLICES < size:
            scouts += [
                (
                    plane.header.file.path,
                    f"a scout or a stray slice: {len(group)} of its series have its geometry, {size} another",
                )
                for plane in group
            ]
        else:
            scans.append(group)
    return scans, scouts


def remove_copies(planes: Sequence[Plane]) -> tuple[list[Plane], LeftOutFiles]:
    """Return planes without copied files; the first file of each instance stays.

    Raises
    ------
    ScanError
        Two files have one SOPInstanceUID, but their pixels differ.
    """
    first: dict[tuple[str, int], Plane] = {}
    kept: list[Plane] = []
    copies: LeftOutFiles = []
    for plane in planes:
        known = first.setdefault((plane.sop_instance_uid, plane.frame), plane) if plane.sop_instance_uid else plane
        if known is plane:
            kept.append(plane)
            continue
        if known.position != plane.position or (plane.frame == 0 and not _have_same_pixels(known.header, plane.header)):
            raise ScanError(
                f"{known.name} and {plane.name} have one SOPInstanceUID (0008,0018), but other pixels or positions. "
                "Remove the file that is wrong."
            )
        if plane.frame == 0:
            copies.append((plane.header.file.path, f"a copy of {known.name}"))
    return kept, copies


def _have_same_pixels(one: FileHeader, other: FileHeader) -> bool:
    """Return whether the encoded pixels of two files, with all that follows them, are the same bytes."""
    if one.format.syntax != other.format.syntax:
        return False
    left = one.file.size - one.pixel_offset
    if left != other.file.size - other.pixel_offset:
        return False
    with OpenFile(one.file) as first, OpenFile(other.file) as second:
        for at in range(0, left, 1 << 20):
            count = min(1 << 20, left - at)
            if first.read(one.pixel_offset + at, count) != second.read(other.pixel_offset + at, count):
                return False
    return True


def split_phases(planes: Sequence[Plane]) -> list[Group]:
    """Return planes as stacks in which each position occurs once.

    Raises
    ------
    ScanError
        Several planes lie at one position, and no tag tells them apart.
    """
    places = find_places(planes)
    positions = int(places.max()) + 1
    if positions == len(planes):
        return [Group(tuple(planes))]
    check_side_by_side(planes, places)
    differing = []
    for index, tag in enumerate(PHASE_TAGS):
        stacks = _split(planes, places.tolist(), index)
        if len(stacks) < 2:
            continue
        differing.append(tag)
        if all(len(stack) == positions for stack in stacks.values()) and all(
            len({place for _, place in stack}) == positions for stack in stacks.values()
        ):
            note = f"one of {len(stacks)} stacks of its series, told apart by {tag}"
            return [Group(tuple(plane for plane, _ in stack), (note,)) for stack in stacks.values()]
    at = int(np.argmax(np.bincount(places)))
    there = [plane for plane, place in zip(planes, places.tolist(), strict=True) if place == at]
    shown = ", ".join(plane.name for plane in there[:3])
    raise ScanError(
        f"{len(planes)} slices at {positions} positions: {shown} lie at one position. "
        + (
            f"They differ in {'; '.join(differing)}, but not so that each stack has every position once. "
            if differing
            else "No tag tells them apart. "
        )
        + "Put each stack into a folder of its own."
    )


def _split(planes: Sequence[Plane], places: Sequence[int], index: int) -> dict[str, list[tuple[Plane, int]]]:
    """Return planes and their places by the value of a phase tag."""
    stacks: dict[str, list[tuple[Plane, int]]] = defaultdict(list)
    for plane, place in zip(planes, places, strict=True):
        stacks[plane.phase[index] if index < len(plane.phase) else ""].append((plane, place))
    return stacks
