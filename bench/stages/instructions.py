"""Instructions per slice of the hot loops: load on the machine hardly affects the counts.

Each loop runs twice in its own process, with few slices and with
many. The difference, divided by the slices in between, leaves out start-up and imports. perf counts if the kernel and
the processor allow it, otherwise valgrind, which emulates an older processor (no AVX-512). Counts of the two tools
cannot be compared. Command: `slicemill bench instructions`.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from slicemill.bench.harness.headline import Record
from slicemill.bench.harness.subject import CASE_ID, Files, phantom_subject
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.data import InstructionsRecord, LoopCount
from slicemill.common.errors import ConfigError
from slicemill.common.progress import progress

DEEP = 32
"""Slices of the phantom in the store."""
FEW, MANY = 8, 40
"""Slices of the two runs of a loop."""
RUN_LOOP = (
    "import sys; from pathlib import Path; from slicemill.bench.stages.instructions import LOOPS; "
    "LOOPS[sys.argv[1]][1](Path(sys.argv[2]), int(sys.argv[3]))"
)
TOOLS = {
    "perf": ["perf", "stat", "-x,", "-e", "instructions:u", "--"],
    "valgrind": ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", "--"],
}
COUNTS = {"perf": r"^(\d+),,instructions:u", "valgrind": r"I\s+refs:\s+([\d,]+)"}
"""Pattern of the count in a tool's output."""


def ingest(folder: Path, slices: int) -> None:
    """Convert a case, .nii.gz with its mask."""
    from slicemill.ct.labels import LITS_LABELS
    from slicemill.ingest.params import Params

    store = folder / f"store-{slices}"
    shutil.rmtree(store, ignore_errors=True)
    Files.in_folder(folder / f"{slices}", ".nii.gz").convert(store, Params(labels=LITS_LABELS))


def read_slices(folder: Path, slices: int) -> None:
    """Read slices with their labels from a store."""
    from slicemill.store.reader import open_store

    case = open_store(folder / "store")[CASE_ID]
    arrays = [array for array in (case.image, case.label) if array is not None]
    for number in range(slices):
        for array in arrays:
            array.read(7 * number % DEEP)


def read_scan(folder: Path, slices: int) -> None:
    """Read a .nii.gz as inference does."""
    from slicemill.infer.inputs.gather import gather
    from slicemill.infer.inputs.jobs import load_scan

    load_scan(gather([folder / f"{slices}" / "volume-1.nii.gz"])[0][0])


def write_mask(folder: Path, slices: int) -> None:
    """Read a mask and write it again, as .nii.gz."""
    from slicemill.ct.formats.nifti.write import write_volume
    from slicemill.infer.inputs.gather import gather
    from slicemill.infer.inputs.jobs import load_scan

    loaded = load_scan(gather([folder / f"{slices}" / "segmentation-1.nii.gz"])[0][0])
    write_volume(folder / "out.nii.gz", loaded.header, np.uint8, loaded.grid.to_file(loaded.volume.astype(np.uint8)))


def post_process(folder: Path, slices: int) -> None:
    """Keep the largest organ of labels, and drop small lesions."""
    from slicemill.ct.geometry import Grid
    from slicemill.ct.labels import LITS_LABELS
    from slicemill.infer.postprocess import postprocess
    from slicemill.store.model_card import PostprocessRules

    label = np.load(folder / f"{slices}" / "label.npy")
    grid = Grid(shape=label.shape[::-1], affine=np.eye(4))
    postprocess(label, LITS_LABELS, PostprocessRules(largest_organ=True, min_lesion_ml=0.2), grid)


def distances(folder: Path, slices: int) -> None:
    """Compute the distances between the surfaces of an organ and of its copy, shifted by a voxel."""
    from slicemill.measure.evaluation.surface import surface_distances

    organ = np.load(folder / f"{slices}" / "label.npy") > 0
    surface_distances(organ, np.roll(organ, 1, axis=2), (1.0, 0.8, 0.8))


LOOPS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "ingest": ("one case, .nii.gz with its mask, into a store", ingest),
    "read slices": ("slices with their labels out of a store", read_slices),
    "read scan": (".nii.gz into memory, as inference does", read_scan),
    "write mask": (".nii.gz with labels into memory, and back", write_mask),
    "post-process": ("largest organ, small lesions away", post_process),
    "distances": ("surface distances of an organ", distances),
}
"""Name -> description for the record, and the loop: it runs in a folder on a number of slices."""


def run(folder: Path) -> Record:
    """Count and return the record.

    Raises
    ------
    ConfigError
        Neither perf nor valgrind can count here.
    """
    counter = choose_counter()
    for slices in (FEW, MANY):
        subject = phantom_subject(slices)
        subject.write(folder / f"{slices}", ".nii.gz")
        np.save(folder / f"{slices}" / "label.npy", subject.label)
    phantom_subject(DEEP).store(folder / "store")
    results: dict[str, LoopCount] = {}
    with progress("instructions", 2 * len(LOOPS), "runs") as advance:
        for name, (what, _) in LOOPS.items():
            counts = []
            for slices in (FEW, MANY):
                advance(0, name)
                command = [sys.executable, "-c", RUN_LOOP, name, str(folder), str(slices)]
                counts.append(count_instructions(counter, command))
                advance(1, name)
            each = round((counts[1] - counts[0]) / (MANY - FEW))
            results[name] = LoopCount(what=what, instructions_a_slice=each, runs=(counts[0], counts[1]))
    return InstructionsRecord(**origin(), counter=counter, unit="slices of 512x512", results=results).as_json()


def choose_counter() -> str:
    """Return the tool that can count here, perf or valgrind.

    Raises
    ------
    ConfigError
        Neither perf nor valgrind can count instructions here.
    """
    for name in TOOLS:
        if shutil.which(name):
            try:
                count_instructions(name, [sys.executable, "-c", "pass"])
            except ConfigError:
                continue
            return name
    raise ConfigError(
        "bench instructions needs valgrind, or perf on a processor and a kernel that let it count; neither works here."
    )


def count_instructions(counter: str, command: list[str]) -> int:
    """Return the instructions of a command, in user space, in all its threads.

    Raises
    ------
    ConfigError
        The tool did not count, or the command failed.
    """
    counted = [*TOOLS[counter], *command]
    done = subprocess.run(counted, capture_output=True, text=True, check=False)  # noqa: S603 (a slicemill command)
    count = re.search(COUNTS[counter], done.stderr, re.MULTILINE)
    if done.returncode or count is None:
        lines = [line for line in done.stderr.splitlines() if line and not line.startswith("==")]
        last = lines[-1] if lines else f"exit status {done.returncode}"
        raise ConfigError(f"{counter} did not count `{' '.join(command[:3])}`: {last}")
    return int(count[1].replace(",", ""))
