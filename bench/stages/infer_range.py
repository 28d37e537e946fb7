"""The organ's range compared with all slices: the default network, files to files, with equal masks.

Bottleneck: the convolutions. Command: `slicemill bench infer --range`. Weights are random, and labels follow marked HU
(`slicemill.bench.harness.networks`). Ratios of CPU time hold on a busy machine, too: the record says how busy it was.

| row | scans |
|---|---|
| trunk | from hips to shoulders, with the liver in about a quarter of the slices |
| abdomen | cut to the liver, which fills most of the slices |

Where OpenVINO is installed, the trunk is also labeled by it, in the number format that it chooses for the processor.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from slicemill.bench.harness.agreement import differing_share
from slicemill.bench.harness.clock import Log, Work, show_progress, time_on_both_clocks
from slicemill.bench.harness.cores import count_cores
from slicemill.bench.harness.headline import Record, check
from slicemill.bench.harness.networks import MARKED, default_network, export_network, mark_labels
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.networks import RangeEngine, RangeRecord, RangeRow
from slicemill.bench.stages.infer_session import network_alone
from slicemill.common.errors import ProviderError
from slicemill.ct.phantom import make_phantom, write_nifti
from slicemill.ct.phantom_canvas import PhantomSpec
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import Job
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from slicemill.infer.slices.assembly import RangeChoice

SIZE, QUICK_SIZE = 256, 128
"""Pixels along a slice's side. A quick run has a quarter of the work in network, files and phantoms alike."""
SCANS = 2
"""The phantom of a row, and its mirror image."""
RANGE, ALL, NETWORK = "organ's range", "all slices", "bare network"
OPENVINO = {"f32": "OpenVINO, float32", "bf16": "OpenVINO, bfloat16"}
"""Names of the engine, by its number format."""
TRUNK_MM, TRUNK_MIDDLE_MM, ABDOMEN_MM = 590.0, 40.0, 190.0
CONTENDERS = 7


@dataclass(frozen=True, kw_only=True)
class RowScans:
    """The scans of a row."""

    folder: Path
    """Folder of the row; the scans are in its folder ``scans``."""
    jobs: list[Job]
    slices: int
    """Slices of all scans."""
    liver_share: float

    def segment(self, model: Model, name: str, z_range: RangeChoice) -> int:
        """Segment all scans into the folder `name` of the row; return the number of slices that were labeled."""
        summary = infer(model, self.jobs, self.folder / name, InferOptions(z_range=z_range, overwrite=True))
        check("all scans were segmented", holds=summary.count("done") == len(self.jobs))
        return summary.labeled

    def masks(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the masks that `segment` wrote, flat and joined: uint8[voxels], label values."""
        paths = [self.folder / name / job.name for job in self.jobs]
        return np.concatenate([np.asarray(nib.load(path).dataobj, dtype=np.uint8).ravel() for path in paths])


def run(folder: Path, *, slices: int, rounds: int, size: int = SIZE) -> Record:
    """Measure both rows and return the record.

    Parameters
    ----------
    slices
        Slices of a trunk; an abdomen has as many as its height asks.
    size
        Pixels along a slice's side.
    """
    load = os.getloadavg()[0]
    path = export_network(folder / "default.onnx", default_network(), MARKED, size)
    model = open_model(path, "cpu")
    engines, not_run = open_engines(path)
    shape = (slices, size, size)
    trunk = PhantomSpec(seed=0, shape=shape, height_mm=TRUNK_MM, middle_mm=TRUNK_MIDDLE_MM, trunk=True)
    abdomen = PhantomSpec(seed=0, shape=(round(slices * ABDOMEN_MM / TRUNK_MM), size, size), height_mm=ABDOMEN_MM)
    with show_progress("infer", CONTENDERS, rounds) as log:
        rows = {
            "trunk": measure_row(model, engines, write_scans(folder / "trunk", trunk), rounds, log),
            "abdomen": measure_row(model, {}, write_scans(folder / "abdomen", abdomen), rounds, log),
        }
    return RangeRecord(
        **origin(), unit=f"slices of {size}x{size}", rounds=rounds, load=round(load, 2), rows=rows, not_run=not_run
    ).as_json()


def open_engines(path: Path) -> tuple[dict[str, Model], dict[str, str]]:
    """Return the other engines that run here with a model, and the reasons of those that do not, by name."""
    try:
        model = open_model(path, "openvino")
    except ProviderError as error:
        return {}, dict.fromkeys(OPENVINO.values(), str(error))
    name = OPENVINO[model.session.precision]
    others = dict.fromkeys(OPENVINO.values(), f"OpenVINO computes in {model.session.precision} on this processor")
    del others[name]
    return {name: model}, others


def write_scans(folder: Path, spec: PhantomSpec) -> RowScans:
    """Draw a phantom, and write it and its mirror image, with marked HU."""
    scans = folder / "scans"
    scans.mkdir(parents=True)
    phantom = make_phantom(spec)
    marked = mark_labels(phantom.image, phantom.label)
    for number, image in enumerate((marked, marked[:, :, ::-1])):
        write_nifti(scans / f"scan-{number}.nii.gz", image, phantom.spacing_mm)
    return RowScans(
        folder=folder,
        jobs=gather([scans])[0],
        slices=SCANS * len(marked),
        liver_share=float((phantom.label > 0).any((1, 2)).mean()),
    )


def measure_row(model: Model, engines: Mapping[str, Model], scans: RowScans, rounds: int, log: Log) -> RangeRow:
    """Measure range, all slices, bare network, and the range by other engines; compare the masks of the last round."""
    labeled = scans.segment(model, RANGE, "organ")
    contenders: dict[str, Work] = {
        RANGE: partial(scans.segment, model, RANGE, "organ"),
        ALL: partial(scans.segment, model, ALL, "all"),
        NETWORK: network_alone(model, scans.folder / "scans", labeled, lanes=count_cores()),
    }
    contenders |= {name: partial(scans.segment, engine, name, "organ") for name, engine in engines.items()}
    times = time_on_both_clocks(contenders, rounds, log)
    expected = scans.masks(ALL)
    equal = np.array_equal(scans.masks(RANGE), expected)
    check("both ways give equal masks", holds=equal)
    return RangeRow(
        slices=scans.slices,
        labeled=labeled,
        liver_share=round(scans.liver_share, 3),
        equal=equal,
        results=times.rates(scans.slices),
        over_all=times.speedup(RANGE, ALL),
        of_network=times.speedup(RANGE, NETWORK),
        engines={
            name: RangeEngine(
                over_all=times.speedup(name, ALL), labels_differing=differing_share(scans.masks(name), expected)
            )
            for name in engines
        },
    )
