"""Moves, deformations, resampling and tilted planes against scipy and SimpleITK."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (as its own documentation has it)
import torch
from scipy import ndimage
from scipy.interpolate import BSpline

from slicemill.train.data.augment import MAX_BEND, augment, augment_by_shares, elastic, move, resample, tilt
from slicemill.train.data.warp import CONTROL_SPANS, Warp, apply_warp, identity_warp, scale_warp
from tests.train.augment_helpers import CPU, MOVING_KINDS, batch, blobs, generators, middles, of_all, seeded


def by_scipy(plane, matrix, shift, size, order):
    """Return a slice mapped by ``matrix @ (p + shift)``, x, y from its center; scipy has y, x from a corner."""
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
        warp = scale_warp(replace(identity_warp(len(image), CPU), matrix=matrix, shift=shift), factors)
        got, labels = apply_warp(image, label, warp, size)
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
        got, _ = apply_warp(image, label, Warp(matrix=matrix, shift=shift, bend=control), (40, 56))
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
        got, _ = apply_warp(ramps, torch.ones(50, *size).long(), replace(identity_warp(50, CPU), bend=ends), size)
        dx, dy = (torch.gradient(got[:, axis, 8:-8, 8:-8], dim=(2, 1)) for axis in (0, 1))
        areas = dx[0] * dy[1] - dx[1] * dy[0]
        assert areas.min() > 0
        assert areas.min() < 0.5 * areas.median()  # it bends a lot

    def test_a_turn_keeps_a_disc_round_on_slices_that_are_not_square(self):
        image, label = blobs(40, 1, (64, 192), (32, 96), radius=20)
        _, turned = of_all(["move"])(image, label, generators(3))
        whole = 0
        for one in turned:
            border = torch.cat([one[0], one[-1], one[:, 0], one[:, -1]])
            if not border.any():
                tall, wide = one.any(dim=1).sum(), one.any(dim=0).sum()
                assert abs(int(tall) - int(wide)) <= 3
                whole += 1
        assert whole > 5

    @pytest.mark.parametrize("kinds", [*[(kind,) for kind in MOVING_KINDS], MOVING_KINDS])
    def test_a_blob_and_its_label_stay_together(self, kinds):
        image, label = blobs(30, 3, (96, 80), (40, 44))
        moved, labels = of_all(kinds)(image, label, generators(1))
        apart = middles(moved[:, 1] + 1) - middles(labels)
        assert np.abs(apart).max() < 1
        assert np.abs(middles(labels) - middles(label)).max() > 1.5

    def test_what_comes_in_from_outside_is_air_and_background(self):
        image, label = torch.ones(20, 1, 32, 32), torch.ones(20, 32, 32).long()
        moved, labels = augment(image, label, 1.0, ["move"], generators(4), zoom=torch.full((20, 2), 0.5))
        for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            assert (moved[:, 0, corner[0], corner[1]] == -1).all()
            assert (labels[:, corner[0], corner[1]] == 0).all()
        assert (labels == 1).any(dim=(1, 2)).all()

    def test_slices_that_are_not_drawn_are_the_same_bit_for_bit(self):
        image, label = batch(count=60)
        moved, labels = augment_by_shares(image, label, 1.0, {"move": 0.5, "elastic": 0.2}, generators())
        same = [torch.equal(one, other) for one, other in zip(image, moved, strict=True)]
        assert 10 < sum(same) < 40
        assert all(torch.equal(labels[index], label[index]) for index in range(60) if same[index])

    def test_a_mirrored_slice_is_numpys_flip(self):
        image, label = batch()
        turned, labels = of_all(["mirror"])(image, label, generators())
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
        once, _ = augment_by_shares(image, label, 0.3, {"move": 1.0}, generators(), zoom=zoom, size=(64, 64))
        twice, _ = of_all(["move"], 0.3)(*resample(image, label, zoom, (64, 64)), generators())
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
