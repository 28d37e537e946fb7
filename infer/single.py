"""Segment one scan, without the engine of a bulk run."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slicemill.ct.geometry import Grid
from slicemill.infer.inputs.jobs import LoadedScan
from slicemill.infer.network.lanes import count_sharers, make_compute_limit, make_lane, report_device_errors
from slicemill.infer.network.model import Model
from slicemill.infer.parity_check import check_parity
from slicemill.infer.postprocess import postprocess
from slicemill.infer.report import ScanReport, make_report
from slicemill.infer.runtime.capacity import Capacity, batch_capacity
from slicemill.infer.slices.assembly import RangeChoice, Segmentation, labels_in_range, plan_scan
from slicemill.infer.slices.batches import NetworkScan
from slicemill.infer.slices.scan_queue import ScanQueue
from slicemill.infer.slices.tiles import PLAIN, PredictOptions


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is called while a scan is segmented, by one thread at a time."""

    advance: Callable[[int], None] = lambda _: None
    """Gets the number of slices or tiles that were labeled; `count_units` has their sum."""
    labeled: Callable[[npt.NDArray[np.uint8], Sequence[int]], None] = lambda _label, _slices: None
    """Gets uint8[z, y, x], label values, and the slices that were labeled last; those before stay as they are.

    The other slices have any values, and the model's rules are not applied yet.
    """
    before_rules: Callable[[Segmentation], None] = lambda _: None
    """Gets the labels of all slices, before the model's rules are applied."""


UNWATCHED = Watch()


def segment_volume(
    model: Model,
    volume: npt.NDArray[np.int16],
    spacing_mm: tuple[float, float, float],
    watch: Watch = UNWATCHED,
    predict: PredictOptions = PLAIN,
    *,
    in_range: bool = False,
) -> Segmentation:
    """Label every slice of one volume, or, with `in_range`, those around its organ (`slicemill.infer.slices.z_range`).

    Parameters
    ----------
    volume
        int16[z, y, x], HU.
    spacing_mm
        Size of a voxel along z, y, x, mm.
    watch
        Progress callbacks; `before_rules` is not called here.
    predict
        Averages over several predictions, and whether probabilities are kept.

    Raises
    ------
    ScanError
        The spacing cannot be resampled to the model's.
    ModelError
        The provider's labels differ from the CPU's on slices of this volume.
    ConfigError
        `predict` needs probabilities, which the model does not output.
    ProviderError
        The device failed.
    """
    nz, ny, nx = volume.shape
    plan = plan_scan(model.info, (nz, ny, nx), spacing_mm, predict, in_range=in_range)
    scan = NetworkScan(plan, plan.resample(volume))
    capacity = batch_capacity(model.info, model.provider)
    if model.provider != "cpu" and not model.parity_checked:
        check_parity(model, scan, make_lane(model, capacity, plan.outputs))
    _label_scan(model, scan, capacity, watch)
    result = scan.assembly.result()
    watch.advance((nz - result.labeled) * len(plan.tiles))
    return result


def count_units(model: Model, grid: Grid, predict: PredictOptions = PLAIN) -> int:
    """Return the number of slices or tiles that `segment_volume` labels for a scan of this grid."""
    plan = plan_scan(model.info, grid.stored_shape, grid.spacing_mm, predict)
    return len(plan.tiles) * plan.shape[0]


def _label_scan(model: Model, scan: NetworkScan, capacity: Capacity, watch: Watch) -> None:
    """Label the slices of a scan, on as many lanes as the provider supports."""
    queue = ScanQueue(capacity, 0, sharers=count_sharers([model]))
    queue.add(scan)
    lock, compute_limit = threading.Lock(), make_compute_limit(model)
    labeled: Counter[int] = Counter()

    def run_lane() -> None:
        lane = make_lane(model, capacity, scan.plan.outputs)
        while (batch := queue.take()) is not None:
            image = batch.fill(lane.image, in_place=lane.reads_in_place)
            with report_device_errors(model.provider, "the device failed"):
                output = lane.run(image, batch.neighbors, compute_limit, batch.targets())
            if batch.put(output):
                if scan.ask_more():
                    queue.add(scan)
                else:
                    queue.finish(scan)
            with lock:
                labeled.update(unit.z for unit in batch.units)
                slices = dict.fromkeys(unit.z for unit in batch.units)
                watch.labeled(scan.assembly.label, [z for z in slices if labeled[z] == len(scan.plan.tiles)])
                watch.advance(len(batch.units))

    with ThreadPoolExecutor(model.lanes, "lane") as pool:
        try:
            for future in as_completed([pool.submit(run_lane) for _ in range(model.lanes)]):
                future.result()
        finally:  # also after Ctrl-C: no lane starts another batch
            queue.stop()


def segment(
    model: Model,
    loaded: LoadedScan,
    name: str,
    watch: Watch = UNWATCHED,
    predict: PredictOptions = PLAIN,
    z_range: RangeChoice = "auto",
) -> tuple[Segmentation, ScanReport]:
    """Label a scan, post-process the labels by the model's rules, and measure them."""
    info = model.info
    in_range = labels_in_range(info, z_range, predict, postprocess=True)
    segmentation = segment_volume(model, loaded.volume, loaded.grid.spacing_mm, watch, predict, in_range=in_range)
    watch.before_rules(segmentation)
    probability = segmentation.tumor_probability
    postprocess(segmentation.label, info.labels, info.rules, loaded.grid, probability, loaded.volume)
    return segmentation, make_report(model, loaded, segmentation, name)
