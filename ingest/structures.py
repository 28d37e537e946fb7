"""Masks with a file for each structure (TotalSegmentator, AbdomenAtlas): ``s0001/segmentations/liver.nii.gz``.

`find_structures` finds the files that the labels name. `StructureReader` reads them in step as one mask: a voxel of a
structure gets the value of its label.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from slicemill.common.errors import GeometryError, LabelError
from slicemill.common.files import Location
from slicemill.ct.geometry import SAME_GRID_MM, Grid
from slicemill.ct.name_words import folder_role, names_masks
from slicemill.ct.same_grid import describe_difference
from slicemill.ct.scan import ScanReader, Slab
from slicemill.ingest.pairing import Entry
from slicemill.ingest.params import Overlap


@dataclass(frozen=True, slots=True)
class Structure:
    """A file of one structure."""

    path: Location
    value: int
    """Value of its label, 1 to 255."""


@dataclass(frozen=True, kw_only=True)
class StructureFiles:
    """The files of the structures of a collection."""

    complete: Mapping[Location, tuple[Structure, ...]]
    """Image -> its structures, in ascending order of value."""
    lacking: Mapping[Location, tuple[str, ...]]
    """Image -> names of structures that it has no file of."""
    used: frozenset[Location]
    """The files of structures, also those of images that lack others, and those that no label names."""


def find_structures(images: Sequence[Entry], masks: Sequence[Entry], files: Mapping[str, int]) -> StructureFiles:
    """Return the files of the structures.

    Parameters
    ----------
    files
        Name of a structure's file without suffix -> value of its label.
    """
    in_folder, of_key = defaultdict(list), defaultdict(list)
    for mask in masks:
        in_folder[mask.name.folder].append(mask)
        of_key[mask.name.folder, mask.name.key].append(mask)
    alone = Counter(image.name.folder for image in images)
    complete: dict[Location, tuple[Structure, ...]] = {}
    lacking: dict[Location, tuple[str, ...]] = {}
    used: set[Location] = set()
    for image in images:
        folder = image.name.folder
        if alone[folder] == 1:
            candidates = [mask for mask in in_folder[folder] if is_in_mask_folder(mask) or not image.words]
        else:
            candidates = of_key[folder, image.name.key]
        named = {structure_name(image, mask): mask for mask in candidates}
        known = {name: named[name] for name in files if name in named}
        if not known or any(mask.stem == image.stem for mask in candidates):
            continue
        used |= {mask.path for name, mask in named.items() if name in files or is_in_mask_folder(mask)}
        if absent := tuple(name for name in files if name not in known):
            lacking[image.path] = absent
        else:
            found = (Structure(mask.path, files[name]) for name, mask in known.items())
            complete[image.path] = tuple(sorted(found, key=lambda structure: structure.value))
    return StructureFiles(complete=complete, lacking=lacking, used=frozenset(used))


def structure_name(image: Entry, mask: Entry) -> str:
    """Return the name of a structure: its file's name, without the name of the image in front."""
    rest = mask.stem.removeprefix(image.stem)
    return rest.lstrip("_-. ") if rest and rest != mask.stem and image.words else mask.stem


def is_in_mask_folder(mask: Entry) -> bool:
    """Return whether the folder of a file is named for masks, like ``segmentations`` or ``MASKS_DICOM``."""
    folder = Path(mask.parent).name
    return folder_role(folder) == "mask" or names_masks(folder)


class StructureReader:
    """Several open files of structures, read as one mask. It has the methods of `ScanReader` that ingest uses."""

    def __init__(self, folder: Location, structures: Sequence[Structure], overlap: Overlap) -> None:
        self.path = folder
        self._structures = structures
        self._overlap = overlap
        self._sha256 = ""
        with ExitStack() as stack:
            self._readers = [stack.enter_context(ScanReader(one.path, "mask")) for one in structures]
            self._stack = stack.pop_all()
        self.grid = self._readers[0].grid
        try:
            self._check_grids()
        except GeometryError:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _check_grids(self) -> None:
        first = self._readers[0]
        for reader in self._readers[1:]:
            if reader.grid.shape != first.grid.shape or first.grid.distance_mm(reader.grid) > SAME_GRID_MM:
                raise GeometryError(
                    f"all structures of a scan must have one grid and axis order; {first.path.name} has another: "
                    f"{first.grid.axcodes} beside {reader.grid.axcodes}, "
                    f"{describe_difference(reader.grid, first.grid)}. Export them again.",
                    where=reader.path,
                )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return warnings about unusual fields of the files, each once."""
        return tuple(dict.fromkeys(warning for reader in self._readers for warning in reader.warnings))

    @property
    def bytes_read(self) -> int:
        """Return the size of all files, bytes, once they were finished."""
        return sum(reader.bytes_read for reader in self._readers)

    def value_warnings(self) -> list[str]:
        """Return warnings about the values of the files, each once; after the last slab."""
        return list(dict.fromkeys(warning for reader in self._readers for warning in reader.value_warnings()))

    def dropped_header_warnings(self, *, keep_text: bool) -> list[str]:
        """Return warnings about header fields that are not stored, each once."""
        found = (warning for one in self._readers for warning in one.dropped_header_warnings(keep_text=keep_text))
        return list(dict.fromkeys(found))

    def stored_header(self, *, keep_text: bool) -> bytes:
        """Return the header of the first file, as it is stored."""
        return self._readers[0].stored_header(keep_text=keep_text)

    def replace_grid(self, grid: Grid) -> None:
        """Replace the headers' grid by another of the same shape, before any slab is read."""
        self.grid = grid
        for reader in self._readers:
            reader.replace_grid(grid)

    def slabs(
        self,
        depth: int | None = None,
        *,
        buffers: int = 1,  # noqa: ARG002 (each slab is a new array)
        temp_folder: Path | None = None,
    ) -> Iterator[Slab]:
        """Yield every slice once, as `ScanReader.slabs` does: uint8[z, y, x], values of the labels.

        Raises
        ------
        LabelError
            A file has more than one value besides 0, or two structures with different values share a voxel.
        """
        seen = [0] * len(self._readers)
        streams = [reader.slabs(depth, temp_folder=temp_folder) for reader in self._readers]
        for slabs in zip(*streams, strict=True):
            merged = np.zeros_like(slabs[0].voxels)
            for index, (slab, one) in enumerate(zip(slabs, self._structures, strict=True)):
                inside = slab.voxels != 0
                if not inside.any():
                    continue
                seen[index] = _check_value(one.path, seen[index], slab.voxels[inside])
                shared = int((inside & (merged != 0) & (merged != one.value)).sum())
                if shared and self._overlap == "error":
                    raise LabelError(
                        f"structures must not overlap; {shared} voxels of slices {slab.z} to "
                        f"{slab.z + len(slab.voxels) - 1} belong to another structure, too. Correct the files, or pass "
                        "--overlap highest, which gives such voxels the highest value.",
                        where=one.path,
                    )
                merged[inside] = one.value
            yield Slab(z=slabs[0].z, voxels=merged)

    def finish(self) -> str:
        """Read the files to their ends and return the SHA-256 of their hashes (`combine_hashes`)."""
        return combine_hashes([reader.finish() for reader in self._readers])


def combine_hashes(hashes: Sequence[str]) -> str:
    """Return the SHA-256 over the hashes of the files of a mask, in order of value; of one file, its own."""
    return hashes[0] if len(hashes) == 1 else sha256("\n".join(hashes).encode()).hexdigest()


def _check_value(path: Location, seen: int, values: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> int:
    low, high = int(values.min()), int(values.max())
    if low != high or seen not in (0, low):
        other = high if low == (seen or low) else low
        raise LabelError(
            f"the file of one structure must have one value besides 0; it has {seen or low} and {other}. "
            "If it is a mask of several labels, choose it with --mask.",
            where=path,
        )
    return low
