"""Segments of 3D Slicer in an NRRD header (``Segment0_Name`` and others): names, label values and layers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from slicemill.common.errors import LabelError, ScanError
from slicemill.common.files import Location
from slicemill.ct.formats.text_header import shorten
from slicemill.ct.labels import Labels

KEY = re.compile(r"Segment(\d{1,6})_(Name|LabelValue|Layer)")
MAX_LAYERS = 255


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A segment."""

    name: str
    value: int
    """Its value in the voxels of its layer."""
    layer: int


def read_segments(pairs: Mapping[str, str], path: Location) -> tuple[Segment, ...]:
    """Return the segments of a header's key/value pairs, in order; none if there are none.

    Raises
    ------
    ScanError
        A label value or a layer is no number.
    """
    found: dict[int, dict[str, str]] = {}
    for key, text in pairs.items():
        if match := KEY.fullmatch(key):
            found.setdefault(int(match[1]), {})[match[2]] = text
    segments = []
    for number, fields in sorted(found.items()):
        # files before version 5 of 3D Slicer state neither: a segment is a layer of its own
        value, layer = fields.get("LabelValue", "1"), fields.get("Layer", str(number))
        if not all(re.fullmatch(r"\d{1,9}", text) for text in (value, layer)):
            raise ScanError(
                f"Segment{number} has LabelValue {shorten(value)!r} and Layer {shorten(layer)!r}, which must be "
                "numbers. Save it again from 3D Slicer.",
                where=path,
            )
        segments.append(Segment(name=fields.get("Name", f"Segment_{number}"), value=int(value), layer=int(layer)))
    return tuple(segments)


def values_of_layers(segments: tuple[Segment, ...], count: int, path: Location) -> tuple[tuple[int, ...], ...]:
    """Return the label values of each of `count` layers, which no two segments may share.

    Raises
    ------
    ScanError
        The layers cannot be merged into one mask.
    """
    if not segments or any(segment.layer >= count for segment in segments) or count > MAX_LAYERS:
        raise ScanError(
            f"holds {count} values a voxel, and its header does not say which segments they are. A CT has one number "
            "a voxel; export a segmentation from 3D Slicer as a labelmap.",
            where=path,
        )
    by_value: dict[int, str] = {}
    for segment in segments:
        if by_value.setdefault(segment.value, segment.name) != segment.name:
            raise ScanError(
                f"the segments {shorten(by_value[segment.value])!r} and {shorten(segment.name)!r} both have the label "
                f"value {segment.value}, in two layers. Export the segmentation from 3D Slicer as a labelmap.",
                where=path,
            )
    return tuple(tuple(one.value for one in segments if one.layer == layer) for layer in range(count))


def check_names(segments: tuple[Segment, ...], labels: Labels, path: Location) -> None:
    """Check that a segment with the name of a label has its value, since 3D Slicer numbers segments file by file.

    Raises
    ------
    LabelError
        A label of that name has another value.
    """
    values = {name.casefold(): value for name, value in labels.values.items()}
    for segment in segments:
        expected = values.get(segment.name.strip().casefold(), segment.value)
        if expected != segment.value:
            raise LabelError(
                f"its segment {shorten(segment.name)!r} has the label value {segment.value}, but the labels say "
                f"{expected}. Pass the values of this file, or save its segments in the order of the labels.",
                where=path,
            )
