"""Segments of a DICOM object: one for each label, or one for each lesion in place of the tumor's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import LabelError
from slicemill.ct.formats.dicom_objects.codes import LabelCodes
from slicemill.ct.formats.dicom_objects.measured_lesions import MeasuredLesion
from slicemill.ct.labels import Labels
from slicemill.ct.pictures import Color, choose_colors

MAX_SEGMENTS = 255
"""Segments of an object: their numbers are bytes. Viewers take minutes to open hundreds of segments."""
WITHOUT_TUMORS = " without tumors"
"""End of the name of an organ's segment where the tumors in it are segments of their own."""
MAX_LABEL = 64
"""Characters of SegmentLabel (LO)."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment."""

    number: int
    """1, 2, 3 and so on."""
    name: str
    """Text for people, as long as DICOM allows."""
    codes: LabelCodes
    color: Color
    lesion: MeasuredLesion | None = None
    """The lesion, if it is a segment of its own."""


@dataclass(frozen=True, kw_only=True)
class Segments:
    """The segments of a segmentation."""

    segments: tuple[Segment, ...]
    voxels: npt.NDArray[np.uint8]
    """uint8[z, y, x], the number of each voxel's segment; 0 outside."""
    tumor_number: int | None = None
    """Number of the tumor's segment; None without a tumor label, or if each lesion is a segment."""

    def number_of(self, lesion: MeasuredLesion) -> int | None:
        """Return the number of the segment that is this lesion."""
        return next((one.number for one in self.segments if one.lesion is lesion), None)


def make_segments(
    label: npt.NDArray[np.uint8],
    labels: Labels,
    codes: Mapping[str, LabelCodes],
    lesions: Sequence[MeasuredLesion] = (),
) -> Segments:
    """Number the segments of uint8[z, y, x], values of the labels.

    Parameters
    ----------
    lesions
        All lesions, to make each of them a segment; empty to make the tumor one segment.

    Raises
    ------
    LabelError
        There are more than MAX_SEGMENTS.
    """
    colors = choose_colors(labels)
    per_lesion = bool(lesions)
    names = [name for name in labels.values if not (per_lesion and name == labels.tumor)]
    if len(names) + len(lesions) > MAX_SEGMENTS:
        raise LabelError(
            f"a DICOM segmentation has at most {MAX_SEGMENTS} segments here; there are {len(lesions)} lesions and "
            f"{len(names)} other labels. Remove small lesions by the model's rules, or write one segment per label."
        )
    table = np.zeros(256, dtype=np.uint8)
    segments = []
    for number, name in enumerate(names, 1):
        table[labels.values[name]] = number
        shown = name + (WITHOUT_TUMORS if name == labels.organ and labels.tumor else "")
        segments.append(Segment(number=number, name=fit_text(shown), codes=codes[name], color=colors[name]))
    voxels = table[label]
    for number, lesion in enumerate(lesions, len(names) + 1):
        voxels[lesion.box][lesion.mask] = number
        name = fit_text(f"{labels.tumor} {lesion.id}")
        segments.append(
            Segment(
                number=number,
                name=name,
                codes=codes[str(labels.tumor)],
                color=colors[str(labels.tumor)],
                lesion=lesion,
            )
        )
    tumor = None if per_lesion or labels.tumor is None else names.index(labels.tumor) + 1
    return Segments(segments=tuple(segments), voxels=voxels, tumor_number=tumor)


def fit_text(text: str, most: int = MAX_LABEL) -> str:
    r"""Return a text as a DICOM element may hold it: without backslashes and control characters, and short enough.

    >>> fit_text("a\\b", 64), fit_text("abcdef", 3)
    ('a/b', 'abc')
    """
    plain = "".join(character if character.isprintable() else " " for character in text.replace("\\", "/"))
    return plain[:most].strip() or "unnamed"
