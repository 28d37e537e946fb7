"""The loss: what counts, what is ignored, what weighs more, and the decoder's coarser levels."""

import torch
from torch.nn import functional as F

from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.train.config import Config
from slicemill.train.network.losses import IGNORED, dice_and_cross_entropy, multi_level_loss
from slicemill.train.network.step import build_network, class_lookup, confusion_matrix
from slicemill.train.network.unet import Levels


def batch(seed=0):
    """Return random logits float[4, 3, 16, 16] and classes int64[4, 16, 16]."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 3, 16, 16, generator=generator)
    return logits, torch.randint(0, 3, (4, 16, 16), generator=generator)


class TestLoss:
    def test_cross_entropy_is_torchs_and_dice_that_of_its_formula(self):
        logits, label = batch()
        loss, by_slice = dice_and_cross_entropy(logits, label, torch.ones(3))
        entropy = F.cross_entropy(logits, label, reduction="none")
        dice = []
        for index in (1, 2):
            probability, truth = logits.softmax(1)[:, index], (label == index).float()
            dice.append(1 - (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1))
        assert torch.allclose(loss, entropy.mean() + torch.stack(dice).mean(), atol=1e-5)
        assert torch.allclose(by_slice, entropy.mean((1, 2)), atol=1e-6)

    def test_what_is_ignored_changes_neither_loss_nor_gradient(self):
        logits, label = batch()
        label[:, :5] = IGNORED
        changed = logits.clone()
        changed[:, :, :5] = torch.randn(4, 3, 5, 16) * 9
        found = []
        for given in (logits, changed):
            given.requires_grad_()
            loss, by_slice = dice_and_cross_entropy(given, label, torch.ones(3))
            loss.backward()
            found.append((loss.detach(), by_slice, given.grad))
            assert given.grad[:, :, :5].abs().max() == 0
        assert torch.allclose(found[0][0], found[1][0])
        assert torch.allclose(found[0][1], found[1][1])
        rest, _ = dice_and_cross_entropy(logits.detach()[:, :, 5:], label[:, 5:], torch.ones(3))
        assert torch.allclose(found[0][0], rest, atol=1e-5)

    def test_a_batch_that_is_ignored_whole_costs_nothing(self):
        logits, label = batch()
        logits.requires_grad_()
        loss, by_slice = dice_and_cross_entropy(logits, torch.full_like(label, IGNORED), torch.ones(3))
        loss.backward()
        assert float(loss.detach()) == 0
        assert by_slice.tolist() == [0, 0, 0, 0]
        assert torch.isfinite(logits.grad).all()

    def test_a_heavier_class_pulls_more(self):
        logits, label = batch()
        gradients = []
        for weight in (1.0, 5.0):
            given = logits.clone().requires_grad_()
            dice_and_cross_entropy(given, label, torch.tensor([1.0, 1.0, weight]))[0].backward()
            gradients.append(given.grad[:, 2][label == 2].abs().mean())
        assert gradients[1] > 1.5 * gradients[0]

    def test_cross_entropy_with_weights_is_torchs(self):
        logits, label = batch()
        weights = torch.tensor([1.0, 1.0, 4.0])
        weighted, _ = dice_and_cross_entropy(logits, label, weights)
        entropy = F.cross_entropy(logits, label, weight=weights)
        assert weighted > entropy
        assert weighted < entropy + 1


class TestDeepSupervision:
    def test_every_level_but_the_coarsest_has_a_head_of_half_its_size(self):
        config = Config(context=1, width=4, depth=3, deep_supervision=True)
        levels = Levels(build_network(LITS_LABELS, config))(torch.zeros(2, 1, 32, 48))
        assert [tuple(level.shape) for level in levels] == [(2, 3, 32, 48), (2, 3, 16, 24), (2, 3, 8, 12)]

    def test_without_it_there_is_one_level_and_the_same_labels_come_out(self):
        torch.manual_seed(0)
        deep = build_network(LITS_LABELS, Config(context=1, width=4, depth=3, deep_supervision=True)).eval()
        plain = build_network(LITS_LABELS, Config(context=1, width=4, depth=3)).eval()
        plain.load_state_dict({name: t for name, t in deep.state_dict().items() if "coarse" not in name})
        image = torch.randn(1, 1, 32, 32)
        assert len(plain.levels(image)) == 1
        assert torch.equal(plain(image), deep(image))

    def test_levels_weigh_half_of_the_one_before_and_see_every_second_pixel(self):
        logits, label = batch()
        coarse = logits[:, :, ::2, ::2]
        alone, _ = dice_and_cross_entropy(logits, label, torch.ones(3))
        below, _ = dice_and_cross_entropy(coarse, label[:, ::2, ::2], torch.ones(3))
        both, _ = multi_level_loss([logits, coarse], label, torch.ones(3))
        assert torch.allclose(both, (alone + 0.5 * below) / 1.5)


class TestClasses:
    def test_an_ignored_value_is_no_class(self):
        labels = make_labels({"liver": 1, "tumor": 2, "unsure": 9})
        rest = labels.without("unsure")
        assert dict(rest.values) == {"liver": 1, "tumor": 2}
        assert rest.tumor == "tumor"
        assert class_lookup(rest, torch.device("cpu"), 9)[[0, 1, 2, 9, 5]].tolist() == [0, 1, 2, IGNORED, 0]

    def test_confusion_counts_true_against_predicted(self):
        label = torch.tensor([[[0, 1, 1, 2, IGNORED]]])
        predicted = torch.tensor([[[0, 1, 2, 2, 1]]])
        assert confusion_matrix(predicted, label, 3).tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
