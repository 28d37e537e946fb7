"""Limits of a process's memory: a command whose libraries could not load ends with one line, and no thread waits."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from slicemill.common import memory_limits
from slicemill.common.errors import ConfigError
from slicemill.common.extras import explain_import
from slicemill.common.memory_limits import DASK, ONNX, PLAIN, TORCH, Need, require_memory_limits

HERE = Path(__file__).parents[2]
NO_THREAD = """
import resource, threading
from slicemill.common import memory_limits
memory_limits.START_SECONDS = 1.0
memory_limits.bound_thread_starts()
thread = threading.Thread(target=print, args=("started",), kwargs={"flush": True})
thread.start()
thread.join()
resource.setrlimit(resource.RLIMIT_DATA, (60 << 20, 60 << 20))
held, size = [], 1 << 20
while size > 1000:
    try:
        held.append(bytearray(size))
    except MemoryError:
        size //= 2
try:
    threading.Thread(target=print).start()
except (MemoryError, RuntimeError) as error:
    held.clear()
    print(error)
"""


def run_limited(kind, kilobytes, *words):
    """Run the command line with a limit of memory."""
    limit = kilobytes * 1024
    return subprocess.run(
        [sys.executable, "-m", "slicemill", *words],
        capture_output=True,
        text=True,
        cwd=HERE,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(kind, (limit, limit)),
    )


@pytest.mark.parametrize(
    ("kind", "kilobytes", "shown"),
    [
        (resource.RLIMIT_AS, 250_000, "address space (ulimit -v) is 250,000 kB"),
        (resource.RLIMIT_AS, 400_000, "address space (ulimit -v) is 400,000 kB"),
        (resource.RLIMIT_DATA, 150_000, "private memory (ulimit -d) is 150,000 kB"),
    ],
)
@pytest.mark.parametrize(
    "words",
    [
        ("store", "manifest", "none"),
        ("ingest", "none", "store"),
        ("infer", "m.onnx", "none", "--out", "out"),
        ("measure", ".", "--out", "out"),
        ("train", "none", "run"),
    ],
)
def test_a_limit_of_memory_that_is_too_low_is_one_line(words, kind, kilobytes, shown):
    done = run_limited(kind, kilobytes, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"slicemill: not enough memory: the limit of {shown}; ")
    assert done.stderr.count("\n") == 1


def test_help_is_shown_whatever_the_limit():
    assert run_limited(resource.RLIMIT_AS, 250_000, "ingest", "--help").returncode == 0


@pytest.mark.slow  # the same limits must do on any machine, so the libraries are loaded and used
@pytest.mark.parametrize(("kind", "field"), [(resource.RLIMIT_AS, "address_mib"), (resource.RLIMIT_DATA, "data_mib")])
def test_the_least_limits_are_enough(kind, field, stored, collection, tmp_path):
    for need, words in (
        (PLAIN, ("store", "manifest", str(stored))),
        (DASK, ("ingest", str(collection), str(tmp_path / "store"))),
    ):
        needed = find_least(need, field)
        done = run_limited(kind, needed, *words)
        assert done.returncode == 0, done.stderr


def find_least(need, field):
    """Return the lowest limit that is not refused, kB."""
    cores = memory_limits.os.sched_getaffinity(0)
    threads_mib = 2 * memory_limits.THREAD_MIB * min(len(cores), memory_limits.MOST_THREADS)
    return (getattr(need, field) + threads_mib) * 1024


@pytest.mark.parametrize("need", [PLAIN, ONNX, DASK, TORCH])
def test_a_limit_is_refused_only_below_the_need(need, monkeypatch):
    limits = {resource.RLIMIT_AS: resource.RLIM_INFINITY, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(memory_limits.resource, "getrlimit", lambda kind: (limits[kind], limits[kind]))
    require_memory_limits(need, "x")
    for kind, field in ((resource.RLIMIT_AS, "address_mib"), (resource.RLIMIT_DATA, "data_mib")):
        limits[kind] = find_least(need, field) * 1024
        require_memory_limits(need, "x")
        limits[kind] -= 1
        with pytest.raises(ConfigError, match="x needs at least"):
            require_memory_limits(need, "x")
        limits[kind] = resource.RLIM_INFINITY


def test_more_cores_need_more(monkeypatch):
    monkeypatch.setattr(memory_limits.resource, "getrlimit", lambda _kind: (200 << 20, 200 << 20))
    for cores, refused in ((1, False), (32, True)):
        monkeypatch.setattr(memory_limits.os, "sched_getaffinity", lambda _pid, cores=cores: set(range(cores)))
        if refused:
            with pytest.raises(ConfigError, match="on 32 cores"):
                require_memory_limits(Need(100, 100), "x")
        else:
            require_memory_limits(Need(100, 100), "x")


def test_a_thread_without_memory_for_its_first_step_is_an_error_and_no_endless_wait():
    done = subprocess.run(
        [sys.executable, "-c", NO_THREAD], capture_output=True, text=True, cwd=HERE, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["started", "can't start new thread"], done.stderr


def test_a_package_that_is_installed_and_cannot_be_loaded_is_not_called_missing():
    missing = ConfigError("zip is not installed.")
    with pytest.raises(ConfigError, match=r"^zip is not installed\.$"), explain_import("zip", missing):
        raise ModuleNotFoundError("No module named 'zip'", name="zip")
    with (
        pytest.raises(ConfigError, match=r"zip is installed but cannot be loaded \(GLIBC"),
        explain_import("zip", missing),
    ):
        raise ImportError("GLIBC_9.9 not found", name="zip")
    with (
        pytest.raises(ConfigError, match=r"cannot be loaded \(No module named 'sub'\)"),
        explain_import("zip", missing),
    ):
        raise ModuleNotFoundError("No module named 'sub'", name="sub")
    with pytest.raises(ImportError, match="failed to map"), explain_import("zip", missing):
        raise ImportError("libzip.so: failed to map segment from shared object", name="zip")
