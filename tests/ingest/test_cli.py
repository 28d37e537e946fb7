"""The command `slicemill ingest`: what it prints, and its exit status."""

import pytest
from typer.testing import CliRunner

from slicemill.cli import commands


def invoke(*words):
    return CliRunner().invoke(commands(), [*map(str, words)])


def test_a_dry_run_shows_the_table_and_writes_nothing(collection, tmp_path):
    done = invoke("ingest", collection, tmp_path / "store", "--dry-run")
    assert "volume-3  volume-3  volume-3.nii     segmentation-3.nii" in done.stdout
    assert "6 cases, 6 with a mask" in done.stdout
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("status", "words", "message"),
    [
        (2, ["ingest"], "pass the folder with the scans"),
        (1, ["ingest", "nowhere", "store"], "nowhere: there is no such folder"),
        (2, ["ingest", "COLLECTION", "store", "--shard", "3/3"], "expected I/N"),
        (2, ["ingest", "COLLECTION", "store", "--labels", "liver"], "expected NAME=VALUE"),
        (2, ["ingest", "COLLECTION"], "pass the folder of the store"),
        (2, ["ingest", "COLLECTION", "store", "--masks", "*_seg.nii"], "--masks needs --images"),
        (2, ["ingest", "store", "--pairs", "cases.csv", "--masks", "*_seg.nii"], "--masks needs --images"),
        (2, ["ingest", "store", "--pairs", "cases.csv", "--images", "*.nii"], "exactly one of a folder, --pairs and"),
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
    ("option", "choices"), [("--geometry", ("error", "trust-image")), ("--profile", ("compact", "fast"))]
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
