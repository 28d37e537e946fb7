"""Cost of other values of the tuned constants: whoever changes one, or the machine, sees the effect.

What bounds it: the work of each row. A row is one constant of `constants.toml` and a piece of work that it affects, done with the value
in the code and with others in interleaved rounds. Times are CPU seconds of this process; those of the network's batch are wall time,
because its lanes share the cores. Command: `slicemill bench constants`.
"""

import importlib
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

import slicemill.infer.runtime.capacity
from slicemill.bench.harness.clock import Work, now, ratio, time_rounds
from slicemill.bench.harness.cores import pin_to_one_core, torch_threads
from slicemill.bench.harness.headline import Record
from slicemill.bench.harness.networks import MARKED, default_network, exported
from slicemill.bench.harness.record import to_record
from slicemill.bench.harness.subject import Files, Subject
from slicemill.bench.stages.infer_around import add_specks, clean
from slicemill.bench.stages.infer_session import network_alone
from slicemill.bench.stages.ingest import convert_ours
from slicemill.common.documents import from_toml
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.lesions import find_lesions
from slicemill.ct.phantom import write_nifti
from slicemill.ct.pictures import gray, png_bytes
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import load
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.runtime.capacity import lanes_on
from slicemill.store.statistics import value_counts
from slicemill.train.config import KINDS
from slicemill.train.data.augment import changed

FILE = Path(__file__).with_name("constants.toml")
SLICES_A_LANE = 8
"""Slices that the default network labels on each core."""
NOISY_SLICES = 4


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A constant in `constants.toml`."""

    where: str
    values: tuple[int, ...]
    what: str
    work: str
    """Name of a method of `Works`."""
    unit: Literal["one", "slices"] = "one"
    """What the values count; slices are converted to pixels."""
    clock: Literal["cpu", "wall"] = "cpu"


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A constant of a module, and the work that it affects."""

    where: str
    """Like ``slicemill.ct.pictures.LEVEL``."""
    values: tuple[int, ...]
    """Values to try besides the one in the code."""
    what: str
    work: Work
    """Does the work; an integer that it returns is the number of bytes that it produced."""
    clock: Callable[[], float] = time.process_time


@dataclass(frozen=True, kw_only=True)
class ConstantRecord:
    """Row of a constant."""

    chosen: int
    """The value in the code."""
    what: str
    values: Mapping[str, dict[str, float]]
    """Value -> time, and bytes if there are any, over those of the chosen value."""


@dataclass(frozen=True, kw_only=True)
class ConstantsRecord:
    """Record of `bench constants`."""

    benchmark: str = "constants"
    date: str = field(default_factory=now)
    subject: str
    rounds: int
    constants: Mapping[str, ConstantRecord]
    machine: Record = field(default_factory=machine_info)


def run(folder: Path, subject: Subject, *, rounds: int) -> Record:
    """Measure every constant on one scan and return the record."""
    rows: dict[str, ConstantRecord] = {}
    constants = make_constants(folder, subject)
    with progress("constants", len(constants), "constants") as advance:
        for constant in constants:
            rows[constant.where] = measure_constant(constant, rounds)
            advance(1, constant.where)
    return to_record(ConstantsRecord(subject=str(subject), rounds=rounds, constants=rows))


def measure_constant(constant: Constant, rounds: int) -> ConstantRecord:
    """Measure time and bytes of the work with each value."""
    module_name, _, name = constant.where.rpartition(".")
    module = importlib.import_module(module_name)
    chosen = getattr(module, name)
    sizes: dict[int, int] = {}

    def work_with(value: int) -> None:
        setattr(module, name, value)
        try:
            size = constant.work()
        finally:
            setattr(module, name, chosen)
        if isinstance(size, int):
            sizes[value] = size

    values = sorted({chosen, *constant.values})
    contenders = {str(value): (lambda value=value: work_with(value)) for value in values}
    with pin_to_one_core() if constant.clock is time.process_time else nullcontext():
        times = time_rounds(contenders, rounds=rounds, clock=constant.clock)
    rows = {str(value): {"time": round(ratio(times[str(value)], times[str(chosen)]), 3)} for value in values}
    for value, size in sizes.items():
        rows[str(value)]["bytes"] = round(size / sizes[chosen], 3)
    return ConstantRecord(chosen=chosen, what=constant.what, values=rows)


def make_constants(folder: Path, subject: Subject) -> list[Constant]:
    """Return the constants with their work on a scan."""
    works = Works(folder, subject)
    entries = from_toml(dict[str, tuple[Entry, ...]], FILE.read_text(encoding="utf-8"), FILE.name)["constant"]
    pixels = subject.image.shape[1] * subject.image.shape[2]
    return [
        Constant(
            where=entry.where,
            values=tuple(value * (pixels if entry.unit == "slices" else 1) for value in entry.values),
            what=entry.what,
            work=getattr(works, entry.work),
            clock=time.perf_counter if entry.clock == "wall" else time.process_time,
        )
        for entry in entries
    ]


class Works:
    """The work of each row, on one scan. Inputs are made before the measurement."""

    def __init__(self, folder: Path, subject: Subject) -> None:
        self._folder, self._subject = folder, subject
        self._axial = subject.write(folder / "axial", ".nii")
        self._coronal = Files(image=folder / "coronal" / "volume-1.nii", mask=folder / "coronal" / "segmentation-1.nii")
        for path, volume in ((self._coronal.image, subject.image), (self._coronal.mask, subject.label)):
            write_nifti(path, volume, subject.spacing_mm, "RIP")
        self._specked = add_specks(subject.label)
        self._tumor = self._specked == LITS_LABELS.tumor_value()
        rng = np.random.default_rng(0)
        self._noise = rng.integers(0, 3, (NOISY_SLICES, *subject.label.shape[1:]), dtype=np.uint8)
        self._pictures = [gray(section) for section in subject.image[:: max(1, len(subject.image) // 8)]]
        self._mask = load(gather([self._axial.mask])[0][0])
        first = slice(16)
        self._images = torch.from_numpy(subject.image[first, None].clip(-200, 300).astype(np.float32) / 250)
        self._labels = torch.from_numpy(subject.label[first].astype(np.int64))
        self._labelers: dict[int, Work] = {}

    def ingest_axial(self) -> None:
        """Ingest a scan whose slices are stored one after the other."""
        convert_ours(self._folder, self._axial, self._subject.params())

    def ingest_coronal(self) -> None:
        """Ingest a scan whose axes must be reordered."""
        convert_ours(self._folder, self._coronal, self._subject.params())

    def count_labels(self) -> None:
        """Count the voxels of each label."""
        value_counts(self._subject.label)

    def clean_specks(self) -> npt.NDArray[np.uint8]:
        """Remove components from a label with specks."""
        return clean(self._specked)

    def clean_noise(self) -> npt.NDArray[np.uint8]:
        """Remove components from noise."""
        return clean(self._noise)

    def find_lesions(self) -> None:
        """Find lesions and measure their diameters."""
        find_lesions(self._tumor, np.eye(4))

    def pack_pictures(self) -> int:
        """Compress slices as PNG, and return the bytes."""
        return sum(len(png_bytes(picture)) for picture in self._pictures)

    def write_mask(self) -> int:
        """Write a mask as .nii.gz, and return the bytes."""
        path = self._folder / "mask.nii.gz"
        write_volume(path, self._mask.header, np.uint8, self._mask.grid.to_file(self._subject.label))
        return path.stat().st_size

    @cached_property
    def _model(self) -> Model:
        """Return the default network, opened on the CPU."""
        side = self._subject.image.shape[-1]
        return open_model(exported(self._folder / "default.onnx", default_network(), MARKED, side), "cpu")

    def label_slices(self) -> None:
        """Label slices with the default network; the warm-up prepares its batch for each value of the constant."""
        pixels, lanes = slicemill.infer.runtime.capacity.CPU_PIXELS, lanes_on("cpu")
        if pixels not in self._labelers:
            scan = self._axial.image
            self._labelers[pixels] = network_alone(self._model, scan, SLICES_A_LANE * lanes, lanes)
        self._labelers[pixels]()

    def augment(self) -> None:
        """Change slices at random, with every kind of change in every slice."""
        with torch_threads(1):  # torch's other threads would run, and wait, on the core that is measured
            changed(self._images, self._labels, 1.0, dict.fromkeys(KINDS, 1.0), torch.Generator().manual_seed(0))
