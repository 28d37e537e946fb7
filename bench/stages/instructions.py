"""Instructions that a unit of work takes in the hot loops: counted, not timed, so that a change shows on a busy machine, too.

Each loop runs twice in a process of its own, with little work and with more; the difference over the units in between leaves out
start-up and imports. perf counts where the kernel and the processor let it, else valgrind, which emulates an older processor (no
AVX-512): counts of one tool say nothing beside those of the other.
"""

import datetime as dt
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slicemill.bench.harness.headline import Record
from slicemill.bench.harness.subject import CASE_ID, phantom_subject
from slicemill.common.errors import ConfigError
from slicemill.common.machine import machine_info
from slicemill.common.progress import progress

DEEP = 32
"""Slices of the phantom that most loops work on."""
FEW, MANY = 8, 40
"""Slices that a loop does in its two runs."""
ALONE = (
    "import sys; from pathlib import Path; from slicemill.bench.stages.instructions import LOOPS; "
    "LOOPS[sys.argv[1]].work(Path(sys.argv[2]), int(sys.argv[3]))"
)


def ingest(folder: Path, slices: int) -> None:
    """Convert a case of so many slices, .nii.gz with its mask."""
    from slicemill.ct.labels import LITS_LABELS
    from slicemill.ingest.convert import convert_case
    from slicemill.ingest.discover import CaseFiles
    from slicemill.ingest.params import Params
    from slicemill.store.writer import prepare_store

    scans, store = folder / f"{slices}", folder / f"store-{slices}"
    case = CaseFiles(
        case_id=CASE_ID,
        patient_id="1",
        image=scans / "volume-1.nii.gz",
        mask=scans / "segmentation-1.nii.gz",
        root=scans,
    )
    shutil.rmtree(store, ignore_errors=True)
    prepare_store(store)
    convert_case(case, Params(labels=LITS_LABELS), store)


def read_slices(folder: Path, slices: int) -> None:
    """Read so many slices with their labels out of a store."""
    from slicemill.store.reader import open_store

    case = open_store(folder / "store")[CASE_ID]
    arrays = [array for array in (case.image, case.label) if array is not None]
    for number in range(slices):
        for array in arrays:
            array.read(7 * number % DEEP)


def read_scan(folder: Path, slices: int) -> None:
    """Read a .nii.gz of so many slices as inference does."""
    from slicemill.infer.inputs.gather import gather
    from slicemill.infer.inputs.jobs import load

    load(gather([folder / f"{slices}" / "volume-1.nii.gz"])[0][0])


def write_mask(folder: Path, slices: int) -> None:
    """Read a mask of so many slices and write it again, as .nii.gz."""
    from slicemill.ct.formats.nifti.write import write_volume
    from slicemill.infer.inputs.gather import gather
    from slicemill.infer.inputs.jobs import load

    loaded = load(gather([folder / f"{slices}" / "segmentation-1.nii.gz"])[0][0])
    write_volume(folder / "out.nii.gz", loaded.header, np.uint8, loaded.grid.to_file(loaded.volume.astype(np.uint8)))


def post_process(folder: Path, slices: int) -> None:
    """Keep the largest organ and drop small lesions in labels of so many slices."""
    from slicemill.ct.geometry import Grid
    from slicemill.ct.labels import LITS_LABELS
    from slicemill.infer.postprocess import postprocess
    from slicemill.store.model_card import PostprocessRules

    label = np.load(folder / f"{slices}" / "label.npy")
    grid = Grid(shape=label.shape[::-1], affine=np.eye(4))
    postprocess(label, LITS_LABELS, PostprocessRules(largest_organ=True, min_lesion_ml=0.2), grid)


def distances(folder: Path, slices: int) -> None:
    """Take the distances between the surfaces of an organ of so many slices and of the same moved by a voxel."""
    from slicemill.measure.evaluation.surface import surface_distances

    organ = np.load(folder / f"{slices}" / "label.npy") > 0
    surface_distances(organ, np.roll(organ, 1, axis=2), (1.0, 0.8, 0.8))


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A hot loop."""

    what: str
    work: Callable[[Path, int], None]


LOOPS = {
    "ingest": Loop(what="one case, .nii.gz with its mask, into a store", work=ingest),
    "read slices": Loop(what="slices with their labels out of a store", work=read_slices),
    "read scan": Loop(what=".nii.gz into memory, as inference does", work=read_scan),
    "write mask": Loop(what=".nii.gz with labels into memory, and back", work=write_mask),
    "post-process": Loop(what="largest organ, small lesions away", work=post_process),
    "distances": Loop(what="surface distances of an organ", work=distances),
}


def run(folder: Path) -> Record:
    """Count and return the record.

    Raises
    ------
    ConfigError
        Neither perf nor valgrind counts here.
    """
    counter = counter_here()
    for slices in (FEW, MANY):
        subject = phantom_subject(slices)
        subject.write(folder / f"{slices}", ".nii.gz")
        np.save(folder / f"{slices}" / "label.npy", subject.label)
    phantom_subject(DEEP).store(folder / "store")
    found: dict[str, Record] = {}
    with progress("instructions", 2 * len(LOOPS), "runs") as advance:
        for name, loop in LOOPS.items():
            counts = []
            for slices in (FEW, MANY):
                advance(0, name)
                counts.append(counted(counter, [sys.executable, "-c", ALONE, name, str(folder), str(slices)]))
                advance(1, name)
            each = (counts[1] - counts[0]) / (MANY - FEW)
            found[name] = {"what": loop.what, "instructions_a_slice": round(each), "runs": counts}
    return {
        "benchmark": "instructions",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "counter": counter,
        "unit": "slices of 512x512",
        "results": found,
        "machine": machine_info(),
    }


def counter_here() -> str:
    """Return which tool counts here, perf or valgrind.

    Raises
    ------
    ConfigError
        Neither does.
    """
    for name in ("perf", "valgrind"):
        if shutil.which(name):
            try:
                counted(name, [sys.executable, "-c", "pass"])
            except ConfigError:
                continue
            return name
    raise ConfigError(
        "bench instructions needs perf, with a processor that counts and a kernel that lets it, or valgrind; neither works here."
    )


def counted(counter: str, words: list[str]) -> int:
    """Return the instructions of a command, in user space, of all its threads.

    Raises
    ------
    ConfigError
        The tool did not count, or the command failed.
    """
    tool = {
        "perf": ["perf", "stat", "-x,", "-e", "instructions:u", "--"],
        "valgrind": ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", "--"],
    }[counter]
    done = subprocess.run([*tool, *words], capture_output=True, text=True, check=False)  # noqa: S603 (our own command)
    pattern = r"^(\d+),,instructions:u" if counter == "perf" else r"I\s+refs:\s+([\d,]+)"
    told = re.search(pattern, done.stderr, re.MULTILINE)
    if done.returncode or told is None:
        said = [line for line in done.stderr.splitlines() if line and not line.startswith("==")]
        last = said[-1] if said else f"exit status {done.returncode}"
        raise ConfigError(f"{counter} did not count `{' '.join(words[:3])}`: {last}")
    return int(told[1].replace(",", ""))
