"""The engine: batches across scans, bounded memory, failures that affect only their scan or batch."""

import gc
import signal
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest

from slicemill.common.errors import ModelError, ProviderError, ReadError, ScanError
from slicemill.infer.runtime.capacity import Capacity
from tests.infer.fakes import SIDE, FakeModel, FakeRun


def volumes(*slices):
    rng = np.random.default_rng(3)
    return [rng.integers(0, 2000, (count, SIDE, SIDE), dtype=np.int16) for count in slices]


TEN = [1 + number % 9 for number in range(10)]


@pytest.mark.parametrize(("labels", "readers", "writers"), [(1, 1, 1), (7, 2, 2), (500, 3, 3)])
def test_the_size_of_a_batch_and_the_number_of_threads_change_no_label(labels, readers, writers):
    capacity = Capacity(labels, labels)
    run = FakeRun(volumes(*TEN), [FakeModel()], capacity=capacity, readers=readers, writers=writers).run()
    assert len(run.labels) == 10
    assert run.correct
    assert run.units == sum(TEN)


def test_slices_of_several_scans_share_a_batch():
    """On a CPU, what nothing can fill is divided among the lanes instead."""
    model = FakeModel("cuda")
    FakeRun(volumes(*TEN), [model], capacity=Capacity(20, 20)).run()
    assert sum(model.batches) == sum(TEN)
    assert len(model.batches) <= -(-sum(TEN) // 20) + 2


def test_a_device_that_fails_once_fails_the_scans_of_that_batch_only():
    model = FakeModel(fails_at=[3])
    run = FakeRun(volumes(*TEN), [model], readers=1).run()
    assert model.rebuilt == 1
    assert 1 <= len(run.errors) <= 4
    assert len(run.labels) == 10 - len(run.errors)
    assert run.correct
    for error in run.errors.values():
        assert isinstance(error, ProviderError)
        assert str(error) == "cpu: the device failed (CUDA error 700)."


WRONG_SHAPE = (
    "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : The output OrtValue provided for output 'label' of node '' (Cast) has "
    "shape {4,16,16} but the computed output shape for this run is {4,16,8}. When calling Run() with"
)


def test_labels_of_another_shape_than_declared_end_the_run_and_the_model_is_named_as_the_cause():
    model = FakeModel(fails_at=[2], message=WRONG_SHAPE)
    run = FakeRun(volumes(*TEN), [model], readers=1)
    with pytest.raises(ModelError, match="output label must have .* declares, 4 x 16 x 16 .* 4 x 16 x 8"):
        run.run()
    assert model.rebuilt == 0
    assert all(isinstance(error, ModelError) for error in run.errors.values())
    assert run.correct


def test_a_batch_without_memory_says_memory():
    message = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 4096"
    run = FakeRun(volumes(*TEN), [FakeModel(fails_at=[2], message=message)], readers=1).run()
    assert run.errors
    assert all("cpu: not enough memory for a batch (Failed to alloc" in str(error) for error in run.errors.values())


def test_a_device_that_fails_again_ends_the_run():
    run = FakeRun(volumes(*TEN), [FakeModel(fails_at=range(3, 99))], capacity=Capacity(2, 2), readers=1)
    with pytest.raises(ProviderError, match=r"--provider cpu: the device failed again after its session was rebuilt"):
        run.run()
    assert run.errors
    assert run.correct


def test_a_device_that_this_process_can_no_longer_use_ends_the_run():
    """After an illegal memory access every call of CUDA fails, as long as the process lives."""

    class Lost(FakeModel):
        def rebuild(self):
            raise ProviderError("does not run here") from RuntimeError("CUDA failure 700: again ; GPU=0")

    run = FakeRun(volumes(*TEN), [Lost("cuda", fails_at=[3])], capacity=Capacity(2, 2), readers=1)
    with pytest.raises(
        ProviderError,
        match=r"cuda: the device failed \(CUDA error 700\), and this process can no longer use it "
        r"\(CUDA failure 700: again\). Run the same command again to continue",
    ):
        run.run()
    assert run.errors
    assert all(str(error) == "cuda: the device failed (CUDA error 700)." for error in run.errors.values())
    assert run.correct


def test_nothing_holds_the_old_session_when_a_device_is_rebuilt():
    class Session:
        """What the memory of a GPU belongs to."""

    alive = []

    class Tracked(FakeModel):
        def rebuild(self):
            old = weakref.ref(self.session)
            self.session = None
            alive.append(old() is not None)
            self.session = Session()
            super().rebuild()

    def fail(number):
        session = model.session  # what a frame of the failed call refers to
        if number == 3:
            raise RuntimeError(session)

    model = Tracked("cuda", on_batch=fail)
    model.session = Session()
    assert FakeRun(volumes(*TEN), [model], capacity=Capacity(2, 2), readers=1).run().correct
    assert alive == [False]


class Troubled(FakeRun):
    """Scan 4 is damaged, scan 7 does not fit on the disk."""

    def read(self, job, reserve_memory):
        current = super().read(job, reserve_memory)
        if job.name == "4":
            raise ScanError("damaged")
        return current

    def write(self, current):
        if current.job.name == "7":
            raise OSError(28, "No space left on device")
        super().write(current)


def test_a_scan_that_cannot_be_read_or_written_fails_alone_and_leaves_no_memory_taken():
    run = Troubled(volumes(*TEN), [FakeModel()]).run()
    assert {name: type(error) for name, error in run.errors.items()} == {"4": ScanError, "7": OSError}
    assert len(run.labels) == 8
    assert run.engine._queue.reserved_bytes == 0


def test_a_bug_in_one_scan_ends_the_run_and_is_raised():
    class Wrong(FakeRun):
        def write(self, current):
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        Wrong(volumes(*TEN), [FakeModel()]).run()


class TestMemory:
    def test_memory_for_one_scan_at_a_time_is_enough(self):
        """A batch that could hold ten scans does not wait for the next one, which waits for its memory."""
        scans, held = volumes(*TEN), []
        most = max(volume.nbytes for volume in scans)

        class Watched(FakeRun):
            def read(self, job, reserve_memory):
                current = super().read(job, reserve_memory)
                held.append(self.engine._queue.reserved_bytes)
                return current

        run = Watched(scans, [FakeModel()], capacity=Capacity(100, 100), readers=4, memory_bytes=most).run()
        assert len(run.labels) == len(held) == 10
        assert max(held) <= most

    def test_a_written_scan_is_not_referenced_any_more(self):
        written, alive = [], []

        class Counting(FakeRun):
            def write(self, current):
                gc.collect()
                alive.append(sum(ref() is not None for ref in written))
                super().write(current)
                self.labels.clear()
                written.append(weakref.ref(current.scan))

        scans = volumes(*TEN)
        most = max(volume.nbytes for volume in scans)
        run = Counting(scans, [FakeModel()], capacity=Capacity(2, 2), readers=1, writers=1, memory_bytes=2 * most)
        gc.freeze()  # so that a collection takes no time for what other tests have left
        try:
            assert not run.run().errors
        finally:
            gc.unfreeze()
        assert len(alive) == 10
        assert max(alive) <= 2, "at most what the lanes are about to leave"

    def test_a_scan_that_needs_more_memory_than_all_scans_may_take_fails(self):
        least = volumes(6)[0].nbytes
        run = FakeRun(volumes(*TEN), [FakeModel()], memory_bytes=least).run()
        assert sorted(run.errors) == ["6", "7", "8"]
        assert all(isinstance(error, ReadError) for error in run.errors.values())
        assert all("more than the" in str(one) and "--max-memory" in str(one) for one in run.errors.values())


class TestDevices:
    def test_two_devices_share_the_work_and_each_is_checked_before_its_first_batch(self):
        models, checked = [FakeModel("cuda", on_batch=lambda _: time.sleep(0.01)) for _ in range(2)], []

        def check(model, scan, lane):
            assert not model.batches
            checked.append(model)

        run = FakeRun(volumes(*TEN), models, check, capacity=Capacity(2, 2)).run()
        assert len(checked) == 2
        assert set(checked) == set(models)
        assert all(model.batches for model in models)
        assert len(run.labels) == 10
        assert run.correct

    def test_a_check_that_fails_ends_the_run_and_nothing_is_labeled(self):
        def check(model, scan, lane):
            raise ModelError("labels on cuda differ")

        model = FakeModel("cuda")
        run = FakeRun(volumes(*TEN), [model], check)
        with pytest.raises(ModelError, match="labels on cuda differ"):
            run.run()
        assert not model.batches
        assert not run.labels

    def test_a_scan_ends_and_releases_its_memory_while_another_device_is_checked(self):
        """The check opens a model on the CPU, which takes seconds.

        The first device labels one scan; its writing ends while the check of the second device waits for that.
        """
        writing, checking, written, ended = threading.Event(), threading.Event(), [], []
        first = FakeModel("cuda", on_batch=lambda number: number > 1 and checking.wait(20))
        second = FakeModel("cuda", on_open=lambda: writing.wait(20))

        class Slow(FakeRun):
            def write(self, current):
                written.append(current.scan)
                writing.set()
                checking.wait(20)
                super().write(current)

        def check(model, scan, lane):
            if model is second:
                checking.set()
                deadline = time.monotonic() + 5
                while written[0] in run.engine._scans and time.monotonic() < deadline:
                    time.sleep(0.01)
                ended.append(written[0] not in run.engine._scans)

        run = Slow(volumes(*[1] * 10), [first, second], check, capacity=Capacity(1, 1))
        assert len(run.run().labels) == 10
        assert ended == [True]


@pytest.mark.parametrize("step", ["read", "write"])
def test_a_bug_in_one_scan_fails_it_and_is_raised_after_the_others(step):
    run = FakeRun(volumes(*TEN), [FakeModel()])
    work = getattr(run, step)

    def stumble(item, *rest):
        if (item if step == "read" else item.job).name == "3":
            raise OverflowError("int too big to convert")
        return work(item, *rest)

    steps = replace(run.engine._steps, **{step: stumble})
    run.engine._steps = steps
    with pytest.raises(OverflowError):
        run.run()
    assert list(run.errors) == ["3"]
    assert sorted(run.labels) == sorted(name for name in run.volumes if name != "3")
    assert run.correct


def test_no_lane_is_at_work_after_a_run_was_interrupted():
    working = threading.Event()
    lanes = []

    def on_batch(_number):
        working.set()
        lanes.append(threading.current_thread())
        time.sleep(0.5)  # as long as a batch inside onnxruntime

    run = FakeRun(volumes(*TEN), [FakeModel(on_batch=on_batch)], capacity=Capacity(1, 1))
    interrupt = threading.Timer(0.1, lambda: working.wait() and signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run.run()
    finally:
        signal.signal(signal.SIGINT, before)
    interrupt.join()
    assert lanes
    assert not any(thread.is_alive() for thread in lanes)
