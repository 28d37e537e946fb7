"""The organ's range compared with all slices: the default network, files to files, with equal masks.

Bottleneck: the convolutions. Command: `slicemill bench infer --range`. Weights are random, and labels follow marked HU
(`slicemill.bench.harness.networks`).

| row | scans |
|---|---|
| trunk | from hips to shoulders, with the liver in about a quarter of the slices |
| abdomen | cut to the liver, which fills most of the slices |
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from slicemill.bench.harness.clock import Log, Work, show_progress, time_on_both_clocks
from slicemill.bench.harness.cores import count_cores
from slicemill.bench.harness.headline import Record, check
from slicemill.bench.harness.networks import MARKED, default_network, export_network, mark_labels
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.networks import RangeRecord, RangeRow
from slicemill.bench.stages.infer_session import EVERY_SLICE, network_alone, segment_all
from slicemill.ct.phantom import make_phantom, write_nifti
from slicemill.ct.phantom_canvas import PhantomSpec
from slicemill.infer.inputs.gather import gather
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer

SIZE = 256
SCANS = 2
RANGE, ALL, NETWORK = "organ's range", "all slices", "bare network"
TRUNK_MM, TRUNK_MIDDLE_MM, ABDOMEN_MM = 590.0, 40.0, 190.0
CONTENDERS = 6


def run(folder: Path, *, slices: int, rounds: int) -> Record:
    """Measure both rows and return the record; a trunk has `slices` slices, an abdomen as many as its height asks."""
    model = open_model(export_network(folder / "default.onnx", default_network(), MARKED, SIZE), "cpu")
    shape = (slices, SIZE, SIZE)
    trunk = PhantomSpec(seed=0, shape=shape, height_mm=TRUNK_MM, middle_mm=TRUNK_MIDDLE_MM, trunk=True)
    abdomen = PhantomSpec(seed=0, shape=(round(slices * ABDOMEN_MM / TRUNK_MM), SIZE, SIZE), height_mm=ABDOMEN_MM)
    with show_progress("infer", CONTENDERS, rounds) as log:
        rows = {
            name: _measure(model, folder / name, [replace(spec, seed=seed) for seed in range(SCANS)], rounds, log)
            for name, spec in (("trunk", trunk), ("abdomen", abdomen))
        }
    return RangeRecord(**origin(), unit=f"slices of {SIZE}x{SIZE}", rounds=rounds, rows=rows).as_json()


def _measure(model: Model, folder: Path, specs: list[PhantomSpec], rounds: int, log: Log) -> RangeRow:
    scans = folder / "scans"
    scans.mkdir(parents=True)
    shares = []
    for number, spec in enumerate(specs):
        phantom = make_phantom(spec)
        write_nifti(scans / f"scan-{number}.nii.gz", mark_labels(phantom.image, phantom.label), phantom.spacing_mm)
        shares.append(float((phantom.label > 0).any((1, 2)).mean()))
    jobs, _ = gather([scans])
    slices = sum(spec.shape[0] for spec in specs)
    options = {RANGE: InferOptions(z_range="organ"), ALL: EVERY_SLICE}
    labeled = {name: infer(model, jobs, folder / name, option).labeled for name, option in options.items()}
    masks = {
        name: [np.asarray(nib.load(folder / name / job.name).dataobj).tobytes() for job in jobs] for name in options
    }
    equal = masks[RANGE] == masks[ALL]
    check("both ways give equal masks", holds=equal)
    contenders: dict[str, Work] = {
        name: partial(segment_all, model, jobs, folder, option) for name, option in options.items()
    }
    contenders[NETWORK] = network_alone(model, scans, labeled[RANGE], lanes=count_cores())
    times = time_on_both_clocks(contenders, rounds, log)
    return RangeRow(
        slices=slices,
        labeled=labeled[RANGE],
        liver_share=round(sum(shares) / len(shares), 3),
        equal=equal,
        results=times.rates(slices),
        over_all=times.speedup(RANGE, ALL),
        of_network=times.speedup(RANGE, NETWORK),
    )
