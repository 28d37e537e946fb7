"""Peers in environments of their own: made from pinned versions, timed as contenders, reported where they cannot run."""

import re
import sys

import pytest

from slicemill.bench.peers.environment import environment
from slicemill.bench.peers.peer import packages, requirements
from slicemill.bench.peers.remote import HERE, PeerProcess, ended
from slicemill.bench.records.tables import peers_inference_table, peers_table
from slicemill.bench.stages import peers_inference as inference
from slicemill.bench.stages import peers_loading as loading
from slicemill.bench.stages.peers_loading import BARE, OURS, run
from slicemill.common.errors import InputError

PEERS = loading.PEERS + inference.PEERS
WORKS = f"""
import json, sys
sys.path.insert(0, {str(HERE)!r})
import turns
print("a word that is no answer")
turns.take_turns(lambda: json.loads(sys.argv[1])["slices"])
"""


def test_packages_that_cannot_be_installed_are_reported_in_one_sentence(tmp_path):
    wanted = tmp_path / "wanted.txt"
    wanted.write_text(f"{tmp_path.as_posix()}/no-such-package\n")
    with pytest.raises(InputError, match=r"a peer: cannot be installed: .*install\.log"):
        environment(tmp_path / "peer", wanted, "a peer")
    assert not (tmp_path / "peer" / "installed").exists()


def test_an_environment_is_made_once_for_the_same_versions(tmp_path):
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("# nothing\n")
    python = environment(tmp_path / "peer", wanted, "a peer")
    assert python.exists()
    mark = tmp_path / "peer" / "environment" / "mark"
    mark.write_text("")
    assert environment(tmp_path / "peer", wanted, "a peer") == python
    assert mark.exists()
    wanted.write_text("# nothing else\n")
    environment(tmp_path / "peer", wanted, "a peer")
    assert not mark.exists()


def test_a_peer_does_a_round_when_it_is_told(tmp_path):
    script = tmp_path / "works.py"
    script.write_text(WORKS)
    with PeerProcess(name="works", python=sys.executable, script=str(script), given={"slices": 7}) as peer:
        peer()
        peer()
        assert peer.slices == 7


def test_a_peer_may_say_more_than_a_pipe_holds(tmp_path):
    script = tmp_path / "talks.py"
    script.write_text(WORKS.replace("turns.take", "sys.stderr.write('a word ' * 100_000); turns.take"))
    with PeerProcess(name="talks", python=sys.executable, script=str(script), given={"slices": 7}) as peer:
        peer()
        assert peer.slices == 7


def test_a_peers_cpu_time_counts_its_workers(tmp_path):
    script = tmp_path / "starts.py"
    script.write_text(
        "import subprocess, sys\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "import turns\n"
        "work = 'import time\\nwhile time.process_time() < 0.5: pass'\n"
        "turns.take_turns(lambda: subprocess.run([sys.executable, '-c', work]).returncode)\n"
    )
    with PeerProcess(name="starts", python=sys.executable, script=str(script), given={}) as peer:
        peer()
        assert 0.5 <= peer.cpu_seconds < 5


def test_a_peer_that_ends_is_told_with_its_last_word(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit('no such thing')")
    with (
        pytest.raises(InputError, match="fails: ended: no such thing"),
        PeerProcess(name="fails", python=sys.executable, script=str(script), given={}),
    ):
        pass


def test_a_peer_that_ends_in_a_round_leaves_the_others_running(tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(WORKS.replace("json.loads(sys.argv[1])", "{}"))
    with PeerProcess(name="dies", python=sys.executable, script=str(script), given={"slices": 7}) as peer:
        peer()
        peer()
    assert ended({"dies": peer, "ours": print}) == {"dies": "dies: ended: KeyError: 'slices'"}


@pytest.mark.parametrize("package", packages(PEERS))
def test_versions_are_pinned_by_name_and_version_alone(package):
    lines = requirements(package).read_text().splitlines()
    assert len(lines) > 1
    assert all(re.fullmatch(r"#.*|[A-Za-z0-9_-]+==[0-9.]+", line) for line in lines)


@pytest.mark.parametrize("script", sorted({peer.script for peer in PEERS}))
def test_scripts_of_peers_are_python(script):
    compile((HERE / script).read_text(), script, "exec")


@pytest.mark.slow
def test_a_peer_that_cannot_run_is_in_the_record_with_its_reason(tmp_path, monkeypatch):
    """Without network or packages: each peer's environment is this one, where none of them is installed."""
    monkeypatch.setattr("slicemill.bench.peers.peer.environment", lambda *_: sys.executable)
    monkeypatch.setattr("slicemill.bench.harness.subject.SIZE", 64)
    record = run(tmp_path / "work", tmp_path / "environments", slices=8, rounds=3, only=("monai",))
    assert list(record["results"]) == [OURS, BARE]
    assert set(record["not_run"]) == {"MONAI CacheDataset", "MONAI PersistentDataset"}
    assert "No module named 'monai'" in record["not_run"]["MONAI CacheDataset"]
    assert "not run" in peers_table(record)


@pytest.mark.slow
def test_ours_segments_where_no_peer_can_and_all_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("slicemill.bench.peers.peer.environment", lambda *_: sys.executable)
    monkeypatch.setattr("slicemill.bench.harness.subject.SIZE", 64)
    record = inference.run(tmp_path, tmp_path / "environments", slices=4, rounds=3, only=("monai", "nnunet"))
    assert list(record["results"]) == [inference.OURS, inference.BARE, inference.SESSION_ALONE]
    assert record["results"][inference.OURS]["cpu_milliseconds"] > 0
    assert set(record["not_run"]) == {"MONAI SliceInferer", "nnU-Net predictor, sequential"}
    assert peers_inference_table(record).count("not run") == 2
