"""Connected components of complete volumes: runs along x (`slicemill.ct.runs`) against cc3d.

Each contender finds the components of a mask and their sizes in voxels; "cc3d, no sizes" is cc3d without the second
step. Rounds are interleaved, and a ratio is the median over rounds of cc3d's time divided by that of runs: above 1,
runs are faster. In noise a row has a hundred runs, and cc3d is faster. Masks of a network or a person have few.
Command: `slicemill bench components`.
"""

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from slicemill.bench.harness.clock import Log, show_progress, time_on_both_clocks
from slicemill.bench.harness.headline import Record, check
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.data import ComponentsRecord, ComponentTimes
from slicemill.ct.runs import connect_runs, find_runs

Mask = npt.NDArray[np.bool_]
SHAPE = (64, 512, 512)
CONNECTIVITIES = (6, 26)


def run(*, rounds: int) -> Record:
    """Compare both on three masks and return the record."""
    masks = {"tumors": tumor_mask(SHAPE), "liver": liver_mask(SHAPE), "noise": noise_mask(SHAPE)}
    with show_progress("components", 3 * len(masks) * len(CONNECTIVITIES), rounds) as log:
        rows = {
            name: {str(connectivity): compare(mask, connectivity, rounds, log) for connectivity in CONNECTIVITIES}
            for name, mask in masks.items()
        }
    return ComponentsRecord(**origin(), shape_zyx=SHAPE, rounds=rounds, masks=rows).as_json()


def compare(mask: Mask, connectivity: int, rounds: int, log: Log) -> ComponentTimes:
    """Time both on one mask: bool[z, y, x]."""
    expected = np.sort(sizes_by_cc3d(mask, connectivity))
    same = np.array_equal(np.sort(sizes_by_runs(mask, connectivity)), expected)
    check(f"{connectivity}-connected components of runs are those of cc3d", holds=same)
    contenders = {
        "runs": lambda: sizes_by_runs(mask, connectivity),
        "cc3d": lambda: sizes_by_cc3d(mask, connectivity),
        "cc3d, no sizes": lambda: cc3d.connected_components(mask, connectivity=connectivity),
    }
    times = time_on_both_clocks(contenders, rounds, log)
    return ComponentTimes(
        components=len(expected),
        seconds={name: round(timing.median, 4) for name, timing in times.wall.items()},
        over_runs={name: times.speedup("runs", name) for name in contenders if name != "runs"},
    )


def sizes_by_runs(mask: Mask, connectivity: int) -> npt.NDArray[np.float64]:
    """Return the voxels of each component, computed from runs."""
    runs = find_runs(mask)
    numbers, count = connect_runs(runs, connectivity)
    return np.asarray(np.bincount(numbers, weights=runs.voxels, minlength=count), dtype=np.float64)


def sizes_by_cc3d(mask: Mask, connectivity: int) -> npt.NDArray[np.float64]:
    """Return the voxels of each component, computed by cc3d."""
    numbers = cc3d.connected_components(mask, connectivity=connectivity)
    return np.asarray(cc3d.statistics(numbers)["voxel_counts"][1:], dtype=np.float64)


def tumor_mask(shape: tuple[int, int, int]) -> Mask:
    """Return some twenty blobs of all sizes: bool[z, y, x]."""
    rng = np.random.default_rng(0)
    mask = np.zeros(shape, dtype=bool)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    for _ in range(20):
        center, radius = rng.uniform(0.1, 0.9, 3) * shape, rng.uniform(2, 30)
        mask |= ((z - center[0]) * 2) ** 2 + (y - center[1]) ** 2 + (x - center[2]) ** 2 < radius**2
    return mask


def liver_mask(shape: tuple[int, int, int]) -> Mask:
    """Return one large ellipsoid with a rough surface, holes and specks around it: bool[z, y, x]."""
    rng = np.random.default_rng(1)
    distance = np.sqrt(
        sum(
            ((axis / extent - 0.5) / 0.33) ** 2
            for axis, extent in zip(np.ogrid[tuple(map(slice, shape))], shape, strict=True)
        )
    )
    rough = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 2)
    return np.asarray(distance + rough < 1)


def noise_mask(shape: tuple[int, int, int]) -> Mask:
    """Return a mask in which every second voxel is true, drawn at random: bool[z, y, x]."""
    return np.random.default_rng(2).random(shape, dtype=np.float32) < 0.5
