"""Grids of tests: orientations, rotations, and files on them."""

import itertools

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

ORIENTATIONS = [
    "".join(code) for axes in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*axes)
]
AFFINE = np.array([[-2.0, 0, 0, 30], [0, -2.0, 0, 40], [0, 0, 5.0, -500], [0, 0, 0, 1]])
"""LPS, 2 x 2 x 5 mm, RAS mm as in a header."""


def rotate(affine, around_x, around_y, around_z):
    """A grid turned about its first voxel by angles in radians."""
    result = np.eye(4)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), (around_x, around_y, around_z), strict=True):
        one = np.eye(4)
        one[[i, j], [i, j]] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        result = result @ one
    turned = result @ affine
    turned[:3, 3] = affine[:3, 3]
    return turned


def reorient(image, codes):
    """The same voxels of the world in another axis order, by nibabel."""
    now, then = io_orientation(image.affine), axcodes2ornt(tuple(codes))
    return image.as_reoriented(ornt_transform(now, then))


def save(path, voxels, affine):
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path
