"""From scans to masks on the CPU: `slicemill infer`, MONAI, TorchIO, nnU-Net and the usual script.

Bottleneck: the convolutions. Each runs in its own environment. All run one network with equal weights and one
input slice, on the same .nii.gz files, with all cores: slicemill from its ONNX file, the others from the file of
`torch.export`, in eager torch (channels last) or compiled. Eager torch runs batch norms separately, while onnxruntime
folds them into convolutions. Networks are loaded and compiled before the measurement, which ends when the masks are
on disk. Weights are random, but labels follow marked HU (`slicemill.bench.harness.networks`), so that masks are as
large as those of real scans. The check is the Dice with slicemill's masks. Command: `slicemill bench peers --kind
inference`.
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from msgspec.structs import asdict

from slicemill.bench.harness.agreement import dice
from slicemill.bench.harness.clock import Work, show_progress, time_on_both_clocks
from slicemill.bench.harness.cores import count_cores
from slicemill.bench.harness.headline import Record, check, headline, with_amount
from slicemill.bench.harness.networks import (
    MARKED,
    MIN_LESION_ML,
    HuThresholdNetwork,
    default_network,
    export_network,
    write_marked_scans,
)
from slicemill.bench.harness.subject import Subject, phantom_subject
from slicemill.bench.peers.peer import read_peers, start_peers
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.networks import PeersInferenceRecord, ScanRate
from slicemill.bench.stages.infer_session import (
    LANES_ALONE,
    SESSION_ALONE,
    SESSION_SENTENCE,
    network_alone,
    open_on_all_cores,
)
from slicemill.ct.labels import LITS_LABELS
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import Job
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from slicemill.infer.runtime.capacity import count_lanes

BATCH = 1
"""Slices per batch of a peer; slicemill chooses its batch size. On two cores of an Intel processor MONAI labelled
4.8 slices/s with one and 3.6 with four (the latter in the run of 2026-11-22T0415 in `bench/results/runs`)."""
SCANS = 2
"""One per axis order."""
LEAST_DICE = 0.99
SLICEMILL, BARE = "slicemill infer", LANES_ALONE
NETWORK = "network.pt2"
PEERS = read_peers("inference.toml")
Label = npt.NDArray[np.uint8]


def run(folder: Path, environments: Path, *, slices: int, rounds: int, only: tuple[str, ...] = ()) -> Record:
    """Measure and return the record; it names each peer that cannot be installed or run, with the reason."""
    subject = phantom_subject(slices)
    scans = folder / "scans"
    write_marked_scans(scans, subject, SCANS)
    slicemill_contender = SlicemillContender(
        model=write_networks(folder, subject), scans=scans, jobs=gather([scans])[0], out=folder / "ours"
    )
    total = SCANS * slices
    peers = [peer for peer in PEERS if not only or peer.package in only]
    request = make_request(slicemill_contender.jobs, folder / NETWORK, subject, total)
    with start_peers(peers, "segment_scans.py", environments, folder / "masks", request) as started:
        contenders = slicemill_contender.contenders(total) | started.processes
        with show_progress("peers", len(contenders), rounds) as log:
            times = time_on_both_clocks(contenders, rounds, log)
        not_run = started.not_run()
    dices = {
        peer.name: slicemill_contender.dice_with(folder / "masks" / peer.way, postprocess=peer.removes_components)
        for peer in peers
        if peer.name not in not_run
    }
    for name, values in dices.items():
        if (least := min(values.values())) < LEAST_DICE:
            not_run[name] = f"its masks are not ours: Dice {least:.4f}"
    wall = {name: timing for name, timing in times.wall.items() if name not in not_run}
    sentences = {SESSION_ALONE: SESSION_SENTENCE} | {peer.name: peer.sentence for peer in peers if peer.name in wall}
    return PeersInferenceRecord(
        **origin(),
        unit="slices, .nii.gz in and masks out, all cores",
        clock="wall, and CPU time of all threads and workers",
        page_cache="warm",
        cases=SCANS,
        batch_of_peers=BATCH,
        slices=slices,
        results={
            name: ScanRate(**asdict(rate), scans_per_second=round(SCANS / times.wall[name].median, 4))
            for name, rate in times.rates(total).items()
            if name in wall
        },
        dice=dices,
        headline=headline(
            with_amount(wall, total),
            contender=SLICEMILL,
            limit=BARE,
            bound="convolutions",
            peers=sentences,
            verified=f"Dice of every label with ours at least {LEAST_DICE}",
        ),
        not_run=not_run,
    ).as_json()


@dataclass(frozen=True, kw_only=True)
class SlicemillContender:
    """slicemill's opened network, and the scans."""

    model: Model
    scans: Path
    jobs: list[Job]
    out: Path

    def contenders(self, slices: int) -> dict[str, Work]:
        """Return slicemill's contenders: the complete run, and the network alone in two ways."""
        return {
            SLICEMILL: self.segment,
            BARE: network_alone(self.model, self.scans, slices, lanes=count_lanes("cpu")),
            SESSION_ALONE: network_alone(open_on_all_cores(self.model.path), self.scans, slices),
        }

    def segment(self, *, postprocess: bool = True) -> None:
        """Segment all scans as the command does, and overwrite earlier masks."""
        summary = infer(
            self.model, self.jobs, self.out, InferOptions(postprocess=postprocess, overwrite=True, z_range="all")
        )
        check("all scans were segmented", holds=summary.count("done") == len(self.jobs))

    def dice_with(self, masks: Path, *, postprocess: bool) -> dict[str, float]:
        """Return label -> Dice of a peer's masks with slicemill's, over all scans."""
        self.segment(postprocess=postprocess)
        expected, labels = (
            np.concatenate([read_canonical(folder / job.name).ravel() for job in self.jobs])
            for folder in (self.out, masks)
        )
        return {
            label: round(dice(expected == value, labels == value), 5) for label, value in LITS_LABELS.values.items()
        }


def make_request(jobs: list[Job], network: Path, subject: Subject, slices: int) -> Record:
    """Return the request to all peers, as `peers/segment_scans.py` reads it."""
    return {
        "scans": [str(job.path) for job in jobs],
        "slices": slices,
        "side": list(subject.image.shape[1:]),
        "spacing_mm": list(subject.spacing_mm[1:]),
        "network": str(network),
        "batch": BATCH,
        "low": MARKED.window_low,
        "high": MARKED.window_high,
        "min_lesion_ml": MIN_LESION_ML,
        "threads": count_cores(),
    }


def write_networks(folder: Path, subject: Subject) -> Model:
    """Write a network of one input slice as a file of `torch.export` for the peers; return slicemill's opened model."""
    config = replace(MARKED, context=1)
    network = default_network(config).eval()
    _, height, width = subject.image.shape
    batch = torch.export.Dim("b", min=1, max=65536)
    with torch.no_grad():
        program = torch.export.export(
            HuThresholdNetwork(network).eval(), (torch.zeros(2, 1, height, width),), dynamic_shapes=({0: batch},)
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No complete tensor found")  # about weights that are not on the CPU
        torch.export.save(program, folder / NETWORK)
    return open_model(export_network(folder / "model.onnx", network, config, height), "cpu")


def read_canonical(path: Path) -> Label:
    """Return a mask uint8[x, y, z] in the axis order nearest to RAS+, in which masks can be compared."""
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj).astype(np.uint8)
