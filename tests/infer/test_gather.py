"""Gather: every way to name scans, and every file accounted for."""

import base64
import glob
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from slicemill.common.errors import ConfigError, ScanError, StoreError
from slicemill.common.files import parse_location
from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.gather import gather, pattern_below, read_list
from slicemill.infer.inputs.jobs import load_scan, open_store_once
from slicemill.infer.network.model import open_model
from slicemill.infer.run.options import InferOptions
from slicemill.infer.run.pipeline import infer
from tests.infer.commands import run_command

OTHER = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4))


def names(inputs):
    return [job.name for job in gather(inputs)[0]]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Four small scans in two folders, one of them next to its segmentation."""
    for name in ("a/p1/ct-1.nii", "a/p2/ct-2.nii.gz", "a/p2/ct-2_seg.nii.gz", "b/ct-3.nii", "b/[odd].nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_nifti(tmp_path / name, np.zeros((2, 64, 64), np.int16), (3.0, 1.0, 1.0))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_patterns_and_files_keep_their_tree(tree):
    assert names(["a"]) == ["p1/ct-1.nii", "p2/ct-2.nii.gz"]
    assert names(["a/**/ct-?.nii*", "b/ct-3.nii"]) == ["a/p1/ct-1.nii", "a/p2/ct-2.nii.gz", "b/ct-3.nii"]
    assert names(["b/[odd].nii"]) == ["[odd].nii"], "a file of that very name is not a pattern"
    with pytest.raises(ScanError, match=r"a/\*.mha: matches no .nii"):
        gather(["a/*.mha"])


def test_a_scan_given_twice_is_segmented_once_and_reported(tree):
    jobs, left_out = gather(["b/ct-3.nii", tree / "b" / "ct-3.nii", "b/*.nii", "a"])
    assert len(jobs) == 4
    assert [path.name for path, reason in left_out if "listed more than once" in reason] == ["ct-3.nii", "ct-3.nii"]


def test_a_list_has_one_scan_per_line_and_a_missing_scan_is_a_failure(tree, model, tmp_path):
    lines = ["b/ct-3.nii", "", "nowhere/ct-9.nii", "a/*/*.nii.gz"]
    (tree / "list.txt").write_bytes("\r\n".join(lines).encode())
    assert read_list("list.txt") == [line for line in lines if line]
    jobs, _ = gather(read_list("list.txt"))
    summary = infer(open_model(model, "cpu"), jobs, tmp_path / "out")
    assert [(outcome.name, outcome.status) for outcome in summary.outcomes] == [
        ("b/ct-3.nii", "done"), ("nowhere/ct-9.nii", "failed"), ("a/p2/ct-2.nii.gz", "done"),
        ("a/p2/ct-2_seg.nii.gz", "done")]  # fmt: skip
    assert "there is no such file" in summary.outcomes[1].reason
    (tree / "list.txt").write_bytes(b"caf\xe9.nii")
    with pytest.raises(ConfigError, match="--list list.txt: must be UTF-8 text with one scan per line; byte 3 is not"):
        read_list("list.txt")
    with pytest.raises(ConfigError, match="--list none.txt: cannot be read: No such file or directory"):
        read_list("none.txt")


def test_an_invalid_pattern_of_a_url_is_named(bucket):
    with pytest.raises(ScanError, match=r"/\[z-a\]\.nii: is not a valid pattern \(bad character range"):
        gather([f"{bucket[0]}/[z-a].nii"])


@pytest.mark.parametrize("pattern", ["*.nii", "**/*.nii*", "a/**", "a/p?/ct-[1-2].nii", "[!b]/*/ct-2*", "**/p2/*"])
def test_patterns_of_urls_match_as_on_a_disk(pattern, tree):
    every = [path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()]
    expected = [name for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]  # noqa: PTH207
    assert sorted(name for name in every if re.fullmatch(pattern_below(pattern), name)) == sorted(expected)


def test_exit_status_and_counts_add_up(tree, model, tmp_path):
    listed = "\n".join(str(tree / name) for name in ("a", "b/ct-3.nii"))
    done = run_command("infer", model, "--list", "-", "--out", tmp_path / "out", given=listed)
    assert done.exit_code == 0
    assert "3 scans: 3 done, 0 skipped (done before), 0 failed; 1 files left out" in done.stdout
    (tree / "a" / "bad.nii").write_bytes(b"no scan")
    done = run_command("infer", model, tree / "a", "--out", tmp_path / "other")
    assert done.exit_code == 1
    assert "3 scans: 2 done, 0 skipped (done before), 1 failed" in done.stdout
    for words in ((), ("--out", tmp_path / "out")):
        nothing = run_command("infer", model, *words)
        assert nothing.exit_code == 2
        assert "pass scans, folders" in nothing.stderr
    assert run_command("infer", model, tree / "a", tree / "b").exit_code == 2


def test_shards_into_one_folder_segment_every_scan_once(tree, model, tmp_path):
    counts = []
    for index in range(3):
        done = run_command("infer", model, tree / "a", tree / "b", "--out", tmp_path / "out", "--shard", f"{index}/3")
        assert done.exit_code == 0, done.stderr
        summary = json.loads((tmp_path / "out" / f"summary-{index}-of-3.json").read_text())
        counts.append(summary["scans"]["done"])
    assert sum(counts) == 4
    written = sorted(path.name for path in (tmp_path / "out").rglob("*.nii*"))
    assert written == ["[odd].nii", "ct-1.nii", "ct-2.nii.gz", "ct-3.nii"]
    assert run_command("infer", model, tree / "a", "--out", tmp_path / "out", "--shard", "3/3").exit_code == 2


def test_scans_and_stores_in_a_bucket_give_the_same_labels_as_on_a_disk(bucket, collection, stored, model, tmp_path):
    place, seen = bucket
    for path in [collection / "volume-0.nii", collection / "volume-1.nii.gz"]:
        (place / "in" / "deep" / path.name).upload(path)
    for path in stored.rglob("*"):
        if path.is_file() and ".claims" not in path.parts:
            (place / "store" / path.relative_to(stored).as_posix()).upload(path)
    opened = open_model(model, "cpu")
    local = infer(opened, gather([collection])[0], tmp_path / "local")
    assert local.count("done") == 6
    inputs = [f"{place}/in", f"{place}/in/*/*.nii.gz", str(place / "store")]
    jobs, left_out = gather(inputs)
    assert {"deep/volume-0.nii", "deep/volume-1.nii.gz", "volume-0.nii.gz"} <= {job.name for job in jobs}
    assert [reason for _, reason in left_out] == ["listed more than once; segmented once, as deep/volume-1.nii.gz"]
    out = tmp_path / "out"
    assert infer(opened, jobs, out).count("done") == 8
    for name in ("volume-0.nii", "volume-1.nii.gz"):
        expected = np.asarray(nib.load(tmp_path / "local" / name).dataobj)
        assert np.array_equal(np.asarray(nib.load(out / "deep" / name).dataobj), expected)
    assert infer(opened, jobs, out).count("skipped") == 8
    assert not any(line[0] == "PUT" for line in seen.during(lambda: infer(opened, jobs, out)))
    (gone,) = [job for job in jobs if job.name == "deep/volume-0.nii"]
    gone.path.unlink()
    summary = infer(opened, [gone], tmp_path / "again")
    assert summary.outcomes[0].reason == f"{place}/in/deep/volume-0.nii: there is no such file."


def test_single_urls_are_named_below_the_folder_that_they_share_in_their_bucket(bucket, collection):
    place, _ = bucket
    for name in ("x/p1/ct-1.nii", "x/p2/ct-2.nii", "CT_image.nii"):
        (place / name).upload(collection / "volume-0.nii")
    assert names([f"{place}/x/p1/ct-1.nii", f"{place}/x/p2/ct-2.nii"]) == ["p1/ct-1.nii", "p2/ct-2.nii"]
    assert names([f"{place}/CT_image.nii", collection / "volume-2.nii"]) == ["CT_image.nii", "volume-2.nii"]
    with pytest.raises(ScanError, match="matches no .nii, .nii.gz, .hdr, .mha, .mhd, .nrrd or .nhdr file"):
        gather([f"{place}/none/*.nii"])


def test_a_scan_that_changes_while_it_is_read_gets_no_mask(model, collection, tmp_path, monkeypatch):
    from slicemill.ct.scan import ScanReader

    scan = Path(shutil.copy(collection / "volume-0.nii", tmp_path / "volume-0.nii"))
    real = ScanReader.read

    def read(reader, *room):
        volume = real(reader, *room)
        os.utime(scan, ns=(1, 1))
        return volume

    jobs = gather([scan])[0]
    monkeypatch.setattr(ScanReader, "read", read)
    first = infer(open_model(model, "cpu"), jobs, tmp_path / "out", InferOptions())
    assert first.outcomes[0].reason == f"{scan}: changed while it was read; the next run segments it again."
    assert not (tmp_path / "out" / "volume-0.nii").exists()
    monkeypatch.undo()
    assert infer(open_model(model, "cpu"), jobs, tmp_path / "out", InferOptions()).count("done") == 1


def test_urls_of_unknown_schemes_are_refused(collection):
    with pytest.raises(ValueError, match="expected a local path or one of s3://"):
        gather(["ftp://host/scans"])
    assert parse_location(f"file://{collection}") == collection


def test_a_folder_gives_its_scans_and_leaves_out_files_named_like_masks(collection):
    jobs, left_out = gather([collection])
    assert [job.name for job in jobs] == [
        "volume-0.nii",
        "volume-1.nii.gz",
        "volume-2.nii",
        "volume-3.nii",
        "volume-4.nii.gz",
        "volume-5.nii",
    ]
    assert len(left_out) == 6


def test_a_pattern_and_a_list_of_files_keep_the_tree_that_they_share(collection, tmp_path):
    jobs, _ = gather([f"{collection}/volume-[01].*"])
    assert [job.name for job in jobs] == ["volume-0.nii", "volume-1.nii.gz"]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ct.nii").touch()
    jobs, _ = gather([tmp_path / "a" / "ct.nii", tmp_path / "b" / "ct.nii"])
    assert [job.name for job in jobs] == ["a/ct.nii", "b/ct.nii"]


def test_the_cases_of_a_store_equal_their_files(stored, collection):
    jobs, _ = gather([stored])
    assert [job.name for job in jobs] == [f"volume-{n}.nii.gz" for n in range(6)]
    from_store = load_scan(jobs[5])
    from_file = load_scan(gather([collection / "volume-5.nii"])[0][0])
    assert np.array_equal(from_store.volume, from_file.volume)
    assert np.array_equal(from_store.grid.affine, from_file.grid.affine)
    assert from_store.header == from_file.header


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (b"!", "the stored header of volume-1.nii.gz is damaged"),
        (b"", "its stored header: is not a NIfTI file: it has 0 bytes"),
        (base64.b64encode(OTHER.header.binaryblock), "stored header and voxels must have the same shape"),
    ],
)
def test_a_damaged_header_in_a_store_fails_its_case_and_names_it(stored, damaged, message):
    job = gather([stored])[0][1]
    case = open_store_once(stored)["volume-1"]
    case.info = replace(case.info, image=replace(case.info.image, header_b64=damaged.decode()))
    with pytest.raises(StoreError, match=f"volume-1: {message}.* --overwrite"):
        load_scan(job)


def test_two_scans_with_one_output_path_are_refused(tmp_path):
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(ScanError, match="would both be written as a"):
        gather([tmp_path])


def test_nothing_to_segment_is_one_clear_error(tmp_path):
    with pytest.raises(ScanError, match="contains no scans"):
        gather([tmp_path])
    with pytest.raises(ScanError, match="matches no .nii"):
        gather([f"{tmp_path}/*.nii"])


@pytest.mark.parametrize(("name", "message"), [("nowhere.nii", "there is no such file"), ("a.mat", "must end in .nii")])
def test_a_missing_file_or_one_of_another_format_is_named(name, message, tmp_path):
    (tmp_path / "a.mat").touch()
    (job,), _ = gather([tmp_path / name])
    with pytest.raises(ScanError, match=message):
        load_scan(job)
