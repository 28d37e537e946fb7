"""Report of one segmented scan: volumes, lesions, tumor yes or no, and a preview picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from slicemill.common.documents import from_document
from slicemill.common.terminal import count_noun
from slicemill.ct.geometry import Grid, voxel_ml
from slicemill.ct.labels import Labels
from slicemill.ct.lesions import BATCH_SLICES, Lesion, LesionTracker
from slicemill.ct.pictures import Panel, draw_labels, label_colors, make_montage, pick_evenly, render_gray
from slicemill.infer.inputs.jobs import LoadedScan
from slicemill.infer.network.model import Model
from slicemill.infer.postprocess import Box, extent
from slicemill.infer.slices.assembly import Segmentation

DISCLAIMER = "research software, not a medical device; not for diagnosis"
STRONGEST = 20
"""Voxels in the mean of a slice's tumor score: about the smallest lesion that readers report (5 mm across at 1 mm)."""
LABELED_SCORE = 0.5
"""Above it, the network labeled voxels as tumor: one label has more than half of the probability."""
OVERLAY_SLICES = 8
OVERLAY_COLUMNS = 4
OVERLAY_PX = 320
"""Longest side of a slice in the picture. Larger slices are shown with every second or third pixel, since drawing and
compressing full slices takes most of the time of short scans."""


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """The JSON report of one scan, after post-processing. The fields are the keys of the file, in this order.

    The values about tumor are None for a model without a tumor label.
    """

    scan: str
    """Relative path of the scan's mask."""
    model: str
    """File name of the model."""
    model_sha256: str
    labels: Mapping[str, int]
    """Name to value of the model's labels."""
    organ: str | None
    """Name of the organ's label."""
    tumor: str | None
    """Name of the tumor's label."""
    shape_zyx: tuple[int, int, int]
    """Number of voxels along z, y, x."""
    spacing_mm_zyx: tuple[float, ...]
    """Size of a voxel along z, y, x, mm."""
    slices_labeled: int | None = None
    """Number of slices that the network labeled; the others lie outside of the organ's range and have no label and a
    tumor score of 0. None in older reports."""
    volumes_ml: Mapping[str, float]
    """Volume of each label, ml; the organ includes its tumors."""
    tumor_found: bool | None = None
    """Whether the scan has at least one lesion."""
    tumor_volume_ml: float | None = None
    """Volume of all tumor voxels, ml."""
    mean_tumor_probability: float | None = None
    """Mean of the network's probability over the tumor voxels, not calibrated.

    None where no tumor was found, and for a model without probabilities of tumor. Older reports have the key
    `tumor_confidence`; where no tumor was found, it is one minus `tumor_score`."""
    tumor_score: float | None = None
    """Highest of the slice scores, 0 to 1, before post-processing; None without probabilities of tumor."""
    lesions: tuple[Lesion, ...] | None = None
    """Connected components of tumor, the largest first."""
    slice_tumor_scores: tuple[float, ...] | None = None
    """Tumor score of each slice, 0 to 1 (`slice_score`); None without probabilities of tumor."""
    note: str = DISCLAIMER
    provider: str
    """Execution provider that ran the network."""
    warnings: tuple[str, ...]
    """Warnings about the scan's header and HU, the same as ingest's."""

    @property
    def answer(self) -> str:
        """Return the main result as one line: tumor yes or no, or volumes where the model has no tumor label."""
        if self.tumor_found is None:
            return ", ".join(f"{name} {volume:.1f} ml" for name, volume in self.volumes_ml.items())
        if not self.tumor_found:
            if self.tumor_score is None:
                return "tumor: no"
            removed = " removed by the rules" if self.tumor_score > LABELED_SCORE else ""
            return f"tumor: no (highest tumor score {self.tumor_score:.2f}{removed})"
        mean = self.mean_tumor_probability
        probability = "" if mean is None else f" (mean probability of its voxels {mean:.2f})"
        lesions = count_noun(len(self.lesions or ()), "lesion")
        return f"tumor: yes, {self.tumor_volume_ml:.1f} ml in {lesions}{probability}"


def make_report(model: Model, loaded: LoadedScan, segmentation: Segmentation, name: str) -> ScanReport:
    """Measure a scan's post-processed segmentation; `name` is the mask's relative path."""
    info, grid, box = model.info, loaded.grid, extent(segmentation.label)
    report = ScanReport(
        scan=name,
        model=info.name,
        model_sha256=info.sha256,
        labels=info.labels.values,
        organ=info.labels.organ,
        tumor=info.labels.tumor,
        shape_zyx=grid.stored_shape,
        spacing_mm_zyx=tuple(round(step, 6) for step in grid.spacing_mm),
        slices_labeled=segmentation.labeled,
        volumes_ml=measure_volumes(segmentation.label, box, info.labels, voxel_ml(grid.affine_lps)),
        provider=model.provider,
        warnings=loaded.warnings,
    )
    return report if info.labels.tumor is None else _add_tumor(report, grid, segmentation, box, info.labels)


def measure_volumes(
    label: npt.NDArray[np.uint8], box: Box | None, labels: Labels, ml_per_voxel: float
) -> dict[str, float]:
    """Return the volume of each region of `labels` in ml; `box` contains all labeled voxels of uint8[z, y, x]."""
    voxels = {
        value: 0 if box is None else int(np.count_nonzero(label[box] == value)) for value in labels.values.values()
    }
    return {
        region: round(sum(voxels[value] for value in values) * ml_per_voxel, 3)
        for region, values in labels.regions().items()
    }


def _add_tumor(
    report: ScanReport, grid: Grid, segmentation: Segmentation, box: Box | None, labels: Labels
) -> ScanReport:
    """Find lesions and compute tumor scores; `box` contains all tumor."""
    tracker = LesionTracker()
    if box is not None:
        tumor = segmentation.label[box] == labels.tumor_value()
        for z in range(0, len(tumor), BATCH_SLICES):
            tracker.add(box[0].start + z, tumor[z : z + BATCH_SLICES], (box[1].start, box[2].start))
    # as_json rounds to the digits of a document
    lesions = tuple(from_document(Lesion, lesion.as_json(), "lesion") for lesion in tracker.lesions(grid.affine_lps))
    volume_ml = report.volumes_ml[str(labels.tumor)]
    report = replace(report, tumor_found=bool(lesions), tumor_volume_ml=volume_ml, lesions=lesions)
    probability = segmentation.tumor_probability
    if probability is None:
        return report
    scores = tuple(slice_score(section, STRONGEST) for section in probability)
    mean = round(float(probability[box][tumor].mean()) / 255, 4) if box is not None and lesions else None
    return replace(report, mean_tumor_probability=mean, tumor_score=max(scores), slice_tumor_scores=scores)


def slice_score(probability: npt.NDArray[np.uint8], strongest: int) -> float:
    """Return the mean of the `strongest` highest tumor probabilities of a slice uint8[y, x], 0 to 1.

    Only voxels above a threshold are sorted. The threshold is lowered until there are enough of them.
    """
    highest = int(probability.max())
    count = min(strongest, probability.size)
    top = probability[:0, :0].ravel()
    for threshold in (highest - highest // 8, highest // 2, highest // 8, 0):
        top = probability[probability >= threshold] if highest else top
        if len(top) >= count:
            break
    strong = np.partition(top, len(top) - count)[len(top) - count :] if len(top) else top
    return round(float(strong.sum(dtype=np.int64)) / count / 255, 4)


def draw_overlay(
    image: npt.NDArray[np.int16],
    label: npt.NDArray[np.uint8],
    labels: Labels,
    lesions: Sequence[Lesion] | None,
    title: str,
) -> Image.Image:
    """Draw slices of a scan int16[z, y, x], HU, with organ (blue) and tumor (red) outlined.

    The picture shows the slices with the largest lesions, then slices spread evenly over the labeled part.
    """
    labeled = [z for z, section in enumerate(label) if section.max()]
    chosen = dict.fromkeys(lesion.key_z for lesion in (lesions or [])[: OVERLAY_SLICES // 2])
    for z in pick_evenly(labeled or range(len(label)), OVERLAY_SLICES):
        if len(chosen) < OVERLAY_SLICES:
            chosen[z] = None
    colors = label_colors(labels)
    step = -(-max(image.shape[1:]) // OVERLAY_PX)
    tiles = [
        Panel(
            picture=draw_labels(render_gray(image[z, ::step, ::step]), label[z, ::step, ::step], colors),
            caption=f"z={z}",
        )
        for z in sorted(chosen)
    ]
    return make_montage(tiles, min(OVERLAY_COLUMNS, len(tiles)), f"{title}   ({DISCLAIMER})")
