"""A training step never waits for a GPU: it reads nothing back, and copies indices up once. No GPU is needed.

Muon in fp16 does, to know whether a gradient overflowed (`test_cuda`).

Tensors without data stand in for those of a GPU (device "meta", or torch's fake tensors of device "cuda"). torch
raises where the host reads one of them: `item`, `tolist`, `cpu`, `nonzero`, `bincount`, a branch. test_cuda.py asks a
real GPU.
"""

import copy
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slicemill.ct.labels import LITS_LABELS
from slicemill.store.reader import open_store
from slicemill.train.config import KINDS, Config
from slicemill.train.data.augment import VALUE_KINDS, resample
from slicemill.train.data.dataset import Batch, Batches, SliceRegion
from slicemill.train.data.generators import Generators
from slicemill.train.data.sampling import SlicePosition
from slicemill.train.data.warp import apply_where_changed, identity_warp, scale_warp, sides_xy
from slicemill.train.network import step
from slicemill.train.network.processes import ALONE
from slicemill.train.network.step import (
    DeviceBatch,
    StepResult,
    class_lookup,
    count_on_gpu,
    make_average,
    make_learner,
    move_to_device,
    prepare_input,
    train_step,
    update_average,
)
from slicemill.train.network.unet import normalize
from slicemill.train.run.tally import begin_record
from tests.train.augment_helpers import CPU, generators

META = torch.device("meta")
SETTINGS = (
    Config(augment=1.0, oblique=1),
    Config(augment=1.0, spacing_mm=0.8),
    Config(augment=0.0, spacing_mm=0.8),
    Config(augment=0.4),
    *(Config(augment=1.0, augmentations=(kind,)) for kind in KINDS),
)
VIEWS = frozenset(
    (
        *("alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "split_with_sizes"),
        *("squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_reshape_alias", "_unsafe_view"),
    )
)
"""Operations that take no time on a GPU."""


class Watch(TorchDispatchMode):
    """Counts the operations on a device, and those that pass data between it and the host."""

    def __init__(self, device_type):
        super().__init__()
        self.device_type = device_type
        self.operations, self.crossings = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs, outputs = ([one for one in tree_leaves(some) if isinstance(one, torch.Tensor)]
                           for some in ((args, kwargs), result))  # fmt: skip
        kinds = {one.device.type for one in (*inputs, *outputs) if one.ndim or one.device.type != "cpu"}
        if self.device_type in kinds:
            name = str(func).removeprefix("aten.")
            if name.split(".")[0] not in VIEWS:
                self.operations[name] += 1
            # A number of the host in an operation of the device travels with the launch; a tensor is copied first.
            if len(kinds) > 1 or any(one.device.type != self.device_type for one in inputs if "_to_copy" in name):
                self.crossings[name] += 1
        return result


def host_batch(count, channels=3, reach=0, size=64):
    rng = np.random.default_rng(0)
    return Batch(
        image=rng.integers(-1000, 1000, (count, channels + 2 * reach, size, size)).astype(np.int16),
        label=rng.integers(0, 3, (count, 1 + 2 * reach, size, size)).astype(np.uint8),
        zoom=rng.uniform(0.9, 1.1, (count, 2)).astype(np.float32),
        positions=[],
    )


def meta_batch(count, **more):
    moved = move_to_device(host_batch(count, **more), class_lookup(LITS_LABELS, CPU))
    return DeviceBatch(*(tensor.to(META) for tensor in moved))


class MetaGenerator(torch.Generator):
    """A generator that claims to be on the device without data."""

    device = META


def apart(seed=1):
    """Return generators as a GPU has them: one draws on the device, another on the host."""
    return Generators(device=MetaGenerator(), host=torch.Generator()).manual_seed(seed)


class TestAugmentation:
    @pytest.mark.parametrize("size", [(64, 64), (48, 48)])
    @pytest.mark.parametrize("config", SETTINGS)
    def test_it_reads_nothing_back_and_copies_up_once(self, config, size):
        batch = meta_batch(32, reach=config.oblique)
        sides_xy((64, 64), META), sides_xy(size, META)  # copied once for all steps
        with Watch("meta") as watch:
            image, label = prepare_input(batch, config, size, apart())
        expected = size if config.spacing_mm else (64, 64)
        assert (image.shape, label.shape) == ((32, 3, *expected), (32, *expected))
        assert sum(watch.crossings.values()) <= 1, watch.crossings

    def test_a_gpu_changes_all_slices_of_a_kind_at_once(self):
        batch = meta_batch(32)
        counts = []
        for config in (Config(augment=1.0), Config(augment=1.0, batch=64)):
            prepare_input(batch, config, (64, 64), apart())
            with Watch("meta") as watch:
                prepare_input(meta_batch(config.batch), config, (64, 64), apart())
            counts.append(sum(number for name, number in watch.operations.items() if name.startswith("index")))
        assert counts[0] == counts[1] < 40, "the number of index operations does not grow with the batch"

    @pytest.mark.parametrize("config", SETTINGS)
    def test_larger_parts_give_the_same_slices(self, config, monkeypatch):
        """But for random numbers that are drawn part by part, and for the last bits of a convolution."""
        batch = move_to_device(host_batch(8, reach=config.oblique), class_lookup(LITS_LABELS, CPU))
        config = replace(config, augmentations=tuple(kind for kind in config.kinds if kind not in VALUE_KINDS))
        in_parts = prepare_input(batch, config, (64, 64), generators())
        monkeypatch.setattr("slicemill.train.data.augment.TOGETHER", 64)
        at_once = prepare_input(batch, config, (64, 64), generators())
        assert torch.equal(in_parts[0], at_once[0])
        assert torch.equal(in_parts[1], at_once[1])

    def test_resampling_all_slices_keeps_those_that_need_no_change(self):
        hu, label, zoom = move_to_device(host_batch(8), class_lookup(LITS_LABELS, CPU))
        image, label = normalize(hu, -200, 300), label[:, 0]
        zoom[::2] = 1
        expected = resample(image, label, zoom, (64, 64))
        found = apply_where_changed(image, label, scale_warp(identity_warp(8, CPU), zoom))
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert torch.equal(found[0][::2], image[::2])
        assert not torch.equal(found[0][1::2], image[1::2])


class TestStep:
    @pytest.mark.parametrize("more", [{}, {"optimizer": "sgd", "norm": "instance"}, {"optimizer": "adamw"}])
    def test_it_reads_nothing_back_and_copies_nothing_up(self, more, monkeypatch):
        monkeypatch.setattr(step, "confusion_matrix", lambda *_: torch.zeros(3, 3, device=META))  # tested below
        monkeypatch.setattr(step, "mixed_precision", lambda *_: nullcontext())
        learner = make_learner(LITS_LABELS, Config(width=4, depth=2, **more), META)
        inputs = torch.zeros(4, 3, 32, 32, device=META), torch.zeros(4, 32, 32, dtype=torch.long, device=META)
        for _ in range(2):  # the average begins with the second
            with Watch("meta") as watch:
                train_step(learner, inputs)
            assert watch.operations["convolution.default"]
            assert not watch.crossings

    def test_the_watch_sees_the_average_of_torch(self):
        learner = make_learner(LITS_LABELS, Config(width=4, depth=2), META)
        average = AveragedModel(learner.network, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
        for expected in (False, True):
            with Watch("meta") as watch:
                average.update_parameters(learner.network)
            assert bool(watch.crossings) == expected

    def test_pixels_are_counted_without_reading_back(self):
        with FakeTensorMode(), Watch("cuda") as watch:
            counts = count_on_gpu(torch.zeros(4096, dtype=torch.long, device="cuda"), 10)
        assert (counts.shape, counts.dtype) == ((10,), torch.int64)
        assert not watch.crossings

    @pytest.mark.parametrize("classes", [2, 3, 30])
    def test_pixels_are_counted_as_bincount_does(self, classes):
        bins = classes**2 + 1
        values = torch.randint(bins, (100_000,), generator=torch.Generator().manual_seed(classes))
        assert torch.equal(count_on_gpu(values, bins), values.bincount(minlength=bins))

    def test_the_average_is_that_of_torch_bit_for_bit(self):
        learner = make_learner(LITS_LABELS, Config(width=4, depth=2), CPU)
        ours, theirs = learner.average, copy.deepcopy(learner.average)
        for number in range(4):
            with torch.no_grad():
                for tensor in learner.network.state_dict().values():
                    tensor.add_(torch.rand(tensor.shape) if tensor.is_floating_point() else number)
            update_average(ours, learner.network)
            theirs.update_parameters(learner.network)
            for name, tensor in theirs.state_dict().items():
                assert torch.equal(tensor, ours.state_dict()[name]), name

    def test_after_many_steps_the_average_moves_as_torchs_does(self):
        theirs = get_ema_multi_avg_fn(0.99)
        start, value = torch.rand(5), torch.rand(5)
        moved, expected = [start.clone()], [start.clone()]
        make_average(0.99)(moved, [value], torch.tensor(891))
        theirs(expected, [value], torch.tensor(891))
        assert torch.equal(moved[0], expected[0])

    def test_a_short_run_is_not_judged_by_its_first_weights(self):
        kept = [torch.ones(1)]
        for number in range(20):
            make_average(0.99)(kept, [torch.zeros(1)], torch.tensor(number))
        assert kept[0] < 1e-6  # a constant decay keeps 0.82 of the first weights

    def test_on_the_cpu_the_losses_are_read_as_they_are(self):
        result = StepResult(torch.tensor(2.0), torch.tensor([1.0, 3.0]), torch.zeros(3, 3))
        places = [SlicePosition("a", 0), SlicePosition("a", 1)]
        assert begin_record(places, result, ALONE).losses.wait().tolist() == [2.0, 1.0, 3.0]


class Mark:
    """An event of a GPU that logs what is asked of it."""

    def __init__(self, number, log):
        self.number, self.log = number, log

    def record(self):
        self.log.append(("copied from", self.number))

    def synchronize(self):
        self.log.append(("waited for", self.number))


def test_a_slot_is_filled_again_only_after_its_copy(stored, monkeypatch):
    """The ring has six slots; the first batch of each is filled at once, the later ones wait for their copies."""
    store = open_store(stored)
    batches = Batches(store, SliceRegion(size=(64, 64)), 2, threads=2)
    log = []
    fill = batches._fill

    def logged_fill(slot, *rest):
        log.append(("filled", slot.copied.number))
        fill(slot, *rest)

    monkeypatch.setattr(batches, "_fill", logged_fill)
    batches._ring[:] = [replace(slot, copied=Mark(n, log)) for n, slot in enumerate(batches._ring)]
    monkeypatch.setattr("torch.cuda.device", nullcontext)
    case = next(iter(store.values()))
    places = [SlicePosition(case.info.case_id, z % len(case.image)) for z in range(30)]
    to_class = class_lookup(LITS_LABELS, CPU)
    with batches.iterate(places, (0, 0)) as stream:
        for batch in stream:
            move_to_device(batch, to_class)
    for number in range(6):
        of_slot = [what for what, slot in log if slot == number]
        assert of_slot[:3] == ["waited for", "filled", "filled"]
        copies = [place for place, what in enumerate(of_slot) if what == "copied from"]
        for place in copies[:-1]:
            assert of_slot[place + 1] == "waited for", "nothing is written before the copy is waited for"
    assert sum(what == "copied from" for what, _ in log) == 15
