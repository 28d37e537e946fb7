"""Copies of a real chest CT with synthetic nodules, in the form of LUNA16: files as `collection` writes them.

The names of the copies are numbers: the name of the scan's file, which may be a patient's, is not repeated.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slicemill.common.errors import ScanError
from slicemill.ct.chest.collection import (
    Annotation,
    InsertSettings,
    annotate_nodule,
    claim,
    prepare_table,
    write_annotations,
)
from slicemill.ct.chest.insert import RealChest, insert_nodules
from slicemill.ct.formats.metaimage.write import write_metaimage
from slicemill.ct.same_grid import require_same_grid
from slicemill.ct.scan import ScanReader


@dataclass(frozen=True, kw_only=True)
class RealFiles:
    """A scan with its mask of the lungs, and the hashes of their files."""

    chest: RealChest
    scan: Path
    scan_sha256: str
    lungs_sha256: str


def read_real_chest(scan: Path, mask: Path) -> RealFiles:
    """Read a chest CT and its mask of the lungs; values 3 and 4, or else all above 0, are lung.

    Raises
    ------
    InputError
        A file cannot be read, the two are not on one grid, or the mask is empty.
    """
    with ScanReader(scan, "image") as reader:
        image, grid, scan_hash = reader.read(), reader.grid, reader.finish()
    with ScanReader(mask, "mask") as reader:
        reader.replace_grid(require_same_grid(reader.grid, grid, mask, scan.name))
        values, mask_hash = reader.read(), reader.finish()
    lungs = (values == 3) | (values == 4)  # LUNA16's; 5 is the trachea
    if not lungs.any():
        lungs = values > 0
    if not lungs.any():
        raise ScanError("must mark the lungs; it has no value above 0.", where=mask)
    return RealFiles(
        chest=RealChest(image=image, lungs=lungs, affine=grid.affine_lps),
        scan=scan,
        scan_sha256=scan_hash,
        lungs_sha256=mask_hash,
    )


def write_inserted(folder: Path, real: RealFiles, seed: int, cases: int) -> Iterator[str]:
    """Write copies of a scan with other nodules in each; yield the name of each once its files exist.

    Raises
    ------
    InputError
        The folder has copies with other settings, or more copies, or nodules have no room in the scan.
    """
    claim(folder, InsertSettings(seed=seed, scan_sha256=real.scan_sha256, lungs_sha256=real.lungs_sha256))
    names = [f"inserted-{seed}-{number:04d}" for number in range(cases)]
    prepare_table(folder, names)
    rows: list[Annotation] = []
    affine = real.chest.affine
    for number, name in enumerate(names):
        try:
            copy = insert_nodules(real.chest, np.random.default_rng([seed, number]))
        except ScanError as error:
            raise ScanError(error.reason, where=real.scan) from error
        rows += [annotate_nodule(name, nodule, nodule.centroid) for nodule in copy.nodules]
        copied = folder / "scans" / f"{name}.mha"
        if not copied.exists():
            lungs = real.chest.lungs.astype(np.uint8)
            write_metaimage(folder / "lungs" / f"{name}.mha", lungs, affine, compressed=True)
            write_metaimage(folder / "nodules" / f"{name}.mha", copy.numbers, affine, compressed=True)
            write_metaimage(copied, copy.image, affine)
        yield name
    write_annotations(folder / "annotations.csv", rows)
