"""A folder in LUNA16's form: its subsets with their scans and slices, its tables, and the masks of the lungs."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slicemill.common.errors import ConfigError
from slicemill.common.files import sha256_of_file, sha256_of_json
from slicemill.common.names import natural_key
from slicemill.common.tables import read_table
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import Stamp, open_scan

ANNOTATIONS, LUNGS = "annotations.csv", "seg-lungs-LUNA16"
EXCLUDED = ("evaluationScript/annotations/annotations_excluded.csv", "annotations_excluded.csv")
"""Places of the table of excluded findings; the first is that of LUNA16's archive."""


@dataclass(frozen=True, kw_only=True)
class Subset:
    """One of the folders subset0, subset1, ..., which is the test part of a fold."""

    folder: Path
    files: tuple[tuple[str, Stamp], ...]
    """Path of each scan's header file below the folder, and sizes and times of all the scan's files."""
    slices: int

    @property
    def name(self) -> str:
        """Return the name of its fold, as `slicemill split --subsets` writes it."""
        return self.folder.name.lower()


@dataclass(frozen=True, kw_only=True)
class LunaFolder:
    """What the folds are made of."""

    root: Path
    subsets: tuple[Subset, ...]
    annotations: Path
    excluded: Path | None
    """None if the folder has no table of excluded findings."""
    lungs: Path
    lung_files: tuple[tuple[str, int, int], ...]
    """Path below `lungs`, size in bytes and modification time in ns of each file."""
    nodules: int
    """Rows of the table of nodules."""

    @property
    def scans(self) -> int:
        """Return the number of scans."""
        return sum(len(subset.files) for subset in self.subsets)

    @property
    def slices(self) -> int:
        """Return the number of slices."""
        return sum(subset.slices for subset in self.subsets)

    @property
    def table_hashes(self) -> list[str]:
        """Return the hashes of the tables."""
        return [sha256_of_file(path) for path in (self.annotations, self.excluded) if path is not None]

    def mark(self, *further: Path) -> str:
        """Return a hash that changes with the files of scans and lungs, the tables, and further files.

        Of scans and lungs, it has names, sizes and times, not the content.
        """
        return sha256_of_json(
            [
                [[subset.name, subset.files] for subset in self.subsets],
                self.lung_files,
                [*self.table_hashes, *map(sha256_of_file, further)],
            ]
        )


def find_subsets(root: Path) -> list[Path]:
    """Return the folders subset0, subset1, ... in order.

    Raises
    ------
    ConfigError
        There are fewer than two, so that there are no folds.
    """
    found = [path for path in root.glob("*") if re.fullmatch(r"subset\d+", path.name, re.IGNORECASE) and path.is_dir()]
    if len(found) < 2:
        shown = found[0].name if found else "none"
        raise ConfigError(
            f"needs at least two of LUNA16's folders subset0 to subset9, which are the folds; it has {shown}. "
            "Unpack the archives subset0.zip to subset9.zip in it.",
            where=root,
        )
    return sorted(found, key=lambda path: natural_key(path.name))


def open_luna(root: Path, advance: Callable[[str], None] = lambda _: None) -> LunaFolder:
    """Read the tables and the headers of all scans; `advance` is called after each subset.

    Raises
    ------
    InputError
        A folder or table is missing, or a file cannot be read.
    """
    folders = find_subsets(root)
    annotations, lungs = root / ANNOTATIONS, root / LUNGS
    if not annotations.is_file():
        raise ConfigError(f"has no table {ANNOTATIONS}; take it from LUNA16's download.", where=root)
    if not lungs.is_dir():
        raise ConfigError(f"has no folder {LUNGS}, which has the masks of the lungs; unpack {LUNGS}.zip.", where=root)
    columns = ("seriesuid", "coordx", "coordy", "coordz", "diameter_mm")
    nodules = len(read_table(annotations, required=columns, keeps_further=True))
    subsets = []
    for folder in folders:
        subsets.append(_read_subset(folder))
        advance(folder.name)
    excluded = next((root / name for name in EXCLUDED if (root / name).is_file()), None)
    return LunaFolder(
        root=root, subsets=tuple(subsets), annotations=annotations, excluded=excluded, lungs=lungs,
        lung_files=_list_files(lungs), nodules=nodules,
    )  # fmt: skip


def _list_files(folder: Path) -> tuple[tuple[str, int, int], ...]:
    states = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in sorted(states.items()))


def _read_subset(folder: Path) -> Subset:
    jobs, _ = gather([folder])
    slices, files = 0, []
    for job in jobs:
        path = Path(str(job.path))
        files.append((path.relative_to(folder).as_posix(), job.stamp()))
        with open_scan(job) as scan:
            slices += scan.grid.stored_shape[0]
    return Subset(folder=folder, files=tuple(files), slices=slices)
