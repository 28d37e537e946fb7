"""An exported store comes back from other tools' layouts with the same voxels, labels and affines."""

import csv
import gzip
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from typer.testing import CliRunner

from slicemill.ct.labels import LITS_LABELS, make_labels
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import CaseFiles, discover
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store import to_dataset
from slicemill.store.cli import store as cli
from slicemill.store.reader import open_store
from slicemill.store.split import Split, write_split
from slicemill.store.writer import prepare_store
from tests.ct.grids import reorient

IDS = [f"volume-{number}" for number in range(6)]
AFFINE = np.array([[-0.7, 0, 0, 120], [0, 0.8, 0, -97], [0, 0, 2.5, 400], [0, 0, 0, 1]])


def export(store, out, *options):
    """Run the command, and return its exit status and output."""
    done = CliRunner().invoke(cli, ["export", str(store), str(out), *map(str, options)])
    assert done.exception is None or isinstance(done.exception, SystemExit) or done.exit_code, done.exception
    return done


def exported(store, out, *options):
    done = export(store, out, *options)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def refused(store, out, *options):
    """Run the command, which refuses, and return its message."""
    done = export(store, out, *options)
    assert done.exit_code != 0
    return f"{done.output} {done.exception}"


def files(out):
    """Every file but the claims."""
    paths = (path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix() for path in paths if ".claims" not in path.parts}


def content(out):
    return {name: (out / name).read_bytes() for name in files(out) if not name.endswith(".jsonl")}


def stored_cases(folder, pairs, labels=LITS_LABELS, geometry="error"):
    """Store pictures of nibabel under the ids of `pairs`, and return the store; the files lie in `folder`."""
    folder.mkdir(exist_ok=True)
    store = prepare_store(folder.with_name(f"{folder.name}-store"))
    for case_id, pictures in pairs.items():
        paths = [folder / f"{case_id}{end}" for end in (".nii.gz", "_mask.nii.gz")]
        for picture, path in zip(pictures, paths, strict=False):
            nib.save(picture, path)
        mask = paths[1] if len(pictures) == 2 else None
        case = CaseFiles(case_id=case_id, patient_id=case_id, image=paths[0], mask=mask, root=folder)
        convert_case(case, Params(labels=labels, geometry=geometry), store)
    return store


def picture(seed, values=None, shape=(7, 6, 5), affine=AFFINE):
    """A scan, or a segmentation with these label values."""
    rng = np.random.default_rng(seed)
    voxels = rng.integers(-1000, 1000, shape) if values is None else rng.choice([0, *values], shape)
    return nib.Nifti1Image(voxels.astype(np.int16 if values is None else np.uint8), affine)


@pytest.fixture
def split(tmp_path):
    path = tmp_path / "split.json"
    write_split(path, Split(train=tuple(IDS[:3]), validation=(IDS[3],), test=(IDS[4],)))
    return path


@pytest.mark.parametrize("form", ["nnunet", "monai", "lits"])
def test_an_exported_collection_is_ingested_to_an_equal_store(form, stored, one_worker, tmp_path):
    exported(stored, tmp_path / "out", "--format", form, "--workers", 2)
    again = tmp_path / "again"
    report = ingest(discover(tmp_path / "out"), again, Params(labels=LITS_LABELS), IngestOptions(workers=1))
    assert (report.count("done"), report.count("failed")) == (6, 0)
    before, after = open_store(stored), open_store(again)
    assert list(after) == list(before)
    for case_id, case in before.items():
        assert np.array_equal(after[case_id].image[:], case.image[:])
        assert np.array_equal(after[case_id].label[:], case.label[:])
        assert np.array_equal(after[case_id].affine, case.affine)
        assert after[case_id].info.source_axcodes == case.info.source_axcodes


def test_nnunet_finds_its_files_on_equal_grids_with_consecutive_values(stored, split, tmp_path):
    """What nnU-Net's own check of a dataset demands, read with SimpleITK as it does."""
    out = tmp_path / "Dataset001_Liver"
    exported(stored, out, "--format", "nnunet", "--split", split)
    dataset = json.loads((out / "dataset.json").read_text())
    assert dataset == {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumor": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    assert json.loads((out / "splits_final.json").read_text()) == [{"train": IDS[:3], "val": [IDS[3]]}]
    assert sorted(path.name for path in (out / "imagesTr").iterdir()) == [f"{name}_0000.nii.gz" for name in IDS[:4]]
    assert {path.name for path in (out / "imagesTs").iterdir()} == {f"{IDS[4]}_0000.nii.gz"}
    assert {path.name for path in (out / "labelsTs").iterdir()} == {f"{IDS[4]}.nii.gz"}
    for case_id in IDS[:4]:
        image, label = (
            SimpleITK.ReadImage(out / name)
            for name in (f"imagesTr/{case_id}_0000.nii.gz", f"labelsTr/{case_id}.nii.gz")
        )
        assert image.GetSize() == label.GetSize()
        for place in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert np.allclose(getattr(image, place)(), getattr(label, place)())
        assert set(np.unique(SimpleITK.GetArrayFromImage(label))) <= {0, 1, 2}


def test_monai_gets_the_parts_of_a_split_as_lists(stored, split, tmp_path):
    exported(stored, tmp_path / "out", "--format", "monai", "--split", split)
    lists = json.loads((tmp_path / "out/datalist.json").read_text())
    assert [item["fold"] for item in lists["training"]] == [1, 1, 1]
    assert lists["validation"] == [
        {"image": f"imagesTr/{IDS[3]}.nii.gz", "label": f"labelsTr/{IDS[3]}.nii.gz", "fold": 0}
    ]
    assert lists["test"] == [{"image": f"imagesTs/{IDS[4]}.nii.gz", "label": f"labelsTs/{IDS[4]}.nii.gz"}]
    assert (lists["numTraining"], lists["numTest"]) == (4, 1)
    for item in [*lists["training"], *lists["validation"], *lists["test"]]:
        assert (tmp_path / "out" / item["image"]).is_file()
        assert (tmp_path / "out" / item["label"]).is_file()


def test_several_splits_are_folds(stored, tmp_path):
    options = []
    for number in range(3):
        path = tmp_path / f"fold{number}.json"
        held = IDS[number * 2 : number * 2 + 2]
        write_split(path, Split(train=tuple(name for name in IDS if name not in held), validation=tuple(held)))
        options += ["--split", path]
    exported(stored, tmp_path / "monai", "--format", "monai", *options)
    lists = json.loads((tmp_path / "monai/datalist.json").read_text())
    assert [item["fold"] for item in lists["training"]] == [0, 0, 1, 1, 2, 2]
    assert "validation" not in lists
    exported(stored, tmp_path / "nnunet", "--format", "nnunet", *options)
    folds = json.loads((tmp_path / "nnunet/splits_final.json").read_text())
    assert [fold["val"] for fold in folds] == [IDS[:2], IDS[2:4], IDS[4:]]
    write_split(tmp_path / "more.json", Split(train=tuple(IDS[1:]), validation=(IDS[0],)))
    message = refused(stored, tmp_path / "two", "--format", "monai", *options, "--split", tmp_path / "more.json")
    assert "must be the folds of one cross-validation" in message
    assert not (tmp_path / "two").exists()


def test_lits_keeps_the_numbers_of_its_cases_and_numbers_others(stored, tmp_path):
    exported(stored, tmp_path / "out", "--format", "lits")
    (tmp_path / "out/dataset.json").write_text("of the user")
    exported(stored, tmp_path / "out", "--format", "lits")
    assert (tmp_path / "out/dataset.json").read_text() == "of the user"
    (tmp_path / "out/dataset.json").unlink()
    expected = {f"{word}-{number}.nii" for word in ("volume", "segmentation") for number in range(6)}
    assert files(tmp_path / "out") == {*expected, "cases.csv", "export.jsonl"}
    store = stored_cases(
        tmp_path / "named", {f"P{number}": (picture(number), picture(9, [1, 2])) for number in (2, 10)}
    )
    exported(store, tmp_path / "other", "--format", "lits", "--suffix", ".nii.gz")
    with (tmp_path / "other/cases.csv").open(newline="") as file:
        rows = {row["case_id"]: (row["image"], row["label"], row["part"]) for row in csv.DictReader(file)}
    assert rows == {
        "P2": ("volume-0.nii.gz", "segmentation-0.nii.gz", "training"),
        "P10": ("volume-1.nii.gz", "segmentation-1.nii.gz", "training"),
    }


def test_label_values_become_those_that_the_format_wants(tmp_path):
    labels = make_labels({"ignore": 3, "liver": 5, "tumor": 9})
    store = stored_cases(tmp_path / "files", {"a": (picture(1), picture(2, [3, 5, 9]))}, labels)
    assert "3 to 3" not in exported(store, tmp_path / "nn", "--format", "nnunet")
    dataset = json.loads((tmp_path / "nn/dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "liver": 1, "tumor": 2, "ignore": 3}
    before = np.asarray(nib.load(tmp_path / "files/a_mask.nii.gz").dataobj)
    after = np.asarray(nib.load(tmp_path / "nn/labelsTr/a.nii.gz").dataobj)
    for value, expected in {0: 0, 3: 3, 5: 1, 9: 2}.items():
        assert set(np.unique(after[before == value])) == {expected}
    exported(store, tmp_path / "monai", "--format", "monai")
    kept = nib.load(tmp_path / "monai/labelsTr/a.nii.gz")
    assert np.array_equal(np.asarray(kept.dataobj), before)
    assert "LiTS has two labels, an organ and tumor" in refused(store, tmp_path / "lits", "--format", "lits")


def test_lits_gets_organ_1_and_tumor_2_whatever_the_store_has(tmp_path):
    labels = make_labels({"tumor": 1, "pancreas": 2})
    store = stored_cases(tmp_path / "files", {"a": (picture(1), picture(2, [1, 2]))}, labels)
    assert "label values were changed as the format wants them: 1 to 2, 2 to 1" in exported(
        store, tmp_path / "out", "--format", "lits"
    )
    before = np.asarray(nib.load(tmp_path / "files/a_mask.nii.gz").dataobj)
    after = np.asarray(nib.load(tmp_path / "out/segmentation-0.nii").dataobj)
    assert np.array_equal(after, np.array([0, 2, 1])[before])


def test_a_mask_in_another_axis_order_is_written_in_that_of_its_image(tmp_path):
    turned = reorient(picture(2, [1, 2]), "SAR")
    store = stored_cases(tmp_path / "files", {"a": (picture(1), turned)})
    exported(store, tmp_path / "out", "--format", "nnunet", "--link", "hard", "--source", tmp_path / "files")
    image, label = (nib.load(tmp_path / "out" / name) for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"))
    assert label.shape == image.shape
    assert np.array_equal(label.affine, image.affine)
    same = picture(2, [1, 2])
    assert np.array_equal(np.asarray(label.dataobj), np.asarray(same.dataobj))
    assert label.get_data_dtype() == np.uint8


def test_nnunet_reads_a_collection_with_a_sheared_scan_by_nibabel(tmp_path):
    """SimpleITK, which nnU-Net uses by default, refuses such a file (the sform alone), and nibabel reads it."""
    shear = np.eye(4)
    shear[1, 2] = 0.2
    tilted = nib.Nifti1Image(np.asarray(picture(1).dataobj), None)
    tilted.set_sform(shear @ AFFINE, 1)
    mask = nib.Nifti1Image(np.asarray(picture(2, [1, 2]).dataobj), None)
    mask.set_sform(shear @ AFFINE, 1)
    store = stored_cases(tmp_path / "files", {"a": (tilted, mask), "b": (picture(3), picture(4, [1, 2]))})
    exported(store, tmp_path / "out", "--format", "nnunet")
    with pytest.raises(RuntimeError, match="orthonormal"):
        SimpleITK.ReadImage(tmp_path / "out/imagesTr/a_0000.nii.gz")
    assert np.allclose(nib.load(tmp_path / "out/imagesTr/a_0000.nii.gz").affine, shear @ AFFINE)
    assert json.loads((tmp_path / "out/dataset.json").read_text())["overwrite_image_reader_writer"] == "NibabelIO"


def test_cases_without_a_mask_are_test_cases_and_no_training_cases(tmp_path):
    store = stored_cases(tmp_path / "files", {"a": (picture(1), picture(2, [1, 2])), "b": (picture(3),)})
    exported(store, tmp_path / "out", "--format", "nnunet")
    assert {"imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b_0000.nii.gz"} <= files(tmp_path / "out")
    assert json.loads((tmp_path / "out/dataset.json").read_text())["numTraining"] == 1
    write_split(tmp_path / "split.json", Split(train=("a",), validation=("b",)))
    message = refused(store, tmp_path / "x", "--format", "nnunet", "--split", tmp_path / "split.json")
    assert "1 training or validation cases have no mask: b" in message


def test_a_case_is_not_tested_by_one_split_and_trained_by_another(stored, split, tmp_path):
    other = tmp_path / "other.json"
    write_split(other, Split(train=(IDS[4],), validation=(IDS[0],)))
    message = refused(stored, tmp_path / "out", "--format", "nnunet", "--split", split, "--split", other)
    assert f"{IDS[4]} is a test case of one split" in message


@pytest.mark.parametrize("link", ["hard", "symbolic"])
def test_source_files_of_the_same_bytes_are_linked(link, collection, stored, tmp_path):
    source = shutil.copytree(collection, tmp_path / "source")
    endings = {path.name.partition(".")[0]: path.name for path in source.iterdir()}
    output = exported(stored, tmp_path / "out", "--format", "lits", "--link", link, "--source", source)
    linked = set()
    for path in (tmp_path / "out").glob("*.nii"):
        original = source / endings[path.stem]
        is_link = path.is_symlink() if link == "symbolic" else path.stat().st_nlink > 1
        assert is_link == (original.suffix == ".nii")
        if is_link:
            assert path.samefile(original)
            linked.add(path)
    assert linked
    assert f"{len(linked)} files are links" in output


def test_a_source_file_that_is_not_what_the_export_writes_is_not_linked(tmp_path):
    """A changed file, HU that were rounded, a mask that was resampled, and label values that the format changes."""
    apart = AFFINE.copy()
    apart[2, 3] += 5
    rounded = nib.Nifti1Image(np.asarray(picture(5).dataobj, np.float32) + 0.25, AFFINE)
    pairs = {
        "changed": (picture(1), picture(2, [1, 2])),
        "rounded": (rounded, picture(4, [1, 2])),
        "resampled": (picture(6), picture(7, [1, 2], affine=apart)),
    }
    folder = tmp_path / "files"
    store = stored_cases(folder, pairs, geometry="resample")
    data = gzip.decompress((folder / "changed.nii.gz").read_bytes())
    (folder / "changed.nii.gz").write_bytes(gzip.compress(data, 1))
    options = ("--format", "nnunet", "--link", "symbolic", "--source", folder)
    exported(store, tmp_path / "out", *options)
    links = {path.name for path in (tmp_path / "out").rglob("*.nii.gz") if path.is_symlink()}
    assert links == {"changed.nii.gz", "rounded.nii.gz", "resampled_0000.nii.gz"}
    for case in open_store(store).values():
        image, label = (
            nib.load(tmp_path / "out" / name)
            for name in (f"imagesTr/{case.case_id}_0000.nii.gz", f"labelsTr/{case.case_id}.nii.gz")
        )
        assert np.array_equal(label.affine, image.affine)
        counts = [np.bincount(np.ravel(voxels), minlength=3) for voxels in (label.dataobj, case.label[:])]
        assert np.array_equal(*counts)
    other = stored_cases(tmp_path / "swapped", {"a": (picture(1), picture(2, [2, 7]))}, make_labels({"a": 2, "b": 7}))
    exported(other, tmp_path / "out2", "--format", "nnunet", "--link", "symbolic", "--source", tmp_path / "swapped")
    assert not (tmp_path / "out2/labelsTr/a.nii.gz").is_symlink()
    assert (tmp_path / "out2/imagesTr/a_0000.nii.gz").is_symlink()


def test_a_path_in_the_store_leads_to_no_file_outside_the_collection(tmp_path):
    store = stored_cases(tmp_path / "files", {"a": (picture(1), picture(2, [1, 2]))})
    shutil.copy(tmp_path / "files/a.nii.gz", tmp_path / "secret.nii.gz")
    (tmp_path / "files/a.nii.gz").unlink()
    document = store / "scans.zarr/a/zarr.json"
    document.write_text(document.read_text().replace('"a.nii.gz"', '"../secret.nii.gz"'))
    exported(store, tmp_path / "out", "--format", "monai", "--link", "symbolic", "--source", tmp_path / "files")
    assert not (tmp_path / "out/imagesTr/a.nii.gz").is_symlink()


def test_a_link_that_the_disk_refuses_is_an_error_and_never_a_copy(stored, collection, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    message = refused(stored, tmp_path / "out", "--format", "lits", "--link", "hard", "--source", collection)
    assert "cannot be a hard link to" in message
    assert "Pass --link symbolic or never." in message


def test_a_killed_export_is_finished_by_the_same_command(stored, tmp_path, monkeypatch):
    exported(stored, tmp_path / "whole", "--format", "nnunet", "--suffix", ".nii")
    whole, names = content(tmp_path / "whole"), ("export_case", "export_label_like_image", "append_line", "write_json")
    for step in (0, 1, 2, 3, 5, 8, 13, 21, 24):
        out, left = tmp_path / f"out{step}", [step]

        def kill(work, left=left):
            def run(*arguments, **options):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return work(*arguments, **options)

            return run

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(to_dataset, name, kill(getattr(to_dataset, name)))
            done = CliRunner().invoke(
                cli, ["export", str(stored), str(out), "--format", "nnunet", "--suffix", ".nii", "--workers", "1"]
            )
            assert done.exit_code != 0
        assert not (out / "dataset.json").exists()
        exported(stored, out, "--format", "nnunet", "--suffix", ".nii")
        assert content(out) == whole


def test_only_what_is_missing_or_changed_is_written_again(stored, tmp_path):
    store, out = shutil.copytree(stored, tmp_path / "store"), tmp_path / "out"
    exported(store, out, "--format", "monai")
    assert "0 done, 6 skipped, 0 failed" in exported(store, out, "--format", "monai")
    (out / f"labelsTr/{IDS[2]}.nii.gz").unlink()
    document = store / f"scans.zarr/{IDS[4]}/zarr.json"
    case = json.loads(document.read_text())
    case["attributes"]["slicemill"]["source"]["image"]["sha256"] = "0" * 64
    document.write_text(json.dumps(case))
    assert "2 done, 4 skipped, 0 failed" in exported(store, out, "--format", "monai")


def test_nothing_that_the_command_did_not_write_is_replaced(stored, split, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    assert "has files that this command did not write" in refused(stored, foreign, "--format", "lits")
    assert files(foreign) == {"notes.txt"}
    out = tmp_path / "out"
    exported(stored, out, "--format", "nnunet", "--split", split)
    before = content(out)
    for options in (("--format", "monai"), ("--format", "nnunet")):
        assert "Choose another folder" in refused(stored, out, *options)
    (out / "export.jsonl").write_text('{"case_id": "x"}\n')
    assert "was not written by this command" in refused(stored, out, "--format", "nnunet", "--split", split)
    assert content(out) == before
    again = tmp_path / "again"
    exported(stored, again, "--format", "nnunet", "--split", split)
    lines = (again / "export.jsonl").read_text().splitlines(keepends=True)
    (again / "export.jsonl").write_text("".join(line for line in lines if IDS[0] not in line))
    message = refused(stored, again, "--format", "nnunet", "--split", split)
    assert f"imagesTr/{IDS[0]}_0000.nii.gz: exists and was not written by this command" in message
    assert not (again / "dataset.json").exists()


def test_a_dry_run_writes_nothing_and_says_what_would_be_written(stored, split, tmp_path):
    output = exported(stored, tmp_path / "out", "--format", "nnunet", "--split", split, "--dry-run")
    assert "5 cases (3 training, 1 validation, 1 test), labels liver=1, tumor=2" in output
    assert "5 to write, 0 complete; nothing was written" in output
    assert f"{IDS[4]}: imagesTs/{IDS[4]}_0000.nii.gz, labelsTs/{IDS[4]}.nii.gz" in output
    assert not (tmp_path / "out").exists()


def test_a_case_that_cannot_be_read_stops_the_export_unless_the_splits_leave_it_out(stored, split, tmp_path):
    store = shutil.copytree(stored, tmp_path / "store")
    (store / f"scans.zarr/{IDS[5]}/zarr.json").write_text("{")
    message = refused(store, tmp_path / "out", "--format", "nnunet")
    assert "1 case cannot be read, so nothing was exported" in message
    assert not (tmp_path / "out").exists()
    assert "5 done" in exported(store, tmp_path / "out", "--format", "nnunet", "--split", split)


def test_options_of_a_case_and_of_a_collection_do_not_mix(stored, tmp_path):
    assert "--split needs --format" in refused(stored, IDS[0], tmp_path / "a.nii", "--split", "x.json")
    assert "--mask and --overwrite are about one case" in refused(stored, tmp_path / "x", "--format", "lits", "--mask")
    assert "further names" in refused(stored, IDS[0], tmp_path / "x", "--format", "lits")
    assert "name the store, a case and a file" in refused(stored, tmp_path / "x")
    assert "needs the collection" in refused(stored, tmp_path / "x", "--format", "lits", "--link", "hard")


def test_the_json_output_lists_every_case(stored, tmp_path):
    done = CliRunner().invoke(cli, ["export", str(stored), str(tmp_path / "out"), "--format", "monai", "--json"])
    document = json.loads(done.stdout)
    assert (document["format"], document["linked"]) == ("monai", 0)
    assert {case["case_id"]: case["status"] for case in document["cases"]} == dict.fromkeys(IDS, "done")
    assert Path(document["out"]) == tmp_path / "out"


def test_a_store_in_a_bucket_is_exported_as_one_on_a_disk(stored, bucket, tmp_path):
    root = bucket[0] / "store"
    for path in stored.rglob("*"):
        if path.is_file() and ".claims" not in path.parts:
            (root / path.relative_to(stored).as_posix()).write_bytes(path.read_bytes())
    exported(stored, tmp_path / "local", "--format", "nnunet", "--suffix", ".nii")
    exported(root, tmp_path / "remote", "--format", "nnunet", "--suffix", ".nii")
    assert content(tmp_path / "remote") == content(tmp_path / "local")
