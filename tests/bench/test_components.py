"""The comparison of components: equal results on a small volume, and ratios for each mask."""

import numpy as np

from slicemill.bench.stages import components


def test_every_mask_is_compared_with_6_and_26_neighbors():
    record = components.run(rounds=1, log=lambda _: None, shape=(8, 48, 48))
    assert {name: list(rows) for name, rows in record["masks"].items()} == {
        name: ["6", "26"] for name in ("tumors", "liver", "noise")
    }
    for rows in record["masks"].values():
        for row in rows.values():
            assert set(row["seconds"]) == {"runs", "cc3d", "cc3d, no sizes"}
            assert row["over runs"]["cc3d"]["cpu"] > 0


def test_sizes_of_runs_are_those_of_cc3d(rng):
    mask = rng.random((6, 20, 20)) < 0.3
    for connectivity in (6, 26):
        by_runs = components.sizes_by_runs(mask, connectivity)
        assert np.array_equal(np.sort(by_runs), np.sort(components.sizes_by_cc3d(mask, connectivity)))
