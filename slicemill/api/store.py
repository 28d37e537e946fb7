"""A slice store for Python users: cases, tables as pandas or Arrow, and arrays of dask."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from slicemill.common.errors import ConfigError, StoreError
from slicemill.common.extras import explain_import
from slicemill.common.files import Location
from slicemill.store import reader
from slicemill.store.layout import LESIONS, MANIFEST, SLICES, ArrayName
from slicemill.store.tables import read_arrow

if TYPE_CHECKING:
    import dask.array
    import pandas as pd
    import pyarrow as pa

Kind = Literal["pandas", "arrow"]


class Store(reader.Store):
    """A slice store: a mapping of case ids to cases, with its tables.

    A case has `image` (int16[z, y, x], HU), `label` (uint8[z, y, x], or None without a mask), `affine` (float64[4, 4],
    voxel (x, y, z, 1) to LPS mm), `spacing_mm` (z, y, x), `lesions`, and all else in `info`. Arrays are in LPS+ order:
    z to superior, y to posterior, x to the patient's left. They are indexed like numpy arrays, and read only the slices
    that the index needs.

    >>> store = slicemill.open_store("lits-store")      # doctest: +SKIP
    >>> "volume-17" in store, len(store), list(store)   # doctest: +SKIP
    >>> case = store["volume-17"]                       # doctest: +SKIP
    >>> case.image[20], case.image[:, 10, 10]           # doctest: +SKIP
    >>> store.manifest().query("n_lesions > 3")         # doctest: +SKIP
    """

    @overload
    def manifest(self, kind: Literal["pandas"] = "pandas") -> "pd.DataFrame": ...
    @overload
    def manifest(self, kind: Literal["arrow"]) -> "pa.Table": ...
    def manifest(self, kind: Kind = "pandas") -> Any:
        """Return one row per case: files, shape, spacing in mm, voxels of each label, volumes in ml, lesions, HU range.

        Parameters
        ----------
        kind
            ``pandas`` for a DataFrame, ``arrow`` for a `pyarrow.Table`. In pandas, integers that may be missing are
            nullable (Int64), not floats.

        Raises
        ------
        StoreError
            The table is missing, or does not list the cases of the store.
        ConfigError
            pandas is not installed.
        """
        return self._read(MANIFEST, kind)

    @overload
    def slices(self, kind: Literal["pandas"] = "pandas") -> "pd.DataFrame": ...
    @overload
    def slices(self, kind: Literal["arrow"]) -> "pa.Table": ...
    def slices(self, kind: Kind = "pandas") -> Any:
        """Return one row per slice: case, z, voxels of each label, HU range, has_tumor. See `manifest`."""
        return self._read(SLICES, kind)

    @overload
    def lesions(self, kind: Literal["pandas"] = "pandas") -> "pd.DataFrame": ...
    @overload
    def lesions(self, kind: Literal["arrow"]) -> "pa.Table": ...
    def lesions(self, kind: Kind = "pandas") -> Any:
        """Return one row per lesion: case, volume in ml, center in LPS mm, box in voxels, diameter. See `manifest`."""
        return self._read(LESIONS, kind)

    def dask_array(self, case_id: str, name: ArrayName = "image", *, slices: int = 16) -> "dask.array.Array":
        """Return the image or the label of a case as an array of dask, any[z, y, x] in LPS+ order.

        Parameters
        ----------
        name
            ``image``: int16, HU; ``label``: uint8, label values.
        slices
            Slices per chunk.

        Raises
        ------
        StoreError
            There is no such case, or it has no mask.
        ConfigError
            dask is not installed, or `slices` is not positive.

        >>> store.dask_array("volume-17").mean().compute()      # doctest: +SKIP
        """
        if slices < 1:
            raise ConfigError(f"slices = {slices}: must be at least 1.")
        array = self[case_id].image if name == "image" else self[case_id].label
        if array is None:
            raise StoreError(f"{case_id} has no mask, so it has no label.", where=self.root)
        with explain_import("dask", ConfigError("dask is not installed; run pip install 'slicemill[ingest]'.")):
            import dask.array
        # a new name each time: a case that was ingested again must not be taken from a cache
        chunks = (slices, *array.shape[1:])
        return dask.array.from_array(array, chunks=chunks, name=False, asarray=True)

    def _read(self, name: str, kind: Kind) -> Any:
        if kind not in ("pandas", "arrow"):
            raise ConfigError(f"kind = {kind!r}: must be pandas or arrow.")
        table = read_arrow(self.root, name)
        listed = set((table if name == MANIFEST else read_arrow(self.root, MANIFEST))["case_id"].to_pylist())
        if listed != set(self.case_ids):
            raise StoreError(
                f"the tables list {len(listed)} cases and the store has {len(self)}, or other ones; "
                f"`slicemill store reindex {self.root}` builds them again.",
                where=self.root / f"{MANIFEST}.parquet",
            )
        return table if kind == "arrow" else _to_pandas(table)


def _to_pandas(table: "pa.Table") -> "pd.DataFrame":
    """Convert a table; integers and truth values stay what they are where some are missing."""
    missing = ConfigError("pandas is not installed; run pip install pandas, or pass kind='arrow'.")
    with explain_import("pandas", missing):
        import pandas as pd
    import pyarrow as pa

    kinds = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    with_nulls = {table.schema.field(name).type for name in table.column_names if table[name].null_count}
    return table.to_pandas(types_mapper={kind: kinds[kind] for kind in kinds if kind in with_nulls}.get)


def open_store(url: str | Location | Path) -> Store:
    """Open a slice store for reading.

    Parameters
    ----------
    url
        Folder, or URL of an object store: ``s3://``, ``gs://``, ``az://``.

    Raises
    ------
    StoreError
        There is no store at `url`.

    >>> store = slicemill.open_store("lits-store")                 # doctest: +SKIP
    >>> store = slicemill.open_store("s3://scans/lits-store")      # doctest: +SKIP
    """
    return Store(reader.open_store(url).root)
