"""Measures of lesions: ellipsoids of known size under uneven and oblique voxels, SimpleITK, and invariance."""

import numpy as np
import pytest
import SimpleITK

from slicemill.common.errors import LabelError
from slicemill.ct.diameter_lines import find_diameters
from slicemill.ct.geometry import Grid
from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.measure.evaluation.detection import number_components
from slicemill.measure.lesions.measurements import Volume, choose_targets, measure_case, measure_lesions, round_record
from slicemill.measure.lesions.shape import compute_sphericity, measure_longest_3d, measure_surface_mm2


def affine(spacing=(2.5, 0.8, 0.8), turn=0.0):
    """Voxel (x, y, z, 1) to LPS mm, turned about the patient's x axis."""
    z, y, x = spacing
    c, s = np.cos(turn), np.sin(turn)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.diag([x, y, z])
    matrix[:3, 3] = (-30, 12, 400)
    return matrix


def ellipsoid(shape, matrix, center_zyx, radii):
    """Voxels whose centers lie in an ellipsoid with half axes along the array's z, y, x, mm."""
    steps = np.sqrt((matrix[:3, :3] ** 2).sum(axis=0))[::-1]
    axes = np.ogrid[tuple(slice(count) for count in shape)]
    return sum(((a - c) * s / r) ** 2 for a, c, s, r in zip(axes, center_zyx, steps, radii, strict=True)) <= 1


@pytest.mark.parametrize("turn", [0.0, 0.4])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.8, 0.8)])
def test_an_ellipsoid_has_its_volume_diameters_place_and_sphericity(spacing, turn):
    matrix, radii = affine(spacing, turn), (18.0, 12.0, 9.0)
    shape = tuple(int(2 * 24 / step) for step in spacing)
    center = tuple((count - 1) / 2 for count in shape)
    label = ellipsoid(shape, matrix, center, radii).astype(np.uint8)
    (lesion,) = measure_lesions(Volume(label=label, labels=make_labels({"tumor": 1}), affine_lps=matrix))
    assert lesion.volume_ml == pytest.approx(4 / 3 * np.pi * np.prod(radii) / 1000, rel=0.01)
    assert lesion.volume_mm3 == pytest.approx(1000 * lesion.volume_ml)
    assert lesion.max_axial_diameter_mm == pytest.approx(24, abs=max(spacing[1:]))
    assert lesion.perpendicular_mm == pytest.approx(18, abs=max(spacing[1:]))
    assert lesion.who_product_mm2 == pytest.approx(lesion.max_axial_diameter_mm * lesion.perpendicular_mm)
    assert lesion.max_3d_diameter_mm == pytest.approx(36, abs=spacing[0])
    assert np.allclose(lesion.centroid_zyx, center, atol=1e-6)
    assert np.allclose(lesion.centroid_lps_mm, (matrix @ [*center[::-1], 1])[:3], atol=1e-6)
    p = 1.6075  # Thomsen's formula for the surface of an ellipsoid, good to 1.1 %
    a, b, c = radii
    area = 4 * np.pi * (((a * b) ** p + (a * c) ** p + (b * c) ** p) / 3) ** (1 / p)
    assert lesion.surface_mm2 == pytest.approx(area, rel=0.04)
    assert lesion.sphericity == pytest.approx(compute_sphericity(4 / 3 * np.pi * np.prod(radii), area), rel=0.05)


def test_diameters_end_where_they_are_and_stand_at_right_angles():
    matrix = affine((3.0, 0.7, 0.9), 0.3)
    mask = ellipsoid((1, 60, 60), matrix, (0, 30, 28), (5, 18, 9)) | ellipsoid(
        (1, 60, 60), matrix, (0, 30, 34), (5, 9, 14)
    )
    long, across = find_diameters(mask[0], (7, 0, 0), matrix)
    lines = []
    for chord in (long, across):
        (z, *_), _ = chord.ends
        assert z == 7
        places = [matrix[:3, :3] @ np.array(end[::-1]) for end in chord.ends]
        lines.append(places[1] - places[0])
        assert np.linalg.norm(lines[-1]) == pytest.approx(chord.length_mm)
    assert lines[0] @ lines[1] == pytest.approx(0, abs=1e-6)
    assert across.length_mm <= long.length_mm


def test_one_voxel_is_as_long_as_its_sides():
    matrix = affine((2.0, 0.5, 1.0))
    long, across = find_diameters(np.ones((1, 1), bool), (0, 0, 0), matrix)
    assert (long.length_mm, across.length_mm) == (1.0, 0.5)
    assert measure_longest_3d(np.ones((1, 1, 1), bool), matrix) == 2.0


def test_surface_and_sphericity_are_those_of_simpleitks_label_shape_statistics(rng):
    label = np.zeros((50, 60, 60), np.uint8)
    for number, center, radii in ((1, (25, 20, 20), (12, 12, 12)), (2, (25, 42, 42), (16, 9, 7))):
        label[ellipsoid(label.shape, np.eye(4), center, radii)] = number
    shapes = SimpleITK.LabelShapeStatisticsImageFilter()
    shapes.ComputePerimeterOn()
    shapes.Execute(SimpleITK.GetImageFromArray(label))
    for number in (1, 2):
        area = measure_surface_mm2(label == number, np.eye(4))
        assert area == pytest.approx(shapes.GetPerimeter(number), rel=0.01)
        assert compute_sphericity(float((label == number).sum()), area) == pytest.approx(
            shapes.GetRoundness(number), rel=0.01
        )


def test_places_volumes_boxes_and_intensities_are_simpleitks(rng):
    matrix = affine((2.5, 0.8, 0.7), 0.25)
    label = np.zeros((20, 60, 60), np.uint8)
    label[ellipsoid(label.shape, matrix, (9, 20, 20), (14, 9, 7))] = 1
    label[ellipsoid(label.shape, matrix, (11, 42, 44), (8, 6, 5))] = 1
    image = rng.integers(-100, 200, label.shape).astype(np.int16)
    picture, mask = (
        SimpleITK.GetImageFromArray(image),
        SimpleITK.ConnectedComponent(SimpleITK.GetImageFromArray(label), True),
    )
    for one in (picture, mask):
        steps = np.sqrt((matrix[:3, :3] ** 2).sum(axis=0))
        one.SetSpacing(steps.tolist())
        one.SetDirection((matrix[:3, :3] / steps).ravel().tolist())
        one.SetOrigin(matrix[:3, 3].tolist())
    shapes, values = SimpleITK.LabelShapeStatisticsImageFilter(), SimpleITK.LabelIntensityStatisticsImageFilter()
    shapes.Execute(mask)
    values.Execute(mask, picture)
    found = measure_lesions(Volume(label=label, labels=make_labels({"tumor": 1}), affine_lps=matrix, image=image))
    for lesion in found:
        number = min(
            shapes.GetLabels(), key=lambda n: np.linalg.norm(np.subtract(shapes.GetCentroid(n), lesion.centroid_lps_mm))
        )
        assert np.allclose(shapes.GetCentroid(number), lesion.centroid_lps_mm, atol=1e-6)
        assert shapes.GetPhysicalSize(number) == pytest.approx(lesion.volume_mm3)
        x, y, z, nx, ny, nz = shapes.GetBoundingBox(number)
        assert lesion.bbox_zyx == (z, y, x, z + nz, y + ny, x + nx)
        assert (lesion.first_z, lesion.last_z) == (z, z + nz - 1)
        assert lesion.hu.mean == pytest.approx(values.GetMean(number))
        assert (lesion.hu.min, lesion.hu.max) == (values.GetMinimum(number), values.GetMaximum(number))
        assert lesion.hu.sd == pytest.approx(values.GetStandardDeviation(number), rel=0.01), "ITK divides by n - 1"


@pytest.mark.parametrize("axcodes", ["RAS", "PIR", "SAL"])
def test_a_turned_or_flipped_file_has_the_same_millimetres(axcodes, rng):
    """The same patient on the same voxels in another order of axes, read through `Grid` as files are."""
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

    label = np.zeros((18, 24, 26), np.uint8)
    label[3:15, 3:20, 3:22] = 1
    label[5:10, 6:13, 7:16] = 2
    label[12, 15:17, 18] = 2
    image = rng.integers(-50, 150, label.shape).astype(np.int16)
    matrix = affine((2.0, 0.9, 0.8))
    start = measure_lesions(Volume(label=label, labels=LITS_LABELS, affine_lps=matrix, image=image))
    turn = ornt_transform(axcodes2ornt(tuple("LPS")), axcodes2ornt(tuple(axcodes)))
    shape = label.shape[::-1]
    turned = inv_ornt_aff(turn, shape)
    new_shape = [0, 0, 0]
    for old, (new, _) in enumerate(turn.astype(int)):
        new_shape[new] = shape[old]
    grid = Grid(shape=tuple(new_shape), affine=np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix @ turned)
    there = [grid.to_stored(np.ascontiguousarray(grid.to_file(volume))) for volume in (label, image)]
    again = measure_lesions(Volume(label=there[0], labels=LITS_LABELS, affine_lps=grid.affine_lps, image=there[1]))
    assert list(map(round_record, again)) == list(map(round_record, start))
    moved = np.roll(label, (2, 1, 2), (0, 1, 2)), np.roll(image, (2, 1, 2), (0, 1, 2))
    shifted = measure_lesions(Volume(label=moved[0], labels=LITS_LABELS, affine_lps=matrix, image=moved[1]))
    for one, other in zip(start, shifted, strict=True):
        assert (one.hu, one.rim_hu) == (other.hu, other.rim_hu)
        assert one.organ_surface_mm == pytest.approx(other.organ_surface_mm)
        assert (one.max_3d_diameter_mm, one.perpendicular_mm) == pytest.approx(
            (other.max_3d_diameter_mm, other.perpendicular_mm)
        )
        assert np.allclose(np.subtract(other.centroid_lps_mm, one.centroid_lps_mm), (1.6, 0.9, 4.0))


def test_rim_organ_distance_and_probability_are_those_set_by_hand():
    label = np.zeros((9, 30, 30), np.uint8)
    label[1:8, 2:28, 2:28] = 1
    label[4, 14:16, 14:16] = 2
    image = np.full(label.shape, 500, np.int16)
    image[label == 1] = 100
    image[label == 2] = 40
    probability = np.full(label.shape, 51, np.uint8)
    probability[4, 14, 14] = 255
    volume = Volume(label=label, labels=LITS_LABELS, affine_lps=np.eye(4), image=image, probability=probability)
    (lesion,) = measure_lesions(volume)
    assert (lesion.hu.mean, lesion.hu.sd, lesion.hu.median, lesion.hu.voxels) == (40, 0, 40, 4)
    assert (lesion.rim_hu.mean, lesion.rim_hu.max) == (100, 100), "the rim ends with the organ"
    assert lesion.organ_surface_mm == 3.0, "slices 1 to 7 are organ, the lesion lies in 4"
    assert lesion.probability_mean == pytest.approx((0.2 * 3 + 1) / 4)
    assert lesion.probability_max == 1.0
    figures = measure_case(volume, (lesion,))
    assert figures.tumor_burden_percent == pytest.approx(100 * 4 / (7 * 26 * 26), abs=1e-4)
    assert (figures.lesion_count, figures.target_ids, figures.sum_of_target_diameters_mm) == (1, (), 0)


def test_targets_are_the_two_longest_of_10_mm_or_twice_a_thick_slice():
    label = np.zeros((5, 60, 60), np.uint8)
    for number, length in enumerate((9, 10, 12, 20)):
        label[2, 10 * number + 2, 5 : 5 + length] = 1
    found = measure_lesions(Volume(label=label, labels=make_labels({"tumor": 1}), affine_lps=np.eye(4)))
    by_length = {round(one.max_axial_diameter_mm): one.id for one in found}
    assert choose_targets(found, 5.0) == (by_length[20], by_length[12])
    assert choose_targets(found, 8.0) == (by_length[20],)


@pytest.mark.parametrize("mode", ["corrected", "official"])
def test_noise_is_refused_wherever_lesions_are_counted(mode):
    noise = np.zeros((56, 56, 56), np.uint8)
    noise[::2, ::2, ::2] = 2
    with pytest.raises(LabelError, match="more than 20,000 separate pieces"):
        number_components(noise > 0, Grid(shape=noise.shape, affine=np.eye(4)), mode)
    with pytest.raises(LabelError, match="more than 20,000 separate pieces"):
        measure_lesions(Volume(label=noise, labels=LITS_LABELS, affine_lps=np.eye(4)))
