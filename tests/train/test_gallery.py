"""The picture of the random changes."""

import numpy as np
import torch
from PIL import Image
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.ct.window import Window
from slicemill.store.reader import open_store
from slicemill.train.config import Config
from slicemill.train.report.gallery import draw_gallery, list_rows, read_sample
from tests.train.augment_helpers import generators


class TestGallery:
    def test_it_shows_every_kind_on_slices_with_labels(self, stored, tmp_path):
        words = ["gallery", str(stored), "--out", str(tmp_path / "g.png"), "--augment", "1"]
        done = CliRunner().invoke(commands(), words)
        assert done.exit_code == 0, done.output
        assert done.stdout == f"gallery: {tmp_path / 'g.png'}\n"
        with Image.open(tmp_path / "g.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        parts = np.array_split(pixels, len(list(list_rows(Config()))))
        for part in parts:  # tumor and liver are outlined in every row
            assert (np.ptp(part, axis=2) > 60).any()

    def test_its_rows_are_the_kinds_that_the_settings_name(self):
        titles = [row.title for row in list_rows(Config(augmentations=("lowres", "move"), augment=0.5, oblique=2))]
        assert titles == [
            "as stored", "move (40%)", "tilt (oblique = 2)", "as stored, close up", "lowres (25%)", "all combined",
        ]  # fmt: skip
        assert [row.title for row in list_rows(Config(augmentations=()))] == [
            "as stored", "tilt (oblique = 4, off)", "all combined",
        ]  # fmt: skip

    def test_every_row_changes_every_slice_and_its_outlines_with_it(self, stored):
        store, config = open_store(stored), Config(augment=1.0, oblique=3)
        sample = read_sample(store["volume-1"], Window(config.window_low, config.window_high), 3)
        image, label = sample.middle()
        for row in list_rows(config):
            seen, truth = row.change(sample, generators(1))
            assert torch.equal(seen, image) == row.title.startswith("as stored")
            if row.close_up:
                assert torch.equal(truth, label)
            elif not row.title.startswith("as stored"):
                assert not torch.equal(truth, label)

    def test_the_same_seed_gives_the_same_picture(self, stored):
        store = open_store(stored)
        first, again, other = (
            draw_gallery(store, Config(augment=1.0, seed=seed, augmentations=("move",))).tobytes() for seed in (1, 1, 2)
        )
        assert first == again
        assert first != other
