"""Peak memory of an ingest worker for scans of many lengths: it must not grow with them.

Each length runs in a process of its own; the files are made of one phantom, repeated upwards, so that length alone differs.
"""

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

from slicemill.bench.harness.subject import SUFFIXES, Files

LENGTHS = (50, 200, 1000, 3000)
ALONE = """
import sys
from pathlib import Path
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.ct.labels import LITS_LABELS
from slicemill.common.terminal import peak_mib
from slicemill.store.writer import prepare_store
image, mask, store = map(Path, sys.argv[1:])
prepare_store(store)
convert_case(CaseFiles(case_id="volume-1", patient_id="1", image=image, mask=mask, root=image.parent), Params(labels=LITS_LABELS), store)
print(peak_mib())
"""


def peaks(folder: Path, image: npt.NDArray[np.int16], label: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Return MiB by file format and number of slices: alone, and as a worker of Dask."""
    found: dict[str, Any] = {}
    for suffix in SUFFIXES:
        for length in LENGTHS:
            place = folder / "memory"
            files = write_repeated(place, suffix, (image, label), length)
            alone = subprocess.run(  # noqa: S603 (this interpreter, code from above)
                [sys.executable, "-c", ALONE, str(files.image), str(files.mask), str(place / "alone")],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            under_dask = subprocess.run(  # noqa: S603
                [sys.executable, "-m", "slicemill", "ingest", str(place), str(place / "dask"), "--workers", "1", "--threads", "1"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            match = re.search(r"peak memory (\d+) MiB", under_dask.stdout)
            found[f"{length} slices, {suffix}"] = {
                "alone_mib": round(float(alone.stdout)),
                "dask_worker_mib": int(match[1]) if match else None,
            }
            shutil.rmtree(place)
    return found


def write_repeated(folder: Path, suffix: str, volumes: tuple[npt.NDArray[Any], npt.NDArray[Any]], slices: int) -> Files:
    """Write a case of many slices without holding it: a phantom up, down and up again."""
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(image=folder / f"volume-1{suffix}", mask=folder / f"segmentation-1{suffix}")
    for path, volume in zip((files.image, files.mask), volumes, strict=True):
        header = nib.Nifti1Header()
        header.set_data_dtype(volume.dtype)
        header.set_data_shape((volume.shape[2], volume.shape[1], slices))
        header.set_sform(np.diag([-0.8, -0.8, 1.0, 1.0]), code=1)
        header["vox_offset"], header["magic"] = 352, b"n+1"
        with igzip.open(path, "wb", compresslevel=1) if suffix == ".nii.gz" else path.open("wb") as stream:
            stream.write(header.binaryblock + bytes(4))
            for z in up_and_down(len(volume), slices):
                stream.write(np.ascontiguousarray(volume[z]).data)
    return files


def up_and_down(depth: int, count: int) -> Iterator[int]:
    """Yield `count` slice numbers of a volume of `depth`: up, down, up again, so that neighbors stay alike.

    >>> list(up_and_down(3, 8))
    [0, 1, 2, 2, 1, 0, 0, 1]
    """
    for number in range(count):
        turn, z = divmod(number, depth)
        yield z if turn % 2 == 0 else depth - 1 - z
