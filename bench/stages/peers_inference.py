"""From scans to masks on the CPU: `slicemill infer` beside MONAI, TorchIO, nnU-Net and the usual script, each in its own environment.

What bounds it: the convolutions. All run one network with equal weights, of one slice as input, on the same .nii.gz files with all cores:
ours from its ONNX file, the others from the same module as `torch.export` writes it, in eager torch (channels last) or compiled.
Eager torch runs batch norms by themselves, onnxruntime folds them into convolutions.
Networks are loaded, and compiled, before the clock starts; a mask is on the disk when it stops. The network has random weights but
the labels that its scans are marked with (`slicemill.bench.stages.infer_cpu.Guided`), so that masks are as large as
in real scans, and the check is their Dice with ours.
"""

import datetime as dt
import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from slicemill.bench.harness.clock import timed
from slicemill.bench.harness.headline import Record, Timed, check, headline
from slicemill.bench.harness.subject import Subject, phantom_subject
from slicemill.bench.peers.peer import Peer, started
from slicemill.bench.peers.remote import ended
from slicemill.bench.stages.infer_cpu import (
    LANES_ALONE,
    MARKED,
    MIN_LESION_ML,
    SESSION_ALONE,
    SESSION_SENTENCE,
    Guided,
    all_cores,
    bare,
    exported,
    marked,
)
from slicemill.common.errors import InputError
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import Job
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from slicemill.infer.runtime.capacity import lanes_on
from slicemill.train.network.step import build

BATCH = 1
"""Slices in a batch of a peer: on two cores of an Intel processor MONAI labelled 4.8 slices/s by one and 3.6 by four (the latter in the run of
2026-11-22T0415 in `bench/results/runs`); ours chooses its own."""
AXES = ("LPS", "RAS")
"""A scan each."""
LEAST_DICE = 0.99
OURS, BARE = "slicemill infer", LANES_ALONE
Label = npt.NDArray[np.uint8]
Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Segmenter(Peer):
    """A way from scans to masks."""

    components: bool = False
    """Whether it takes away all but the largest organ and small lesions, as ours does."""


PEERS = (
    Segmenter(
        name="MONAI SliceInferer",
        package="monai",
        script="monai_infer.py",
        sentence="masks on the scan's own grid, a worker that reads ahead; logits of the whole scan in memory, no components, report or picture",
    ),
    Segmenter(
        name="TorchIO GridSampler",
        package="torchio",
        script="torchio_infer.py",
        sentence="masks on a canonical grid, not the scan's own; one scan after the other, no components, report or picture",
    ),
    Segmenter(
        name="nnU-Net predictor, sequential",
        package="nnunet",
        script="nnunet_infer.py",
        sentence="our network instead of its own, without the mirroring that makes its default four times the work; one slice a batch, "
        "one scan after the other as in predict_from_files_sequential (its other way reads ahead in processes), no components, report or picture",
    ),
    Segmenter(
        name="script, torch eager",
        package="torchio",
        script="script_infer.py",
        way="eager",
        components=True,
        sentence="nibabel, numpy, channels last, scipy's components, nib.save; slices as the file has them, no report or picture",
    ),
    Segmenter(
        name="script, torch compiled",
        package="torchio",
        script="script_infer.py",
        way="compiled",
        components=True,
        sentence="the same with torch.compile, which wants a C++ compiler, and its minutes before the clock starts",
    ),
)


def run(folder: Path, environments: Path, *, slices: int, rounds: int, only: tuple[str, ...] = ()) -> Record:
    """Measure and return the record; a peer that cannot be installed or run is in it with its reason."""
    subject = phantom_subject(slices)
    scans = made_scans(folder / "scans", subject)
    model, network = made_networks(folder, subject)
    jobs, _ = gather([folder / "scans"])
    total = len(scans) * slices
    given = {
        "scans": [str(scan) for scan in scans],
        "slices": total,
        "side": [int(pixels) for pixels in subject.image.shape[1:]],
        "spacing_mm": list(subject.spacing_mm[1:]),
        "network": str(network),
        "batch": BATCH,
        "low": MARKED.window_low,
        "high": MARKED.window_high,
        "min_lesion_ml": MIN_LESION_ML,
        "threads": len(os.sched_getaffinity(0)),
    }
    left_out: dict[str, str] = {}
    chosen = [peer for peer in PEERS if not only or peer.package in only]
    places = {peer.name: folder / "masks" / peer.script.removesuffix(".py") / peer.way for peer in chosen}
    with ExitStack() as running:
        contenders: dict[str, Work] = {
            OURS: lambda: segment(model, jobs, folder / "ours"),
            BARE: bare(model, folder / "scans", total, lanes_on("cpu")),
            SESSION_ALONE: bare(all_cores(model.path), folder / "scans", total),
        }
        for peer in chosen:
            try:
                contenders[peer.name] = running.enter_context(started(peer, environments, places[peer.name], given))
            except InputError as error:
                left_out[peer.name] = str(error)
        with progress("peers", (rounds + 1) * len(contenders), "runs") as advance:
            times = timed(contenders, rounds, lambda name: advance(1, name))
        left_out |= ended(contenders)
    dice = {
        peer.name: dice_with_ours(peer, places[peer.name], (model, jobs, folder / "ours"))
        for peer in chosen
        if peer.name in times.wall and peer.name not in left_out
    }
    for name, values in dice.items():
        if (least := min(values.values())) < LEAST_DICE:
            left_out[name] = f"its masks are not ours: Dice {least:.4f}"
    wall = {name: timing for name, timing in times.wall.items() if name not in left_out}
    compared = [peer for peer in chosen if peer.name in wall]
    return {
        "benchmark": "peers inference",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "unit": "slices, .nii.gz in and masks out, all cores",
        "clock": "wall, and CPU time of all threads and workers",
        "page_cache": "warm",
        "cases": len(scans),
        "slices": slices,
        "batch_of_peers": BATCH,
        "results": {
            name: {
                **timing.as_json(total),
                "scans_per_second": round(len(scans) / timing.median, 4),
                "cpu_milliseconds": round(1000 * times.cpu[name].median / total, 2),
            }
            for name, timing in wall.items()
        },
        "dice": dice,
        "headline": headline(
            {name: Timed(timing=timing, amount=total) for name, timing in wall.items()},
            ours=OURS,
            limit=BARE,
            bound="convolutions",
            peers={SESSION_ALONE: SESSION_SENTENCE} | {peer.name: peer.sentence for peer in compared},
            verified=f"Dice of every label with ours at least {LEAST_DICE}",
        ),
        "not_run": left_out,
        "machine": machine_info(),
    }


def made_scans(folder: Path, subject: Subject) -> list[Path]:
    """Write a scan of every axis order and return the files."""
    folder.mkdir(parents=True)
    scans = [folder / f"scan-{number}.nii.gz" for number in range(len(AXES))]
    image = marked(subject.image, subject.label)
    for number, (scan, axes) in enumerate(zip(scans, AXES, strict=True)):
        write_nifti(scan, np.roll(image, 3 * number, axis=0), subject.spacing_mm, axes)
    return scans


def made_networks(folder: Path, subject: Subject) -> tuple[Model, Path]:
    """Return one network of one slice as ours, opened, and as a file of `torch.export` for the peers."""
    torch.manual_seed(0)
    config = replace(MARKED, context=1)
    network = build(LITS_LABELS, config).eval()
    _, height, width = subject.image.shape
    batch = torch.export.Dim("b", min=1, max=65536)
    with torch.no_grad():
        program = torch.export.export(
            Guided(network).eval(), (torch.zeros(2, 1, height, width),), dynamic_shapes=({0: batch},)
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No complete tensor found")  # about weights that are not on the CPU
        torch.export.save(program, folder / "network.pt2")
    return open_model(exported(folder / "model.onnx", network, config, height), "cpu"), folder / "network.pt2"


def segment(model: Model, jobs: list[Job], folder: Path, *, postprocess: bool = True) -> None:
    """Segment all scans as the command does, whatever there is already."""
    summary = infer(model, jobs, folder, InferOptions(postprocess=postprocess, overwrite=True))
    check("all scans were segmented", holds=summary.count("done") == len(jobs))


def dice_with_ours(peer: Segmenter, place: Path, ours: tuple[Model, list[Job], Path]) -> dict[str, float]:
    """Return label -> Dice between a peer's masks and ours, over all scans."""
    model, jobs, folder = ours
    segment(model, jobs, folder, postprocess=peer.components)
    expected = {job.name: canonical(folder / job.name) for job in jobs}
    found = {name: canonical(place / name) for name in expected}
    return {
        label: round(
            dice(
                np.concatenate([mask.ravel() == value for mask in expected.values()]),
                np.concatenate([mask.ravel() == value for mask in found.values()]),
            ),
            5,
        )
        for label, value in LITS_LABELS.values.items()
    }


def canonical(path: Path) -> Label:
    """Return a mask uint8[x, y, z] in the axis order nearest to RAS+, so that masks of different orders compare."""
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj).astype(np.uint8)


def dice(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """Return 2 |A and B| / (|A| + |B|), 1 where both are empty (Dice 1945).

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    both = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero(one & other)) / both if both else 1.0
