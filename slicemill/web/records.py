"""What the server tells the page, as JSON: the fields are the keys."""

from dataclasses import dataclass

from slicemill.ct.labels import Labels
from slicemill.ct.lesions import Lesion
from slicemill.ct.pictures import label_colors
from slicemill.web.marks import MARKS, Mark
from slicemill.web.opened import MaskSource, OpenCase
from slicemill.web.viewer import Cases
from slicemill.web.volumes import Volume

Affine = tuple[tuple[float, ...], ...]
HALF = 128
"""Least stored probability (255 is certain) of more than one half."""
MAX_PARTS_SHOWN = 200
"""Rows of the table of parts. More are noise, and are counted."""


@dataclass(frozen=True, kw_only=True)
class EntryRecord:
    """A case in the list."""

    name: str
    dice: float | None
    mark: Mark | None


@dataclass(frozen=True, kw_only=True)
class ListRecord:
    """All cases."""

    cases: tuple[EntryRecord, ...]
    dice_of: str | None
    """Label whose Dice orders the cases; None if they are in the order of their names."""
    marks: tuple[Mark, ...]
    """Marks that can be set; empty without a file for them."""
    version: str


@dataclass(frozen=True, kw_only=True)
class LabelRecord:
    """A label of a mask."""

    value: int
    name: str
    """Empty if nothing names the value."""
    color: tuple[int, int, int]
    region: tuple[int, ...]
    """Values inside of its outline: the organ's has its tumors."""


@dataclass(frozen=True, kw_only=True)
class MaskRecord:
    """A mask of a case."""

    name: str
    labels: tuple[LabelRecord, ...]
    """Labels that have a name; values without one are in `VolumeRecord.values`."""
    tumor: int | None
    """Value of tumor; None if no label is known to be tumor."""
    threshold: int | None
    """First threshold of a map of probabilities, 1 to 255; None for a mask of labels."""
    failure: str | None


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """A case that was opened."""

    name: str
    shape: tuple[int, int, int]
    """z, y, x."""
    spacing_mm: tuple[float, float, float]
    """z, y, x."""
    affine_lps: Affine
    """4x4, voxel (x, y, z, 1) to LPS mm."""
    masks: tuple[MaskRecord, ...]


@dataclass(frozen=True, kw_only=True)
class VolumeRecord:
    """How much of a volume was read."""

    slices: int
    first_slice: int | None
    """A slice that can be shown; None if there is none yet."""
    is_complete: bool
    failure: str | None
    values: tuple[tuple[int, int], ...]
    """Value and number of its voxels, for each value of a complete mask but 0."""
    preliminary: tuple[int, ...]
    """Axial slices of an incomplete mask that can be shown, before the model's rules are applied."""


@dataclass(frozen=True, kw_only=True)
class ProgressRecord:
    """How much of a case was read."""

    image: VolumeRecord
    masks: tuple[VolumeRecord | None, ...]
    """None for a mask that cannot be shown."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PartsRecord:
    """The parts of the region of a label."""

    count: int
    parts: tuple[Lesion, ...]
    """The largest ones, at most MAX_PARTS_SHOWN."""
    mean_hu: tuple[float, ...] | None
    """Of these; None if the scan was not read."""
    volume_ml: float
    """Volume of all parts."""
    slice_voxels: tuple[int, ...]
    """Voxels of the region in each slice, by z."""


def describe_list(viewer: Cases, version: str) -> ListRecord:
    """Return the list of cases."""
    marks = viewer.marks
    return ListRecord(
        cases=tuple(
            EntryRecord(name=entry.name, dice=entry.dice, mark=marks.get(entry.name) if marks else None)
            for entry in viewer.entries
        ),
        dice_of=viewer.entries[0].dice_of if viewer.entries else None,
        marks=MARKS if marks else (),
        version=version,
    )


def describe_case(case: OpenCase) -> CaseRecord:
    """Return what is known of a case before its voxels are read."""
    source = case.source
    return CaseRecord(
        name=source.name,
        shape=source.image.shape,
        spacing_mm=source.spacing_mm,
        affine_lps=tuple(map(tuple, source.affine_lps.tolist())),
        masks=tuple(_describe_mask(mask) for mask in source.masks),
    )


def _describe_mask(mask: MaskSource) -> MaskRecord:
    labels = mask.labels
    return MaskRecord(
        name=mask.name,
        labels=describe_labels(labels) if labels else (),
        tumor=labels.tumor_value() if labels else None,
        threshold=HALF if mask.is_probability else None,
        failure=mask.failure,
    )


def describe_labels(labels: Labels) -> tuple[LabelRecord, ...]:
    """Return the labels with the colors and regions of all pictures of slicemill (`slicemill.ct.pictures`).

    >>> [(label.name, label.region) for label in describe_labels(Labels({"liver": 1, "tumor": 2}, "liver", "tumor"))]
    [('liver', (1, 2)), ('tumor', (2,))]
    """
    colors = {tuple(values): color for values, color in label_colors(labels)}
    regions = {name: tuple(values) for name, values in labels.regions().items()}
    return tuple(
        LabelRecord(value=value, name=name, region=regions[name], color=colors[regions[name]])
        for name, value in labels.values.items()
    )


def describe_progress(case: OpenCase) -> ProgressRecord:
    """Return how much of a case was read."""
    volumes = [case.image, *(mask for mask in case.masks if mask is not None)]
    warnings = [warning for volume in volumes for warning in volume.warnings]
    return ProgressRecord(
        image=_describe_volume(case.image),
        masks=tuple(None if mask is None else _describe_volume(mask) for mask in case.masks),
        warnings=tuple(dict.fromkeys((*case.source.warnings, *warnings))),
    )


def _describe_volume(volume: Volume) -> VolumeRecord:
    is_complete = volume.is_complete
    values: tuple[tuple[int, int], ...] = ()
    if is_complete and volume.counts is not None:
        totals = volume.counts.sum(axis=0)
        values = tuple((value, int(totals[value])) for value in range(1, 256) if totals[value])
    return VolumeRecord(
        slices=volume.slices_read,
        first_slice=volume.first_slice,
        is_complete=is_complete,
        failure=volume.failure,
        values=values,
        preliminary=volume.preliminary,
    )


def describe_parts(case: OpenCase, mask: int, value: int) -> PartsRecord:
    """Return the parts of a label; see `OpenCase.find_parts` for the errors."""
    parts, mean_hu = case.find_parts(mask, value), case.find_mean_hu(mask, value)
    volume = case.masks[mask]
    assert volume is not None  # noqa: S101 (find_parts raised)
    assert volume.counts is not None  # noqa: S101 (masks are counted)
    return PartsRecord(
        count=len(parts),
        parts=parts[:MAX_PARTS_SHOWN],
        mean_hu=None if mean_hu is None else mean_hu[:MAX_PARTS_SHOWN],
        volume_ml=sum(part.volume_ml for part in parts),
        slice_voxels=tuple(volume.counts[:, case.source.masks[mask].region_of(value)].sum(axis=1).tolist()),
    )
