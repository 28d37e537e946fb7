"""Settings of an ingest that change the bytes of a store."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from slicemill.common.files import sha256_of_json
from slicemill.ct.geometry_option import Geometry, Uneven
from slicemill.store.layout import ProfileName

if TYPE_CHECKING:
    from slicemill.ct.labels import Labels

Overlap = Literal["error", "highest"]
CaseIdKind = Literal["name", "series"]
"""Case ids of DICOM series: the folder's name, or the SeriesInstanceUID."""
ENCODING = 2
"""Version of the conversion; raised whenever the same input would produce other bytes."""
PARAMS_FORMAT = 1
"""Version of this document, once that of the store. Format 2 of the store moves arrays and changes none of their bytes,
so a store of format 1 keeps its hash and takes more cases."""
PLACING = 2
"""Version of what the values of `geometry` other than ``error`` do. 1 did not turn masks."""


POINT_MASKS = 1
"""Version of the segmentations that are made from points."""
PointLabels = Literal["none", "nodules", "nodules and lungs"]


@dataclass(frozen=True, kw_only=True)
class Params:
    """The settings whose hash is ``params_sha256``."""

    labels: "Labels | None"
    """Names of the label values. None: masks may have only the value 1, which is stored as ``label_1``."""
    geometry: Geometry = "error"
    """What to do if an image and its mask are more than SAME_GRID_MM apart (`slicemill.ct.same_grid`)."""
    keep_text: bool = False
    """Whether free-text header fields are kept; they may name a person."""
    overlap: Overlap = "error"
    """What to do with a voxel of two structures that have a file each: fail, or take the highest label value."""
    profile: ProfileName = "compact"
    """Compression of the slices: ``compact``, or ``fast`` to read."""
    strict: bool = False
    """Whether a case with a warning is refused."""
    uneven: Uneven = "refuse"
    """What happens to a DICOM series whose steps differ: it is refused, or its longest even part is taken."""
    keep_uids: bool = False
    """Whether the UIDs of DICOM series are stored, with which results can refer to the source."""

    points: PointLabels = "none"
    """Whether segmentations are made from points, with lungs or without."""

    def as_json(self) -> dict[str, Any]:
        """Return the document that is hashed."""
        return {
            "format": PARAMS_FORMAT,
            "encoding": ENCODING,
            **(self.labels.as_json() if self.labels else {"labels": None}),
            "geometry": self.geometry,
            "keep_text": self.keep_text,
            "profile": self.profile,
            # keys of later versions are left out where they change nothing, so that older stores keep their hash
            **({} if self.geometry == "error" else {"placing": PLACING}),
            **({} if self.overlap == "error" else {"overlap": self.overlap}),
            **({"strict": True} if self.strict else {}),
            **({} if self.uneven == "refuse" else {"uneven": self.uneven}),
            **({"keep_uids": True} if self.keep_uids else {}),
            **({} if self.points == "none" else {"points": self.points, "point_masks": POINT_MASKS}),
        }

    def sha256(self) -> str:
        """Return the hash that every case stores."""
        return sha256_of_json(self.as_json())
