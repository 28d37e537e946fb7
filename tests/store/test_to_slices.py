"""Slice files, read back by PIL and numpy and compared with the voxels of the store."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from slicemill.common.errors import ConfigError, StoreError
from slicemill.ct.phantom import write_nifti
from slicemill.ct.window import Window
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles
from slicemill.ingest.params import Params
from slicemill.store import to_slices as slices
from slicemill.store.cli import store as cli
from slicemill.store.reader import open_store
from slicemill.store.tables import read_table
from slicemill.store.to_slices import export_slices, make_form, parse_window
from slicemill.store.writer import prepare_store


def table(out):
    with (out / "pairs.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def run(*words):
    return CliRunner().invoke(cli, ["export-slices", *map(str, words)])


@pytest.fixture
def two(stored, tmp_path):
    """A store of two cases, which a test may damage."""
    copy = shutil.copytree(stored, tmp_path / "copy")
    for case in ("volume-2", "volume-3", "volume-4", "volume-5"):
        shutil.rmtree(copy / "scans.zarr" / case)
    return copy


def expected(name, image):
    """What a slice's file must hold, from its HU."""
    if name in ("jpeg", "png"):
        return Window(-200, 300).to_gray(image)
    return image.astype(np.int32) + 32768 if name == "png16" else image


def opened(path):
    if path.suffix == ".npy":
        return np.load(path)
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("name", ["jpeg", "png", "png16", "npy"])
def test_every_slice_and_mask_holds_the_voxels_of_the_store(name, two, tmp_path):
    store = open_store(two)
    report = export_slices(store, tmp_path / "out", make_form(name, None), store.case_ids)
    rows = table(tmp_path / "out")
    assert report.count("done") == 2
    assert report.slices == len(rows) == sum(len(case.image) for case in store.values())
    for row in rows:
        case, z = store[row["case_id"]], int(row["z"])
        image, mask = opened(tmp_path / "out" / row["image"]), opened(tmp_path / "out" / row["mask"])
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, case.label[z])
        apart = np.abs(image.astype(int) - expected(name, case.image[z]))
        assert apart.mean() < 3 if name == "jpeg" else not apart.any()
    assert image.dtype == {"png16": np.uint16, "npy": np.int16}.get(name, np.uint8)


def test_the_table_agrees_with_the_store(two, tmp_path):
    store = open_store(two)
    export_slices(store, tmp_path / "out", make_form("png", None), store.case_ids)
    rows = table(tmp_path / "out")
    known = [row for row in read_table(two, "slices") if row["case_id"] in ("volume-0", "volume-1")]
    assert [(row["case_id"], int(row["z"]), row["has_tumor"]) for row in rows] == [
        (row["case_id"], row["z"], str(row["has_tumor"])) for row in known
    ]
    assert rows[0]["image"] == "volume-0/image/0000.png"
    for row in rows:
        spacing = tuple(float(row[f"spacing_{axis}_mm"]) for axis in "zyx")
        assert spacing == store[row["case_id"]].info.spacing_mm
        assert row["patient_id"] == store[row["case_id"]].info.patient_id


def test_a_mask_is_a_gray_png_of_label_values(two, tmp_path):
    store = open_store(two)
    export_slices(store, tmp_path / "out", make_form("jpeg", None), ["volume-0"])
    most = max(range(len(store["volume-0"].image)), key=lambda z: int((store["volume-0"].label[z] == 2).sum()))
    with Image.open(tmp_path / "out" / "volume-0" / "mask" / f"{most:04d}.png") as mask:
        assert mask.mode == "L"
        assert set(np.unique(np.asarray(mask)).tolist()) == {0, 1, 2}


def test_only_labeled_leaves_out_slices_on_which_nothing_is_labeled(two, tmp_path):
    store = open_store(two)
    export_slices(store, tmp_path / "out", make_form("png", None, only_labeled=True), store.case_ids)
    for case_id in store.case_ids:
        kept = [int(row["z"]) for row in table(tmp_path / "out") if row["case_id"] == case_id]
        assert kept == np.flatnonzero(store[case_id].label[:].any(axis=(1, 2))).tolist()


def test_without_a_mask_the_cells_of_mask_and_tumor_are_empty(tmp_path):
    write_nifti(tmp_path / "a.nii", np.zeros((2, 4, 4), np.int16), (1.0, 1.0, 1.0))
    case = CaseFiles(case_id="a", patient_id="a", image=tmp_path / "a.nii", mask=None, root=tmp_path)
    convert_case(case, Params(labels=None), prepare_store(tmp_path / "store"))
    store = open_store(tmp_path / "store")
    export_slices(store, tmp_path / "out", make_form("png", None), ["a"])
    assert [(row["mask"], row["has_tumor"]) for row in table(tmp_path / "out")] == [("", "")] * 2
    assert not (tmp_path / "out" / "a" / "mask").exists()
    export_slices(store, tmp_path / "labeled", make_form("png", None, only_labeled=True), ["a"])
    assert (tmp_path / "labeled" / "pairs.csv").read_text().startswith("case_id,patient_id,z,image,mask,has_tumor")
    assert table(tmp_path / "labeled") == []


def test_the_same_command_again_skips_complete_cases(two, tmp_path):
    store = open_store(two)
    export_slices(store, tmp_path / "out", make_form("png", None), ["volume-1"])
    first = (tmp_path / "out" / "volume-1" / "image" / "0000.png").stat().st_mtime_ns
    report = export_slices(store, tmp_path / "out", make_form("png", None), store.case_ids)
    assert [(outcome.case_id, outcome.status) for outcome in report.outcomes] == [
        ("volume-0", "done"),
        ("volume-1", "skipped"),
    ]
    assert (tmp_path / "out" / "volume-1" / "image" / "0000.png").stat().st_mtime_ns == first
    assert {row["case_id"] for row in table(tmp_path / "out")} == {"volume-0", "volume-1"}


def test_a_case_that_changed_in_the_store_is_written_again(two, tmp_path):
    form = make_form("npy", None)
    export_slices(open_store(two), tmp_path / "out", form, ["volume-1"])
    document = two / "scans.zarr" / "volume-1" / "zarr.json"
    changed = json.loads(document.read_text())
    changed["attributes"]["slicemill"]["source"]["image"]["sha256"] = "0" * 64
    document.write_text(json.dumps(changed))
    report = export_slices(open_store(two), tmp_path / "out", form, ["volume-1"])
    assert report.count("done") == 1


def test_other_options_in_one_folder_are_an_error_that_shows_both(two, tmp_path):
    assert run(two, tmp_path / "out", "--format", "png").exit_code == 0
    before = sorted(tmp_path.joinpath("out").rglob("*"))
    done = run(two, tmp_path / "out", "--format", "jpeg", "--window", "-100,240", "--only-labeled")
    assert done.exit_code == 1
    assert "was written with --format png --window -200,300," in done.output
    assert "now the options are --format jpeg --window -100,240 --only-labeled" in done.output
    assert sorted(tmp_path.joinpath("out").rglob("*")) == before


def test_one_bad_case_is_named_and_does_not_stop_the_rest(two, tmp_path):
    shard = two / "scans.zarr" / "volume-0" / "image" / "c" / "0" / "0" / "0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:5000] + bytes(2000) + whole[7000:])
    done = run(two, tmp_path / "out", "--format", "png16", "--workers", 2)
    assert done.exit_code == 1
    assert "failed: volume-0: " in done.output
    assert "2 cases: 1 done, 0 skipped, 1 failed" in done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["pairs.csv", "volume-1"]
    shard.write_bytes(whole)
    assert "2 cases: 1 done, 1 skipped, 0 failed" in run(two, tmp_path / "out", "--format", "png16").output


def test_a_case_whose_document_is_damaged_is_named_and_does_not_stop_the_rest(two, tmp_path):
    (two / "scans.zarr" / "volume-0" / "zarr.json").write_text("{")
    done = run(two, tmp_path / "out", "--format", "npy")
    assert (done.exit_code, "1 done, 0 skipped, 1 failed" in done.output) == (1, True)


def test_what_a_killed_run_left_is_no_case_and_goes_away(two, tmp_path):
    left = tmp_path / "out" / ".volume-0.part" / "image"
    left.mkdir(parents=True)
    (left / "9999.png").touch()
    assert run(two, tmp_path / "out", "--format", "png", "--case", "volume-0").exit_code == 0
    assert not left.parent.exists()
    assert not (tmp_path / "out" / "volume-0" / "image" / "9999.png").exists()


def test_a_full_disk_leaves_no_part_of_a_case(two, tmp_path, monkeypatch):
    real = slices.save_section

    def full(path, section):
        if path.name.startswith("0007") and ".volume-0" in str(path):
            raise OSError(28, "No space left on device", str(path))
        real(path, section)

    monkeypatch.setattr(slices, "save_section", full)
    report = export_slices(open_store(two), tmp_path / "out", make_form("png", None), ["volume-0", "volume-1"])
    assert report.count("failed") == 1
    assert "No space left on device" in report.outcomes[0].reason
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["pairs.csv", "volume-1"]


def test_a_folder_of_someone_else_is_never_replaced(two, tmp_path):
    (tmp_path / "out" / "volume-0").mkdir(parents=True)
    (tmp_path / "out" / "volume-0" / "mine.txt").touch()
    report = export_slices(open_store(two), tmp_path / "out", make_form("png", None), ["volume-0"])
    assert "exists and is not an exported case; move it" in report.outcomes[0].reason
    assert (tmp_path / "out" / "volume-0" / "mine.txt").exists()
    (tmp_path / "out" / "volume-0" / "case.json").write_text("{}")
    with pytest.raises(ConfigError, match="case.json.*It was not written by this command"):
        export_slices(open_store(two), tmp_path / "out", make_form("png", None), ["volume-0"])


def test_a_case_that_is_not_there_is_refused_before_anything_is_written(two, tmp_path):
    with pytest.raises(StoreError, match="has no case 'volume-9'"):
        export_slices(open_store(two), tmp_path / "out", make_form("png", None), ["volume-0", "volume-9"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["5", "a,b", "1,2,3", "300,-200", "nan,3"])
def test_a_window_is_two_numbers_the_lower_one_first(text):
    with pytest.raises(ConfigError, match="window"):
        parse_window(text)


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(ConfigError, match="png16 keeps all HU"):
        make_form("png16", "-200,300")


def test_a_format_that_does_not_exist_is_a_usage_error_that_names_the_choices(two, tmp_path):
    done = run(two, tmp_path / "out", "--format", "tiff")
    assert done.exit_code == 2
    assert all(name in done.output for name in ("jpeg", "png", "png16", "npy"))


def test_a_window_without_ends_is_refused():
    with pytest.raises(ConfigError, match=r"window -200.0\.\.inf: both ends must be finite"):
        parse_window("-200,inf")
