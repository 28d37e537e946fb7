"""Opens a store and reads slices from it.

Reading a slice takes one file read or one request, and one decompression into the caller's buffer. The shard's index is
read once. Neighboring slices are fetched in one read. Arrays in other Zarr v3 layouts are read with zarr-python.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import NoCaseError, StoreError
from slicemill.common.failures import explain_failure, raise_system_limit
from slicemill.common.files import Location, parse_location
from slicemill.common.names import natural_key
from slicemill.common.remote import RemotePath
from slicemill.ct.lesions import Lesion
from slicemill.ct.points import Point
from slicemill.store.cache import SliceCache
from slicemill.store.candidates import read_candidates
from slicemill.store.case import CaseInfo, parse_case
from slicemill.store.codecs import decode_blosc, decode_zstd, without_checksum
from slicemill.store.indexing import NumpyIndexing
from slicemill.store.layout import ABSENT, ARRAY_PATHS, CANDIDATES, DOCUMENT, GROUP, SHARD, ArrayName, check_case_id
from slicemill.store.shard_reader import ShardReader, plan_ranges
from slicemill.store.version import CaseVersion, note_version, read_versioned
from slicemill.store.zarr_documents import DTYPES, read_attribute, read_document, recognize_profile

MAX_SLICE_BYTES = 1 << 31


class SliceArray(NumpyIndexing):
    """One array of a case, any[z, y, x] in LPS+ order; safe to use from several threads.

    It is indexed like a numpy array, and reads only the slices that the index needs. The smallest unit that is read is
    a slice: ``image[:, 10, 10]`` reads all slices, ``image[10]`` one. `numpy.asarray` reads everything.

    >>> store["volume-17"].image[20, 100:200]       # doctest: +SKIP
    """

    def __init__(
        self, folder: Location, name: ArrayName, version: CaseVersion | None = None, cache: SliceCache | None = None
    ) -> None:
        self.name: ArrayName = name
        self._version = version or note_version(folder.parent)  # a lone array counts as a case of its own
        self._cache = cache if isinstance(folder, RemotePath) else None
        self._folder = folder
        document = read_document(folder)
        try:
            nz, ny, nx = (int(extent) for extent in document["shape"])
            data_type, fill_value = str(document["data_type"]), int(document.get("fill_value", 0))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StoreError(f"is not a Zarr v3 array of three axes z, y, x ({error}).", where=folder) from error
        self.dtype = np.dtype(DTYPES[name])
        limits = np.iinfo(self.dtype)
        if data_type != DTYPES[name] or not limits.min <= fill_value <= limits.max:
            raise StoreError(
                f"must hold {DTYPES[name]}; it holds {data_type}, with the fill value {fill_value}.",
                where=folder,
            )
        self.shape = (nz, ny, nx)
        """Slices, rows and columns [z, y, x]."""
        if min(self.shape) < 1 or ny * nx * self.dtype.itemsize > MAX_SLICE_BYTES:
            raise StoreError(f"the shape {self.shape} is invalid for a scan.", where=folder)
        self._fill_value = fill_value
        self.profile = recognize_profile(document, name, self.shape)
        """Profile of slicemill's layout; None for another valid layout, which zarr-python reads."""
        self._decompress = decode_zstd if self.profile == "compact" and name == "label" else decode_blosc
        self.shard = ShardReader(folder / SHARD, nz, self._version)
        """Reader of the shard, for slicemill's layout."""

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, z: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return the slice at `z` as any[y, x], in `out` if it is passed (C-contiguous, of the array's type).

        Raises
        ------
        IndexError
            There is no such slice.
        StoreError
            Bytes are missing or damaged.
        """
        if out is None:
            out = np.empty(self.shape[1:], dtype=self.dtype)
        if self.profile is None:
            out[...] = self._read_through_zarr(self._check_index(z))
            return out
        self._decode(z, self.read_encoded(z), out)
        return out

    def read_encoded(self, z: int) -> bytes:
        """Return the stored bytes of the slice at `z` and their checksum; empty for a slice of fill values only."""
        offset, length = self.shard.entries[self._check_index(z)]
        if length == ABSENT:
            return b""
        if self._cache is not None:
            return self._cache.get(f"{self.shard.path} {self._version.tag}", z, lambda: self.shard.read(offset, length))
        return self.shard.read(offset, length)

    def read_many(self, indices: Sequence[int], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return several slices as any[n, y, x]. From an object store, neighbors are fetched in one request.

        Raises
        ------
        IndexError
            There is no such slice.
        StoreError
            Bytes are missing or damaged.
        """
        # read the index first: it rejects a shape that the shard cannot hold before memory is allocated
        entries = self.shard.entries if self.profile is not None else []
        if out is None:
            out = np.empty((len(indices), *self.shape[1:]), dtype=self.dtype)
        if self.profile is None or not self.shard.is_remote:
            for row, z in zip(out, indices, strict=True):
                self.read(z, row)
            return out
        requested = [entries[self._check_index(z)] for z in indices]
        for part in plan_ranges(requested):
            data = self.shard.read(part.start, part.end - part.start) if part.end > part.start else b""
            for row in part.rows:
                offset, length = requested[row]
                encoded = b"" if length == ABSENT else data[offset - part.start : offset - part.start + length]
                self._decode(indices[row], encoded, out[row])
        return out

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._folder, self.name, self._version)  # opened again there, without the cache

    def __repr__(self) -> str:
        nz, ny, nx = self.shape
        return f"<{self.name} {self.dtype}[{nz}, {ny}, {nx}] of case {self._version.folder.name}>"

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self.read(z) for z in range(len(self)))

    def check_bytes(self) -> None:
        """Check that a checksum covers every byte of the shard (`ShardReader.check_bytes`)."""
        if self.profile is not None:
            self.shard.check_bytes()

    def _check_index(self, z: int) -> int:
        if not 0 <= z < len(self):
            raise IndexError(f"slice {z} of {len(self)}")
        return z

    def _read_through_zarr(self, z: int) -> npt.NDArray[Any]:
        """Read a slice of another layout. Any exception of zarr-python is reported as a read error."""
        if isinstance(self._folder, RemotePath):
            raise StoreError(
                "is not in slicemill's layout; copy the store to a local disk to read it.", where=self._folder
            )
        try:
            voxels: npt.NDArray[Any] = self._zarr[z]
        except Exception as error:
            raise_system_limit(error)
            raise StoreError(f"zarr-python cannot read this array ({error}).", where=self._folder) from error
        self._version.check()
        return voxels

    @cached_property
    def _zarr(self) -> Any:
        import zarr

        return zarr.open_array(str(self._folder), mode="r")

    def _decode(self, z: int, data: bytes, out: npt.NDArray[Any]) -> None:
        """Decode the bytes of the slice at `z` into `out`; without bytes, fill it with the fill value."""
        if not data:
            out[...] = self._fill_value
            return
        try:
            self._decompress(without_checksum(data), out)
        except (RuntimeError, ValueError) as error:
            raise StoreError(str(error), where=f"{self.shard.path}, slice {z}") from error


class Case:
    """One case of a store: metadata, image and label arrays, all of one version of the case.

    A case that is replaced while it is open can be read where its files are open already. Otherwise, reading raises a
    StoreError.
    """

    def __init__(
        self,
        folder: Location,
        version: CaseVersion,
        cache: SliceCache | None = None,
        document: bytes | None = None,
    ) -> None:
        """Open a case; `document` is its group document of this version if the caller has read it."""
        self._version = version
        self.folder = folder
        self.image = SliceArray(folder / "image", "image", version, cache)
        """int16[z, y, x], HU."""
        self.info: CaseInfo = parse_case(read_attribute(folder, document), self.image.shape, str(folder))
        if self.info.case_id != folder.name:
            raise StoreError(
                f"its metadata belong to case {self.info.case_id!r}; ingest the case again with --overwrite.",
                where=folder,
            )
        label = folder / ARRAY_PATHS[self.info.format]["label"]
        self.label = SliceArray(label, "label", version, cache) if self.info.mask else None
        """uint8[z, y, x], values of the case's labels; None without a mask."""
        if self.label is not None and self.label.shape != self.image.shape:
            raise StoreError(
                f"image {self.image.shape} and label {self.label.shape} must have the same shape.", where=folder
            )

    @property
    def case_id(self) -> str:
        """Return the id of the case."""
        return self.info.case_id

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """Return float64[4, 4], voxel (x, y, z, 1) of the stored arrays to mm in LPS+."""
        return self.info.affine_lps

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the voxel spacing along z, y, x, mm."""
        return self.info.spacing_mm

    @property
    def lesions(self) -> tuple[Lesion, ...] | None:
        """Return the lesions of the reference, the largest first; None without a mask or without a tumor label."""
        return self.info.lesions

    @property
    def points(self) -> tuple[Point, ...] | None:
        """Return nodules and excluded findings; None if the case was ingested without points."""
        return self.info.points

    @property
    def candidates(self) -> npt.NDArray[np.float64] | None:
        """Return float64[n, 6], the columns `CANDIDATE_COLUMNS`; None if the case has no table of candidates."""
        return None if self._candidate_table is None else self._candidate_table[:, :-1]

    @property
    def candidates_in_lung(self) -> npt.NDArray[np.float64] | None:
        """Return float64[n]: 1 or 0 for each candidate, NaN without lungs; None without a table of candidates."""
        return None if self._candidate_table is None else self._candidate_table[:, -1]

    @cached_property
    def _candidate_table(self) -> npt.NDArray[np.float64] | None:
        if self.info.points is None or not (self.folder / CANDIDATES / DOCUMENT).is_file():
            return None
        table = read_candidates(self.folder, read_document(self.folder / CANDIDATES))
        self._version.check()
        return table

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self._version)

    def __repr__(self) -> str:
        nz, ny, nx = self.image.shape
        spacing = "x".join(f"{step:.3g}" for step in self.spacing_mm)
        mask = ", ".join(self.info.labels.values) if self.info.labels else "no mask"
        return f"<case {self.case_id}: {nz}x{ny}x{nx} voxels of {spacing} mm (z, y, x); {mask}>"


class Store(Mapping[str, Case]):
    """A slice store: a mapping of case ids to cases, in natural order of the ids.

    >>> store = open_store("lits")                  # doctest: +SKIP
    >>> store["volume-17"].image[40]                # doctest: +SKIP
    """

    def __init__(self, root: Location, cache: SliceCache | None = None) -> None:
        self.root = root
        self._cache = cache
        self._cases: dict[str, Case] = {}

    @cached_property
    def case_ids(self) -> list[str]:
        """Return the ids of the complete cases, sorted naturally (volume-2 before volume-10)."""
        return sorted(iter_case_ids(self.root), key=natural_key)

    @cached_property
    def _id_set(self) -> frozenset[str]:
        return frozenset(self.case_ids)

    def __len__(self) -> int:
        return len(self.case_ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.case_ids)

    def __contains__(self, case_id: object) -> bool:
        return isinstance(case_id, str) and self._has(case_id)

    def __eq__(self, other: object) -> bool:
        return self is other  # that of a mapping would open every case

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root,)

    def __repr__(self) -> str:
        return f"<slice store {self.root}: {len(self)} case{'s' * (len(self) != 1)}>"

    def read_cases(self) -> tuple[list[Case], list[str]]:
        """Return the cases that can be read, and for each other one the reason."""
        cases, reasons = [], []
        for case_id in self.case_ids:
            try:
                cases.append(self[case_id])
            except (StoreError, OSError) as error:
                raise_system_limit(error)
                reasons.append(explain_failure(error, case_id).reason)
        return cases, reasons

    def __getitem__(self, case_id: str) -> Case:
        if case_id not in self._cases:
            self.check_known([case_id])
            self._cases[case_id] = open_case(self.root, case_id, self._cache)
        return self._cases[case_id]

    def _has(self, case_id: str) -> bool:
        """Return whether there is such a case. The cases are not listed for one of them."""
        if "case_ids" in self.__dict__:  # listed before
            return case_id in self._id_set
        try:
            return (self.root / GROUP / check_case_id(case_id) / DOCUMENT).is_file()
        except StoreError:
            return False

    def check_known(self, case_ids: Sequence[str]) -> None:
        """Check that the store has these cases.

        Raises
        ------
        NoCaseError
            A case is not in the store.
        """
        for case_id in case_ids:
            if not self._has(case_id):
                raise NoCaseError(
                    f"has no case {case_id!r}; `slicemill store manifest {self.root}` lists them.", where=self.root
                )


def iter_case_ids(root: Location) -> Iterator[str]:
    """Yield the ids of the complete cases of a store, unordered."""
    group = root / GROUP
    if isinstance(group, RemotePath):
        for path, _ in group.files():
            parts = path.relative_to(group).parts
            if len(parts) == 2 and parts[1] == DOCUMENT:
                yield parts[0]
        return
    for folder in group.iterdir():
        if (folder / DOCUMENT).exists():
            yield folder.name


def open_case(root: Location, case_id: str, cache: SliceCache | None = None) -> Case:
    """Open a case that exists in the store, without listing the other cases."""
    folder = root / GROUP / case_id
    version, document = read_versioned(folder)
    try:
        return Case(folder, version, cache, document)
    finally:
        version.check()  # also the reason why half of a case could not be read


def open_store(url: str | Location, cache: SliceCache | None = None) -> Store:
    """Open a slice store for reading. The cache is used for slices that are read one by one from an object store.

    Raises
    ------
    StoreError
        There is no store at `url`.
    """
    root = parse_location(url)
    if not is_store(root):
        raise StoreError(
            f"is not a slice store ({GROUP}/{DOCUMENT} is missing); create one with `slicemill ingest`.", where=root
        )
    return Store(root, cache)


def is_store(path: Location) -> bool:
    """Return whether there is a slice store at `path`."""
    return (path / GROUP / DOCUMENT).is_file()
