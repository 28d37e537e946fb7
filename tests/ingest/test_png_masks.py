"""Masks as folders of PNG slices beside DICOM series, as CHAOS ships them."""

import numpy as np
import pytest
from PIL import Image

from slicemill.common.errors import GeometryError, LabelError, PairingError, ScanError
from slicemill.ct.formats.dicom.lookup import open_series
from slicemill.ct.labels import parse_labels
from slicemill.ct.mask_files import ScanGrid, open_mask_file
from slicemill.store.reader import open_store
from slicemill.store.verify import verify
from tests.ct.dicom.made import make_series, make_volume, save_series
from tests.ingest.test_dicom import ingest

pytestmark = pytest.mark.usefixtures("one_worker")

SHAPE = (6, 20, 24)


def make_mask(seed=1):
    """Return liver bool[k, j, i]: k in order of position, rows and columns as in the pixels of the slices."""
    return make_volume(SHAPE, seed=seed) % 7 == 0


def write_chaos(patient, mask, *, order=None, slices="i{:04d},0000b.dcm", pngs="liver_GT_{:03d}.png", first=(0, 0)):
    """Write a patient; plane order[n] has the n-th name, in both folders, and `first` are their first numbers."""
    series = make_series(make_volume(SHAPE))
    order = range(len(series)) if order is None else order
    for number, k in enumerate(order):
        save_series(patient / "DICOM_anon", [series[k]], name=slices.format(number + first[0]).replace("{", "{{"))
        (patient / "Ground").mkdir(exist_ok=True)
        Image.fromarray(mask[k].astype(np.uint8) * 255).save(patient / "Ground" / pngs.format(number + first[1]))


def read(patient, labels="liver=1"):
    """Return the mask of a patient, uint8[z, y, x]."""
    series = open_series(patient / "DICOM_anon")
    scan = ScanGrid(grid=series.grid, series=series)
    with open_mask_file(patient / "Ground", scan, parse_labels(labels)) as reader:
        return reader.read()


ORDERS = {"up": range(6), "down": range(5, -1, -1), "mixed": (3, 0, 5, 1, 4, 2)}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("first", [(0, 0), (1, 0), (97, 1)])
def test_the_number_in_the_name_pairs_slices_and_masks(order, first, tmp_path):
    mask = make_mask()
    write_chaos(tmp_path, mask, order=ORDERS[order], first=first)
    assert np.array_equal(read(tmp_path), mask)


@pytest.mark.slow
def test_a_collection_is_stored_verified_and_read_again_when_a_slice_changed(tmp_path):
    masks = {name: make_mask(seed) for seed, name in enumerate(("1", "2"))}
    for name, mask in masks.items():
        write_chaos(tmp_path / "CT" / name, mask, order=ORDERS["down"])
    source, store = tmp_path / "CT", tmp_path / "store"

    def check():
        assert list(open_store(store)) == ["1_DICOM_anon", "2_DICOM_anon"]
        for name, mask in masks.items():
            assert np.array_equal(open_store(store)[f"{name}_DICOM_anon"].label[:], mask)
        return verify(open_store(store), source, workers=1, advance=lambda *_: None)

    assert ingest(source, store, labels="liver=1")[1].count("done") == 2
    assert check() == []
    assert ingest(source, store, labels="liver=1")[1].count("unchanged") == 2
    masks["2"][5] = ~masks["2"][5]
    Image.fromarray(masks["2"][5].astype(np.uint8) * 255).save(source / "2" / "Ground" / "liver_GT_000.png")
    problems = verify(open_store(store), source, workers=1, advance=lambda *_: None)
    assert "480 voxels differ from the store, the first at slice 5" in problems[0]
    assert "changed since it was ingested" in problems[1]
    assert ingest(source, store, labels="liver=1")[1].count("done") == 1
    assert check() == []
    swapped = source / "1" / "Ground"
    (swapped / "liver_GT_000.png").rename(swapped / "liver_GT_006.png")
    assert ingest(source, store, labels="liver=1")[1].count("done") == 1, "names are part of the mask"


def test_other_counts_gaps_and_names_are_refused(tmp_path):
    write_chaos(tmp_path, make_mask())
    ground = tmp_path / "Ground"
    (ground / "liver_GT_003.png").rename(ground / "liver_GT_009.png")
    with pytest.raises(PairingError, match="the slice with the number 3 in its name has no PNG file 3"):
        read(tmp_path)
    (ground / "liver_GT_009.png").rename(ground / "liver_3_GT_003.png")
    with pytest.raises(PairingError, match="the names of the PNG files must differ in one number only"):
        read(tmp_path)
    (ground / "liver_3_GT_003.png").unlink()
    with pytest.raises(PairingError, match="there are 5 for 6 slices"):
        read(tmp_path)


def test_names_of_slices_that_differ_in_two_numbers_are_refused(tmp_path):
    write_chaos(tmp_path, make_mask())
    for number, path in enumerate(sorted((tmp_path / "DICOM_anon").iterdir())):
        path.rename(path.with_name(f"1.2.{number * 7919}.{number}"))
    with pytest.raises(PairingError, match="the names of the slices must differ in one number only"):
        read(tmp_path)


def test_values_and_sizes_that_do_not_fit_are_refused(tmp_path):
    write_chaos(tmp_path, make_mask())
    path = tmp_path / "Ground" / "liver_GT_002.png"
    Image.fromarray(np.full(SHAPE[1:], 63, dtype=np.uint8)).save(path)
    with pytest.raises(LabelError, match=r"the files have the values 255 and 63, but there is one label \(liver=1\)"):
        read(tmp_path)
    path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(ScanError, match="cannot be read as a picture"):
        read(tmp_path)
    Image.fromarray(np.zeros((20, 20), dtype=np.uint8)).save(path)
    with pytest.raises(GeometryError, match="20 x 20 pixels, and its slice 20 x 24"):
        read(tmp_path)
    Image.fromarray(np.zeros((*SHAPE[1:], 3), dtype=np.uint8)).save(path)
    with pytest.raises(ScanError, match="must be gray; its mode is RGB"):
        read(tmp_path)
    Image.fromarray(np.full(SHAPE[1:], 300, dtype=np.uint16)).save(path)
    with pytest.raises(LabelError, match="at most 255; a pixel has 300"):
        read(tmp_path, "liver=63,spleen=252")


def test_several_values_are_those_of_the_labels(tmp_path):
    write_chaos(tmp_path, make_mask())
    values = np.zeros(SHAPE, dtype=np.uint8)
    values[2, 3:8, 4:9], values[4, 1:3] = 63, 252
    for k, plane in enumerate(values):
        Image.fromarray(plane).save(tmp_path / "Ground" / f"liver_GT_{k:03d}.png")
    assert np.array_equal(read(tmp_path, "liver=63,spleen=252"), values)


@pytest.mark.slow
def test_a_folder_beside_two_series_is_left_out_by_name_and_options_hold(tmp_path):
    write_chaos(tmp_path / "CT" / "1", make_mask())
    collection, report = ingest(tmp_path / "CT", tmp_path / "without", no_masks=True)
    assert report.count("done") == 1
    assert "--no-masks stores scans only" in {one.path.name: one.reason for one in collection.left_out}["Ground"]
    other = make_series(make_volume(SHAPE, seed=2), SeriesInstanceUID="1.9")
    save_series(tmp_path / "CT" / "1" / "DICOM_late", other)
    collection, report = ingest(tmp_path / "CT", tmp_path / "store", labels="liver=1")
    assert "could belong to 2 series" in {one.path.name: one.reason for one in collection.left_out}["Ground"]
