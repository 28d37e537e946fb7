"""The network, its input and its learning rate."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from slicemill.common.errors import UsageError
from slicemill.ct.labels import LITS_LABELS
from slicemill.store.reader import open_store
from slicemill.train.config import Config
from slicemill.train.network.losses import dice_and_cross_entropy
from slicemill.train.network.step import build_network, learning_rate
from slicemill.train.network.unet import UNet, normalize
from slicemill.train.run.setup import slice_size


class TestNetwork:
    def test_it_keeps_the_size_and_has_a_logit_per_class(self):
        network = UNet(channels=3, classes=4, width=4, depth=3)
        assert network(torch.zeros(2, 3, 32, 48)).shape == (2, 4, 32, 48)

    def test_a_stem_keeps_the_size_and_computes_on_a_quarter_of_the_pixels(self):
        network = build_network(LITS_LABELS, Config(context=3, width=4, depth=2, stem=2, deep_supervision=True)).eval()
        image = torch.randn(2, 3, 32, 48)
        assert network(image).shape == (2, 3, 32, 48)
        assert [level.shape[2:] for level in network.levels(image)] == [(32, 48), (16, 24)]
        assert network.decode(image)[0].shape == (2, 4, 16, 24)
        with pytest.raises(UsageError, match=r"crop = 40: must be a multiple of 16 \(stem \* 2\*\*depth\)"):
            Config(depth=3, stem=2, crop=40)

    def test_the_window_maps_to_minus_one_and_one(self):
        assert normalize(torch.tensor([-9000, -200, 50, 300, 9000], dtype=torch.int16), -200, 300).tolist() == [
            -1,
            -1,
            0,
            1,
            1,
        ]

    def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_much(self):
        label = torch.zeros(2, 8, 8, dtype=torch.long)
        label[:, 2:6, 2:6] = 1
        right = F.one_hot(label, 3).movedim(-1, 1).float() * 50
        assert dice_and_cross_entropy(right, label, torch.ones(3))[0] < 0.05
        assert dice_and_cross_entropy(-right, label, torch.ones(3))[0] > 5

    def test_a_batch_without_labels_has_a_finite_loss_and_gradient(self):
        logits = torch.zeros(1, 3, 8, 8, requires_grad=True)
        loss, _ = dice_and_cross_entropy(logits, torch.zeros(1, 8, 8, dtype=torch.long), torch.ones(3))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()

    def test_the_learning_rate_rises_and_falls_to_nothing(self):
        config = Config(learning_rate=1.0)
        rates = [learning_rate(config, done) for done in np.linspace(0, 1, 101)]
        assert rates[0] == pytest.approx(0.1)
        assert max(rates) == pytest.approx(1.0)
        assert rates[-1] == pytest.approx(0.0, abs=1e-9)

    def test_slices_are_brought_to_a_multiple_that_holds_the_largest(self, stored):
        cases = list(open_store(stored).values())
        assert {case.image.shape[1:] for case in cases} == {(64, 64), (48, 64)}
        assert slice_size(cases, Config(depth=4)) == (64, 64)
        assert slice_size(cases, Config(depth=5, size=96)) == (96, 96)
        assert slice_size(cases, Config(depth=5, stem=2)) == (64, 64)

    def test_instance_norm_looks_at_each_slice_alone(self):
        torch.manual_seed(0)
        network = build_network(LITS_LABELS, Config(context=1, width=4, depth=2, norm="instance")).train()
        image = torch.randn(3, 1, 16, 16)
        alone, together = network(image[:1]), network(image)
        assert torch.allclose(alone[0], together[0], atol=1e-5)
