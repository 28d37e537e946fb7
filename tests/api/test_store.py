"""Tables as Arrow and pandas, and arrays of dask, are what the store has; stale tables are refused."""

import shutil
import sys

import numpy as np
import pyarrow as pa
import pytest

import slicemill
from slicemill.api.store import _to_pandas
from slicemill.common.errors import ConfigError, NoCaseError, StoreError
from slicemill.store.tables import read_table


def test_tables_are_those_of_the_store(stored):
    store = slicemill.open_store(stored)
    for name, table in (("manifest", store.manifest("arrow")), ("slices", store.slices("arrow"))):
        assert isinstance(table, pa.Table)
        assert table.to_pylist() == read_table(stored, name)
    assert store.lesions("arrow").num_rows == sum(len(case.lesions) for case in store.values())
    assert store.slices("arrow").num_rows == sum(len(case.image) for case in store.values())
    with pytest.raises(ConfigError, match="must be pandas or arrow"):
        store.manifest("polars")


def test_tables_that_lack_a_case_are_refused(stored, tmp_path):
    shutil.copytree(stored, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "scans.zarr" / "volume-2")
    store = slicemill.open_store(tmp_path / "store")
    for table in (store.manifest, store.slices, store.lesions):
        with pytest.raises(StoreError, match=r"the tables list 6 cases and the store has 5.*slicemill store reindex"):
            table("arrow")


def test_without_pandas_the_message_names_the_way_out(stored, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="pip install pandas, or pass kind='arrow'"):
        slicemill.open_store(stored).manifest()


def test_integers_stay_integers_in_pandas(stored):
    pd = pytest.importorskip("pandas")
    frame = slicemill.open_store(stored).manifest()
    assert frame.to_dict("records") == read_table(stored, "manifest")
    frame = _to_pandas(pa.table({"n": pa.array([1, None]), "has": pa.array([True, None]), "z": [1, 2]}))
    assert frame["n"].dtype == pd.Int64Dtype()
    assert frame["has"].dtype == pd.BooleanDtype()
    assert frame["n"].tolist()[0] == 1


@pytest.mark.parametrize("slices", [1, 5, 1000])
def test_a_dask_array_is_the_stored_array(stored, slices):
    store = slicemill.open_store(stored)
    case = store["volume-1"]
    for name, array in (("image", case.image), ("label", case.label)):
        lazy = store.dask_array("volume-1", name, slices=slices)
        assert (lazy.shape, lazy.dtype) == (array.shape, array.dtype)
        assert max(lazy.chunks[0]) == min(slices, len(array))
        assert np.array_equal(lazy.compute(scheduler="threads"), array[:])
    assert np.array_equal(lazy[3:5, ::2].compute(scheduler="sync"), case.label[3:5, ::2])


def test_dask_arrays_of_what_is_not_there(stored, collection, tmp_path):
    store = slicemill.open_store(stored)
    with pytest.raises(NoCaseError):
        store.dask_array("volume-99")
    with pytest.raises(ConfigError, match="slices = 0"):
        store.dask_array("volume-1", slices=0)


@pytest.mark.parametrize("kind", [None, "cases", "slice"])
def test_volumes_have_the_axes_and_affine_of_monai(stored, collection, kind):
    """Axes x, y, z as nibabel loads them; nibabel is the oracle of positions."""
    import nibabel as nib

    store = slicemill.open_store(stored)
    ids = ["volume-4", "volume-1"] if kind == "cases" else store.case_ids
    items = slicemill.VolumeItems(stored, cases=ids if kind == "cases" else None)
    if kind == "slice":
        items, ids = items[1:3], ids[1:3]
    assert len(items) == len(ids)
    for item, case_id in zip(items, ids, strict=True):
        image = nib.load(next(collection.glob(f"{case_id}.nii*")))
        orientation = nib.io_orientation(item["image_meta_dict"]["affine"])
        assert nib.orientations.ornt2axcodes(orientation) == ("L", "P", "S")
        own = nib.Nifti1Image(item["image"][0], item["image_meta_dict"]["affine"])
        expected = nib.as_closest_canonical(image)
        assert np.array_equal(nib.as_closest_canonical(own).dataobj, expected.dataobj)
        assert np.allclose(nib.as_closest_canonical(own).affine, expected.affine, atol=1e-3)
        assert item["label"].shape == item["image"].shape
        assert item["image_meta_dict"]["spatial_shape"] == item["image"].shape[1:]
        assert item["case_id"] == item["label_meta_dict"]["filename_or_obj"] == case_id
    with pytest.raises(IndexError):
        items[len(items)]
    with pytest.raises(NoCaseError):
        slicemill.VolumeItems(store, cases=["volume-99"])
