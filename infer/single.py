"""One scan through the network, without the engine; and what is done with any scan's labels."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.infer.cpu_check import check_parity
from slicemill.infer.inputs.jobs import Job, LoadedScan, load
from slicemill.infer.network.lanes import make_lane, turns_of
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.postprocess import postprocess
from slicemill.infer.report import make_report
from slicemill.infer.runtime.capacity import capacity_of, lanes_on
from slicemill.infer.slices.assembly import Segmented, plan_of
from slicemill.infer.slices.batches import Filler, Scan


def segment_volume(
    model: Model,
    volume: npt.NDArray[np.int16],
    spacing_mm: tuple[float, float, float],
    advance: Callable[[int], None] = lambda _: None,
) -> Segmented:
    """Label every slice of one volume int16[z, y, x], HU, of this spacing in mm (z, y, x).

    Raises
    ------
    ScanError
        The spacing cannot be brought to the model's.
    ModelError
        The provider's labels differ from the CPU's on the first scan's slices.
    """
    nz, ny, nx = volume.shape
    plan = plan_of(model.info, (nz, ny, nx), spacing_mm)
    scan = Scan(plan, plan.seen(volume))
    capacity = capacity_of(model.info, model.provider)
    if model.provider != "cpu" and not model.gated:
        check_parity(model, scan, make_lane(model, capacity, plan.wanted))
    filler = Filler(capacity)
    filler.add(scan)
    taking, turns, ended = threading.Lock(), turns_of(model), threading.Event()

    def label() -> None:
        lane = make_lane(model, capacity, plan.wanted)
        while True:
            with taking:
                if ended.is_set() or not filler.waiting:
                    return
                batch = filler.next()
            image = batch.show(lane.image, in_place=lane.reads_in_place)
            batch.put(lane.run(image, batch.neighbors, turns, batch.targets()))
            with taking:
                advance(len(batch.units))

    lanes = lanes_on(model.provider)
    with ThreadPoolExecutor(lanes, "lane") as pool:
        try:
            for done in as_completed([pool.submit(label) for _ in range(lanes)]):
                done.result()
        finally:  # also of Ctrl-C: no lane begins another batch
            ended.set()
    return scan.canvas.segmented()


def segment(
    model: Model, loaded: LoadedScan, name: str, advance: Callable[[int], None] = lambda _: None
) -> tuple[Segmented, dict[str, Any]]:
    """Label a scan, post-process the labels as the model's metadata asks, and report."""
    info = model.info
    segmented = segment_volume(model, loaded.volume, loaded.grid.spacing_mm, advance)
    postprocess(segmented.label, info.labels, info.rules, loaded.grid, segmented.tumor_probability)
    return segmented, full_report(model, loaded, segmented, name)


def full_report(model: Model, loaded: LoadedScan, segmented: Segmented, name: str) -> dict[str, Any]:
    """Return the JSON report of a scan."""
    report = make_report(name, loaded.grid, segmented, model.info)
    return {**report, "provider": model.provider, "warnings": list(loaded.warnings)}


def segment_file(path: Path, model: Path, *, provider: str = "auto") -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
    """Segment one file; see `slicemill.segment`."""
    opened = open_model(model, provider)  # type: ignore[arg-type]
    segmented, report = segment(opened, load(Job(name=path.name, path=path)), path.name)
    return segmented.label, report
