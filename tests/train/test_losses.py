"""The loss: what counts, what is ignored, what weighs more, and the decoder's coarser levels."""

import pytest
import torch
from torch.nn import functional as F

from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.train.config import Config
from slicemill.train.network.losses import IGNORED, balance_areas, dice_and_cross_entropy, multi_level_loss
from slicemill.train.network.step import build_network, class_lookup, confusion_matrix, make_learner, train_step
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


def lesions(*areas, side=16):
    """Return classes int64[n, side, side] with so many pixels of class 2 in each slice, and organ of class 1 around."""
    label = torch.zeros(len(areas), side, side, dtype=torch.long)
    for one, area in zip(label, areas, strict=True):
        one[:, : side // 2] = 1
        one.view(-1)[:area] = 2
    return label


class TestBalance:
    def test_the_tumor_of_each_slice_weighs_the_same_at_1_and_each_pixel_at_0(self):
        label = lesions(4, 100, 0)
        weight = balance_areas(label, tumor=2, balance=1.0)
        sums = [float(weight[index][label[index] == 2].sum()) for index in range(2)]
        assert sums[0] == pytest.approx(sums[1])
        assert sum(sums) == pytest.approx(104), "all of the tumor together weighs as before"
        assert (weight[label != 2] == 1).all()
        assert (balance_areas(label, tumor=2, balance=0.0) == 1).all()
        half = balance_areas(label, tumor=2, balance=0.5)
        assert float(half[0, 0, 0] / half[1, 0, 0]) == pytest.approx(5)

    def test_a_small_lesion_that_is_missed_costs_more_and_a_false_one_the_same(self):
        label = lesions(4, 100)
        logits = 4.0 * F.one_hot(label, 3).permute(0, 3, 1, 2).float()
        missed, false = logits.clone(), logits.clone()
        missed[0, :, 0, :4] = logits[0, :, 0, 15:16]  # as the organ around
        false[0, :, 8:, 15] = logits[1, :, 0, :1]
        weights = torch.ones(3)

        def cost(given, balance):
            emphasis = balance_areas(label, 2, balance)
            return float(dice_and_cross_entropy(given, label, weights, emphasis=emphasis)[0])

        rise = [cost(missed, balance) - cost(logits, balance) for balance in (0.0, 0.5, 1.0)]
        assert rise[0] < 0.5 * rise[1] < 0.5 * rise[2]
        for balance in (0.5, 1.0):
            assert cost(false, balance) - cost(logits, balance) == pytest.approx(
                cost(false, 0.0) - cost(logits, 0.0), rel=0.2
            )

    def test_a_balance_of_0_is_the_loss_without_it(self):
        logits, label = batch()
        plain, _ = dice_and_cross_entropy(logits, label, torch.ones(3))
        same, _ = dice_and_cross_entropy(logits, label, torch.ones(3), emphasis=torch.ones(4, 16, 16))
        assert torch.allclose(plain, same)

    def test_without_tumor_or_with_ignored_pixels_alone_the_loss_is_finite(self):
        logits, label = batch()
        for given in (torch.zeros_like(label), torch.full_like(label, IGNORED)):
            emphasis = balance_areas(given, tumor=2, balance=1.0)
            assert (emphasis == 1).all()
            assert torch.isfinite(dice_and_cross_entropy(logits, given, torch.ones(3), emphasis=emphasis)[0])

    def test_several_processes_share_the_mean_of_the_batch_of_all(self):
        label = lesions(4, 100, 9, 30)
        whole = balance_areas(label, tumor=2, balance=0.7)
        area = torch.tensor([4.0, 100.0, 9.0, 30.0])
        totals = {True: (area * area**-0.7).sum(), False: area.sum()}
        parts = []
        for part in (label[:2], label[2:]):
            calls = iter(totals.values())
            parts.append(balance_areas(part, tumor=2, balance=0.7, reduce=lambda _, calls=calls: next(calls)))
        assert torch.allclose(torch.cat(parts), whole)

    def test_a_step_uses_it(self):
        label = lesions(4, 100)
        image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        losses = []
        for balance in (0.0, 1.0):
            config = Config(context=1, width=4, depth=2, area_balance=balance, augment=0.0)
            learner = make_learner(LITS_LABELS, config, torch.device("cpu"))
            losses.append(float(train_step(learner, (image, label)).loss))
        assert losses[0] != losses[1]


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
