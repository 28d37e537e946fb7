"""Batches are the stored slices, cropped, padded and in order, whatever the number of threads and processes."""

import shutil
import threading

import numpy as np
import pytest
import torch

from slicemill.common.errors import StoreError
from slicemill.ct.labels import make_labels
from slicemill.ct.window import AIR_HU
from slicemill.store.reader import open_store
from slicemill.store.tables import read_table
from slicemill.train.data.dataset import Batches, SliceRegion
from slicemill.train.data.sampling import ANYWHERE, Box, SlicePosition
from slicemill.train.network.step import class_lookup


class TestBatches:
    @pytest.mark.parametrize("threads", [1, 3, 16])
    def test_a_batch_is_the_stored_slices_with_their_neighbors(self, threads, stored):
        store = open_store(stored)
        places = [SlicePosition("volume-1", z) for z in (0, 20, len(store["volume-1"].image) - 1)] + [
            SlicePosition("volume-3", 7)
        ]
        batches = Batches(store, SliceRegion(size=(64, 64), context=5), 4, threads)
        with batches.iterate(places, (0, 0)) as stream:
            (batch,) = list(stream)
        for index, (case_id, z, _) in enumerate(places):
            image, label = store[case_id].image, store[case_id].label
            around = np.clip(np.arange(z - 2, z + 3), 0, len(image) - 1)
            assert np.array_equal(batch.image[index], np.stack([image[int(n)] for n in around]))
            assert np.array_equal(batch.label[index, 0], label[z])

    def test_neighbors_may_be_chosen_in_millimetres(self, stored):
        store = open_store(stored)
        case = store["volume-1"]
        step = case.info.spacing_mm[0]
        with Batches(store, SliceRegion(size=(64, 64), context=3, context_spacing_mm=2.4 * step), 1).iterate(
            [SlicePosition("volume-1", 10)], (0, 0)
        ) as stream:
            (batch,) = list(stream)
        assert np.array_equal(batch.image[0], np.stack([case.image[z] for z in (8, 10, 12)]))

    def test_label_values_become_class_indices(self):
        table = class_lookup(make_labels({"liver": 7, "tumor": 200}), torch.device("cpu"))
        assert table[torch.tensor([0, 7, 200, 3])].tolist() == [0, 1, 2, 0]

    @pytest.mark.parametrize("size", [(64, 64), (48, 32), (80, 96)])
    def test_batches_do_not_depend_on_the_number_of_threads(self, size, stored):
        store = open_store(stored)
        places = [SlicePosition(row["case_id"], row["z"]) for row in read_table(stored, "slices")][:90]
        found = []
        for threads in (1, 2, 7):
            with Batches(store, SliceRegion(size=size, context=3), 4, threads).iterate(places, (3, 5)) as stream:
                found.append([(batch.image.copy(), batch.label.copy(), list(batch.positions)) for batch in stream])
        assert len(found[0]) == 22
        for other in found[1:]:
            for one, two in zip(found[0], other, strict=True):
                assert np.array_equal(one[0], two[0])
                assert np.array_equal(one[1], two[1])
                assert one[2] == two[2]

    def test_a_stream_that_is_left_early_leaves_no_thread(self, stored):
        store = open_store(stored)
        with Batches(store, SliceRegion(size=(64, 64), context=1), 2, 3).iterate(
            [SlicePosition("volume-1", z % 20) for z in range(200)], (0, 0)
        ) as stream:
            next(stream)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("slice loader")]

    def test_small_slices_are_padded_with_air(self, stored):
        store = open_store(stored)
        batches = Batches(store, SliceRegion(size=(80, 80), context=1), 1)
        tumor = next(r for r in read_table(stored, "slices") if r["has_tumor"] and r["case_id"] == "volume-1")
        with batches.iterate([SlicePosition("volume-1", tumor["z"])], (0, 0)) as stream:
            (batch,) = list(stream)
        assert np.array_equal(batch.label[0, 0, 8:72, 8:72], store["volume-1"].label[tumor["z"]])
        assert (batch.image[0, 0, :8] == AIR_HU).all()

    def test_crops_hold_what_they_aim_at(self, stored):
        store = open_store(stored)
        lesions = read_table(stored, "lesions")
        aims = [
            (row["case_id"], row["key_z"], Box(*(row[f"bbox_{end}"] for end in ("y0", "x0", "y1", "x1"))))
            for row in lesions
        ]
        places = [SlicePosition(*aim) for aim in aims for _ in range(8)]
        batches = Batches(store, SliceRegion(size=(16, 16)), len(places))
        with batches.iterate(places, (0, 0)) as stream:
            (batch,) = list(stream)
        corners = []
        for place, label, image in zip(places, batch.label[:, 0], batch.image[:, 0], strict=True):
            whole = store[place.case_id].image[place.z]
            found = [
                (y, x)
                for y in range(whole.shape[0] - 15)
                for x in range(whole.shape[1] - 15)
                if np.array_equal(whole[y : y + 16, x : x + 16], image)
            ]
            ((y, x),) = found
            assert place.aim.y0 - 16 < y < place.aim.y1
            assert place.aim.x0 - 16 < x < place.aim.x1
            assert np.array_equal(store[place.case_id].label[place.z][y : y + 16, x : x + 16], label)
            corners.append((y, x))
        assert len(set(corners[:8])) > 3

    def test_a_crop_without_an_aim_holds_a_labelled_pixel(self, stored):
        rows = [row for row in read_table(stored, "slices") if row["voxels_liver"]]
        batches = Batches(open_store(stored), SliceRegion(size=(16, 16)), len(rows))
        with batches.iterate([SlicePosition(row["case_id"], row["z"]) for row in rows], (0, 0)) as stream:
            (batch,) = list(stream)
        assert batch.label.any(axis=(1, 2, 3)).all()

    def test_an_epoch_may_begin_anywhere_and_be_shared_out(self, stored):
        store = open_store(stored)
        places = [SlicePosition(row["case_id"], row["z"], ANYWHERE) for row in read_table(stored, "slices")][:60]
        view = SliceRegion(size=(32, 32), context=3)

        def all_of(size, **how):
            with Batches(store, view, size, 2).iterate(places, (1, 2), **how) as stream:
                return [(batch.image.copy(), batch.label.copy(), list(batch.positions)) for batch in stream]

        whole = all_of(4)
        for one, other in zip(whole[5:], all_of(4, first=5), strict=True):
            assert np.array_equal(one[0], other[0])
            assert np.array_equal(one[1], other[1])
            assert one[2] == other[2]
        halves = all_of(2, rank=0, count=2), all_of(2, rank=1, count=2)
        for one, first, second in zip(whole, *halves, strict=True):
            assert np.array_equal(one[0], np.concatenate([first[0], second[0]]))
            assert one[2] == first[2] + second[2]

    def test_slabs_for_tilted_planes_hold_images_and_labels(self, stored):
        store = open_store(stored)
        case = store["volume-1"]
        with Batches(store, SliceRegion(size=(64, 64), context=3, reach=2), 1).iterate(
            [SlicePosition("volume-1", 10)], (0, 0)
        ) as stream:
            (batch,) = list(stream)
        assert np.array_equal(batch.image[0], np.stack([case.image[z] for z in range(7, 14)]))
        assert np.array_equal(batch.label[0], np.stack([case.label[z] for z in range(8, 13)]))

    def test_slices_to_be_resampled_come_with_their_zoom_and_room_around(self, stored):
        store = open_store(stored)
        case = store["volume-1"]
        own = case.info.spacing_mm[1]
        view = SliceRegion(size=(32, 32), spacing_mm=own / 2, stored=(20, 20))
        with Batches(store, view, 1).iterate([SlicePosition("volume-1", 10, ANYWHERE)], (0, 0)) as stream:
            (batch,) = list(stream)
        assert batch.zoom.tolist() == [[2.0, 2.0]]
        assert batch.image.shape == (1, 1, 20, 20)
        whole = case.image[10]
        assert any(
            np.array_equal(whole[y : y + 16, x : x + 16], batch.image[0, 0, 2:18, 2:18])
            for y in range(49)
            for x in range(49)
        )

    def test_a_damaged_slice_stops_the_stream_with_its_name(self, stored, tmp_path):
        copy = shutil.copytree(stored, tmp_path / "copy")
        (copy / "scans.zarr/volume-1/image/c/0/0/0").write_bytes(b"short")
        batches = Batches(open_store(copy), SliceRegion(size=(64, 64)), 1)
        with (
            batches.iterate([SlicePosition("volume-1", 0)], (0, 0)) as stream,
            pytest.raises(StoreError, match="volume-1"),
        ):
            list(stream)
