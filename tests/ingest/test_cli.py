"""The command `slicemill ingest`: what it prints, and its exit status."""

import pytest
from typer.testing import CliRunner

from slicemill.cli import commands
from tests.ingest.test_discover import touch


def invoke(*words):
    return CliRunner().invoke(commands(), [*map(str, words)])


def test_a_dry_run_shows_the_table_and_writes_nothing(collection, tmp_path):
    done = invoke("ingest", collection, tmp_path / "store", "--dry-run")
    assert "volume-3  volume-3  volume-3.nii     segmentation-3.nii" in done.stdout
    assert "6 cases, 6 with a mask" in done.stdout
    assert not (tmp_path / "store").exists()


def test_what_was_decided_about_names_is_printed_as_notes(tmp_path):
    touch(tmp_path, "p1/venous.nii", "p2/venous.nii")
    done = invoke("ingest", tmp_path, "--dry-run")
    assert done.exit_code == 0
    assert "note: 2 scans share a name with another one" in done.stdout


def test_masks_that_do_not_pair_end_the_command_unless_scans_are_wanted_alone(tmp_path):
    touch(tmp_path, "a.nii", "b_seg.nii")
    refused = invoke("ingest", tmp_path, tmp_path / "store")
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "store").exists()
    done = invoke("ingest", tmp_path, "--no-masks", "--dry-run")
    assert done.exit_code == 0
    assert "1 cases, 0 with a mask; 1 files left out" in done.stdout


def test_a_table_of_labels_and_a_pattern_of_masks_are_options(tmp_path):
    touch(tmp_path, "imagesTr/a.nii", "labelsTr/a.nii", "labelsTr2/a.nii")
    (tmp_path / "labels.csv").write_text("name,value\nliver,1\ntumor,2\n")
    done = invoke("ingest", tmp_path, "--mask", "labelsTr2/*", "--labels", tmp_path / "labels.csv", "--dry-run")
    assert "labelsTr2/a.nii" in done.stdout
    assert "labels: liver=1, tumor=2" in done.stdout


@pytest.mark.parametrize(
    ("status", "words", "message"),
    [
        (2, ["ingest"], "pass the folder with the scans"),
        (1, ["ingest", "nowhere", "store"], "nowhere: there is no such folder"),
        (2, ["ingest", "COLLECTION", "store", "--shard", "3/3"], "expected I/N"),
        (2, ["ingest", "COLLECTION", "store", "--labels", "liver"], "expected NAME=VALUE"),
        (2, ["ingest", "COLLECTION"], "pass the folder of the store"),
        (2, ["ingest", "COLLECTION", "--no-masks", "--mask", "*"], "--mask excludes --no-masks"),
        (2, ["ingest", "--pairs", "x.csv", "--mask", "*", "store"], "--mask excludes --no-masks and --pairs"),
        (2, ["ingest", "store", "--pairs", "cases.csv", "--image", "*.nii"], "exactly one of a folder, --pairs and"),
        (2, ["ingest", "COLLECTION", "store", "--pairs", "cases.csv"], "exactly one of a folder, --pairs and"),
        (1, ["store", "info", "nowhere"], "is not a slice store"),
        (1, ["ingest", "COLLECTION", "http://host/store"], "expected a local path or one of s3://BUCKET"),
        (1, ["store", "info", "s3://key:secret@bucket/store"], "credentials and queries do not belong"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_an_exit_status(status, words, message, collection):
    words = [str(collection) if word == "COLLECTION" else word for word in words]
    done = invoke(*words)
    assert done.exit_code == status
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("--geometry", ("error", "trust-image", "resample")),
        ("--profile", ("compact", "fast")),
        ("--overlap", ("error", "highest")),
    ],
)
def test_a_choice_that_does_not_exist_is_a_usage_error_that_names_the_choices(option, choices, collection):
    done = invoke("ingest", collection, "store", option, "guess")
    assert done.exit_code == 2
    assert all(word in done.output for word in (option, *choices))


def test_a_failure_gives_exit_status_1_and_is_in_the_last_lines(copied, tmp_path):
    (copied / "volume-0.nii").write_bytes(b"no scan")
    done = invoke("ingest", copied, tmp_path / "store")
    assert done.exit_code == 1
    assert "failed: volume-0:" in done.stdout
    assert "6 cases: 5 done, 0 unchanged, 1 failed" in done.stdout


def test_an_unwritable_store_is_named(collection, tmp_path):
    (tmp_path / "file").touch()
    done = invoke("ingest", collection, tmp_path / "file")
    assert done.exit_code == 1
    assert "is a file, but a store is a folder" in done.stderr
