"""Random changes against scipy, SimpleITK and Pillow, and the picture of them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (as its own documentation has it)
import torch
from PIL import Image
from scipy import ndimage, stats
from scipy.interpolate import BSpline

from slicemill.common.errors import ConfigError
from slicemill.store.reader import open_store
from slicemill.train.config import KINDS, Config, read_config, to_toml
from slicemill.train.data import augment as module
from slicemill.train.data.augment import (
    CONTROL_SPANS,
    KERNEL_REACH,
    MAX_BEND,
    MAX_BRIGHTNESS,
    MAX_CONTRAST,
    MAX_GAMMA,
    MAX_NOISE,
    SHARES,
    VALUE_KINDS,
    Warp,
    augment,
    changed,
    elastic,
    move,
    resample,
    still,
    tilt,
    warped,
    zoomed,
)
from slicemill.train.network.step import network_input
from slicemill.train.network.unet import normalize
from slicemill.train.report.gallery import gallery, rows_of, sample_of

HERE = Path(__file__).parents[2]
IGNORED = -100
PLACES = ("mirror", "move", "elastic")
CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(count=4, channels=3, size=(48, 40)):
    """Return smooth random slices and labels of three classes, with a strip that counts for nothing."""
    rng = np.random.default_rng(5)
    image = ndimage.gaussian_filter(rng.standard_normal((count, channels, *size)), (0, 0, 2, 2)) * 2
    label = np.digitize(image[:, channels // 2], [0, 0.4])
    label[:, 10:14, 5:30] = IGNORED
    return torch.from_numpy(image).float().clamp(-1, 1), torch.from_numpy(label).long()


def of_all(kinds, strength=1.0):
    """Return a change by these kinds of every slice."""
    return lambda image, label, generator: changed(image, label, strength, dict.fromkeys(kinds, 1.0), generator)


def blobs(count, channels, size, at, radius=5):
    """Return bright discs on air and their labels."""
    y, x = torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij")
    disc = ((y - at[0]) ** 2 + (x - at[1]) ** 2 <= radius**2).repeat(count, 1, 1)
    return disc[:, None].repeat(1, channels, 1, 1).float() * 2 - 1, disc.long()


def middles(weights):
    """Return the centroids y, x of slices float[b, y, x]: float[b, 2]."""
    return np.array([ndimage.center_of_mass(one.numpy()) for one in weights])


def by_scipy(plane, matrix, shift, size, order):
    """Return a slice [y, x] taken through ``matrix @ (p + shift)``, x first, from its center; scipy counts y first, from the corner."""
    turned = matrix.numpy().astype(float)[::-1, ::-1]
    middle_in, middle_out = ((np.array(sides) - 1) / 2 for sides in (plane.shape, size))
    offset = middle_in + turned @ (shift.numpy()[::-1] - middle_out)
    outside = -1.0 if order else 0.0
    return ndimage.affine_transform(plane, turned, offset, size, order=order, mode="grid-constant", cval=outside)


class TestGeometry:
    @pytest.mark.parametrize("size", [(48, 40), (64, 32)])
    @pytest.mark.parametrize("zoom", [None, ((0.6, 0.6), (1.0, 1.0), (1.3, 0.9), (2.0, 1.1))])
    def test_a_move_with_zoom_and_size_is_scipys_affine_transform(self, size, zoom):
        image, label = batch()
        matrix, shift = move(len(image), size, 1.0, seeded(2))
        factors = None if zoom is None else torch.tensor(zoom)
        warp = zoomed(replace(still(len(image), CPU), matrix=matrix, shift=shift), factors)
        got, labels = warped(image, label, warp, size)
        for index in range(len(image)):
            whole = matrix[index] / (1.0 if zoom is None else torch.tensor(zoom[index][::-1])[:, None])
            for channel in range(3):
                expected = by_scipy(image[index, channel].numpy(), whole, shift[index], size, 1)
                assert np.allclose(got[index, channel], expected, atol=2e-3)
            nearest = by_scipy(label[index].numpy(), whole, shift[index], size, 0)
            assert (labels[index].numpy() == nearest).mean() > 0.999

    def test_a_move_turns_scales_and_shifts_within_its_ranges(self):
        matrix, shift = move(2000, (100, 200), 0.5, seeded())
        scale = 1 / torch.linalg.det(matrix).sqrt()
        turn = torch.rad2deg(torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]))
        assert torch.allclose(
            matrix @ matrix.mT * scale[:, None, None] ** 2, torch.eye(2).expand(2000, 2, 2), atol=1e-5
        )
        for values, most in ((scale.log2(), 0.5 * np.log2(1.4)), (turn, 15), (shift[:, 0], 12), (shift[:, 1], 6)):
            assert most * 0.98 < values.max() <= most * 1.0001
            assert -most * 1.0001 <= values.min() < -most * 0.98

    def test_elastic_is_a_cubic_b_spline_of_its_control_points_under_the_move(self):
        image, label = batch(count=3, size=(40, 56))
        control = elastic(3, (40, 56), 1.0, seeded(1))
        matrix, shift = move(3, (40, 56), 1.0, seeded(2))
        matrix[0], shift[0] = torch.eye(2), 0.0
        got, _ = warped(image, label, Warp(matrix=matrix, shift=shift, bend=control), (40, 56))
        weights = []
        for side in (40, 56):
            places = (np.arange(side) + 0.5) / side * CONTROL_SPANS
            weights.append(BSpline.design_matrix(places, np.arange(-3, CONTROL_SPANS + 4), 3).toarray())
        x, y = np.meshgrid(np.arange(56) - 27.5, np.arange(40) - 19.5)
        for index in range(3):
            bend = np.einsum("yi,xj,ijc->cyx", *weights, control[index].numpy())
            bent = np.stack([x, y]) + shift[index].numpy()[:, None, None] + bend
            across, down = np.einsum("ij,jyx->iyx", matrix[index].numpy(), bent)
            for channel in range(3):
                expected = ndimage.map_coordinates(
                    image[index, channel].numpy(), [down + 19.5, across + 27.5], order=1, mode="grid-constant", cval=-1
                )
                assert np.allclose(got[index, channel], expected, atol=2e-3)

    def test_the_strongest_elastic_deformation_never_folds(self):
        size = (128, 96)
        y, x = torch.meshgrid(*(torch.linspace(-0.5, 0.5, side) for side in size), indexing="ij")
        ramps = torch.stack([x, y])[None].repeat(50, 1, 1, 1)
        most = MAX_BEND * torch.tensor([size[1], size[0]]) / CONTROL_SPANS
        ends = torch.where(elastic(50, size, 1.0, seeded()) > 0, most, -most)
        got, _ = warped(ramps, torch.ones(50, *size).long(), replace(still(50, CPU), bend=ends), size)
        dx, dy = (torch.gradient(got[:, axis, 8:-8, 8:-8], dim=(2, 1)) for axis in (0, 1))
        areas = dx[0] * dy[1] - dx[1] * dy[0]
        assert areas.min() > 0
        assert areas.min() < 0.5 * areas.median()  # it bends a lot

    def test_a_turn_keeps_a_disc_round_on_slices_that_are_not_square(self):
        image, label = blobs(40, 1, (64, 192), (32, 96), radius=20)
        _, turned = of_all(["move"])(image, label, seeded(3))
        whole = 0
        for one in turned:
            border = torch.cat([one[0], one[-1], one[:, 0], one[:, -1]])
            if not border.any():
                tall, wide = one.any(dim=1).sum(), one.any(dim=0).sum()
                assert abs(int(tall) - int(wide)) <= 3
                whole += 1
        assert whole > 5

    @pytest.mark.parametrize("kinds", [*[(kind,) for kind in PLACES], PLACES])
    def test_a_blob_and_its_label_stay_together(self, kinds):
        image, label = blobs(30, 3, (96, 80), (40, 44))
        moved, labels = of_all(kinds)(image, label, seeded(1))
        apart = middles(moved[:, 1] + 1) - middles(labels)
        assert np.abs(apart).max() < 1
        assert np.abs(middles(labels) - middles(label)).max() > 1.5

    def test_what_comes_in_from_outside_is_air_and_background(self):
        image, label = torch.ones(20, 1, 32, 32), torch.ones(20, 32, 32).long()
        moved, labels = augment(image, label, 1.0, ["move"], seeded(4), zoom=torch.full((20, 2), 0.5))
        for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            assert (moved[:, 0, corner[0], corner[1]] == -1).all()
            assert (labels[:, corner[0], corner[1]] == 0).all()
        assert (labels == 1).any(dim=(1, 2)).all()

    def test_slices_that_are_not_drawn_are_the_same_bit_for_bit(self):
        image, label = batch(count=60)
        moved, labels = changed(image, label, 1.0, {"move": 0.5, "elastic": 0.2}, seeded())
        same = [torch.equal(one, other) for one, other in zip(image, moved, strict=True)]
        assert 10 < sum(same) < 40
        assert all(torch.equal(labels[index], label[index]) for index in range(60) if same[index])

    def test_a_mirrored_slice_is_numpys_flip(self):
        image, label = batch()
        turned, labels = of_all(["mirror"])(image, label, seeded())
        assert np.array_equal(turned, np.flip(image.numpy(), 3))
        assert np.array_equal(labels, np.flip(label.numpy(), 2))


class TestResample:
    def test_the_same_spacing_and_size_are_the_same_bit_for_bit(self):
        image, label = batch()
        got, labels = resample(image, label, torch.ones(4, 2), (48, 40))
        assert torch.equal(got, image)
        assert torch.equal(labels, label)
        got, labels = resample(image, label, torch.tensor([[1.0, 1.0], [0.5, 0.5], [1.0, 1.0], [1.0, 1.0]]), (48, 40))
        assert [torch.equal(got[index], image[index]) for index in range(4)] == [True, False, True, True]

    @pytest.mark.parametrize(("own", "wanted"), [(0.61, 0.8), (0.91, 0.8), (1.53, 0.8), (0.8, 0.8)])
    def test_it_is_simpleitks_resampling_about_the_center(self, own, wanted):
        image, label = batch(count=1, channels=1)
        got, labels = resample(image, label, torch.tensor([[own / wanted, own / 0.73]]), (56, 32))
        source = sitk.GetImageFromArray(image[0, 0].numpy())
        source.SetSpacing((own, own))
        source.SetOrigin([-own * (side - 1) / 2 for side in (40, 48)])
        resampler = sitk.ResampleImageFilter()
        resampler.SetSize((32, 56))
        resampler.SetOutputSpacing((0.73, wanted))
        resampler.SetOutputOrigin([-0.73 * 31 / 2, -wanted * 55 / 2])
        resampler.SetDefaultPixelValue(-1)
        expected = sitk.GetArrayFromImage(resampler.Execute(source))
        whole = ndimage.binary_erosion(expected != -1, iterations=2)
        assert whole.sum() > 500
        assert np.allclose(got[0, 0].numpy()[whole], expected[whole], atol=2e-3)
        classes = sitk.GetImageFromArray(label[0].numpy().astype(np.int16))
        classes.CopyInformation(source)
        resampler.SetInterpolator(sitk.sitkNearestNeighbor)
        resampler.SetDefaultPixelValue(0)
        nearest = sitk.GetArrayFromImage(resampler.Execute(classes))
        assert (labels[0].numpy()[whole] == nearest[whole]).mean() > 0.99

    def test_moving_and_resampling_interpolate_once(self):
        """Fine stripes lose less of their contrast in one interpolation than in two."""
        image = torch.where(torch.arange(64) % 4 < 2, 1.0, -1.0).repeat(16, 1, 64, 1)
        label = torch.zeros(16, 64, 64).long()
        zoom = torch.full((16, 2), 1.25)
        once, _ = changed(image, label, 0.3, {"move": 1.0}, seeded(), zoom=zoom, size=(64, 64))
        twice, _ = of_all(["move"], 0.3)(*resample(image, label, zoom, (64, 64)), seeded())
        inner = (slice(None), 0, slice(20, 44), slice(20, 44))
        assert once[inner].std() > 1.1 * twice[inner].std()


class TestTilt:
    @pytest.mark.parametrize("reach", [1, 3])
    def test_it_is_scipys_interpolation_on_a_plane(self, reach):
        rng = np.random.default_rng(2)
        slab = torch.from_numpy(rng.uniform(-1, 1, (6, 3 + 2 * reach, 20, 32))).float()
        labels = torch.from_numpy(rng.integers(0, 3, (6, 1 + 2 * reach, 20, 32)))
        heights = torch.arange(3.0 + 2 * reach)[None, :, None, None].expand(slab.shape).contiguous()
        z, _ = tilt(heights, labels, seeded(1))
        got, got_labels = tilt(slab, labels, seeded(1))
        assert torch.allclose(z[:, 1:] - z[:, :-1], torch.ones(1), atol=1e-5)  # neighbors lie on parallel planes
        y, x = np.mgrid[:20, :32]
        basis = np.stack([np.ones(640), y.ravel() - 9.5, x.ravel() - 15.5], axis=1)
        for index in range(6):
            own = z[index, 1].numpy() - 1
            coefficients, *_ = np.linalg.lstsq(basis, own.ravel(), rcond=None)
            assert np.abs(basis @ coefficients - own.ravel()).max() < 1e-4
            assert coefficients[0] == pytest.approx(reach, abs=1e-4)
            assert 0.01 < np.abs(own - reach).max() <= reach + 1e-5
            for channel in range(3):
                places = [z[index, channel].numpy(), y, x]
                expected = ndimage.map_coordinates(slab[index].numpy(), places, order=1)
                assert np.allclose(got[index, channel], expected, atol=1e-4)
            nearest = ndimage.map_coordinates(labels[index].numpy(), [own, y, x], order=0)
            assert (got_labels[index].numpy() == nearest).mean() > 0.99

    def test_planes_of_all_steepnesses_and_directions_come_and_none_is_cut_off(self):
        heights = torch.arange(5.0)[None, :, None, None].expand(400, 5, 9, 9).contiguous()
        z = tilt(heights, heights.long(), seeded())[0][:, 0] - 2
        highest = z.abs().amax(dim=(1, 2))
        assert highest.max() > 1.9
        assert highest.min() < 0.1
        for corner in ((0, 0), (0, -1)):
            assert (z[:, corner[0], corner[1]] > 0.3).sum() > 50
            assert (z[:, corner[0], corner[1]] < -0.3).sum() > 50
        assert torch.allclose(z[:, 0, ::8] - z[:, 0, 4:5], z[:, 4, ::8] - z[:, 4, 4:5], atol=1e-5)
        assert torch.allclose(z[:, 4, 4], torch.zeros(1), atol=1e-6)

    def test_without_slices_above_and_below_it_returns_the_input(self):
        image, label = batch()
        tilted, labels = tilt(image, label[:, None], seeded())
        assert torch.equal(tilted, image)
        assert torch.equal(labels, label)

    def test_a_blob_and_its_label_stay_together(self):
        """A rod that leans by two pixels a slice, bright and labeled alike."""
        rods = [blobs(20, 1, (96, 96), (48 + 2 * z, 48 - 2 * z)) for z in range(-4, 5)]
        image, label = torch.cat([rod[0] for rod in rods], dim=1), torch.stack([rod[1] for rod in rods], dim=1)
        tilted, labels = tilt(image, label, seeded(2))
        assert np.abs(middles(tilted[:, 0] + 1) - middles(labels)).max() < 1


class TestValues:
    def recovered(self, kind, image, strength, seed=0):
        return VALUE_KINDS[kind](image, strength, seeded(seed))

    @pytest.mark.parametrize("strength", [0.4, 1.0])
    def test_blur_is_scipys_gaussian(self, strength):
        image, _ = batch(count=8, size=(30, 34))
        image[:, 0] = -1
        image[:, 0, 15, 17] = 1
        got = self.recovered("blur", image, strength).numpy()
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
        got = (self.recovered("gamma", image, 0.5).double().numpy() + 1) / 2
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
        got = self.recovered("contrast", image, 0.5).numpy()
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
        got = self.recovered("noise", torch.zeros(40, 2, 64, 64), 0.5).numpy()
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
        got = self.recovered("lowres", image, 1.0).numpy()
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
        got, labels = of_all([kind])(image, label, seeded())
        assert got.abs().max() <= 1 + 1e-6
        assert torch.equal(labels, label)
        assert all((one - other).abs().max() > 1e-3 for one, other in zip(got, image, strict=True))


class TestAugment:
    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "noise"])
    def test_neighboring_slices_are_changed_alike(self, kind):
        image, label = batch()
        got, _ = of_all([kind])(image[:, :1].repeat(1, 3, 1, 1), label, seeded())
        assert torch.allclose(got[:, 0], got[:, 1], atol=1e-6)
        assert torch.allclose(got[:, 0], got[:, 2], atol=1e-6)

    def test_strength_0_changes_nothing(self):
        image, label = batch(count=50)
        got, labels = augment(image, label, 0.0, KINDS, seeded())
        assert torch.equal(got, image)
        assert torch.equal(labels, label)

    @pytest.mark.parametrize("kinds", [KINDS, *[(kind,) for kind in KINDS]])
    def test_it_is_a_function_of_the_batch_and_the_generator(self, kinds):
        image, label = batch(count=12)
        before = image.clone(), label.clone()
        first, again, other = (augment(image, label, 1.0, kinds, seeded(seed)) for seed in (7, 7, 8))
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
            augment(image, label, 1.0, [other for other in KINDS if other != kind], seeded(seed))
        with pytest.raises(AssertionError, match=kind):
            augment(image, label, 1.0, [kind], seeded())

    @pytest.mark.parametrize("strength", [0.4, 1.0])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_kind_changes_its_share_of_the_slices(self, kind, strength):
        image, label = batch(count=50, channels=1, size=(12, 12))
        image, label = image.repeat(40, 1, 1, 1), label.repeat(40, 1, 1)
        got, _ = augment(image, label, strength, [kind], seeded(1))
        differing = int((got != image).flatten(1).any(dim=1).sum())
        assert stats.binomtest(differing, 2000, SHARES[kind] * strength).pvalue > 1e-4

    @pytest.mark.parametrize("kinds", [*[(kind,) for kind in PLACES], PLACES])
    def test_pixels_that_count_for_nothing_move_with_their_slice_and_stay_that(self, kinds):
        image, label = batch(count=20)
        _, labels = of_all(kinds)(image, label, seeded())
        assert set(labels.unique().tolist()) == {0, 1, 2, IGNORED}
        shares = (labels == IGNORED).float().mean(dim=(1, 2)) / (label == IGNORED).float().mean(dim=(1, 2))
        assert shares.min() > 0.3
        assert shares.max() < 2.5
        strip = torch.where(label == IGNORED, 1.0, -1.0)[:, None]
        moved, labels = of_all(kinds)(strip, label, seeded(1))
        agree = (moved[:, 0] > 0) == (labels == IGNORED)
        assert agree.float().mean() > 0.98

    def test_the_settings_decide_what_a_step_sees(self):
        hu = torch.randint(-300, 400, (6, 3, 32, 32), generator=seeded())
        given = hu, torch.zeros(6, 1, 32, 32).long(), torch.ones(6, 2)
        plain = normalize(hu, -200, 300)
        for config, same in (
            (Config(augment=1.0), False),
            (Config(augment=0.0), True),
            (Config(augment=1.0, augmentations=""), True),
        ):
            assert torch.equal(network_input(given, config, (32, 32), seeded())[0], plain) == same
        mirrored, _ = network_input(given, Config(augment=1.0, augmentations="mirror"), (32, 32), seeded())
        flipped = [torch.equal(one, other.flip(2)) for one, other in zip(mirrored, plain, strict=True)]
        stayed = [torch.equal(one, other) for one, other in zip(mirrored, plain, strict=True)]
        assert sum(flipped) + sum(stayed) == 6
        assert any(flipped)

    def test_slices_of_another_pixel_size_are_resampled_with_and_without_random_changes(self):
        hu = torch.randint(-300, 400, (2, 1, 20, 20), generator=seeded())
        given = hu, torch.ones(2, 1, 20, 20).long(), torch.tensor([[2.0, 2.0], [1.6, 1.6]])
        for config in (Config(spacing_mm=0.5, augment=0.0), Config(spacing_mm=0.5, augment=1.0, augmentations="")):
            image, label = network_input(given, config, (32, 32), seeded())
            expected, classes = resample(normalize(hu, -200, 300), given[1][:, 0], given[2], (32, 32))
            assert torch.equal(image, expected)
            assert torch.equal(label, classes)
            assert label.all()

    def test_planes_are_tilted_before_all_else(self):
        hu = torch.arange(-200, 300, 100)[None, :, None, None].expand(3, 5, 32, 32).short()
        label = torch.arange(3)[None, :, None, None].expand(3, 3, 32, 32)
        image, classes = network_input(
            (hu, label, torch.ones(3, 2)), Config(oblique=1, augment=0.0), (32, 32), seeded()
        )
        assert image.shape == (3, 3, 32, 32)
        assert classes.shape == (3, 32, 32)
        assert (image.flatten(2).std(dim=2) > 0).all()


class TestSettings:
    def test_the_kinds_are_checked_and_come_back_as_they_were(self, tmp_path):
        config = Config(augmentations="noise mirror", oblique=3)
        (tmp_path / "c.toml").write_text(to_toml(config))
        assert read_config(tmp_path / "c.toml") == config
        assert config.kinds == ("noise", "mirror")
        assert Config().kinds == KINDS == tuple(SHARES)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('augmentations = "mirror rotate"', "augmentations = mirror rotate: may name mirror, move, elastic, noise"),
            ("oblique = 9", "oblique = 9: must lie in 0 to 8"),
            ("oblique = -1", "must lie in 0 to 8"),
        ],
    )
    def test_a_setting_that_cannot_work_is_one_clear_error(self, text, message, tmp_path):
        (tmp_path / "c.toml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_config(tmp_path / "c.toml")


class TestGallery:
    def test_it_shows_every_kind_on_slices_with_labels(self, stored, tmp_path):
        words = [
            *(sys.executable, "-m", "slicemill", "gallery", str(stored)),
            *("--out", str(tmp_path / "g.png"), "--augment", "1"),
        ]
        done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True)
        assert done.stdout == f"gallery: {tmp_path / 'g.png'}\n"
        with Image.open(tmp_path / "g.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        parts = np.array_split(pixels, len(list(rows_of(Config()))))
        for part in parts:  # tumor and liver are outlined in every row
            assert (np.ptp(part, axis=2) > 60).any()

    def test_its_rows_are_the_kinds_that_the_settings_name(self):
        titles = [row.title for row in rows_of(Config(augmentations="lowres move", augment=0.5, oblique=2))]
        assert titles == [
            "as stored", "move (40%)", "tilt (oblique = 2)", "as stored, close up", "lowres (25%)", "all together",
        ]  # fmt: skip
        assert [row.title for row in rows_of(Config(augmentations=""))] == [
            "as stored", "tilt (oblique = 4, off)", "all together",
        ]  # fmt: skip

    def test_every_row_changes_every_slice_and_its_outlines_with_it(self, stored):
        store, config = open_store(stored), Config(augment=1.0, oblique=3)
        sample = sample_of(store["volume-1"], normalized_window(config), 3)
        image, label = sample.middle()
        for row in rows_of(config):
            seen, truth = row.change(sample, seeded(1))
            assert torch.equal(seen, image) == row.title.startswith("as stored")
            if row.close:
                assert torch.equal(truth, label)
            elif not row.title.startswith("as stored"):
                assert not torch.equal(truth, label)

    def test_the_same_seed_gives_the_same_picture(self, stored):
        store = open_store(stored)
        first, again, other = (
            gallery(store, Config(augment=1.0, seed=seed, augmentations="move")).tobytes() for seed in (1, 1, 2)
        )
        assert first == again
        assert first != other


def normalized_window(config):
    from slicemill.ct.window import Window

    return Window(config.window_low, config.window_high)
