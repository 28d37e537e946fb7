"""Random training slices with their labels: ours beside MONAI, TorchIO, HDF5 and nnU-Net, each in its own environment, in one run.

What bounds it: decompression for ours and HDF5, memory copies for those who hold every volume decoded. Every contender is kept on one
core, has its data where its documentation wants it before the clock starts, and delivers all slices of the same cases in batches.
"""

import datetime as dt
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from slicemill.bench.harness.clock import interleaved
from slicemill.bench.harness.headline import Record, Timed, headline
from slicemill.bench.harness.subject import Subject, phantom_subject
from slicemill.bench.peers.peer import Peer, started
from slicemill.bench.peers.remote import PeerProcess, ended
from slicemill.bench.stages.ingest import one_core
from slicemill.bench.stages.store import bare_decode
from slicemill.common.errors import InputError
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles
from slicemill.store.reader import open_store
from slicemill.store.writer import prepare_store
from slicemill.train.data.dataset import Batches, View
from slicemill.train.data.sampling import SlicePosition

BATCH = 16
CASES = 3
LOW_HU, HIGH_HU = -200.0, 300.0
OURS, BARE = "slicemill, ring of 1 thread", "bare decode"

PEERS = (
    Peer(
        name="MONAI CacheDataset",
        package="monai",
        script="monai_slices.py",
        way="memory",
        sentence="every volume decoded and normalized in memory (4 bytes a voxel), slices cut out; cannot hold a collection larger than memory",
    ),
    Peer(
        name="MONAI PersistentDataset",
        package="monai",
        script="monai_slices.py",
        way="disk",
        sentence="normalized volumes as files of torch, one read whole for the slices that it gives",
    ),
    Peer(
        name="TorchIO Queue",
        package="torchio",
        script="torchio_slices.py",
        sentence="volumes read and normalized anew every epoch, a queue of random slices",
    ),
    Peer(
        name="HDF5, a chunk a slice",
        package="hdf5",
        script="hdf5_slices.py",
        sentence="int16 and uint8 chunks, shuffled, gzip 4, at random, its cache of chunks off; no checksum; HU are kept, as in ours",
    ),
    Peer(
        name="nnU-Net blosc2 dataset",
        package="nnunet",
        script="nnunet_slices.py",
        sentence="normalized float32 and int16 labels, LZ4HC, each case opened anew for a slice; HU are lost, no checksum",
    ),
)


def run(folder: Path, environments: Path, *, slices: int, rounds: int, only: tuple[str, ...] = ()) -> Record:
    """Measure and return the record; a peer that cannot be installed or run is in it with its reason."""
    subjects = [phantom_subject(slices, seed=number + 1) for number in range(CASES)]
    files, ring, bare = prepared(folder, subjects)
    total = CASES * slices
    left_out: dict[str, str] = {}
    chosen = [peer for peer in PEERS if not only or peer.package in only]
    with ExitStack() as running, one_core():
        contenders: dict[str, Any] = {OURS: ring, BARE: bare}
        given = {"cases": files, "slices": slices, "batch": BATCH, "low": LOW_HU, "high": HIGH_HU}
        for peer in chosen:
            try:
                place = folder / peer.script.removesuffix(".py") / peer.way
                contenders[peer.name] = running.enter_context(started(peer, environments, place, given))
            except InputError as error:
                left_out[peer.name] = str(error)
        with progress("peers", (rounds + 1) * len(contenders), "runs") as advance:
            times = interleaved(contenders, rounds=rounds, tell=lambda name: advance(1, name))
        left_out |= ended(contenders)
        delivered = {name: work.slices for name, work in contenders.items() if isinstance(work, PeerProcess)}
    left_out |= {
        name: f"gave {count} slices of {total}"
        for name, count in delivered.items()
        if count != total and name not in left_out
    }
    timed = {name: Timed(timing=timing, amount=total) for name, timing in times.items() if name not in left_out}
    return {
        "benchmark": "peers",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "unit": f"pairs of an image and a label slice, in batches of {BATCH}, one core",
        "clock": "wall, one core",
        "page_cache": "warm",
        "cases": CASES,
        "slices": slices,
        "results": {name: one.timing.as_json(one.amount) for name, one in timed.items()},
        "headline": headline(
            timed,
            ours=OURS,
            limit=BARE,
            bound="decompression",
            peers={peer.name: peer.sentence for peer in chosen if peer.name in timed},
            verified="each delivered as many slices as were asked for",
        ),
        "not_run": left_out,
        "machine": machine_info(),
    }


def prepared(folder: Path, subjects: list[Subject]) -> tuple[list[tuple[str, str]], Any, Any]:
    """Write the cases as NIfTI and into a store; return the files, our round of work, and the codec's alone."""
    prepare_store(folder / "store")
    files = []
    for number, subject in enumerate(subjects):
        pair = subject.write(folder / f"case-{number}", ".nii.gz")
        case = CaseFiles(
            case_id=f"case-{number}", patient_id=f"case-{number}", image=pair.image, mask=pair.mask, root=folder
        )
        convert_case(case, subject.params(), folder / "store")
        files.append((str(pair.image), str(pair.mask)))
    store = open_store(folder / "store")
    first = subjects[0].image
    ring = Batches(store, View(size=(first.shape[1], first.shape[2])), BATCH, 1)
    places = [SlicePosition(case_id, z) for case_id in store.case_ids for z in range(len(first))]
    rng = np.random.default_rng(0)

    def work() -> None:
        order = [places[number] for number in rng.permutation(len(places))]
        with ring.over(order, (0, 0)) as stream:
            for _ in stream:
                pass

    slices = rng.permutation(len(first)).tolist()
    codecs = [bare_decode(store[case_id], slices, checked=True) for case_id in store.case_ids]
    return files, work, lambda: [codec() for codec in codecs]
