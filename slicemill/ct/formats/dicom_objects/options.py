"""Which DICOM results are written beside a mask, and how."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal

from slicemill.common.errors import UsageError
from slicemill.common.extras import require_extras
from slicemill.ct.formats.dicom_objects.codes import LabelCodes, read_code_table

SEG, SR, RTSTRUCT = ".seg.dcm", ".sr.dcm", ".rtstruct.dcm"
ENDINGS = (SEG, SR, RTSTRUCT)
"""Endings of the files beside a mask."""
SegmentationType = Literal["binary", "labelmap"]
Holes = Literal["keyhole", "xor"]


@dataclass(frozen=True, kw_only=True)
class DicomOptions:
    """Which DICOM results are written, and how."""

    seg: bool = False
    sr: bool = False
    """The report refers to the segments of a SEG in which each lesion is one; so that SEG is written, too."""
    rtstruct: bool = False
    seg_type: SegmentationType = "binary"
    per_lesion: bool = False
    """Whether each lesion is a segment of its own, in place of the tumor."""
    holes: Holes = "keyhole"
    codes: Mapping[str, LabelCodes] = field(default_factory=dict)
    """Codes of labels (`slicemill.ct.formats.dicom_objects.codes.read_code_table`)."""

    def endings(self) -> tuple[str, ...]:
        """Return the endings of the files that are written.

        >>> DicomOptions(sr=True).endings()
        ('.seg.dcm', '.sr.dcm')
        """
        wanted = ((SEG, self.seg or self.sr), (SR, self.sr), (RTSTRUCT, self.rtstruct))
        return tuple(ending for ending, is_wanted in wanted if is_wanted)

    def flags(self) -> str:
        """Return the options of the command that request the results.

        >>> DicomOptions(seg=True, rtstruct=True).flags()
        '--dicom-seg and --rtstruct'
        """
        named = (("--dicom-seg", self.seg), ("--dicom-sr", self.sr), ("--rtstruct", self.rtstruct))
        return " and ".join(flag for flag, is_wanted in named if is_wanted)

    def changes(self) -> list[str]:
        """Return what differs from no DICOM results, as one word each.

        >>> DicomOptions(sr=True).changes(), DicomOptions(per_lesion=True).changes()
        (['sr'], [])
        """
        has_seg = self.seg or self.sr
        changes = {
            "seg": self.seg,
            "sr": self.sr,
            "rtstruct": self.rtstruct,
            "labelmap": has_seg and self.seg_type == "labelmap",
            "per_lesion": self.per_lesion and not self.sr and bool(self.endings()),
            "xor": self.rtstruct and self.holes == "xor",
        }
        if self.codes and self.endings():
            table = sorted((name, str(codes)) for name, codes in self.codes.items())
            changes[f"codes_{sha256(str(table).encode()).hexdigest()[:16]}"] = True
        return [name for name, is_set in changes.items() if is_set]


NO_DICOM = DicomOptions()


def make_options(
    *,
    seg: bool,
    sr: bool,
    rtstruct: bool,
    seg_type: SegmentationType,
    per_lesion: bool,
    holes: Holes,
    codes: Path | None,
) -> DicomOptions:
    """Return the options of a command; `codes` is a table of codes, which is read.

    Raises
    ------
    ConfigError
        The table is no table of codes, or a package of the extra ``dicom`` is missing.
    UsageError
        An option says how a result is written that is not requested.
    """
    has_seg = seg or sr
    useless = {
        "--seg-type": seg_type != "binary" and not has_seg,
        "--seg-per-lesion": per_lesion and not (has_seg or rtstruct),
        "--rtstruct-holes": holes != "keyhole" and not rtstruct,
        "--codes": codes is not None and not (has_seg or rtstruct),
    }
    for flag, is_useless in useless.items():
        if is_useless:
            wanted = "--rtstruct" if flag == "--rtstruct-holes" else "--dicom-seg, --dicom-sr or --rtstruct"
            raise UsageError(f"option {flag} says how a DICOM result is written; also pass {wanted}.")
    if has_seg or rtstruct:
        require_extras("dicom")
    return DicomOptions(
        seg=seg,
        sr=sr,
        rtstruct=rtstruct,
        seg_type=seg_type,
        per_lesion=per_lesion,
        holes=holes,
        codes=read_code_table(codes) if codes else {},
    )
