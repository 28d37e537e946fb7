"""The result of segmenting one scan."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from slicemill.api.scans import Axes, ScanOrigin, own_affine, to_own_order
from slicemill.common.errors import UsageError
from slicemill.common.files import parse_location
from slicemill.ct.formats.nifti.header import parse_header, sign_header
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.lesions import Lesion
from slicemill.infer.report import ScanReport
from slicemill.infer.slices.assembly import Segmentation as NetworkResult

Uint8s = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """The segmentation of one scan, after post-processing. Research software, not a medical device.

    `label` has the axes of what was segmented, so that it can be laid over it: [i, j, k] for files and images of
    nibabel, [k, j, i] for images of SimpleITK, those of an array, and [z, y, x] for a case of a store. `label_lps` has
    the same axes for every scan: [z, y, x], z to superior, y to posterior, x to the patient's left.

    >>> result = model.segment("ct.nii.gz")                       # doctest: +SKIP
    >>> result.label.shape == nibabel.load("ct.nii.gz").shape     # doctest: +SKIP
    True
    """

    report: ScanReport
    """Volumes in ml, lesions, and tumor yes or no, as in the JSON report of the command `infer`."""
    label_lps: Uint8s
    """uint8[z, y, x] in LPS+ order, label values; 0 is background. The names are in `labels`."""
    source: ScanOrigin
    result: NetworkResult

    def __repr__(self) -> str:
        return f"<segmentation of {self.source.name}: {self.report.answer}>"

    @property
    def axes(self) -> Axes:
        """Return the convention of `label` and `affine`; see `slicemill.Model.segment`."""
        return self.source.axes

    @property
    def labels(self) -> dict[str, int]:
        """Return name and value of each label."""
        return dict(self.report.labels)

    @cached_property
    def label(self) -> Uint8s:
        """Return uint8, label values, in the shape and order of axes of the scan; a view of `label_lps`."""
        return self._own(self.label_lps)

    @cached_property
    def affine(self) -> Floats:
        """Return float64[4, 4] of `label`: voxel (i, j, k, 1) to RAS mm, or LPS mm if `axes` is ``zyx-lps``."""
        return own_affine(self.source.view, self.source.axes)

    @property
    def affine_lps(self) -> Floats:
        """Return float64[4, 4] of `label_lps`: voxel (x, y, z, 1) to LPS mm."""
        return self.source.grid.affine_lps

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the spacing of `label_lps` along z, y, x, mm."""
        return self.source.grid.spacing_mm

    @property
    def lesions(self) -> tuple[Lesion, ...] | None:
        """Return the lesions, the largest first; None if the model has no tumor label.

        Their boxes and slices count in `label_lps`, their centers are in LPS mm.
        """
        return self.report.lesions

    @cached_property
    def probability(self) -> dict[str, Uint8s] | None:
        """Return the probability of each label and of ``background``, uint8, 255 is certain, in the order of `label`.

        They are the network's, before post-processing and without calibration. None if the model outputs none, or was
        opened with ``probability=False``.
        """
        maps = self.result.probability
        if maps is None:
            return None
        return {name: self._own(map_) for name, map_ in zip(("background", *self.labels), maps, strict=True)}

    @property
    def tumor_probability(self) -> Uint8s | None:
        """Return the probability of tumor, uint8, 255 is certain, in the order of `label`; None if there is none."""
        map_ = self.result.tumor_probability
        return None if map_ is None else self._own(map_)

    def save(self, path: str | Path) -> Path:
        """Write `label` as NIfTI (.nii or .nii.gz), on the grid of the scan's file, and return the path.

        The header is the scan's. A note of the model replaces its text, which may name a person. An array or an image
        of SimpleITK gets a new header. An existing file is replaced; a killed call leaves the old file.

        Raises
        ------
        UsageError
            The name does not end in .nii or .nii.gz, or it is the file of the scan.
        """
        target = parse_location(path)
        if not isinstance(target, Path) or not target.name.lower().endswith(SUFFIXES):
            raise UsageError("a segmentation is saved as a local file that ends in .nii or .nii.gz.", where=path)
        scan = self.source.path
        if isinstance(scan, Path) and target.resolve() == scan.resolve():
            raise UsageError("is the scan itself; choose another name for its segmentation.", where=path)
        write_volume(target, self._header, np.uint8, self.source.grid.to_file(self.label_lps))
        return target

    def to_nibabel(self) -> "nib.Nifti1Image":
        """Return the file that `save` writes as an image of nibabel, uint8[i, j, k]."""
        header = parse_header(self._header, Path("header"))[1]
        header.set_data_dtype(np.uint8)
        header["cal_max"] = header["cal_min"] = 0
        kind = nib.Nifti2Image if len(header.binaryblock) > nib.Nifti1Header.sizeof_hdr else nib.Nifti1Image
        voxels = np.array(self.source.grid.to_file(self.label_lps).T, order="F")
        image = kind(voxels.reshape(header.get_data_shape()), header.get_best_affine(), header)
        image.header.set_slope_inter(1, 0)
        return image

    @property
    def _header(self) -> bytes:
        """Return the header of a mask: the scan's, signed by the model as the command does."""
        return sign_header(self.source.header, self.report.model_sha256)

    def _own(self, stored: Uint8s) -> Uint8s:
        """View uint8[z, y, x] in the order of the scan."""
        return to_own_order(stored, self.source.view, self.source.axes)
