"""Collections of synthetic chests on disk: complete or absent, resumable, with LUNA16's table; and the command."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import SimpleITK
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import InputError
from slicemill.ct.chest import collection
from slicemill.ct.chest.collection import COLUMNS, ChestSettings, write_chests
from slicemill.ct.chest.plan import make_plan
from slicemill.ct.chest.spec import ChestSpec
from slicemill.ct.formats.metaimage.write import write_metaimage
from slicemill.ct.scan import ScanReader

SMALL = ChestSettings(seed=100, size=128)


@pytest.fixture(scope="module")
def chests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chests")
    assert list(write_chests(folder, SMALL, 2)) == ["chest-100-0000", "chest-100-0001"]
    return folder


def read(path, kind):
    with ScanReader(path, kind) as reader:
        return reader.read(), reader.grid


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_collection_has_scans_masks_and_the_table(chests):
    names = [f"chest-100-000{number}.mha" for number in (0, 1)]
    expected = {f"{kind}/{name}" for kind in ("scans", "lungs", "nodules") for name in names}
    assert files(chests) == expected | {"phantom.json", "annotations.csv"}
    with (chests / "annotations.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    for name in names:
        image, grid = read(chests / "scans" / name, "image")
        lungs, lung_grid = read(chests / "lungs" / name, "mask")
        nodules, _ = read(chests / "nodules" / name, "mask")
        assert image.shape == lungs.shape == nodules.shape
        assert grid.distance_mm(lung_grid) < 1e-6
        own = [row for row in rows if f"{row['seriesuid']}.mha" == name]
        assert set(np.unique(nodules)) == set(range(len(own) + 1))
        assert set(np.unique(lungs)) == {0, 3, 4, 5}
        itk = SimpleITK.ReadImage(str(chests / "scans" / name))
        for number, row in enumerate(own, start=1):
            point = [float(row[column]) for column in ("coordX", "coordY", "coordZ")]
            x, y, z = itk.TransformPhysicalPointToIndex(point)
            near = nodules[max(z - 2, 0) : z + 3, y - 3 : y + 4, x - 3 : x + 4]
            assert (near == number).any()


@pytest.mark.slow
def test_a_second_run_draws_nothing_and_a_longer_one_adds(chests, monkeypatch):
    drawn = []
    draw = collection.make_chest
    monkeypatch.setattr(collection, "make_chest", lambda spec, plan: drawn.append(spec.name) or draw(spec, plan))
    before = {name: (chests / name).read_bytes() for name in files(chests)}
    assert len(list(write_chests(chests, SMALL, 2))) == 2
    assert drawn == []
    assert {name: (chests / name).read_bytes() for name in files(chests)} == before
    list(write_chests(chests, SMALL, 3))
    assert drawn == ["chest-100-0002"]
    assert (chests / "annotations.csv").read_bytes().startswith(before["annotations.csv"])


@pytest.mark.parametrize("other", [ChestSettings(seed=101, size=128), ChestSettings(seed=100, size=160)])
def test_a_folder_keeps_to_its_settings(tmp_path, other):
    collection.claim(tmp_path, SMALL)
    with pytest.raises(InputError, match=r"phantom.json: the folder has phantoms of seed 100, size 128, version 3"):
        next(write_chests(tmp_path, other, 1))


def test_a_folder_of_another_version_is_refused_with_the_reason(tmp_path):
    (tmp_path / "phantom.json").write_text('{"seed": 100, "size": 128, "version": 1}')
    with pytest.raises(InputError, match=r"version 3\. This version of slicemill draws other phantoms\. Use another"):
        next(write_chests(tmp_path, SMALL, 1))


@pytest.mark.slow
def test_each_chest_has_the_number_of_nodules_asked_for():
    plans = [make_plan(ChestSpec(seed=(100, number), size=128, nodules=5)) for number in range(3)]
    assert [len(plan.nodules) for plan in plans] == [5, 5, 5]
    assert make_plan(ChestSpec(seed=(100, 0), size=128, nodules=0)).nodules == ()


def test_the_number_of_nodules_is_a_setting_of_the_folder(tmp_path):
    asked = ChestSettings(seed=100, size=128, nodules=5)
    collection.claim(tmp_path, asked)
    assert json.loads((tmp_path / "phantom.json").read_text()) == {
        "seed": 100,
        "size": 128,
        "nodules": 5,
        "version": 3,
    }
    with pytest.raises(InputError, match=r"requested are seed 100, size 128, version 3"):
        collection.claim(tmp_path, SMALL)


@pytest.mark.parametrize("extra", [[], ["--lungs", "--insert-into", "ct.mha", "--lungs-mask", "lungs.mha"]])
def test_a_number_of_nodules_is_for_synthetic_chests_alone(tmp_path, extra):
    done = CliRunner().invoke(commands(), ["phantom", str(tmp_path), "--nodules", "3", *extra])
    assert done.exit_code != 0
    assert "--nodules needs --lungs" in " ".join((done.output + done.stderr).split())


@pytest.mark.slow
def test_fewer_cases_than_there_are_keep_the_table(chests):
    before = (chests / "annotations.csv").read_bytes()
    scans = len(list((chests / "scans").iterdir()))
    arguments = ["phantom", str(chests), "--lungs", "--cases", "1", "--seed", "100", "--size", "128"]
    done = CliRunner().invoke(commands(), arguments)
    assert done.exit_code == 1
    shown = " ".join((done.output + done.stderr).split())
    assert f"{scans - 1} scan" in shown
    assert "beyond the 1 requested, such as chest-100-0001.mha" in shown
    assert (chests / "annotations.csv").read_bytes() == before
    assert len(list((chests / "scans").iterdir())) == scans


@pytest.mark.parametrize("name", ["chest-100-0002.mha", "of-my-own.mha"])
def test_a_scan_that_the_table_would_not_list_is_refused_before_a_case_is_made(tmp_path, monkeypatch, name):
    monkeypatch.setattr(collection, "write_chest", lambda *_: pytest.fail("wrote a case"))
    collection.claim(tmp_path, SMALL)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / name).touch()
    with pytest.raises(InputError, match=rf"scans: has 1 scan beyond the 2 requested, such as {name}"):
        next(write_chests(tmp_path, SMALL, 2))
    assert not (tmp_path / "annotations.csv").exists()


@pytest.mark.slow
def test_a_run_that_stops_while_it_adds_scans_leaves_no_table_of_some(chests, tmp_path):
    shutil.copytree(chests, tmp_path, dirs_exist_ok=True)
    scans = len(list((tmp_path / "scans").iterdir()))
    run = write_chests(tmp_path, SMALL, scans + 1)
    next(run)
    run.close()
    assert not (tmp_path / "annotations.csv").exists()
    list(write_chests(tmp_path, SMALL, scans))
    assert (tmp_path / "annotations.csv").read_bytes() == (chests / "annotations.csv").read_bytes()


@pytest.mark.slow
def test_the_files_are_the_same_for_any_number_of_workers(chests, tmp_path):
    assert sorted(write_chests(tmp_path, SMALL, 2, workers=2)) == ["chest-100-0000", "chest-100-0001"]
    for name in ("scans/chest-100-0000.mha", "scans/chest-100-0001.mha", "lungs/chest-100-0001.mha"):
        assert (tmp_path / name).read_bytes() == (chests / name).read_bytes()
    table = (tmp_path / "annotations.csv").read_text()
    assert (chests / "annotations.csv").read_text().startswith(table), "which another test makes longer"


def crash(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_crashes_names_its_chest(tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "_make_case", crash)
    with pytest.raises(InputError, match=r"draws chest-100-0000 crashed while it was the only one.*smaller --size"):
        list(write_chests(tmp_path, SMALL, 2, workers=2))
    assert not (tmp_path / "annotations.csv").exists()


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_file_and_the_next_one_makes_the_same(chests, tmp_path):
    command = [sys.executable, "-m", "slicemill", "phantom", str(tmp_path), "--lungs", "--cases", "2"]
    command += ["--seed", "100", "--size", "128"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "lungs").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in (tmp_path / "scans").glob("[!.]*"):
        read(path, "image")
    list(write_chests(tmp_path, SMALL, 2))
    for name in ("scans/chest-100-0000.mha", "nodules/chest-100-0001.mha", "phantom.json"):
        assert (tmp_path / name).read_bytes() == (chests / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lungs", "--size", "64"], "--size must be at least 128 with --lungs; it is 64"),
        (["--lungs", "--trunk"], "--trunk and --lungs are different collections"),
    ],
)
def test_options_that_make_no_chest_are_refused(tmp_path, arguments, message):
    done = CliRunner().invoke(commands(), ["phantom", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 2
    assert message in " ".join((done.output + done.stderr).split()).replace("│ ", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_metaimage_files_are_what_simpleitk_reads(tmp_path, compressed, dtype):
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 200, (3, 4, 5)).astype(dtype)
    turn, _ = np.linalg.qr(np.eye(3) + 0.1 * rng.standard_normal((3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * np.sign(np.diag(turn)) @ np.diag([0.7, 0.8, 2.5])
    affine[:3, 3] = 12.5, -300.25, 7.125
    path = tmp_path / "a.mha"
    write_metaimage(path, volume, affine, compressed=compressed)
    itk = SimpleITK.ReadImage(str(path))
    assert np.array_equal(SimpleITK.GetArrayFromImage(itk), volume)
    for index in ((0, 0, 0), (4, 3, 2), (4, 0, 1)):
        point = (affine @ [*index, 1.0])[:3]
        assert itk.TransformIndexToPhysicalPoint(index) == pytest.approx(point, abs=1e-9)
    ours, grid = read(path, "mask" if dtype == np.uint8 else "image")
    assert np.array_equal(ours, volume)
    assert grid.affine_lps == pytest.approx(affine, abs=1e-9)


def test_the_settings_are_a_document(tmp_path):
    collection.claim(tmp_path, SMALL)
    assert json.loads((tmp_path / "phantom.json").read_text()) == {"seed": 100, "size": 128, "version": 3}
