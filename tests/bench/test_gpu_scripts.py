"""The scripts that measure on a GPU go on after a part that fails, and say so at the end."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ("one.sh", "two.sh")


def run(lines, out, **environment):
    """Run lines of a script after common.sh, with `true` in Python's place."""
    return subprocess.run(
        ["sh", "-c", f". bench/gpu/common.sh\n{lines}\nfinish"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "OUT": str(out), "PACK": str(out / "none"), "PYTHON": "true", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_part_that_fails_or_takes_too_long_does_not_stop_the_others(tmp_path):
    done = run("part a 5 sh -c 'echo broken; exit 3'\npart b 1 sleep 30\npart c 5 echo fine", tmp_path, DRY="1")
    assert done.returncode == 1
    assert "a FAILED: exit status 3" in done.stdout
    assert "b FAILED: exit status 124" in done.stdout
    assert "some parts FAILED" in done.stdout
    assert (tmp_path / "a.log").read_text() == "broken\n"
    assert (tmp_path / "c.log").read_text() == "fine\n"


def test_all_parts_passing_is_exit_0_and_a_dry_run_names_what_it_leaves_out(tmp_path):
    done = run("on_gpu card 5 false\npart c 5 echo fine", tmp_path, DRY="1")
    assert done.returncode == 0, done.stderr
    assert "card: needs a GPU; left out" in done.stdout
    assert "all parts passed" in done.stdout


def test_a_part_leaves_the_variables_of_the_script_alone(tmp_path):
    """sh has no local variables: a part that set `limit` would change the limits of those after it."""
    done = run(
        "limit=2 name=n status=s\npart a $((3 * limit)) true\npart b $((4 * limit)) true\necho $name$status",
        tmp_path,
        DRY="1",
    )
    assert "a (at most 6 s)" in done.stdout
    assert "b (at most 8 s)" in done.stdout
    assert "\nns\n" in done.stdout


def test_a_pack_that_is_not_whole_is_named(tmp_path):
    (tmp_path / "pack").mkdir()
    done = run("part c 5 echo fine", tmp_path, DRY="1", PACK=str(tmp_path / "pack"))
    assert done.returncode == 1
    assert "ort.tar.xz is missing; make it with bench/gpu/pack.sh" in done.stdout
    assert not (tmp_path / "c.log").exists()


@pytest.mark.parametrize("name", [*SCRIPTS, "common.sh", "pack.sh"])
def test_the_scripts_are_right_for_sh(name):
    subprocess.run(["sh", "-n", ROOT / "bench" / "gpu" / name], check=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_limits_of_a_script_fit_a_command_of_ten_minutes(name):
    """With half a minute to unpack, and ten seconds that a part may take to end."""
    text = (ROOT / "bench" / "gpu" / name).read_text().replace("$((", "").replace(" * limit))", "")
    limits = [int(words[2].replace("$limit", "270")) for words in map(str.split, text.splitlines())
              if words[:1] in (["part"], ["on_gpu"])]  # fmt: skip
    assert len(limits) >= 3
    assert 30 + sum(limit + 10 for limit in limits) <= 600
