"""The engine: batches across scans, bounded memory, failures that stay where they are."""

import gc
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

import slicemill.infer.run.scan_queue
from slicemill.common.errors import ConfigError, ProviderError, ScanError, UsageError
from slicemill.common.files import read_lines
from slicemill.ct.formats.nifti.names import stem_of
from slicemill.ct.phantom import write_nifti
from slicemill.infer.inputs.gather import gather
from slicemill.infer.network.model import open_model
from slicemill.infer.run.ledger import RunLedger
from slicemill.infer.run.options import InferOptions, estimate_scan_bytes
from slicemill.infer.run.pipeline import infer as segment_all
from slicemill.infer.run.scan_queue import ScanQueue, Stopped
from slicemill.infer.run.timing import Stopwatch
from slicemill.infer.runtime.capacity import Capacity
from slicemill.infer.slices.assembly import plan_of
from tests.contents import content
from tests.infer.test_parts import planned

HERE = Path(__file__).parents[2]
SPACING = (3.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Ten scans of 1 to 9 slices; some larger and some smaller than the model's."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(3)
    for number in range(10):
        shape = (1 + number % 9, (64, 50, 90)[number % 3], 64)
        write_nifti(folder / f"scan-{number}.nii.gz", rng.integers(-200, 300, shape, dtype=np.int16), SPACING)
    return folder


def run(model, inputs, out, **options):
    opened = model if not isinstance(model, Path) else open_model(model, "cpu")
    return segment_all(opened, gather(inputs)[0], out, InferOptions(**options))


def masks(folder):
    return {path.name: content(path) for path in sorted(folder.rglob("*.nii.gz"))}


def test_the_size_of_a_batch_and_the_number_of_threads_change_no_label(model, scans, tmp_path):
    run(model, [scans], tmp_path / "one", batch=1, readers=1, writers=1)
    for name, options in (("seven", {"batch": 7}), ("large", {"batch": 500, "readers": 3, "writers": 3})):
        assert run(model, [scans], tmp_path / name, **options).count("done") == 10
        assert masks(tmp_path / name) == masks(tmp_path / "one")


def test_slices_of_several_scans_share_a_batch(model, scans, tmp_path):
    opened = open_model(model, "cpu")
    sizes = []
    session = opened.session

    class Counting:
        def io_binding(self):
            return session.io_binding()

        def run_with_iobinding(self, binding):
            session.run_with_iobinding(binding)
            sizes.append(len(binding.get_outputs()[0].numpy()))

    opened.session = Counting()
    summary = run(opened, [scans], tmp_path, batch=20)
    units = sum(
        len(plan_of(opened.info, (1 + n % 9, (64, 50, 90)[n % 3], 64), SPACING).tiles) * (1 + n % 9) for n in range(10)
    )
    assert summary.count("done") == 10
    assert sum(sizes) == units
    assert len(sizes) <= -(-units // 20) + 2


def test_every_second_is_on_some_stage_and_every_scan_in_the_summary(model, scans, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "bad.nii.gz").write_bytes(b"no scan")
    run(model, [scans, tmp_path / "more"], tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["scans"] == {"done": 10, "skipped": 0, "failed": 1}
    assert sum(row["share"] for row in summary["stages"].values()) == pytest.approx(1, abs=0.01)
    assert all(summary["stages"][stage]["seconds"] > 0 for stage in ("decode", "device", "scatter", "report", "write"))
    assert 0 < summary["device_busy"] <= 1
    assert summary["peak_mib"] > 50


def test_a_scan_that_cannot_be_read_fails_by_itself_and_is_not_tried_again_unless_asked(model, scans, tmp_path):
    folder = shutil.copytree(scans, tmp_path / "scans")
    (folder / "scan-4.nii.gz").write_bytes((folder / "scan-4.nii.gz").read_bytes()[:-900])
    first = run(model, [folder], tmp_path / "out")
    assert (first.count("done"), first.count("failed")) == (9, 1)
    assert not (tmp_path / "out" / "scan-4.nii.gz").exists()
    before = len(read_lines(tmp_path / "out" / "ledger.jsonl"))
    again = run(model, [folder], tmp_path / "out")
    assert (again.count("skipped"), again.count("failed")) == (9, 1)
    assert "failed before; --retry-failed tries it again" in next(
        o.reason for o in again.outcomes if o.status == "failed"
    )
    assert len(read_lines(tmp_path / "out" / "ledger.jsonl")) == before
    assert run(model, [folder], tmp_path / "out", retry_failed=True).count("failed") == 1
    assert len(read_lines(tmp_path / "out" / "ledger.jsonl")) == before + 1
    shutil.copy(scans / "scan-4.nii.gz", folder / "scan-4.nii.gz")
    assert run(model, [folder], tmp_path / "out").count("done") == 1


class Failing:
    """A model whose device fails once, at the third batch, or with `again` also at the first batch of its new session."""

    def __init__(self, path, again=False):
        self._model = open_model(path, "cpu")
        self._again = again
        self._lock = threading.Lock()
        self.count = self.rebuilt = 0
        self._wrap()

    def _wrap(self):
        real = self._model.session
        outer = self

        class Session:
            def io_binding(self):
                return real.io_binding()

            def run_with_iobinding(self, binding):
                with outer._lock:
                    outer.count += 1
                    fails = outer.count == 3 or (outer._again and outer.rebuilt == 1)
                if fails:
                    raise RuntimeError("CUDA error 700\nand a long story")
                real.run_with_iobinding(binding)

        self._model.session = Session()
        plain = self._model.rebuild

        def rebuild():
            self.rebuilt += 1
            self._model.session = real
            plain()
            self._model.rebuild = plain
            self._wrap()

        self._model.rebuild = rebuild

    @property
    def model(self):
        return self._model


def test_a_device_that_fails_once_fails_the_scans_of_that_batch_only(model, scans, tmp_path):
    failing = Failing(model)
    summary = run(failing.model, [scans], tmp_path / "out", batch=4, readers=1)
    failed = [outcome for outcome in summary.outcomes if outcome.status == "failed"]
    assert failing.rebuilt == 1
    assert 1 <= len(failed) <= 4
    assert summary.count("done") == 10 - len(failed)
    for outcome in failed:
        assert outcome.reason.endswith("cpu: the device failed (CUDA error 700).")
        assert outcome.name in outcome.reason
        assert not (tmp_path / "out" / outcome.name).exists()
    assert run(model, [scans], tmp_path / "out").count("done") == len(failed), "tried again without being asked"
    run(model, [scans], tmp_path / "whole")
    assert masks(tmp_path / "out") == masks(tmp_path / "whole")


def test_a_device_that_fails_again_ends_the_run_and_every_scan_is_accounted_for(model, scans, tmp_path):
    failing = Failing(model, again=True)
    with pytest.raises(ProviderError, match="failed again after its session was rebuilt"):
        run(failing.model, [scans], tmp_path / "out", batch=2, readers=1)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert sum(summary["scans"].values()) == 10
    assert summary["scans"]["failed"] > 0
    assert len({row["name"] for row in summary["outcomes"]}) == 10
    assert run(model, [scans], tmp_path / "out").count("failed") == 0


def test_a_bug_in_one_scan_is_raised_and_leaves_a_summary(model, scans, tmp_path, monkeypatch):
    import slicemill.infer.run.pipeline

    real = slicemill.infer.run.pipeline.overlay

    def wrong(volume, *given):
        if len(volume) == 7:
            raise KeyError("a bug")
        return real(volume, *given)

    monkeypatch.setattr("slicemill.infer.run.pipeline.overlay", wrong)
    with pytest.raises(KeyError, match="a bug"):
        run(model, [scans], tmp_path / "out")
    assert sum(json.loads((tmp_path / "out" / "summary.json").read_text())["scans"].values()) == 10


class TestMemory:
    def test_memory_for_one_scan_at_a_time_is_enough(self, model, scans, tmp_path, monkeypatch):
        """A batch that could hold ten scans does not wait for the next one, which waits for its memory."""
        opened = open_model(model, "cpu")
        most = max(
            estimate_scan_bytes(plan_of(opened.info, (1 + n % 9, (64, 50, 90)[n % 3], 64), SPACING)) for n in range(10)
        )
        monkeypatch.setattr("slicemill.infer.run.pipeline.memory_for_scans", lambda *_: most)
        held = []
        real = ScanQueue.admit

        def admit(line, amount):
            real(line, amount)
            held.append(line.held_bytes)

        monkeypatch.setattr(ScanQueue, "admit", admit)
        assert run(opened, [scans], tmp_path, batch=100, readers=4).count("done") == 10
        assert len(held) == 10
        assert max(held) <= most

    def test_a_scan_that_was_written_is_kept_by_nobody(self, model, scans, tmp_path, monkeypatch):
        import slicemill.infer.run.pipeline

        written, alive = [], []
        real = slicemill.infer.run.pipeline.Run.write

        def write(one, ticket):
            gc.collect()
            alive.append(sum(ref() is not None for ref in written))
            real(one, ticket)
            written.append(weakref.ref(ticket.scan))

        monkeypatch.setattr(slicemill.infer.run.pipeline.Run, "write", write)
        monkeypatch.setattr("slicemill.infer.run.pipeline.memory_for_scans", lambda *_: 5_000_000)
        assert run(model, [scans], tmp_path, batch=2, readers=1, writers=1).count("done") == 10
        assert max(alive) <= 2, "at most what the lanes are about to leave"

    def test_a_scan_that_needs_more_than_all_is_refused_by_name(self, model, scans, tmp_path, monkeypatch):
        opened = open_model(model, "cpu")
        least = estimate_scan_bytes(plan_of(opened.info, (6, 64, 64), SPACING))
        monkeypatch.setattr("slicemill.infer.run.pipeline.memory_for_scans", lambda *_: least)
        summary = run(opened, [scans], tmp_path)
        failed = [outcome for outcome in summary.outcomes if outcome.status == "failed"]
        assert 1 <= len(failed) < 10
        assert all("more than the" in one.reason and stem_of(one.name) in one.reason for one in failed)
        assert all("--max-memory" in one.reason for one in failed)

    def test_less_than_the_model_takes_is_one_clear_error(self, model, scans, tmp_path):
        with pytest.raises(ConfigError, match="--max-memory 0.001: the model alone takes"):
            run(model, [scans], tmp_path, max_memory_gb=0.001)

    @pytest.mark.parametrize("amount", [-1, float("inf"), float("nan"), 1e300])
    def test_memory_that_no_machine_has_is_refused(self, amount):
        with pytest.raises(
            ConfigError, match=rf"--max-memory {re.escape(f'{amount:g}')}: must not be negative, nor more"
        ):
            InferOptions(max_memory_gb=amount)

    def test_negative_settings_are_refused(self):
        with pytest.raises(ConfigError, match="--readers -1: must not be negative"):
            InferOptions(readers=-1)


class TestLine:
    def scan(self, slices):
        return planned(np.zeros((slices, 4, 4), np.int16), (4, 4), 1, 1.0)

    def test_a_full_batch_is_handed_out_at_once_and_a_short_one_when_nothing_can_fill_it(self):
        line = ScanQueue(Capacity(4, 4), 100)
        with line.reader():
            with line.busy():
                line.add(self.scan(6))
                assert len(line.take().units) == 4
                taken = []
                thread = threading.Thread(target=lambda: taken.append(line.take()))
                thread.start()
                time.sleep(3 * slicemill.infer.run.scan_queue.LINGER_SECONDS)
                assert not taken, "a reader is at work: more may come"
            thread.join(5)
            assert len(taken[0].units) == 2
        assert line.take() is None

    def test_a_reader_that_waits_for_memory_does_not_keep_a_short_batch_waiting(self):
        line = ScanQueue(Capacity(4, 4), 100)
        with line.reader(), line.busy():
            line.admit(80)
            line.add(self.scan(1))
            taken = []
            lane = threading.Thread(target=lambda: taken.append(line.take()))
            lane.start()
            waiting = threading.Thread(target=lambda: line.admit(50))
            line._count_busy(1)
            waiting.start()
            line._count_busy(-1)
            lane.join(5)
            assert len(taken[0].units) == 1
            assert waiting.is_alive()
            line.release(80)
            waiting.join(5)
            assert line.held_bytes == 50

    def test_whoever_waits_is_let_go_at_the_end(self):
        line = ScanQueue(Capacity(4, 4), 100)
        caught = []

        def read():
            with line.reader(), line.busy():
                line.admit(80)
                try:
                    line.admit(80)
                except Stopped as stopped:
                    caught.append(stopped)

        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(0.1)
        line.stop()
        thread.join(5)
        assert caught
        assert line.take() is None

    def test_more_than_there_is_is_refused(self):
        with pytest.raises(ScanError, match="needs about 0.00 GiB of memory, more than"):
            ScanQueue(Capacity(4, 4), 100).admit(101)


class TestTwoRuns:
    def test_a_scan_that_another_run_has_claimed_is_left_to_it(self, model, scans, tmp_path):
        opened = open_model(model, "cpu")
        jobs, _ = gather([scans])
        with RunLedger(tmp_path, opened, InferOptions()).claim(jobs[3]):
            summary = run(opened, [scans], tmp_path)
        left = next(outcome for outcome in summary.outcomes if outcome.name == jobs[3].name)
        assert (left.status, left.reason) == ("skipped", "another run is at work on it")
        assert summary.count("done") == 9

    def test_two_runs_at_once_do_each_scan_once(self, model, scans, tmp_path):
        words = [sys.executable, "-m", "slicemill", "infer", str(model), str(scans), "--out", str(tmp_path)]
        runs = [subprocess.Popen(words, cwd=HERE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = [process.communicate()[0] for process in runs]
        assert [process.returncode for process in runs] == [0, 0], said
        done = [line["name"] for line in read_lines(tmp_path / "ledger.jsonl") if line["status"] == "done"]
        assert sorted(done) == [f"scan-{number}.nii.gz" for number in range(10)]


def test_the_stopwatch_adds_threads_up():
    watch = Stopwatch()

    def work():
        with watch.timed("decode"):
            time.sleep(0.05)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watch.add("write", 0.15)
    times = watch.stage_times()
    assert times["decode"].seconds >= 0.15
    assert times["decode"].share == pytest.approx(times["decode"].seconds / (times["decode"].seconds + 0.15), abs=1e-3)


def test_a_scan_is_whole_when_its_last_unit_is_in():
    scan = planned(np.zeros((3, 4, 4), np.int16), (4, 4), 1, 1.0)
    assert [scan.count_labeled(count) for count in (1, 2)] == [False, True]


class TestDevices:
    def test_two_devices_share_the_work_and_each_is_compared_first(self, model, scans, tmp_path, monkeypatch):
        run(model, [scans], tmp_path / "one")
        opened = [open_model(model, "cpu") for _ in range(2)]
        used, checked = [], []
        for one in opened:
            one.provider = "cuda"
        monkeypatch.setattr("slicemill.infer.network.lanes.ON_DEVICE", ())
        monkeypatch.setattr("slicemill.infer.run.pipeline.open_models", lambda *_: opened)
        monkeypatch.setattr("slicemill.infer.run.pipeline.check_parity", lambda one, scan, lane: checked.append(one))
        feed = type(opened[0]).feed

        def counted(one, *given):
            used.append(one)
            time.sleep(0.02)  # a device that takes a while, so that one lane cannot do all
            return feed(one, *given)

        monkeypatch.setattr(type(opened[0]), "feed", counted)
        assert run(opened[0], [scans], tmp_path / "two", batch=2, devices=(0, 1)).count("done") == 10
        assert set(used) == set(checked) == set(opened)
        assert len(checked) == 2
        assert masks(tmp_path / "two") == masks(tmp_path / "one")

    def test_numbers_that_are_no_devices_are_refused(self, model):
        for devices in ((), (0, 0), (-1,)):
            with pytest.raises(ConfigError, match="expected numbers of GPUs, each once, like 0,1"):
                InferOptions(devices=devices)
        with pytest.raises(UsageError, match="--devices 1: the CPU is one device, 0"):
            open_model(model, "cpu", 1)

    def test_gpus_that_auto_does_not_find_are_missed_and_not_replaced(self, model, scans, tmp_path, monkeypatch):
        monkeypatch.setattr("slicemill.infer.runtime.providers.no_cuda", lambda: "no NVIDIA driver answers")
        with pytest.raises(ProviderError, match="--devices 1: auto would take the CPU, .* no NVIDIA driver answers"):
            open_model(model, "auto", 1)
        opened = open_model(model, "auto")
        with pytest.raises(ProviderError, match=r"--devices 0,1: cpu runs on one device, .*no NVIDIA driver answers"):
            run(opened, [scans], tmp_path / "out", devices=(0, 1))
        assert not list(tmp_path.rglob("summary.json"))
