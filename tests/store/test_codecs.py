"""The threads of the blosc codec."""

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numcodecs import blosc

from slicemill.store.case import SliceStats
from slicemill.store.codecs import make_codec
from slicemill.store.reader import open_store
from slicemill.store.writer import CaseWriter, prepare_store

HERE = Path(__file__).parents[2]


class TestBloscThreads:
    """blosc works in one thread wherever slices are encoded or decoded, and nowhere else."""

    @pytest.fixture
    def seen(self, monkeypatch):
        """The switch of numcodecs is on, and its values during each call are noted."""
        values, real = [], (blosc.compress, blosc.decompress)
        monkeypatch.setattr(blosc, "use_threads", True)
        monkeypatch.setattr(blosc, "compress", lambda *a, **k: (values.append(blosc.use_threads), real[0](*a, **k))[1])
        monkeypatch.setattr(blosc, "decompress", lambda *a: (values.append(blosc.use_threads), real[1](*a))[1])
        return values

    @staticmethod
    def large(stored):
        """Two slices of several blocks, and their case."""
        info = open_store(stored)["volume-0"].info
        stats = SliceStats(hu_min=[0, 0], hu_max=[8, 8], voxels={})
        image = np.random.default_rng(0).integers(0, 9, (2, 1024, 1024), np.int16)
        return replace(
            info, case_id="x", shape=image.shape, labels=None, mask=None, slice_stats=stats, lesions=None
        ), image

    def test_a_slice_of_one_block_never_uses_the_pool(self, stored):
        code = (
            "import os, sys; from numcodecs import blosc; from slicemill.store.reader import open_store\n"
            "blosc.use_threads = True; blosc.set_nthreads(8); before = len(os.listdir('/proc/self/task'))\n"
            "open_store(sys.argv[1])['volume-0'].image[:]; print(len(os.listdir('/proc/self/task')) - before)"
        )
        words = [sys.executable, "-c", code, str(stored)]
        assert subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True).stdout == "0\n"

    def test_while_a_case_is_written_and_read(self, seen, tmp_path, stored):
        info, image = self.large(stored)
        with CaseWriter(prepare_store(tmp_path / "store"), "x", info.shape, has_mask=False, profile="fast") as writer:
            writer.write("image", 0, image)
            writer.finish(info)
        assert np.array_equal(open_store(tmp_path / "store")["x"].image[:], image)
        assert seen == [False] * 4
        assert blosc.use_threads is True

    def test_while_other_threads_leave(self, seen, rng):
        codec = make_codec("fast", "image", 1024 * 1024)
        voxels = rng.integers(0, 9, (1024, 1024), np.int16)
        threads = [threading.Thread(target=lambda: [codec.encode(voxels) for _ in range(9)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(seen) == {False}
        assert blosc.use_threads is True

    def test_after_a_fork_while_another_thread_was_entering(self):
        code = (
            "import os; from numcodecs import blosc; from slicemill.store.codecs import _IN_ONE_THREAD as scope\n"
            "scope._lock.acquire(); child = os.fork()\n"
            "if not child:\n"
            "    with scope: inside = blosc.use_threads\n"
            "    os._exit(0 if (inside, blosc.use_threads) == (False, None) else 1)\n"
            "print(os.waitpid(child, 0)[1])"
        )
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout == "0\n"

    def test_importing_the_store_changes_nothing(self):
        code = "import slicemill.store.writer; from numcodecs import blosc; print(blosc.use_threads)"
        done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
        assert done.stdout == "None\n"
