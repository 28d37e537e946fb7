"""The answer in words. It says what the model found, and never that a patient is healthy."""

from dataclasses import dataclass, replace
from typing import Any

from slicemill.common.documents import from_document
from slicemill.ct.lesions import Lesion
from slicemill.web.serve.records import Answer, ScanMessage


@dataclass(frozen=True, kw_only=True)
class _Report:
    """What the answer needs of `slicemill.infer.report.ScanReport`."""

    organ: str | None
    tumor: str | None
    volumes_ml: dict[str, float]
    tumor_found: bool | None = None
    tumor_volume_ml: float | None = None
    tumor_score: float | None = None
    lesions: tuple[Lesion, ...] | None = None
    warnings: tuple[str, ...] = ()


FROM_A_PICTURE = "From a picture, which has lost HU and neighbors: less reliable than from the scan."
AS_1_MM = "The pixel size is unknown: files count a pixel as 1 mm."


def make_answer(
    report: dict[str, Any], scan: ScanMessage, known: tuple[str, ...], candidates: Answer | None = None
) -> Answer:
    """Return the answer of a report, or that of `candidates`; with what makes it less certain.

    Warnings of the report that are not `known` come from the model: the scan differs from those of its training.
    """
    found = from_document(_Report, report, "the report of the model", is_part=True)
    answer = candidates or _answer(found, scan)
    doubts = [
        *([FROM_A_PICTURE] if scan.is_picture else []),
        *([] if scan.has_pixel_size else [AS_1_MM]),
        *(f"Less reliable: {warning}." for warning in found.warnings if warning not in known),
    ]
    return replace(answer, details=(*answer.details, *doubts))


def _answer(found: _Report, scan: ScanMessage) -> Answer:
    area_mm2 = scan.shape[1] * scan.shape[2] * scan.spacing_mm[1] * scan.spacing_mm[2]
    frame_ml = area_mm2 * scan.spacing_mm[0] / 1000

    def size(ml: float) -> str:
        if not scan.has_pixel_size:
            return f"{100 * ml / frame_ml:.1f} % of the frame"
        if scan.is_picture:
            return f"{ml * 1000 / scan.spacing_mm[0] / 100:.2f} cm²"
        return f"{ml:.1f} ml" if ml >= 1 else f"{ml:.2f} ml"

    volumes = tuple(f"{name}: {size(ml)}" for name, ml in found.volumes_ml.items() if name != found.tumor)
    if found.tumor_found is None:
        headline = "This model has no label for tumor. " + ("; ".join(volumes) or "It found nothing.")
        return Answer(kind="volumes", headline=headline, details=())
    if not found.tumor_found:
        details = ["This does not mean that there is none: models miss tumors, and small ones most often."]
        if found.tumor_score is not None:
            details.append(f"Highest tumor score of a slice: {found.tumor_score:.2f}, of 1.")
        return Answer(kind="none", headline="No tumor above the threshold", details=(*details, *volumes))
    lesions = found.lesions or ()
    together = f"Together {size(found.tumor_volume_ml or 0.0)}"
    return Answer(
        kind="found",
        headline=f"Tumor found: {_describe_lesions(lesions, scan)}",
        details=(f"{together}. A person must check each finding: models also mark healthy tissue.", *volumes),
    )


def _describe_lesions(lesions: tuple[Lesion, ...], scan: ScanMessage) -> str:
    """Return number, size and place of lesions.

    >>> from slicemill.web.serve.answers import _describe_lesions
    >>> from types import SimpleNamespace as Fake
    >>> lesions = [Fake(max_axial_diameter_mm=21.2, key_z=56), Fake(max_axial_diameter_mm=4.0, key_z=3)]
    >>> _describe_lesions(lesions, Fake(is_picture=False))
    '2, largest 21 mm (slice 57)'
    >>> _describe_lesions(lesions[::-1], Fake(is_picture=True, has_pixel_size=True))
    '2 areas, longest 21 mm'
    """
    if scan.is_picture:
        longest = max((lesion.max_axial_diameter_mm for lesion in lesions), default=0.0)
        size = f", longest {longest:.0f} mm" if scan.has_pixel_size else ""
        return f"{len(lesions)} area{'s' * (len(lesions) != 1)}{size}"
    largest = max(lesions, key=lambda lesion: lesion.max_axial_diameter_mm)
    return f"{len(lesions)}, largest {largest.max_axial_diameter_mm:.0f} mm (slice {largest.key_z + 1})"
