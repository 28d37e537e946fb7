"""Run time with other values of the tuned constants.

Bottleneck: the work of each row. A row is one constant of `constants.toml` and a piece of work that it affects,
done with the value in the code and with others in interleaved rounds. Times are CPU seconds of this process; those of
the network's batch are wall time, because its lanes share the cores. Command: `slicemill bench constants`.
"""

import importlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import slicemill.infer.runtime.capacity
from slicemill.bench.harness.clock import Work, ratio, time_rounds
from slicemill.bench.harness.cores import pin_to_one_core, torch_threads
from slicemill.bench.harness.headline import Record
from slicemill.bench.harness.networks import MARKED, default_network, export_network
from slicemill.bench.harness.subject import Files, Subject
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.data import ConstantsRecord, ConstantTrials, Trial
from slicemill.bench.stages.infer_around import add_specks, clean
from slicemill.bench.stages.infer_session import network_alone
from slicemill.bench.stages.ingest import convert_with_slicemill
from slicemill.common.documents import from_toml
from slicemill.common.progress import progress
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.lesions import find_lesions
from slicemill.ct.phantom import write_nifti
from slicemill.ct.pictures import encode_png, render_gray
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import load_scan
from slicemill.infer.network.model import open_model
from slicemill.infer.runtime.capacity import count_lanes
from slicemill.store.statistics import count_values
from slicemill.train.config import KINDS
from slicemill.train.data.augment import augment_by_shares
from slicemill.train.data.generators import make_generators

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
    """A key of `make_works`."""
    unit: Literal["one", "slices"] = "one"
    """What the values count; slices are converted to pixels."""
    clock: Literal["cpu", "wall"] = "cpu"


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A constant of a module, and the work that it affects."""

    where: str
    """Like ``slicemill.ct.pictures.LEVEL``."""
    values: tuple[int, ...]
    """Other values to try."""
    what: str
    work: Work
    """Does the work; an integer that it returns is the number of bytes that it produced."""
    clock: Callable[[], float] = time.process_time


def run(folder: Path, subject: Subject, *, rounds: int) -> Record:
    """Measure every constant on one scan and return the record."""
    rows: dict[str, ConstantTrials] = {}
    constants = make_constants(folder, subject)
    with progress("constants", len(constants), "constants") as advance:
        for constant in constants:
            rows[constant.where] = measure_constant(constant, rounds)
            advance(1, constant.where)
    return ConstantsRecord(**origin(), subject=str(subject), rounds=rounds, constants=rows).as_json()


def measure_constant(constant: Constant, rounds: int) -> ConstantTrials:
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
    trials = {
        str(value): Trial(
            time=round(ratio(times[str(value)], times[str(chosen)]), 3),
            bytes=round(sizes[value] / sizes[chosen], 3) if value in sizes else None,
        )
        for value in values
    }
    return ConstantTrials(chosen=chosen, what=constant.what, values=trials)


def make_constants(folder: Path, subject: Subject) -> list[Constant]:
    """Return the constants with their work on a scan."""
    works = make_works(folder, subject)
    entries = from_toml(dict[str, tuple[Entry, ...]], FILE.read_text(encoding="utf-8"), FILE.name)["constant"]
    pixels = subject.image.shape[1] * subject.image.shape[2]
    return [
        Constant(
            where=entry.where,
            values=tuple(value * (pixels if entry.unit == "slices" else 1) for value in entry.values),
            what=entry.what,
            work=works[entry.work],
            clock=time.perf_counter if entry.clock == "wall" else time.process_time,
        )
        for entry in entries
    ]


def make_works(folder: Path, subject: Subject) -> dict[str, Work]:
    """Return the work of each row by its name in `constants.toml`; inputs are made here, before the measurement."""
    axial = subject.write(folder / "axial", ".nii")
    coronal = Files(image=folder / "coronal" / axial.image.name, mask=folder / "coronal" / axial.mask.name)
    for path, volume in ((coronal.image, subject.image), (coronal.mask, subject.label)):
        write_nifti(path, volume, subject.spacing_mm, "RIP")
    specked = add_specks(subject.label)
    tumor = specked == LITS_LABELS.tumor_value()
    noise = np.random.default_rng(0).integers(0, 3, (NOISY_SLICES, *subject.label.shape[1:]), dtype=np.uint8)
    pictures = [render_gray(section) for section in subject.image[:: max(1, len(subject.image) // 8)]]
    return {
        "ingest_axial": lambda: convert_with_slicemill(folder, axial, subject.params()),
        "ingest_coronal": lambda: convert_with_slicemill(folder, coronal, subject.params()),
        "count_labels": lambda: count_values(subject.label),
        "clean_specks": lambda: clean(specked),
        "clean_noise": lambda: clean(noise),
        "find_lesions": lambda: find_lesions(tumor, np.eye(4)),
        "pack_pictures": lambda: sum(len(encode_png(picture)) for picture in pictures),
        "write_mask": mask_writer(folder / "mask.nii.gz", subject, axial.mask),
        "label_slices": labeler(folder / "default.onnx", subject, axial.image),
        "augment": augmenter(subject),
    }


def mask_writer(path: Path, subject: Subject, mask: Path) -> Work:
    """Return a function that writes a mask as .nii.gz and returns its bytes."""
    loaded = load_scan(gather([mask])[0][0])

    def write() -> int:
        write_volume(path, loaded.header, np.uint8, loaded.grid.to_file(subject.label))
        return path.stat().st_size

    return write


def labeler(path: Path, subject: Subject, scan: Path) -> Work:
    """Return a function that labels slices with the default network. The warm-up prepares a batch for each value."""
    model = open_model(export_network(path, default_network(), MARKED, subject.image.shape[-1]), "cpu")
    lanes = count_lanes("cpu")
    networks: dict[int, Work] = {}

    def label() -> None:
        pixels = slicemill.infer.runtime.capacity.CPU_PIXELS
        if pixels not in networks:
            networks[pixels] = network_alone(model, scan, SLICES_A_LANE * lanes, lanes=lanes)
        networks[pixels]()

    return label


def augmenter(subject: Subject) -> Work:
    """Return a function that augments slices, with every kind of augmentation in every slice."""
    first = slice(16)
    image = torch.from_numpy(subject.image[first, None].clip(-200, 300).astype(np.float32) / 250)
    label = torch.from_numpy(subject.label[first].astype(np.int64))

    def augment() -> None:
        with torch_threads(1):  # torch's other threads would run, and wait, on the core that is measured
            generators = make_generators(image.device).manual_seed(0)
            augment_by_shares(image, label, 1.0, dict.fromkeys(KINDS, 1.0), generators)

    return augment
