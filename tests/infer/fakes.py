"""A network without onnxruntime: the labels of a scan are its voxels, and devices fail on request."""

import threading
from pathlib import Path

import numpy as np

from slicemill.infer.inputs.jobs import Job
from slicemill.infer.network.model import NetworkOutput
from slicemill.infer.run.engine import Engine, Limits, ScanInProgress, Steps
from slicemill.infer.run.timing import Stopwatch
from slicemill.infer.runtime.capacity import Capacity, count_lanes
from slicemill.infer.slices.assembly import ScanPlan
from slicemill.infer.slices.batches import NetworkScan
from slicemill.infer.slices.tiles import PLAIN, make_tiles

SIDE = 4
FAILED = "CUDA error 700\nand a long story"


def planned(volume, size=(SIDE, SIDE), context=1, step=1.0, range_rule=None):
    """A scan for a network of `size` that knows any label and outputs no probability."""
    plan = ScanPlan(
        shape=volume.shape,
        neighbor_step=step,
        context=context,
        resampling=None,
        tiles=make_tiles(volume.shape[1:], size),
        label_values=np.arange(251, dtype=np.uint8),
        tumor_class=None,
        outputs=("label",),
        predict=PLAIN,
        network_size=size,
        range_rule=range_rule,
    )
    return NetworkScan(plan, volume)


class FakeModel:
    """A device.

    It fails at the batches `fails_at`, counted from 1. `on_batch` is called with the number of each batch, and
    `on_open` before a lane is made.
    """

    def __init__(self, provider="cpu", fails_at=(), on_batch=lambda _: None, on_open=lambda: None, message=FAILED):
        self.provider = provider
        self.fails_at = set(fails_at)
        self.message = message
        self.on_batch = on_batch
        self.on_open = on_open
        self.session = object()
        self.device = 0
        self.lanes = count_lanes(provider)
        self.rebuilt = 0
        self.batches = []
        """Number of units in each batch."""
        self.lock = threading.Lock()

    def rebuild(self):
        self.rebuilt += 1


class FakeLane:
    """Labels a slice with its voxels modulo 251."""

    reads_in_place = False

    def __init__(self, model, capacity, outputs):
        model.on_open()
        self.model = model
        self.image = np.zeros((capacity.rows, SIDE, SIDE), np.int16)

    def run(self, image, neighbors, lock, into=None):
        with lock, self.model.lock:
            self.model.batches.append(len(neighbors))
            number = len(self.model.batches)
        self.model.on_batch(number)
        if number in self.model.fails_at:
            raise RuntimeError(self.model.message)
        middle = neighbors[:, neighbors.shape[1] // 2]
        return NetworkOutput((image[middle] % 251).astype(np.uint8))


class FakeRun:
    """What an engine did: the labels of the scans that were written, and the errors of those that failed."""

    def __init__(self, volumes, models, check=None, range_rule=None, **limits):
        self.range_rule = range_rule
        self.volumes = {str(number): volume for number, volume in enumerate(volumes)}
        self.labels, self.errors, self.units = {}, {}, 0
        steps = Steps(
            read=self.read, write=self.write, fail=self.fail, check=check, advance=self.advance, open_lane=FakeLane
        )
        defaults = {"memory_bytes": 10**9, "readers": 2, "writers": 2, "capacity": Capacity(4, 4)}
        self.engine = Engine(models, Limits(outputs=("label",), **defaults | limits), steps, Stopwatch())

    def run(self):
        self.engine.run(iter([Job(name=name, path=Path(name)) for name in self.volumes]))
        return self

    def read(self, job, reserve_memory):
        volume = self.volumes[job.name]
        reserve_memory(volume.nbytes)
        return ScanInProgress(
            job=job, loaded=None, scan=planned(volume, range_rule=self.range_rule), memory_bytes=volume.nbytes
        )

    def write(self, current):
        self.labels[current.job.name] = current.scan.assembly.result().label

    def fail(self, job, error):
        self.errors[job.name] = error

    def advance(self, current, count):
        self.units += count

    @property
    def correct(self):
        """Whether every written scan has its labels."""
        return all(np.array_equal(label, self.volumes[name] % 251) for name, label in self.labels.items())
