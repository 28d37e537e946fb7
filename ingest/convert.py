"""One case: NIfTI files in, a case of the store out. No Dask here.

Image and mask are read in step, a slab at a time; each slab is checked, counted, encoded and appended before the next
is read. Only the tumor's voxels are kept to the end, for its connected components.
"""

import base64
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ingest.discover import CaseFiles
from ingest.params import Params
from store.case import CaseInfo, Lesion, SliceStats, SourceFile
from store.errors import GeometryError, LabelError, ScanError
from store.geometry import SAME_GRID_MM
from store.labels import Labels, format_labels, make_labels
from store.layout import AIR_HU
from store.lesions import find_lesions
from store.scan import SLAB_BYTES, ScanReader
from store.writer import CaseWriter

UNDECLARED = make_labels({"label_1": 1})
"""Labels of a collection that declares none: one value, of unknown meaning."""
UNSIGNED_WATER_HU = 900
"""A CT stored without its -1024 intercept has soft tissue near 1024 and no negative value."""


def convert_case(case: CaseFiles, params: Params, store: str | Path) -> CaseInfo:
    """Read a case's files and write the case into the store; return what is known of it.

    Raises
    ------
    InputError
        A file breaks a rule; nothing of the case is left in the store.
    """
    try:
        with ScanReader(case.image, "image") as image:
            if case.mask is None:
                return _convert(case, params, store, image, None)
            with ScanReader(case.mask, "mask") as mask:
                return _convert(case, params, store, image, mask)
    except MemoryError as error:
        raise ScanError(f"{case.image}: not enough memory to read it; use fewer --workers.") from error


def _convert(
    case: CaseFiles, params: Params, store: str | Path, image: ScanReader, mask: ScanReader | None
) -> CaseInfo:
    warnings = [*image.header.warnings]
    labels: Labels | None = None
    if mask is not None:
        labels = params.labels or UNDECLARED
        warnings += check_geometry(case, image, mask, params)
    shape = image.grid.stored_shape
    counts = Counts(shape[0], labels)
    with CaseWriter(store, case.case_id, shape, has_mask=mask is not None) as writer:
        _, ny, nx = shape
        depth = max(1, SLAB_BYTES // (ny * nx * image.header.dtype.itemsize))
        masks = mask.slabs(depth) if mask else None
        for slab in image.slabs(depth):
            counts.add_image(slab.z, slab.voxels)
            writer.write("image", slab.z, slab.voxels)
            if masks:
                other = next(masks)
                counts.add_mask(other.z, other.voxels, str(case.mask))
                writer.write("label", other.z, other.voxels)
        warnings += oddities(counts, labels, has_mask=mask is not None)
        if image.max_rounding_error:
            warnings.append(f"HU were rounded to integers, by at most {image.max_rounding_error:.3g}")
        info = CaseInfo(
            case_id=case.case_id,
            patient_id=case.patient_id,
            shape=shape,
            labels=labels,
            spacing_mm=image.grid.spacing_mm,
            affine_lps=image.grid.affine_lps,
            source_axcodes=image.grid.axcodes,
            image=source_file(image, case.name(case.image), params),
            mask=source_file(mask, case.name(mask.path), params) if mask else None,
            params_sha256=params.sha256(),
            slice_stats=counts.stats(),
            lesions=counts.lesions(image.grid.affine_lps),
            max_rounding_error_hu=image.max_rounding_error,
            warnings=tuple(warnings),
        )
        writer.finish(info)
    return info


def check_geometry(case: CaseFiles, image: ScanReader, mask: ScanReader, params: Params) -> list[str]:
    """Return warnings about two grids that may differ slightly.

    Raises
    ------
    GeometryError
        Image and mask have different shapes, or lie apart and the image's header is not to be trusted.
    """
    if image.grid.shape != mask.grid.shape:
        raise GeometryError(
            f"{case.mask}: image and segmentation must have one shape; the image has {image.grid.shape}, this has {mask.grid.shape}. "
            "Export the segmentation on the image's grid."
        )
    apart = image.grid.distance_mm(mask.grid)
    if apart > SAME_GRID_MM and params.geometry == "error":
        raise GeometryError(
            f"{case.mask}: image and segmentation must lie on one grid (within {SAME_GRID_MM} mm); their affines differ by "
            f"{apart:.3g} mm. Correct the segmentation's header, or pass --geometry trust-image."
        )
    mask.lie_on(image.grid)
    if apart <= SAME_GRID_MM:
        return []
    return [f"image and segmentation lie {apart:.3g} mm apart by their headers; the image's was trusted"]


def source_file(reader: ScanReader, name: str, params: Params) -> SourceFile:
    """Return what is kept of a file that was read to its end."""
    header = base64.b64encode(reader.stored_header(keep_text=params.keep_text)).decode()
    sha256 = reader.finish()
    return SourceFile(name=name, bytes=reader.bytes_read, sha256=sha256, header_b64=header)


@dataclass
class Counts:
    """Statistics that grow slab by slab."""

    slices: int
    labels: Labels | None
    hu_min: list[int | None] = field(init=False)
    hu_max: list[int | None] = field(init=False)
    voxels: dict[str, list[int]] = field(init=False)
    padding: int = 0
    tumor: list[tuple[int, int, int, npt.NDArray[np.bool_]]] = field(default_factory=list)
    """z, y, x and the cropped section of each slice with tumor."""

    def __post_init__(self) -> None:
        """Make room for every slice."""
        self.hu_min, self.hu_max = [None] * self.slices, [None] * self.slices
        self.voxels = {name: [0] * self.slices for name in (self.labels.values if self.labels else ())}

    def add_image(self, z: int, slab: npt.NDArray[np.int16]) -> None:
        """Note the HU range of each slice; padding below air (-3024 and the like) is left out."""
        for offset, section in enumerate(slab):
            if section.min() < AIR_HU:
                inside = section[section >= AIR_HU]
                self.padding += section.size - inside.size
                if not inside.size:
                    continue
                section = inside  # noqa: PLW2901 (what is left of it)
            self.hu_min[z + offset], self.hu_max[z + offset] = int(section.min()), int(section.max())

    def add_mask(self, z: int, slab: npt.NDArray[np.uint8], path: str) -> None:
        """Count each label in each slice.

        Raises
        ------
        LabelError
            A voxel has a value that was not declared.
        """
        assert self.labels is not None  # noqa: S101 (a mask comes with labels)
        tumor = self.labels.tumor_value()
        for offset, section in enumerate(slab):
            filled = int(np.count_nonzero(section))
            if not filled:
                continue
            for name, value in self.labels.values.items():
                count = int(np.count_nonzero(section == value))
                self.voxels[name][z + offset] = count
                filled -= count
                if value == tumor and count:
                    self._keep(z + offset, section == value)
            if filled:
                raise LabelError(undeclared(section, self.labels, path))

    def _keep(self, z: int, mask: npt.NDArray[np.bool_]) -> None:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
        self.tumor.append((z, int(rows[0]), int(columns[0]), crop))

    def stats(self) -> SliceStats:
        """Return what was counted."""
        return SliceStats(hu_min=self.hu_min, hu_max=self.hu_max, voxels=self.voxels)

    def lesions(self, affine_lps: npt.NDArray[np.float64]) -> tuple[Lesion, ...] | None:
        """Return the tumor's connected components; None where no tumor label is named."""
        if self.labels is None or self.labels.tumor is None:
            return None
        if not self.tumor:
            return ()
        z0, y0, x0 = (
            min(z for z, *_ in self.tumor),
            min(y for _, y, *_ in self.tumor),
            min(x for _, _, x, _ in self.tumor),
        )
        z1 = max(z for z, *_ in self.tumor) + 1
        y1 = max(y + crop.shape[0] for _, y, _, crop in self.tumor)
        x1 = max(x + crop.shape[1] for _, _, x, crop in self.tumor)
        volume = np.zeros((z1 - z0, y1 - y0, x1 - x0), dtype=bool)
        for z, y, x, crop in self.tumor:
            volume[z - z0, y - y0 : y - y0 + crop.shape[0], x - x0 : x - x0 + crop.shape[1]] = crop
        return find_lesions(volume, affine_lps, (z0, y0, x0))


def undeclared(section: npt.NDArray[np.uint8], labels: Labels, path: str) -> str:
    """Return the message about a value that no label has."""
    values = [int(value) for value in np.unique(section)]
    if labels is UNDECLARED or labels == UNDECLARED:
        return f"{path}: holds the values {values} and nothing says what they mean. Name them, like --labels liver=1,tumor=2."
    odd = sorted(set(values) - {0, *labels.values.values()})
    return f"{path}: holds the values {odd} outside the labels {format_labels(labels.values)}. Add them to --labels, or correct the mask."


def oddities(counts: Counts, labels: Labels | None, *, has_mask: bool) -> list[str]:
    """Return warnings about voxels that do not look like a CT or its segmentation."""
    warnings = []
    lows, highs = (
        [low for low in counts.hu_min if low is not None],
        [high for high in counts.hu_max if high is not None],
    )
    low, high = min(lows, default=0), max(highs, default=0)
    if counts.padding:
        warnings.append(
            f"{counts.padding:,} voxels below {AIR_HU} HU are taken as padding and left out of HU statistics"
        )
    if low >= 0 and high > UNSIGNED_WATER_HU:
        warnings.append(f"no HU below 0 (range {low}..{high}): the values may lack the intercept of -1024")
    elif low >= 0 or high - low < 100:
        warnings.append(f"HU range {low}..{high} does not look like a CT")
    if has_mask and labels and not any(any(sections) for sections in counts.voxels.values()):
        warnings.append("the segmentation is empty")
    return warnings
