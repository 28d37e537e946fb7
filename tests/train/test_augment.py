"""Changes of values against scipy and Pillow, and which slices a change is applied to."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from slicemill.train.config import KINDS, Config
from slicemill.train.data import augment as module
from slicemill.train.data.augment import (
    KERNEL_REACH,
    MAX_BRIGHTNESS,
    MAX_CONTRAST,
    MAX_GAMMA,
    MAX_NOISE,
    SHARES,
    VALUE_KINDS,
    augment,
    resample,
)
from slicemill.train.network.step import DeviceBatch, prepare_input
from slicemill.train.network.unet import normalize
from tests.train.augment_helpers import IGNORED, MOVING_KINDS, batch, generators, of_all, seeded


class TestValues:
    def apply(self, kind, image, strength, seed=0):
        return VALUE_KINDS[kind](image, strength, seeded(seed))

    @pytest.mark.parametrize("strength", [0.4, 1.0])
    def test_blur_is_scipys_gaussian(self, strength):
        image, _ = batch(count=8, size=(30, 34))
        image[:, 0] = -1
        image[:, 0, 15, 17] = 1
        got = self.apply("blur", image, strength).numpy()
        found = []
        for before, after in zip(image.numpy(), got, strict=True):
            ratio = (after[0, 15, 18] + 1) / (after[0, 15, 17] + 1)  # exp(-1 / (2 sigma**2))
            sigma = np.sqrt(-0.5 / np.log(ratio))
            found.append(sigma)
            for channel in range(3):
                expected = ndimage.gaussian_filter(before[channel], sigma, mode="nearest", radius=KERNEL_REACH)
                assert np.allclose(after[channel], expected, atol=1e-5)
        assert min(found) >= 0.5 - 1e-3
        assert max(found) <= 0.5 + 0.5 * strength + 1e-3
        assert np.ptp(found) > 0.2 * strength

    def test_gamma_is_a_power_over_the_window(self):
        image, _ = batch(count=50, size=(16, 16))
        shades = (image.double().numpy() + 1) / 2
        got = (self.apply("gamma", image, 0.5).double().numpy() + 1) / 2
        exponents = []
        for before, after in zip(shades, got, strict=True):
            inner = (before > 0.05) & (before < 0.95)
            found = np.log(after[inner]) / np.log(before[inner])
            exponents.append(np.median(found))
            assert np.allclose(after, before ** exponents[-1], atol=1e-4)
        most = MAX_GAMMA**0.5
        assert 1 / most <= min(exponents) < 0.87
        assert 1.15 < max(exponents) <= most

    def test_contrast_is_a_line_in_hu_within_the_window(self):
        image, _ = batch(count=50, size=(16, 16))
        got = self.apply("contrast", image, 0.5).numpy()
        lines = []
        for before, after in zip(image.numpy(), got, strict=True):
            inner = np.abs(after) < 0.999
            line = np.polyfit(before[inner], after[inner], 1)
            assert np.allclose(after, np.clip(np.polyval(line, before), -1, 1), atol=1e-4)
            lines.append(line)
        factors, offsets = np.array(lines).T
        assert np.abs(np.log(factors)).max() <= np.log(MAX_CONTRAST) / 2 + 1e-4
        assert np.abs(offsets).max() <= MAX_BRIGHTNESS / 2 + 1e-4
        assert np.ptp(factors) > 0.15
        assert np.ptp(offsets) > 0.1

    def test_noise_is_gaussian_and_of_another_deviation_in_each_slice(self):
        got = self.apply("noise", torch.zeros(40, 2, 64, 64), 0.5).numpy()
        deviations = got.std(axis=(1, 2, 3))
        assert deviations.max() <= MAX_NOISE / 2 * 1.05
        assert deviations.max() > 0.04
        assert deviations.min() < 0.01
        scaled = got / deviations[:, None, None, None]
        assert stats.kstest(scaled.ravel()[::7], "norm").pvalue > 1e-3
        assert abs(np.corrcoef(scaled[:, 0].ravel(), scaled[:, 1].ravel())[0, 1]) < 0.01
        assert abs(np.corrcoef(scaled[..., 1:].ravel(), scaled[..., :-1].ravel())[0, 1]) < 0.01

    def test_low_resolution_is_pillows_resizing_down_and_up(self):
        image, _ = batch(count=6, channels=1, size=(48, 40))
        got = self.apply("lowres", image, 1.0).numpy()
        sizes = []
        for before, after in zip(image.numpy(), got, strict=True):
            errors = {}
            for width in range(20, 41):
                for height in {round(width * 1.2), round(width * 1.2 + 0.4), round(width * 1.2 - 0.4)}:
                    down = Image.fromarray(before[0]).resize((width, height), Image.Resampling.BILINEAR)
                    up = np.asarray(down.resize((40, 48), Image.Resampling.BILINEAR))
                    errors[width] = min(errors.get(width, 9), np.abs(up - after[0]).max())
            sizes.append(min(errors, key=errors.get))
            assert errors[sizes[-1]] < 1e-4
        assert len(set(sizes)) > 3

    @pytest.mark.parametrize("kind", VALUE_KINDS)
    def test_values_stay_in_the_window_and_labels_where_they_are(self, kind):
        image, label = batch(count=20)
        got, labels = of_all([kind])(image, label, generators())
        assert got.abs().max() <= 1 + 1e-6
        assert torch.equal(labels, label)
        assert all((one - other).abs().max() > 1e-3 for one, other in zip(got, image, strict=True))


class TestAugment:
    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "noise"])
    def test_neighboring_slices_are_changed_alike(self, kind):
        image, label = batch()
        got, _ = of_all([kind])(image[:, :1].repeat(1, 3, 1, 1), label, generators())
        assert torch.allclose(got[:, 0], got[:, 1], atol=1e-6)
        assert torch.allclose(got[:, 0], got[:, 2], atol=1e-6)

    def test_strength_0_changes_nothing(self):
        image, label = batch(count=50)
        got, labels = augment(image, label, 0.0, KINDS, generators())
        assert torch.equal(got, image)
        assert torch.equal(labels, label)

    @pytest.mark.parametrize("kinds", [KINDS, *[(kind,) for kind in KINDS]])
    def test_it_is_a_function_of_the_batch_and_the_generator(self, kinds):
        image, label = batch(count=12)
        before = image.clone(), label.clone()
        first, again, other = (augment(image, label, 1.0, kinds, generators(seed)) for seed in (7, 7, 8))
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert not torch.equal(first[0], other[0])
        assert torch.equal(image, before[0])
        assert torch.equal(label, before[1])

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_kind_that_is_not_named_is_not_applied(self, kind, monkeypatch):
        def refuse(*_):
            raise AssertionError(kind)

        if kind in VALUE_KINDS:
            monkeypatch.setitem(VALUE_KINDS, kind, refuse)
        else:
            monkeypatch.setattr(module, kind, refuse)
        image, label = batch(count=12)
        for seed in range(5):
            augment(image, label, 1.0, [other for other in KINDS if other != kind], generators(seed))
        with pytest.raises(AssertionError, match=kind):
            augment(image, label, 1.0, [kind], generators())

    @pytest.mark.parametrize("strength", [0.4, 1.0])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_kind_changes_its_share_of_the_slices(self, kind, strength):
        image, label = batch(count=50, channels=1, size=(12, 12))
        image, label = image.repeat(40, 1, 1, 1), label.repeat(40, 1, 1)
        got, _ = augment(image, label, strength, [kind], generators(1))
        differing = int((got != image).flatten(1).any(dim=1).sum())
        assert stats.binomtest(differing, 2000, SHARES[kind] * strength).pvalue > 1e-4

    @pytest.mark.parametrize("kinds", [*[(kind,) for kind in MOVING_KINDS], MOVING_KINDS])
    def test_ignored_pixels_move_with_their_slice_and_stay_ignored(self, kinds):
        image, label = batch(count=20)
        _, labels = of_all(kinds)(image, label, generators())
        assert set(labels.unique().tolist()) == {0, 1, 2, IGNORED}
        shares = (labels == IGNORED).float().mean(dim=(1, 2)) / (label == IGNORED).float().mean(dim=(1, 2))
        assert shares.min() > 0.3
        assert shares.max() < 2.5
        strip = torch.where(label == IGNORED, 1.0, -1.0)[:, None]
        moved, labels = of_all(kinds)(strip, label, generators(1))
        agree = (moved[:, 0] > 0) == (labels == IGNORED)
        assert agree.float().mean() > 0.98

    def test_the_settings_decide_what_a_step_sees(self):
        hu = torch.randint(-300, 400, (6, 3, 32, 32), generator=seeded())
        inputs = DeviceBatch(hu, torch.zeros(6, 1, 32, 32).long(), torch.ones(6, 2))
        plain = normalize(hu, -200, 300)
        for config, same in (
            (Config(augment=1.0), False),
            (Config(augment=0.0), True),
            (Config(augment=1.0, augmentations=()), True),
        ):
            assert torch.equal(prepare_input(inputs, config, (32, 32), generators())[0], plain) == same
        mirrored, _ = prepare_input(inputs, Config(augment=1.0, augmentations=("mirror",)), (32, 32), generators())
        flipped = [torch.equal(one, other.flip(2)) for one, other in zip(mirrored, plain, strict=True)]
        stayed = [torch.equal(one, other) for one, other in zip(mirrored, plain, strict=True)]
        assert sum(flipped) + sum(stayed) == 6
        assert any(flipped)

    def test_slices_of_another_pixel_size_are_resampled_with_and_without_random_changes(self):
        hu = torch.randint(-300, 400, (2, 1, 20, 20), generator=seeded())
        inputs = DeviceBatch(hu, torch.ones(2, 1, 20, 20).long(), torch.tensor([[2.0, 2.0], [1.6, 1.6]]))
        for config in (Config(spacing_mm=0.5, augment=0.0), Config(spacing_mm=0.5, augment=1.0, augmentations=())):
            image, label = prepare_input(inputs, config, (32, 32), generators())
            expected, classes = resample(normalize(hu, -200, 300), inputs.label[:, 0], inputs.zoom, (32, 32))
            assert torch.equal(image, expected)
            assert torch.equal(label, classes)
            assert label.all()

    def test_planes_are_tilted_before_all_else(self):
        hu = torch.arange(-200, 300, 100)[None, :, None, None].expand(3, 5, 32, 32).short()
        label = torch.arange(3)[None, :, None, None].expand(3, 3, 32, 32)
        inputs = DeviceBatch(hu, label, torch.ones(3, 2))
        image, classes = prepare_input(inputs, Config(oblique=1, augment=0.0), (32, 32), generators())
        assert image.shape == (3, 3, 32, 32)
        assert classes.shape == (3, 32, 32)
        assert (image.flatten(2).std(dim=2) > 0).all()
