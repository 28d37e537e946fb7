"""Peak memory of an ingest worker for scans of many lengths, which must not grow with the length.

Each length runs in its own process. The files are made of one phantom, repeated along z, so that only the length
differs. Command: `slicemill bench ingest --memory`.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip

from slicemill.bench.command import slicemill_command
from slicemill.bench.harness.subject import SUFFIXES, Files, Scan
from slicemill.bench.schema.data import MemoryPeak, ScanCost
from slicemill.common.documents import from_document

LENGTHS = (50, 200, 1000, 3000)
CONVERT = """
import json, sys, time
from pathlib import Path
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.ct.labels import LITS_LABELS
from slicemill.common.terminal import peak_mib
from slicemill.store.writer import prepare_store
store, image, *masks = map(Path, sys.argv[1:])
mask = masks[0] if masks else None
prepare_store(store)
case = CaseFiles(case_id="volume-1", patient_id="1", image=image, mask=mask, root=image.parent)
start = time.process_time()
convert_case(case, Params(labels=LITS_LABELS if masks else None), store)
print(json.dumps({"cpu_seconds": time.process_time() - start, "peak_mib": peak_mib()}))
"""
"""Script of a conversion in its own process. It imports as little as possible, because imports count as peak memory."""


def measure_peaks(folder: Path, image: npt.NDArray[np.int16], label: npt.NDArray[np.uint8]) -> dict[str, MemoryPeak]:
    """Return MiB by file format and number of slices: of a conversion alone, and of a Dask worker."""
    peaks: dict[str, MemoryPeak] = {}
    for suffix in SUFFIXES:
        for length in LENGTHS:
            case = folder / "memory"
            files = write_repeated(case, suffix, (image, label), length)
            alone = convert_alone(files, case / "alone")
            peaks[f"{length} slices, {suffix}"] = MemoryPeak(
                alone_mib=round(alone.peak_mib), dask_worker_mib=measure_worker(case, case / "dask")
            )
            shutil.rmtree(case)
    return peaks


def measure_worker(collection: Path, store: Path) -> int:
    """Return the peak MiB of the Dask worker of `slicemill ingest`."""
    command = slicemill_command("ingest", collection, store, "--workers", 1, "--threads", 1)
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 (a slicemill command)
    return find_peak_mib(done.stdout)


def convert_alone(files: Scan, store: Path) -> ScanCost:
    """Convert a case in its own process; return CPU seconds of the conversion and peak MiB of the process."""
    paths = [store, files.image, *([files.mask] if files.mask else [])]
    done = subprocess.run(  # noqa: S603 (this interpreter, code from above)
        [sys.executable, "-c", CONVERT, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    return from_document(ScanCost, json.loads(done.stdout), "conversion")


def find_peak_mib(output: str) -> int:
    """Return the peak memory that the command `ingest` printed.

    Raises
    ------
    RuntimeError
        It printed none.

    >>> find_peak_mib("200 slices in 1 s; peak memory of a worker: 1,234 MiB")
    1234
    """
    match = re.search(r"peak memory of a worker: ([\d,]+) MiB", output)
    if match is None:
        raise RuntimeError(f"the ingest printed no peak memory:\n{output}")
    return int(match[1].replace(",", ""))


def write_repeated(folder: Path, suffix: str, volumes: tuple[npt.NDArray[Any], npt.NDArray[Any]], slices: int) -> Files:
    """Write a long case slice by slice: a phantom's image and label, forward, backward and forward again."""
    folder.mkdir(parents=True, exist_ok=True)
    files = Files.in_folder(folder, suffix)
    for path, volume in zip((files.image, files.mask), volumes, strict=True):
        header = nib.Nifti1Header()
        header.set_data_dtype(volume.dtype)
        header.set_data_shape((volume.shape[2], volume.shape[1], slices))
        header.set_sform(np.diag([-0.8, -0.8, 1.0, 1.0]), code=1)
        header["vox_offset"], header["magic"] = 352, b"n+1"
        with igzip.open(path, "wb", compresslevel=1) if suffix == ".nii.gz" else path.open("wb") as stream:
            stream.write(header.binaryblock + bytes(4))
            for z in zigzag(len(volume), slices):
                stream.write(np.ascontiguousarray(volume[z]).data)
    return files


def zigzag(depth: int, count: int) -> Iterator[int]:
    """Yield `count` slice numbers of `depth` slices: forward, backward, forward again, so that neighbors stay alike.

    >>> list(zigzag(3, 8))
    [0, 1, 2, 2, 1, 0, 0, 1]
    """
    for number in range(count):
        repeat, z = divmod(number, depth)
        yield z if repeat % 2 == 0 else depth - 1 - z
