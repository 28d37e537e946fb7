"""Peers in separate environments: installed from pinned versions, timed as contenders, reported if they cannot run."""

import hashlib
import importlib
import re
import sys

import pytest

from slicemill.bench.peers import environment
from slicemill.bench.peers.environment import prepare_environment
from slicemill.bench.peers.peer import StartedPeers, packages, requirements_file
from slicemill.bench.peers.remote import HERE, PeerProcess
from slicemill.bench.records.readme import format_record
from slicemill.bench.stages import peers_inference as inference
from slicemill.bench.stages import peers_loading as loading
from slicemill.bench.stages.peers_loading import BARE, SLICEMILL, run
from slicemill.common.errors import InputError

PEERS = loading.PEERS + inference.PEERS
WORKS = f"""
import json, sys
sys.path.insert(0, {str(HERE)!r})
import rounds
print("a line that is not a reply")
rounds.serve_rounds(lambda: json.loads(sys.argv[1])["slices"])
"""


@pytest.mark.slow
def test_an_environment_is_made_once_for_the_same_versions_and_failures_are_one_sentence(tmp_path, monkeypatch):
    requirements, folder = tmp_path / "requirements.txt", tmp_path / "peer"
    requirements.write_text(f"{tmp_path.as_posix()}/no-such-package\n")
    with pytest.raises(InputError, match=r"a peer: cannot be installed: .*install\.log"):
        prepare_environment(folder, requirements, "a peer")
    assert not (folder / "installed").exists()
    mark = folder / "environment" / "mark"
    mark.write_text("of other versions")
    requirements.write_text("# nothing\n")
    python = prepare_environment(folder, requirements, "a peer")
    assert python.exists()
    assert not mark.exists()
    mark.write_text("of these versions")
    assert prepare_environment(folder, requirements, "a peer") == python
    assert mark.exists()
    requirements.write_text("# nothing else\n")
    made = []
    monkeypatch.setattr(environment.subprocess, "run", lambda words, **_: made.append(words) or Done())
    prepare_environment(folder, requirements, "a peer")
    assert [words[1:4] for words in made] == [["-m", "venv", "--clear"], ["-m", "pip", "install"]]


class Done:
    """A program that ended well."""

    returncode = 0


def test_a_peer_does_one_round_per_request(tmp_path):
    script = tmp_path / "works.py"
    script.write_text(WORKS)
    with PeerProcess(name="works", python=sys.executable, script=str(script), request={"slices": 7}) as peer:
        peer()
        peer()
        assert peer.slices == 7


def test_a_peer_may_write_more_than_a_pipe_holds(tmp_path):
    script = tmp_path / "talks.py"
    script.write_text(WORKS.replace("rounds.serve", "sys.stderr.write('a word ' * 100_000); rounds.serve"))
    with PeerProcess(name="talks", python=sys.executable, script=str(script), request={"slices": 7}) as peer:
        peer()
        assert peer.slices == 7


def test_a_peers_cpu_time_counts_its_workers(tmp_path):
    script = tmp_path / "starts.py"
    script.write_text(
        "import subprocess, sys\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "import rounds\n"
        "work = 'import time\\nwhile time.process_time() < 0.5: pass'\n"
        "rounds.serve_rounds(lambda: subprocess.run([sys.executable, '-c', work]).returncode)\n"
    )
    with PeerProcess(name="starts", python=sys.executable, script=str(script), request={}) as peer:
        peer()
        assert 0.5 <= peer.cpu_seconds < 5


def test_the_error_of_a_peer_that_ends_holds_its_last_line(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit('no such thing')")
    with (
        pytest.raises(InputError, match="fails: ended: no such thing"),
        PeerProcess(name="fails", python=sys.executable, script=str(script), request={}),
    ):
        pass


def test_a_peer_that_ends_in_a_round_leaves_the_others_running(tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(WORKS.replace("json.loads(sys.argv[1])", "{}"))
    with PeerProcess(name="dies", python=sys.executable, script=str(script), request={"slices": 7}) as peer:
        peer()
        peer()
    started = StartedPeers(processes={"dies": peer}, failures={"other": "cannot be installed"})
    assert started.not_run() == {"other": "cannot be installed", "dies": "dies: ended: KeyError: 'slices'"}


@pytest.mark.parametrize("package", packages(PEERS))
def test_versions_are_pinned_by_name_and_version_alone(package):
    lines = requirements_file(package).read_text().splitlines()
    assert len(lines) > 1
    assert all(re.fullmatch(r"#.*|[A-Za-z0-9_-]+==[0-9.]+", line) for line in lines)


@pytest.mark.parametrize(("script", "peers"), [("load_slices", loading.PEERS), ("segment_scans", inference.PEERS)])
def test_a_script_knows_the_way_of_every_peer(script, peers, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    assert set(importlib.import_module(script).WAYS) == {peer.way for peer in peers}


def fake_environments(folder):
    """Write environments into `folder` that look installed, but use this interpreter."""
    for package in packages(PEERS):
        python = folder / package / "environment" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        stamp = hashlib.sha256(requirements_file(package).read_bytes()).hexdigest()
        (folder / package / "installed").write_text(stamp)


@pytest.mark.slow
def test_a_peer_that_cannot_run_is_in_the_record_with_its_reason(tmp_path, monkeypatch):
    fake_environments(tmp_path / "environments")
    monkeypatch.setattr("slicemill.bench.harness.subject.SIZE", 64)
    record = run(tmp_path / "work", tmp_path / "environments", slices=8, rounds=3, only=("monai",))
    assert list(record["results"]) == [SLICEMILL, BARE]
    assert set(record["not_run"]) == {"MONAI CacheDataset", "MONAI PersistentDataset"}
    assert "No module named 'monai'" in record["not_run"]["MONAI CacheDataset"]
    assert "not run" in format_record(record)


@pytest.mark.slow
def test_the_usual_script_gives_equal_masks_and_peers_without_packages_are_in_the_record(tmp_path, monkeypatch):
    fake_environments(tmp_path / "environments")
    monkeypatch.setattr("slicemill.bench.harness.subject.SIZE", 64)
    quick = tuple(peer for peer in inference.PEERS if peer.way != "script-compiled")  # compiling takes minutes
    monkeypatch.setattr(inference, "PEERS", quick)
    record = inference.run(tmp_path, tmp_path / "environments", slices=4, rounds=3)
    script = "script, torch eager"
    assert list(record["results"]) == [inference.SLICEMILL, inference.BARE, inference.SESSION_ALONE, script]
    assert record["results"][inference.SLICEMILL]["cpu_milliseconds"] > 0
    assert set(record["not_run"]) == {"MONAI SliceInferer", "TorchIO GridSampler", "nnU-Net predictor, sequential"}
    assert format_record(record).count("not run") == 3
    assert min(record["dice"][script].values()) >= inference.LEAST_DICE
