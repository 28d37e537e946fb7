"""Random training slices with their labels: slicemill, MONAI, TorchIO, HDF5 and nnU-Net, each in its own environment.

Bottleneck: decompression for slicemill and HDF5, memory copies for tools that hold every volume decoded. Every
contender runs on one core, has prepared its data as its documentation recommends, and delivers all slices of the same
cases in batches. Command: `slicemill bench peers --kind loading`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slicemill.bench.harness.clock import Work, show_progress, time_rounds
from slicemill.bench.harness.cores import pin_to_one_core
from slicemill.bench.harness.headline import Record, headline, with_amount
from slicemill.bench.harness.subject import Files, Subject, phantom_subject
from slicemill.bench.peers.peer import StartedPeers, read_peers, start_peers
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.networks import PeersRecord
from slicemill.bench.stages.loader import read_ring
from slicemill.bench.stages.store import bare_decode
from slicemill.ingest.convert import convert_case
from slicemill.store.reader import Store, open_store
from slicemill.store.writer import prepare_store
from slicemill.train.data.dataset import Batches, SliceRegion
from slicemill.train.data.sampling import SlicePosition

BATCH = 16
CASES = 3
LOW_HU, HIGH_HU = -200.0, 300.0
SLICEMILL, BARE = "slicemill, ring of 1 thread", "bare decode"
PEERS = read_peers("loading.toml")


def run(folder: Path, environments: Path, *, slices: int, rounds: int, only: tuple[str, ...] = ()) -> Record:
    """Measure and return the record; it names each peer that cannot be installed or run, with the reason."""
    subjects = [phantom_subject(slices, seed=number + 1) for number in range(CASES)]
    cases = write_cases(folder, subjects)
    store = open_store(folder / "store")
    total = CASES * slices
    request = {
        "cases": [(str(case.image), str(case.mask)) for case in cases],
        "slices": slices,
        "batch": BATCH,
        "low": LOW_HU,
        "high": HIGH_HU,
    }
    slicemill_work: dict[str, Work] = {SLICEMILL: read_at_random(store, subjects[0]), BARE: decode_all(store, slices)}
    peers = [peer for peer in PEERS if not only or peer.package in only]
    with pin_to_one_core(), start_peers(peers, "load_slices.py", environments, folder / "peers", request) as started:
        contenders = slicemill_work | started.processes
        with show_progress("peers", len(contenders), rounds) as log:
            times = time_rounds(contenders, rounds=rounds, log=log)
        not_run = started.not_run() | find_incomplete(started, total)
    done = with_amount({name: timing for name, timing in times.items() if name not in not_run}, total)
    return PeersRecord(
        **origin(),
        unit=f"pairs of an image and a label slice, in batches of {BATCH}, one core",
        clock="wall, one core",
        page_cache="warm",
        cases=CASES,
        slices=slices,
        results={name: timed.rate() for name, timed in done.items()},
        headline=headline(
            done,
            contender=SLICEMILL,
            limit=BARE,
            bound="decompression",
            peers={peer.name: peer.sentence for peer in peers if peer.name in done},
            verified="each delivered as many slices as were asked for",
        ),
        not_run=not_run,
    ).as_json()


def write_cases(folder: Path, subjects: Sequence[Subject]) -> list[Files]:
    """Write the cases as NIfTI and into a store, and return the files."""
    prepare_store(folder / "store")
    cases = []
    for number, subject in enumerate(subjects):
        files = subject.write(folder / f"case-{number}", ".nii.gz")
        convert_case(files.case(f"case-{number}"), subject.params(), folder / "store")
        cases.append(files)
    return cases


def read_at_random(store: Store, subject: Subject) -> Work:
    """Return a function that reads every slice once, in a new random order, in batches."""
    depth, height, width = subject.image.shape
    ring = Batches(store, SliceRegion(size=(height, width)), BATCH, 1)
    positions = [SlicePosition(case_id, z) for case_id in store.case_ids for z in range(depth)]
    rng = np.random.default_rng(0)

    return lambda: read_ring(ring, [positions[number] for number in rng.permutation(len(positions))])


def decode_all(store: Store, slices: int) -> Work:
    """Return a function that runs only the codecs, on every slice of every case."""
    order = np.random.default_rng(0).permutation(slices).tolist()
    codecs = [bare_decode(store[case_id], order, checked=True) for case_id in store.case_ids]
    return lambda: [codec() for codec in codecs]


def find_incomplete(started: StartedPeers, total: int) -> dict[str, str]:
    """Return name -> reason of the peers that delivered a wrong number of slices."""
    return {
        name: f"gave {peer.slices} slices of {total}"
        for name, peer in started.processes.items()
        if peer.slices != total and not peer.reason
    }
