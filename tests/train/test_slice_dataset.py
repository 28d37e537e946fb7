"""Slices for DataLoaders: those of the store and of the command `train`, in any number of workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from slicemill.common.errors import NoCaseError, StoreError, UsageError
from slicemill.ct.window import AIR_HU
from slicemill.store.reader import open_store
from slicemill.train.config import Config
from slicemill.train.data.dataset import Batches, SliceRegion
from slicemill.train.data.sampling import draw_epoch, make_pool
from slicemill.train.data.slice_dataset import SliceDataset

CONFIG = Config(batch=4, steps=5, seed=3)


def test_items_are_the_slices_of_the_cases_in_order(stored):
    store = open_store(stored)
    dataset = SliceDataset(stored, cases=["volume-2", "volume-0"], context=3)
    expected = [(case_id, z) for case_id in ("volume-2", "volume-0") for z in range(len(store[case_id].image))]
    assert [dataset.position(index) for index in range(len(dataset))] == expected
    height, width = dataset.size
    for index in (0, len(store["volume-2"].image) - 1, len(store["volume-2"].image), -1):
        case_id, z = expected[index]
        case, item = store[case_id], dataset[index]
        _, ny, nx = case.image.shape
        y, x = (height - ny + 1) // 2, (width - nx + 1) // 2
        around = [max(z - 1, 0), z, min(z + 1, len(case.image) - 1)]
        assert np.array_equal(item["image"][:, y : y + ny, x : x + nx], case.image[around])
        assert np.array_equal(item["label"][0, y : y + ny, x : x + nx], case.label[z])
        assert (item["case_id"], item["z"]) == (case_id, z)
        assert tuple(item["spacing_mm"].tolist()) == case.spacing_mm
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_slices_are_padded_with_air_and_background_or_cropped_around_their_middle(stored):
    case = open_store(stored)["volume-1"]
    _, ny, nx = case.image.shape
    large = SliceDataset(stored, cases=["volume-1"], size=(ny + 10, nx + 6))[5]
    assert np.array_equal(large["image"][0, 5:-5, 3:-3], case.image[5])
    assert (large["image"][0, :5] == AIR_HU).all()
    assert (large["label"][0, :, -3:] == 0).all()
    small = SliceDataset(stored, cases=["volume-1"], size=20)[5]
    y, x = (ny - 20) // 2, (nx - 20) // 2
    assert np.array_equal(small["image"][0], case.image[5, y : y + 20, x : x + 20])


@pytest.mark.parametrize("size", [(64, 64), (40, 48)])
def test_a_sampler_gives_the_slices_and_crops_of_the_training(stored, size):
    store = open_store(stored)
    dataset = SliceDataset(store, context=3, size=size)
    pool = make_pool(store, store.case_ids, dataset.labels, CONFIG)
    loader = DataLoader(dataset, batch_size=CONFIG.batch, sampler=dataset.sampler(CONFIG, first_epoch=1))
    for epoch in (1, 2):
        batches = Batches(store, SliceRegion(size=size, context=3), CONFIG.batch, 1)
        with batches.iterate(draw_epoch(pool, CONFIG, epoch), (CONFIG.seed, epoch)) as stream:
            count = 0
            for expected, found in zip(stream, loader, strict=True):
                assert np.array_equal(found["image"], expected.image)
                assert np.array_equal(found["label"], expected.label)
                assert found["case_id"] == [position.case_id for position in expected.positions]
                count += 1
    assert count == CONFIG.steps
    assert len(loader) == CONFIG.steps


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_give_what_one_process_gives(stored, start):
    dataset = SliceDataset(stored, context=3, size=48)
    loaders = [
        DataLoader(dataset, batch_size=4, sampler=dataset.sampler(CONFIG), **options)
        for options in ({}, {"num_workers": 2, "multiprocessing_context": start, "persistent_workers": True})
    ]
    for _ in range(2):  # the second epoch of persistent workers differs from the first
        for one, other in zip(*loaders, strict=True):
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["label"], other["label"])


def test_an_ignored_label_is_not_sampled(stored):
    dataset = SliceDataset(stored)
    config = replace(CONFIG, ignore="tumor", organ_share=1.0, tumor_share=0.0)
    store = open_store(stored)
    for draw in dataset.sampler(config):
        case_id, z, _ = draw.position
        assert (store[case_id].label[z] > 0).any()


class TestRefused:
    def test_cases_without_masks(self, stored, collection, tmp_path):
        from slicemill.ingest.discover import discover
        from slicemill.ingest.params import Params
        from slicemill.ingest.pipeline import IngestOptions, ingest

        (tmp_path / "scans").mkdir()
        source = next(collection.glob("volume-1.nii*"))
        (tmp_path / "scans" / source.name).write_bytes(source.read_bytes())
        ingest(discover(tmp_path / "scans"), tmp_path / "store", Params(labels=None), IngestOptions(workers=1))
        with pytest.raises(StoreError, match=r"1 of the cases have no mask \(volume-1\); pass cases="):
            SliceDataset(tmp_path / "store")
        dataset = SliceDataset(tmp_path / "store", labels=False)
        assert not dataset[3]["label"].any()
        with pytest.raises(StoreError, match="no case has a mask to sample by"):
            dataset.sampler()

    @pytest.mark.parametrize(
        ("words", "error"),
        [
            ({"context": 2}, UsageError),
            ({"size": 0}, UsageError),
            ({"size": (64, 100_000)}, UsageError),
            ({"cases": ["volume-99"]}, NoCaseError),
            ({"cases": []}, StoreError),
        ],
    )
    def test_what_is_not_possible(self, words, error, stored):
        with pytest.raises(error):
            SliceDataset(stored, **words)

    def test_settings_that_a_sampler_cannot_follow(self, stored):
        dataset = SliceDataset(stored)
        for config in (replace(CONFIG, hard_share=0.1), replace(CONFIG, batch=0)):
            with pytest.raises(UsageError, match="the sampler needs hard_share = 0"):
                dataset.sampler(config)


def test_it_says_what_it_is(stored):
    dataset = SliceDataset(stored, context=3, size=48)
    assert repr(dataset) == f"<{len(dataset)} slices 48x48 of 6 cases, context 3>"
