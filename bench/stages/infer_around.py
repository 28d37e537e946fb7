"""Rows ``host`` and ``components`` of `bench infer`: the work other than the network, compared with the usual script.

Bottleneck: reading, decompression, components and writing, on the CPU. The command is `slicemill bench infer`.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from slicemill.bench.harness.clock import Log, time_on_both_clocks
from slicemill.bench.harness.headline import check
from slicemill.bench.harness.networks import MARKED, HuSampler, export_graph
from slicemill.bench.schema.networks import ComponentRates, HostCost
from slicemill.bench.stages.infer_session import network_alone, segment_all
from slicemill.ct.geometry import Grid
from slicemill.ct.labels import LITS_LABELS
from slicemill.infer.inputs.gather import gather
from slicemill.infer.network.model import open_model
from slicemill.infer.postprocess import postprocess
from slicemill.infer.runtime.capacity import count_lanes
from slicemill.store.model_card import PostprocessRules

SPECKS = 400
MIN_VOXELS = 10
"""Voxels of the smallest lesion that is kept."""
Label = npt.NDArray[np.uint8]


def measure_host(folder: Path, scans: Path, size: int, rounds: int, log: Log) -> HostCost:
    """Measure the CPU time around a nearly free network: slicemill with report and picture, and the usual script."""
    config = replace(MARKED, context=1)
    model = open_model(export_graph(folder / "sampled.onnx", HuSampler(config).eval(), config, size), "cpu")
    jobs, _ = gather([scans])
    depth = nib.load(jobs[0].path).shape[2]
    slices = depth * len(jobs)
    rng = np.random.default_rng(0)
    logits = ndimage.gaussian_filter(rng.standard_normal((depth, 3, size, size), dtype=np.float32), (2, 0, 8, 8))

    def run_usual_script() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            for job in jobs:
                segment_as_usual(Path(str(job.path)), Path(out) / job.name, logits)

    contenders = {
        "ours": lambda: segment_all(model, jobs, folder),
        "its network": network_alone(model, scans, slices, lanes=count_lanes("cpu")),
        "usual script": run_usual_script,
    }
    times = time_on_both_clocks(contenders, rounds, log)
    slicemill_times = [
        1000 * (run - network) / slices
        for run, network in zip(times.cpu["ours"].seconds, times.cpu["its network"].seconds, strict=True)
    ]
    script = [1000 * seconds / slices for seconds in times.cpu["usual script"].seconds]
    return HostCost(
        results=times.rates(slices),
        cpu_milliseconds_a_slice={
            "ours": round(median(slicemill_times), 3),
            "usual script": round(median(script), 3),
        },
        times_less=round(median(b / a for a, b in zip(slicemill_times, script, strict=True)), 2),
    )


def segment_as_usual(scan: Path, out: Path, logits: npt.NDArray[np.float32]) -> None:
    """Segment a scan as most scripts do; `logits`, float32[z, k, y, x], replace the network."""
    picture = nib.load(scan)
    volume = picture.get_fdata()
    windowed = (np.clip(volume, -200, 300) + 200) / 500
    label = np.zeros(volume.shape, dtype=np.uint8)
    for z in range(volume.shape[2]):
        np.ascontiguousarray(windowed[:, :, z], dtype=np.float32)[None, None]
        label[:, :, z] = np.argmax(logits[z], axis=0)
    nib.save(nib.Nifti1Image(clean_by_scipy(label, 20.0), picture.affine), out)


def measure_components(label: Label, rounds: int, log: Log) -> ComponentRates:
    """Measure the removal of small components from a phantom's labels with specks, by slicemill and by scipy."""
    noisy = add_specks(label)
    equal = bool(np.array_equal(clean(noisy), clean_by_scipy(noisy, MIN_VOXELS)))
    check("slicemill and scipy give equal labels", holds=equal)
    contenders = {"ours": lambda: clean(noisy), "scipy": lambda: clean_by_scipy(noisy, MIN_VOXELS)}
    times = time_on_both_clocks(contenders, rounds, log)
    speedup = times.speedup("ours", "scipy")
    return ComponentRates(results=times.rates(len(label)), equal=equal, over_scipy=speedup)


def add_specks(label: Label) -> Label:
    """Return labels uint8[z, y, x] with SPECKS of liver and tumor, two voxels along each side."""
    rng = np.random.default_rng(0)
    out = label.copy()
    for z, y, x in zip(*(rng.integers(0, side, SPECKS) for side in label.shape), strict=True):
        out[z : z + 2, y : y + 2, x : x + 2] = rng.integers(1, 3)
    return out


def clean(label: Label) -> Label:
    """Return labels uint8[z, y, x] with only the largest organ, and without lesions below MIN_VOXELS, by slicemill."""
    grid = Grid(shape=label.shape[::-1], affine=np.diag([-10.0, -10.0, 10.0, 1.0]))  # a voxel is 1 ml
    out = label.copy()
    postprocess(out, LITS_LABELS, PostprocessRules(largest_organ=True, min_lesion_ml=float(MIN_VOXELS)), grid)
    return out


def clean_by_scipy(label: Label, min_voxels: float) -> Label:
    """Return labels with only the largest organ, and tumors of fewer than `min_voxels` voxels as organ, by scipy."""
    label = label.copy()
    neighbors = np.ones((3, 3, 3))
    components, count = ndimage.label(label > 0, structure=neighbors)
    if count:
        sizes = ndimage.sum_labels(label > 0, components, range(1, count + 1))
        label[components != 1 + int(np.argmax(sizes))] = 0
    components, count = ndimage.label(label == 2, structure=neighbors)
    if count:
        sizes = ndimage.sum_labels(label == 2, components, range(1, count + 1))
        label[np.isin(components, 1 + np.flatnonzero(sizes < min_voxels))] = 1
    return label
