"""What an ingest was asked to do, as far as it changes the bytes of a store."""

from dataclasses import dataclass
from typing import Any, Literal

from slicemill.common.files import sha256_of_json
from slicemill.ct.labels import Labels
from slicemill.store.layout import FORMAT, ProfileName

Geometry = Literal["error", "trust-image"]

ENCODING = 2
"""Raised whenever the same input would give other bytes."""


@dataclass(frozen=True, kw_only=True)
class Params:
    """Settings that stand behind ``params_sha256``."""

    labels: Labels | None
    """None: masks may hold only the value 1, stored as ``label_1``."""
    geometry: Geometry = "error"
    """What happens when an image and its mask lie more than SAME_GRID_MM apart."""
    keep_text: bool = False
    """Whether free-text header fields, which may name a person, are kept."""

    profile: ProfileName = "compact"
    """How slices are compressed: ``compact``, or ``fast`` to read."""

    def as_json(self) -> dict[str, Any]:
        """Return what the hash is taken of."""
        return {
            "format": FORMAT,
            "encoding": ENCODING,
            **(self.labels.as_json() if self.labels else {"labels": None}),
            "geometry": self.geometry,
            "keep_text": self.keep_text,
            "profile": self.profile,
        }

    def sha256(self) -> str:
        """Return the hash that stands in every case."""
        return sha256_of_json(self.as_json())
