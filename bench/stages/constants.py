"""Tuned constants: the same work with other values of each, so that whoever changes one, or the machine, sees what it costs.

Each row is one constant and one piece of work that it bears on, done with the value in the code and with others in drawn turns.
Times are CPU seconds of this process, but for the network's batch, whose lanes share the cores: there it is the wall.
"""

import datetime as dt
import importlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import slicemill.infer.runtime.capacity
from slicemill.bench.harness.clock import interleaved, ratio
from slicemill.bench.harness.headline import Record
from slicemill.bench.harness.subject import Files, Subject
from slicemill.bench.stages.infer_cpu import SPECKS, bare, cleaned, exported, network_of, specked
from slicemill.bench.stages.ingest import one_core, ours
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.lesions import find_lesions
from slicemill.ct.phantom import write_nifti
from slicemill.ct.pictures import gray, png_bytes
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import load
from slicemill.infer.network.model import open_model
from slicemill.infer.runtime.capacity import lanes_on
from slicemill.store.statistics import value_counts
from slicemill.train.config import KINDS
from slicemill.train.data.augment import changed

MIB = 1 << 20
MOST_SLICES = 8
"""In a batch."""
NOISY_SLICES = 4


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A constant of a module and what is done with it."""

    where: str
    """Like ``slicemill.ct.pictures.LEVEL``."""
    values: tuple[int, ...]
    """Tried beside the one in the code."""
    what: str
    work: Callable[[], object]
    """Does the work; a whole number that it returns is how many bytes came out of it."""
    timer: Callable[[], float] = time.process_time


def run(folder: Path, subject: Subject, *, rounds: int) -> Record:
    """Measure every constant on one scan and return the record."""
    rows: dict[str, Record] = {}
    constants = constants_of(folder, subject)
    with progress("constants", len(constants), "constants") as advance:
        for constant in constants:
            rows[constant.where] = measured(constant, rounds)
            advance(1, constant.where)
    return {
        "benchmark": "constants",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "subject": str(subject),
        "rounds": rounds,
        "constants": rows,
        "machine": machine_info(),
    }


def measured(constant: Constant, rounds: int) -> Record:
    """Return time and bytes of the work with each value, over those with the one in the code."""
    module_name, _, name = constant.where.rpartition(".")
    module = importlib.import_module(module_name)
    chosen = getattr(module, name)
    sizes: dict[int, int] = {}

    def with_value(value: int) -> None:
        setattr(module, name, value)
        try:
            out = constant.work()
        finally:
            setattr(module, name, chosen)
        if isinstance(out, int):
            sizes[value] = out

    values = sorted({chosen, *constant.values})
    contenders = {str(value): (lambda value=value: with_value(value)) for value in values}
    with one_core() if constant.timer is time.process_time else nullcontext():
        times = interleaved(contenders, rounds=rounds, timer=constant.timer)
    found = {
        str(value): {"time": round(ratio(times[str(value)], times[str(chosen)]), 3)}
        | ({"bytes": round(sizes[value] / sizes[chosen], 3)} if sizes else {})
        for value in values
    }
    return {"chosen": chosen, "what": constant.what, "values": found}


def constants_of(folder: Path, subject: Subject) -> list[Constant]:
    """Return the constants with their work on a scan."""
    files = subject.write(folder / "axial", ".nii")
    return [
        *of_ingest(folder, subject, files),
        *of_labels(subject.label),
        *of_written(folder, subject, files),
        of_batches(folder, subject, files),
        of_augmentation(subject),
    ]


def of_ingest(folder: Path, subject: Subject, axial: Files) -> list[Constant]:
    """Return what bears on a scan's way into the store."""

    def converted(case: Files) -> Callable[[], None]:
        return lambda: ours(folder, case, subject.params())

    coronal = Files(image=folder / "coronal" / axial.image.name, mask=folder / "coronal" / axial.mask.name)
    for path, volume in ((coronal.image, subject.image), (coronal.mask, subject.label)):
        write_nifti(path, volume, subject.spacing_mm, "RIP")
    return [
        Constant(
            where="slicemill.ct.scan.SLAB_BYTES",
            values=(MIB // 2, 2 * MIB, 8 * MIB, 32 * MIB),
            what="ingest of an axial .nii",
            work=converted(axial),
        ),
        Constant(
            where="slicemill.ct.scan.BATCH_BYTES",
            values=(MIB, 4 * MIB, 16 * MIB, 64 * MIB),
            what="ingest of a coronal .nii",
            work=converted(coronal),
        ),
        Constant(
            where="slicemill.store.statistics.MANY_SLICES",
            values=(1, 4, 8, 32),
            what="voxels of each label",
            work=lambda: value_counts(subject.label),
        ),
    ]


def of_labels(label: npt.NDArray[np.uint8]) -> list[Constant]:
    """Return what bears on post-processing and lesions."""
    noisy = specked(label)
    noise = np.random.default_rng(0).integers(0, 3, (NOISY_SLICES, *label.shape[1:]), dtype=np.uint8)
    tumor = noisy == LITS_LABELS.tumor_value()
    return [
        Constant(
            where="slicemill.ct.runs.PLANE_BYTES",
            values=(MIB // 4, MIB, 4 * MIB, 16 * MIB),
            what=f"largest organ, small lesions away, {SPECKS} specks",
            work=lambda: cleaned(noisy),
        ),
        *(
            Constant(
                where=f"slicemill.ct.runs.{name}", values=values, what="the same in noise", work=lambda: cleaned(noise)
            )
            for name, values in (
                ("BLOCK_RUNS", (1 << 12, 1 << 16, 1 << 20)),
                ("BLOCK_VOXELS", (1 << 14, 1 << 18, 1 << 22)),
            )
        ),
        Constant(
            where="slicemill.ct.lesions.BATCH_SLICES",
            values=(4, 16, 64),
            what="lesions, with their diameters",
            work=lambda: find_lesions(tumor, np.eye(4)),
        ),
    ]


def of_written(folder: Path, subject: Subject, files: Files) -> list[Constant]:
    """Return what bears on masks and pictures that are written."""
    pictures = [gray(section) for section in subject.image[:: max(1, len(subject.image) // 8)]]
    mask = load(gather([files.mask])[0][0])

    def pack() -> int:
        return sum(len(png_bytes(picture)) for picture in pictures)

    def write() -> int:
        path = folder / "mask.nii.gz"
        write_volume(path, mask.header, np.uint8, mask.grid.to_file(subject.label))
        return path.stat().st_size

    return [
        Constant(where="slicemill.ct.pictures.LEVEL", values=(0, 1, 2, 3), what="slices as PNG", work=pack),
        Constant(
            where="slicemill.ct.formats.nifti.write.GZIP_LEVEL",
            values=(0, 1, 2, 3),
            what="a mask as .nii.gz",
            work=write,
        ),
    ]


def of_batches(folder: Path, subject: Subject, files: Files) -> Constant:
    """Return how many pixels a batch of the default network has on the CPU."""
    network, config = network_of("default")
    side, lanes = subject.image.shape[-1], lanes_on("cpu")
    model = open_model(exported(folder / "default.onnx", network, config, side), "cpu")
    made: dict[int, Callable[[], object]] = {}

    def label() -> None:
        pixels = slicemill.infer.runtime.capacity.CPU_PIXELS
        if pixels not in made:
            made[pixels] = bare(model, files.image, MOST_SLICES * lanes, lanes)
        made[pixels]()

    return Constant(
        where="slicemill.infer.runtime.capacity.CPU_PIXELS",
        values=tuple(slices * side * side for slices in (1, 2, 4, MOST_SLICES)),
        what=f"the default network, {MOST_SLICES} slices on each core",
        work=label,
        timer=time.perf_counter,
    )


def of_augmentation(subject: Subject) -> Constant:
    """Return how many slices a random change takes at a time: every kind in every slice."""
    depth = min(16, len(subject.image))
    image = torch.from_numpy(subject.image[:depth, None].clip(-200, 300).astype(np.float32) / 250)
    label = torch.from_numpy(subject.label[:depth].astype(np.int64))

    def change() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # those of a pool would run, and wait, beside the core that is timed
        try:
            changed(image, label, 1.0, dict.fromkeys(KINDS, 1.0), torch.Generator().manual_seed(0))
        finally:
            torch.set_num_threads(threads)

    return Constant(
        where="slicemill.train.data.augment.TOGETHER",
        values=(1, 4, 16),
        what=f"{len(KINDS)} kinds of random changes",
        work=change,
    )
