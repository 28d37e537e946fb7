"""Sections, volumes, parts and lists of cases, compared with numpy and with the reports."""

import gzip
import time

import numpy as np
import pytest
import scipy.ndimage

from slicemill.common.errors import InputError, PairingError, UsageError
from slicemill.common.files import write_csv
from slicemill.ct.labels import LITS_LABELS, Labels
from slicemill.store.reader import open_store
from slicemill.web.entries import ViewRequest, find_entries, sort_by_dice
from slicemill.web.marks import Marks
from slicemill.web.opened import OpenCase
from slicemill.web.records import describe_case, describe_labels, describe_parts, describe_progress
from slicemill.web.sections import PLANES, cut_section
from slicemill.web.viewer import MAX_OPEN, Viewer
from slicemill.web.volumes import NotReadYetError
from slicemill.web.voxel_file import VoxelFile
from tests.ct.grids import ORDERS as _ORDERS  # noqa: F401
from tests.web.made import SHAPE, SPACING, make_affine, make_image, make_mask, write_scan
