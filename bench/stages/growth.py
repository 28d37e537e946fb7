"""CPU time and peak memory of commands on many tiny cases, by their number: what a case costs besides its voxels."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from slicemill.bench.command import slicemill_command
from slicemill.bench.schema.data import ScanCost
from slicemill.common.documents import to_document
from slicemill.common.files import to_json
from slicemill.common.ledger import LEDGER
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import write_collection
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import discover
from slicemill.ingest.outcomes import DoneLine
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import make_absolute
from slicemill.ingest.plan import require_params
from slicemill.ingest.stamps import locate, stamp_case
from slicemill.store.writer import prepare_store

CASES = {False: (500, 2000, 8000), True: (100, 300)}
"""Numbers of cases, by `quick`."""
SIZE = 24
"""Rows and columns of the tiny cases."""
LITS = Params(labels=LITS_LABELS)
ALONE = ("--workers", 1, "--viewer-mb", 0)
"""One worker, and pages without slices: these cost the same for a case of any collection."""

LAUNCHER = """
import os, sys
out = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
_, status, usage = os.wait4(os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:]), 0)
os.write(out, f"{usage.ru_utime + usage.ru_stime} {usage.ru_maxrss}".encode())
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Runs a command from a small process: on Linux, the peak of a process includes that of the one it was started from."""


@dataclass(frozen=True, kw_only=True)
class ManyCases:
    """A collection of equal tiny scans, and its store."""

    scans: Path
    masks: Path
    store: Path


def measure_growth(folder: Path, count: int) -> Mapping[str, ScanCost]:
    """Return the cost of each command on `count` tiny cases, each in its own process."""
    many = write_many(folder, count)
    commands = {
        "store opened": ("store", "info", many.store),
        "ledger skipped": ("ingest", many.scans, many.store),
        "cases evaluated": ("evaluate", many.masks, many.store, *ALONE, "--out", folder / "evaluated"),
        "cases measured": ("measure", many.store, *ALONE, "--out", folder / "measured"),
    }
    costs = {name: run_alone(slicemill_command(*words)) for name, words in commands.items()}
    shutil.rmtree(folder)
    return costs


def write_many(folder: Path, count: int) -> ManyCases:
    """Write the collection and its store. All files are links to those of the first case, but for the documents."""
    many = ManyCases(scans=folder / "scans", masks=folder / "masks", store=folder.absolute() / "store")
    prepare_store(many.store)
    list(write_collection(folder / "one", cases=1, size=SIZE, seed=5))
    first = make_absolute(discover(folder / "one").cases[0])
    require_params(many.store, LITS, overwrite=False)
    info = convert_case(first, LITS, many.store)
    scan, segmentation = folder / "one" / first.image.name, folder / "one" / first.mask_files[0].name
    template = many.store / "scans.zarr" / info.case_id
    document = (template / "zarr.json").read_text(encoding="utf-8")
    for path in (many.scans, many.masks):
        path.mkdir()
    lines = []
    for number in range(count):
        case_id = f"volume-{number}"
        image = many.scans / scan.name.replace(info.case_id, case_id)
        mask = many.scans / segmentation.name.replace("segmentation-0", f"segmentation-{number}")
        os.link(scan, image)
        os.link(segmentation, mask)
        os.link(segmentation, many.masks / image.name)
        if case_id != info.case_id:
            copied = shutil.copytree(template, template.with_name(case_id), copy_function=os.link)
            (copied / "zarr.json").unlink()
            (copied / "zarr.json").write_text(document.replace(f'"{info.case_id}"', f'"{case_id}"'), encoding="utf-8")
        case = replace(first, case_id=case_id, patient_id=case_id, image=image, mask=mask, root=many.scans)
        stamp = stamp_case(case, LITS, locate(case))
        lines.append(to_json(to_document(DoneLine(case_id=case_id, stamp=stamp, status="done"))) + "\n")
    (many.store / LEDGER).write_text("".join(lines), encoding="utf-8")
    return many


def run_alone(command: list[str]) -> ScanCost:
    """Run a command and return the CPU time and the peak memory of its process.

    Raises
    ------
    RuntimeError
        The command failed.
    """
    words = [sys.executable, "-I", "-c", LAUNCHER, *command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 (code of this package)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
    seconds, kib = map(float, done.stdout.split())
    return ScanCost(cpu_seconds=round(seconds, 4), peak_mib=round(kib / 1024, 4))
