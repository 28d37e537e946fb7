"""Nodules put into a scan: the rest of it unchanged, the truth where the table says, noise as the scan's."""

import csv

import numpy as np
import pytest
from scipy import ndimage
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import InputError, ScanError
from slicemill.ct.chest.insert import RealChest, cut_noise, insert_nodules
from slicemill.ct.chest.inserted import read_real_chest, write_inserted
from slicemill.ct.formats.metaimage.write import write_metaimage
from slicemill.ct.scan import ScanReader

AFFINE = np.array([[1.2, 0, 0, -80.0], [0, 1.2, 0, 30.0], [0, 0, 2.0, -500.0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def chest():
    """Air-filled lungs as a block of noise in soft tissue."""
    rng = np.random.default_rng(0)
    image = 40 + 30 * ndimage.gaussian_filter(rng.standard_normal((60, 110, 110)), (0, 0.6, 0.6))
    lungs = np.zeros(image.shape, dtype=bool)
    lungs[6:54, 20:90, 26:100] = True
    image[lungs] -= 900
    return RealChest(image=image.astype(np.int16), lungs=lungs, affine=AFFINE)


@pytest.fixture(scope="module")
def files(chest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    write_metaimage(folder / "anna.mha", chest.image, AFFINE)
    write_metaimage(folder / "mask.mha", chest.lungs.astype(np.uint8), AFFINE)
    return folder


@pytest.mark.parametrize("seed", range(1, 4))
def test_nodules_lie_where_their_centers_are_with_their_volumes(chest, seed):
    made = insert_nodules(chest, np.random.default_rng(seed))
    assert 1 <= len(made.nodules) <= 6
    for number, nodule in enumerate(made.nodules, start=1):
        mask = made.numbers == number
        volume = mask.sum() * np.prod(chest.spacing_mm)
        assert 0.75 < volume / (np.pi / 6 * nodule.diameter_mm**3) < 1.25
        middle = (AFFINE @ [*np.argwhere(mask).mean(axis=0)[::-1], 1.0])[:3]
        assert np.linalg.norm(middle - nodule.centroid) < 0.8
        rise = np.median(made.image[mask].astype(int) - chest.image[mask])
        assert rise > 150
        assert nodule.diameter_mm > 4.4 * 1.2 * 0.75


def test_what_is_far_from_nodules_or_outside_the_lungs_is_unchanged(chest):
    made = insert_nodules(chest, np.random.default_rng(5))
    changed = made.image != chest.image
    assert changed.any()
    near = ndimage.distance_transform_edt(made.numbers == 0, sampling=chest.spacing_mm)
    longest = max(nodule.shape.reach_mm - 0.5 * nodule.shape.radius_mm for nodule in made.nodules)
    assert near[changed].max() < longest + 3
    outside = ndimage.binary_erosion(~chest.lungs, iterations=3)
    assert not changed[outside].any()


@pytest.mark.slow
def test_nodules_have_the_noise_of_the_scan(chest):
    patch = cut_noise(chest)
    expected = chest.image[~chest.lungs].std()
    assert patch.std() == pytest.approx(expected, rel=0.25)
    solid = []
    for seed in range(12):
        made = insert_nodules(chest, np.random.default_rng(seed))
        for number, nodule in enumerate(made.nodules, start=1):
            core = ndimage.binary_erosion(made.numbers == number, iterations=2)
            if nodule.kind == "solid" and core.sum() > 60:
                solid.append(made.image[core].std())
    assert len(solid) > 2
    assert np.median(solid) == pytest.approx(expected, rel=0.35)


def test_a_scan_without_soft_tissue_or_room_is_refused(chest):
    air = RealChest(image=np.full_like(chest.image, -900), lungs=chest.lungs, affine=AFFINE)
    with pytest.raises(ScanError, match="piece of soft tissue"):
        insert_nodules(air, np.random.default_rng(0))
    thin = np.zeros_like(chest.lungs)
    thin[30, 40:60, 50] = True
    with pytest.raises(ScanError, match="has no room in its lungs for a nodule"):
        insert_nodules(RealChest(image=chest.image, lungs=thin, affine=AFFINE), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("shape", "pixel", "message"),
    [((30, 40, 40), 4.0, "must have pixels of at most 3.4 mm"), ((2, 40, 40), 1.0, r"at least 3 slices of 20 x 20")],
)
def test_a_scan_that_is_too_coarse_or_too_small_is_refused_with_its_file(tmp_path, shape, pixel, message):
    affine = np.diag([pixel, pixel, 2.0, 1.0])
    image = np.full(shape, 40, dtype=np.int16)
    lungs = np.zeros(shape, dtype=np.uint8)
    lungs[:, 10:30, 10:30] = 1
    image[lungs > 0] = -850
    for name, volume in (("ct.mha", image), ("lungs.mha", lungs)):
        write_metaimage(tmp_path / name, volume, affine)
    real = read_real_chest(tmp_path / "ct.mha", tmp_path / "lungs.mha")
    with pytest.raises(ScanError, match=rf"ct.mha: .*{message}"):
        next(write_inserted(tmp_path / "out", real, 0, 1))


@pytest.mark.slow
def test_the_command_writes_copies_and_the_same_again(files, tmp_path):
    arguments = ["phantom", str(tmp_path), "--lungs", "--cases", "2", "--seed", "3"]
    arguments += ["--insert-into", str(files / "anna.mha"), "--lungs-mask", str(files / "mask.mha")]
    done = CliRunner().invoke(commands(), arguments)
    assert done.exit_code == 0, done.output
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path).as_posix() for path in written} == {
        *(f"{kind}/inserted-3-000{number}.mha" for kind in ("scans", "lungs", "nodules") for number in (0, 1)),
        "phantom.json", "annotations.csv",
    }  # fmt: skip
    assert not any(b"anna" in data for data in written.values()), "a file's name may be a patient's"
    (tmp_path / "scans" / "inserted-3-0001.mha").unlink()
    assert CliRunner().invoke(commands(), arguments).exit_code == 0
    assert {path: path.read_bytes() for path in written} == written
    with (tmp_path / "annotations.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with ScanReader(tmp_path / "nodules" / "inserted-3-0000.mha", "mask") as reader:
        numbers = reader.read()
        place = np.linalg.solve(reader.grid.affine_lps, [*(float(rows[0][f"coord{axis}"]) for axis in "XYZ"), 1.0])
    z, y, x = np.rint(place[2::-1]).astype(int)
    assert 1 in numbers[z - 1 : z + 2, y - 2 : y + 3, x - 2 : x + 3]


@pytest.mark.slow
def test_another_scan_in_the_same_folder_is_refused(files, chest, tmp_path):
    list(write_inserted(tmp_path, read_real_chest(files / "anna.mha", files / "mask.mha"), 0, 1))
    write_metaimage(tmp_path / "other.mha", chest.image + np.int16(1), AFFINE)
    other = read_real_chest(tmp_path / "other.mha", files / "mask.mha")
    with pytest.raises(InputError, match="Use another folder"):
        next(write_inserted(tmp_path, other, 0, 1))


def test_a_mask_on_another_grid_or_without_lungs_is_refused(files, chest, tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] += 5
    write_metaimage(tmp_path / "moved.mha", chest.lungs.astype(np.uint8), moved)
    with pytest.raises(InputError, match=r"moved.mha: must have the same grid as anna.mha"):
        read_real_chest(files / "anna.mha", tmp_path / "moved.mha")
    write_metaimage(tmp_path / "empty.mha", np.zeros(chest.lungs.shape, dtype=np.uint8), AFFINE)
    with pytest.raises(ScanError, match=r"empty.mha: must mark the lungs"):
        read_real_chest(files / "anna.mha", tmp_path / "empty.mha")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lungs", "--insert-into", "a.mha"], "--insert-into and --lungs-mask belong together"),
        (["--insert-into", "a.mha", "--lungs-mask", "b.mha"], "--insert-into needs --lungs"),
        (["--lungs", "--insert-into", "a.mha", "--lungs-mask", "b.mha", "--size", "256"], "pass no --size"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, arguments, message):
    done = CliRunner().invoke(commands(), ["phantom", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 2
    assert message in " ".join((done.output + done.stderr).replace("│", " ").split())


@pytest.mark.slow
def test_fewer_copies_than_there_are_keep_the_table(files, tmp_path):
    real = read_real_chest(files / "anna.mha", files / "mask.mha")
    list(write_inserted(tmp_path, real, 3, 2))
    before = (tmp_path / "annotations.csv").read_bytes()
    with pytest.raises(InputError, match=r"has 1 scan beyond the 1 requested, such as inserted-3-0001.mha"):
        next(write_inserted(tmp_path, real, 3, 1))
    assert (tmp_path / "annotations.csv").read_bytes() == before
    assert len(list(write_inserted(tmp_path, real, 3, 2))) == 2
