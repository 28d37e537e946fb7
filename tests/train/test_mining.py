"""Mining: when scans are mined, what counts as false tumor, and a whole run with the recipe for nodules."""

import itertools

import numpy as np
import pytest
import torch

import slicemill
from slicemill.ingest.convert import convert_case
from slicemill.ingest.request import IngestRequest
from slicemill.store.reader import open_store
from slicemill.store.tables import reindex
from slicemill.store.writer import prepare_store
from slicemill.train.config import Config, make_config
from slicemill.train.run import mining
from slicemill.train.run.checkpoint import State
from slicemill.train.run.mining import choose_cases, describe_false, is_mining_due, mine
from slicemill.train.run.setup import prepare
from tests.ingest.luna import HEADER, SHAPE, UID, make_scan, place, write, write_table

SMALL = {
    "width": 4,
    "depth": 2,
    "crop": 32,
    "batch": 4,
    "steps": 2,
    "validation": 0.2,
    "test": 0.2,
    "precision": "fp32",
}


@pytest.mark.parametrize(
    ("config", "epochs"),
    [
        (Config(epochs=9, mining=2, hard_share=0.1), [3, 6]),
        (Config(epochs=4, mining=1, hard_share=0.1), [2]),
        (Config(epochs=2, mining=3, hard_share=0.1), [1]),
        (Config(epochs=9), []),
        (Config(epochs=100, max_minutes=10, mining=1, hard_share=0.1), [5]),
    ],
)
def test_scans_are_mined_at_equal_distances_and_never_at_the_end(config, epochs):
    states = [State(epoch=number, seconds=60.0 * number) for number in range(config.epochs + 1)]
    due = [after.epoch for before, after in itertools.pairwise(states) if is_mining_due(config, before, after)]
    assert due == epochs


def test_the_box_is_that_of_the_largest_part_and_the_weight_grows_with_all():
    mask = np.zeros((20, 30), dtype=bool)
    mask[2:5, 3:6] = mask[10, 20:27] = True
    assert describe_false(mask) == (4.0, 2.0, 3.0, 5.0, 6.0)


@pytest.fixture(scope="module")
def nodules(tmp_path_factory):
    """A store of eight scans in LUNA16's form, two of them without nodules, and one with an excluded finding."""
    root = tmp_path_factory.mktemp("nodules")
    rows, rng = [], np.random.default_rng(0)
    for number in range(8):
        found = [] if number > 5 else [((int(rng.integers(6, 18)), 14 + number, 16 + number), 8.0)]
        make_scan(root / "luna" / f"{UID.format(number)}.mhd", found)
        write(root / "lungs" / f"{UID.format(number)}.mhd", np.full(SHAPE, 3, dtype=np.uint8))
        rows += [(UID.format(number), *place(center), size) for center, size in found]
    one = IngestRequest(
        source=root / "luna",
        points=write_table(root / "a.csv", HEADER, rows),
        excluded=write_table(root / "x.csv", HEADER, [(UID.format(0), *place((5, 30, 35)), 5)]),
        lungs=root / "lungs",
    )
    collection, store = one.collection(), prepare_store(root / "store")
    for case in collection.cases:
        convert_case(case, one.params(collection), store)
    reindex(store)
    return store


def test_what_is_neither_tumor_nor_left_out_counts_as_false(nodules, tmp_path, monkeypatch):
    setup = prepare(nodules, tmp_path, make_config("nodules").replace(**SMALL, epochs=3), None)
    assert (dict(setup.labels.values), setup.ignored) == ({"lung": 1, "nodule": 2}, 3)
    monkeypatch.setattr(mining, "predict_case", lambda case, *_: np.full(case.image.shape, 2, np.uint8))
    found = mine(setup, torch.nn.Identity(), 1).numpy()
    chosen = choose_cases(setup, 1)
    assert set(chosen) <= set(setup.split.train)
    for (case_id, z), row in zip(setup.pool.slices, found, strict=True):
        wrong = np.isin(open_store(nodules)[case_id].label[z], (0, 1)).sum() if case_id in chosen else 0
        assert row[0] == pytest.approx(np.sqrt(wrong))
    monkeypatch.setattr(mining, "predict_case", lambda case, *_: np.asarray(case.label[:] == 2, np.uint8) * 2)
    assert not mine(setup, torch.nn.Identity(), 1).any()


@pytest.mark.slow
def test_the_recipe_trains_on_points_and_its_network_sees_seven_slices_at_fixed_mm(nodules, tmp_path):
    lines = []
    done = slicemill.train_network(
        nodules, tmp_path / "run", recipe="nodules", epochs=3, seed=1, log=lines.append, **SMALL
    )
    assert done.epochs == 3
    assert "context 7" in " ".join(lines)
    cards = slicemill.export_model(tmp_path / "run", tmp_path / "model.onnx")
    (card,) = cards.values()
    assert (card.context, card.context_spacing_mm, card.spacing_mm) == (7, 2.5, 0.75)
    assert tuple(card.window_hu) == (-1000, 400)
    assert list(card.labels) == ["lung", "nodule"]
