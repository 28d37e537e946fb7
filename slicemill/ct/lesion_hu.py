"""Mean HU of lesions, from their runs and a scan that is read a few slices at a time."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from slicemill.ct.runs import Runs

SLICES = 4
"""Slices that are read at a time; their sums take eight bytes a voxel."""


def measure_mean_hu(
    runs: Runs,
    ids: npt.NDArray[np.int64],
    read_slices: Callable[[int, int], npt.NDArray[np.int16]],
    slices: int,
) -> npt.NDArray[np.float64]:
    """Return the mean HU of each lesion, float64[n], in the order of the ids.

    Parameters
    ----------
    runs, ids
        Runs of the lesions, and the id of the lesion of each, 1 to n (`slicemill.ct.lesions.LesionTracker.locate`).
    read_slices
        Returns int16[z, y, x], HU, from a first slice to before a last one.
    slices
        Slices of the scan.

    >>> from slicemill.ct.lesions import LesionTracker
    >>> tracker, tumor = LesionTracker(keeps_runs=True), np.array([[[1, 1, 0, 0, 1]]], dtype=bool)
    >>> tracker.add(0, tumor)
    >>> image = np.array([[[10, 30, 99, 99, 50]]], dtype=np.int16)
    >>> measure_mean_hu(*tracker.locate(), lambda start, stop: image[start:stop], 1).tolist()
    [20.0, 50.0]
    """
    most = int(ids.max()) if len(ids) else 0
    sums, voxels = np.zeros(most + 1, dtype=np.int64), np.zeros(most + 1, dtype=np.int64)
    for z in range(0, slices, SLICES):
        here = np.flatnonzero((runs.z >= z) & (runs.z < z + SLICES))
        if not len(here):
            continue
        image = read_slices(z, min(z + SLICES, slices))
        before = np.concatenate([[0], np.cumsum(image, dtype=np.int64)])
        _, ny, nx = image.shape
        row = ((runs.z[here] - z).astype(np.int64) * ny + runs.y[here]) * nx
        np.add.at(sums, ids[here], before[row + runs.stop[here]] - before[row + runs.start[here]])
        np.add.at(voxels, ids[here], runs.voxels[here])
    means: npt.NDArray[np.float64] = sums[1:] / voxels[1:]
    return means
