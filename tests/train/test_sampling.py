"""The draw of an epoch: shares, weights, and what it depends on."""

from dataclasses import replace

import numpy as np
import pytest

from slicemill.ct.labels import LITS_LABELS
from slicemill.store.tables import read_table
from slicemill.train.config import Config
from slicemill.train.data.sampling import ANYWHERE, Box, Pool, draw, draw_epoch


class TestSampling:
    def pool(self, stored, config=None):
        return Pool(read_table(stored, "slices"), read_table(stored, "lesions"), LITS_LABELS, config or Config())

    def test_the_stated_share_holds_tumor(self, stored):
        tumor = {(r["case_id"], r["z"]) for r in read_table(stored, "slices") if r["has_tumor"]}
        config = Config(batch=10, steps=20, tumor_share=0.5, organ_share=0.0)
        places = draw_epoch(self.pool(stored), config, 1)
        assert len(places) == 200
        assert sum((place.case_id, place.z) in tumor for place in places) >= 100
        aimed = [place for place in places if place.aim not in (None, ANYWHERE)]
        assert len(aimed) == 100
        boxes = {
            (r["case_id"], z, Box(r["bbox_y0"], r["bbox_x0"], r["bbox_y1"], r["bbox_x1"]))
            for r in read_table(stored, "lesions")
            for z in range(r["bbox_z0"], r["bbox_z1"])
        }
        assert all(tuple(place) in boxes for place in aimed)

    def test_it_is_a_function_of_seed_and_epoch(self, stored):
        pool, config = self.pool(stored), Config(batch=4, steps=5)
        assert draw_epoch(pool, config, 3) == draw_epoch(pool, config, 3)
        assert draw_epoch(pool, config, 3) != draw_epoch(pool, config, 4)
        assert draw_epoch(pool, config, 3) != draw_epoch(pool, replace(config, seed=1), 3)

    def test_without_any_tumor_every_slice_may_come(self, stored):
        rows = [r for r in read_table(stored, "slices") if not r["has_tumor"]]
        config = Config(batch=len(rows), steps=1, organ_share=0.0)
        places = draw_epoch(Pool(rows, [], LITS_LABELS, config), config, 1)
        assert len(set(places)) == len(rows)

    @pytest.mark.parametrize(("balance", "share"), [(0.0, 3 / 63), (1.0, 0.5), (0.5, 3**0.5 / (3**0.5 + 60**0.5))])
    def test_small_lesions_are_not_drowned_by_large_ones(self, balance, share):
        slices = [{"case_id": "c", "z": z, "has_tumor": z < 60 or 70 <= z < 73, "voxels_tumor": 1} for z in range(80)]
        box = {"bbox_y0": 0, "bbox_x0": 0, "bbox_y1": 9, "bbox_x1": 9, "case_id": "c"}
        lesions = [{**box, "bbox_z0": 0, "bbox_z1": 60}, {**box, "bbox_z0": 70, "bbox_z1": 73}]
        config = Config(batch=100, steps=10, tumor_share=1.0, organ_share=0.0, lesion_balance=balance)
        places = draw_epoch(Pool(slices, lesions, LITS_LABELS, config), config, 1)
        assert sum(place.z >= 70 for place in places) / 1000 == pytest.approx(share, abs=0.005)

    def test_hard_slices_come_as_often_as_their_loss_says(self, stored):
        pool = self.pool(stored)
        config = Config(batch=50, steps=40, tumor_share=0.0, organ_share=0.0, hard_share=1.0)
        losses = np.full(len(pool.slices), 0.01, np.float32)
        losses[7] = losses.sum()
        losses[9] = np.nan
        places = draw_epoch(pool, config, 1, losses)
        assert sum(tuple(place[:2]) == pool.slices[7] for place in places) == pytest.approx(1000, rel=0.05)
        assert any(tuple(place[:2]) == pool.slices[9] for place in places)
        never = draw_epoch(pool, config, 1, np.full(len(pool.slices), np.nan, np.float32))
        assert {place[:2] for place in never} == set(pool.slices)

    def test_mined_slices_come_by_their_weight_and_crops_show_the_false_tumor(self, stored):
        pool = self.pool(stored)
        config = Config(batch=50, steps=40, tumor_share=0.0, organ_share=0.0, hard_share=1.0)
        mined = np.zeros((len(pool.slices), 5), np.float32)
        mined[3] = 3, 1, 2, 5, 7
        mined[5] = 1, 0, 0, 4, 4
        places = draw_epoch(pool, config, 1, np.ones(len(pool.slices), np.float32), mined)
        assert {tuple(place) for place in places} == {
            (*pool.slices[3], Box(1, 2, 5, 7)), (*pool.slices[5], Box(0, 0, 4, 4))
        }  # fmt: skip
        assert sum(place[:2] == pool.slices[3] for place in places) == pytest.approx(1500, abs=1)
        mined[:] = 0  # nothing was false: as before mining
        places = draw_epoch(pool, config, 1, np.full(len(pool.slices), np.nan, np.float32), mined)
        assert {place[:2] for place in places} == set(pool.slices)

    def test_nothing_comes_again_before_all_of_its_weight_came(self):
        for count in (3, 10, 25):
            drawn = np.bincount(draw(np.ones(10), count, np.random.default_rng(count)), minlength=10)
            assert drawn.sum() == count
            assert drawn.max() - drawn.min() <= 1
