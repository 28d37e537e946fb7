"""What the scans were like that a model was trained on, and how another scan differs from them.

Written by `export` into the model file, as one JSON object under the key ``slicemill.training_scans`` beside the model
card. It is optional: readers that do not know it ignore it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.common.documents import from_json
from slicemill.common.errors import ModelError
from slicemill.ct.pictures import pick_evenly

TRAINING_SCANS_KEY = "slicemill.training_scans"
SLICES = 5
"""Slices of a scan that are looked at."""
EVERY = 2
"""Rows and columns that are looked at: every second."""
BODY_HU = -300
"""Voxels above are body: fat has about -100 HU, and lung less than -500."""
PERCENTILES = (10, 50, 90)
SPACING_MARGIN = 1.25
"""Factor by which spacings may lie outside of the range of the training."""
AREA_MARGIN = 1.5
"""Factor by which the area of the body may."""
HU_MARGIN = 50.0
"""HU by which a percentile may. A scan without contrast agent differs by less in fat and by about as much in blood."""
PREFIX = "outside of what the model was trained on"

Range = tuple[float, float]
"""Least and greatest."""
HuRanges = tuple[Range, Range, Range]


@dataclass(frozen=True, kw_only=True)
class ScanTraits:
    """What tells scans of different kinds apart."""

    slice_spacing_mm: float | None = None
    """None if it is not known, like the three below; a single slice has none."""
    pixel_mm: float | None = None
    """Geometric mean of height and width."""
    body_cm2: float | None = None
    """Area of the body in a slice, the median of the slices that have any."""
    body_hu: tuple[float, float, float] | None = None
    """PERCENTILES of the body's voxels."""


@dataclass(frozen=True, kw_only=True)
class TrainingScans:
    """Ranges of the traits of the training scans."""

    cases: int
    """Scans that were looked at."""
    slice_spacing_mm: Range | None
    """None if each scan is a single slice."""
    pixel_mm: Range
    body_cm2: Range | None
    """None if no scan has voxels above BODY_HU, like the one below."""
    body_hu: HuRanges | None


def describe_scan(
    read_slice: Callable[[int], npt.NDArray[np.int16]],
    count: int,
    spacing_mm: tuple[float, float, float],
) -> ScanTraits:
    """Return the traits of a scan.

    Parameters
    ----------
    read_slice
        Returns int16[y, x], HU, for an index below `count`.
    spacing_mm
        z, y, x.

    >>> section = np.array([[40, 0, 60, 0], [0, 0, 0, 0]], dtype=np.int16)
    >>> describe_scan(lambda z: section, 3, (5.0, 10.0, 10.0))
    ScanTraits(slice_spacing_mm=5.0, pixel_mm=10.0, body_cm2=8.0, body_hu=(40.0, 50.0, 60.0))
    """
    spacing_z, spacing_y, spacing_x = spacing_mm
    sections = [read_slice(z)[::EVERY, ::EVERY] for z in pick_evenly(range(count), SLICES)]
    bodies = [body for section in sections if (body := section[section > BODY_HU]).size]
    low, middle, high = np.percentile(np.concatenate(bodies), PERCENTILES).tolist() if bodies else (0.0, 0.0, 0.0)
    area = float(np.median([len(body) for body in bodies])) * EVERY**2 * spacing_y * spacing_x / 100 if bodies else None
    return ScanTraits(
        slice_spacing_mm=spacing_z if count > 1 else None,
        pixel_mm=math.sqrt(spacing_y * spacing_x),
        body_cm2=area,
        body_hu=(low, middle, high) if bodies else None,
    )


def join_traits(scans: Sequence[ScanTraits]) -> TrainingScans:
    """Return the ranges of the traits of scans, of which there is at least one; pixel sizes must be known."""
    spacings = [scan.slice_spacing_mm for scan in scans if scan.slice_spacing_mm is not None]
    areas = [scan.body_cm2 for scan in scans if scan.body_cm2 is not None]
    hu = [scan.body_hu for scan in scans if scan.body_hu is not None]
    low, middle, high = (_range([one[index] for one in hu]) if hu else (0.0, 0.0) for index in range(3))
    return TrainingScans(
        cases=len(scans),
        slice_spacing_mm=_range(spacings) if spacings else None,
        pixel_mm=_range([scan.pixel_mm for scan in scans if scan.pixel_mm is not None]),
        body_cm2=_range(areas) if areas else None,
        body_hu=(low, middle, high) if hu else None,
    )


def _range(values: Sequence[float]) -> Range:
    """Return the least and the largest value in four digits, which suit a whole body and a sample of a millimeter."""
    return float(f"{min(values):.4g}"), float(f"{max(values):.4g}")


def find_differences(trained: TrainingScans | None, scan: ScanTraits) -> list[str]:
    """Return a warning that names all traits of a scan outside of the ranges and their margins; else nothing.

    >>> trained = TrainingScans(cases=9, slice_spacing_mm=(1, 2.5), pixel_mm=(0.6, 0.9), body_cm2=None, body_hu=None)
    >>> find_differences(trained, ScanTraits(slice_spacing_mm=5.0, pixel_mm=1.0))
    ['outside of what the model was trained on: its slices are 5 mm apart (1 to 2.5 mm in training)']
    """
    if trained is None:
        return []
    found = [
        f"{text} ({low:.3g} to {high:.3g} {unit} in training)"
        for text, value, within, margin, unit in (
            ("its slices are {:.3g} mm apart", scan.slice_spacing_mm, trained.slice_spacing_mm, SPACING_MARGIN, "mm"),
            ("its pixels are {:.3g} mm wide", scan.pixel_mm, trained.pixel_mm, SPACING_MARGIN, "mm"),
            ("its body has {:.3g} cm² in a slice", scan.body_cm2, trained.body_cm2, AREA_MARGIN, "cm²"),
        )
        if value is not None and within is not None
        for low, high in [within]
        if not low / margin <= value <= high * margin
        for text in [text.format(value)]
    ]
    if scan.body_hu is not None and trained.body_hu is not None:
        found += [
            f"{percent} % of its body are below {value:.0f} HU ({low:.0f} to {high:.0f} HU in training)"
            for percent, value, (low, high) in zip(PERCENTILES, scan.body_hu, trained.body_hu, strict=True)
            if not low - HU_MARGIN <= value <= high + HU_MARGIN
        ]
    return [f"{PREFIX}: {'; '.join(found)}"] if found else []


def summarize_scans(trained: TrainingScans) -> str:
    """Return the ranges as text.

    >>> summarize_scans(
    ...     TrainingScans(cases=9, slice_spacing_mm=(1, 2.5), pixel_mm=(0.6, 0.9), body_cm2=None, body_hu=None))
    'slices 1 to 2.5 mm apart, pixels 0.6 to 0.9 mm; 9 scans were looked at'
    """
    text = "pixels {:.3g} to {:.3g} mm".format(*trained.pixel_mm)
    if trained.slice_spacing_mm is None:
        text = f"single slices, {text}"
    else:
        text = "slices {:.3g} to {:.3g} mm apart".format(*trained.slice_spacing_mm) + f", {text}"
    if trained.body_hu is not None:
        text += ", median HU of the body {:.0f} to {:.0f}".format(*trained.body_hu[1])
    return f"{text}; {trained.cases} scans were looked at"


def decode_training_scans(text: str | None, where: str) -> TrainingScans | None:
    """Parse the JSON of a model file; None without it.

    Raises
    ------
    ModelError
        It is damaged.
    """
    if text is None:
        return None
    problem = f"{where}: its description of the training scans is damaged; export it again"
    trained = from_json(TrainingScans, text, problem, error=ModelError)
    sizes = [one for one in (trained.slice_spacing_mm, trained.pixel_mm, trained.body_cm2) if one is not None]
    if not all(0 <= low <= high < math.inf for low, high in sizes) or not all(
        -math.inf < low <= high < math.inf for low, high in trained.body_hu or ()
    ):
        raise ModelError(
            "its description of the training scans is damaged; export it again: a range must rise from least to "
            "greatest.",
            where=where,
        )
    return trained
