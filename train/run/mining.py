"""Mining: false tumor in whole training scans, from which hard slices are drawn.

Crops of an epoch show little of a scan, so that a network that does well on them may still raise false alarms
elsewhere. Validation scans are not mined: what training has seen cannot choose the best epoch.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slicemill.common.progress import progress
from slicemill.train.config import Config
from slicemill.train.run.checkpoint import State
from slicemill.train.run.setup import Setup
from slicemill.train.run.validate import keep_on, predict_case, read_reference

CASES = 2
"""Training cases that are mined for each validation case, so that mining costs as much as two validations."""
Mask = npt.NDArray[np.bool_]


def is_mining_due(config: Config, before: State, after: State) -> bool:
    """Return whether an epoch passed one of the points at which scans are mined.

    >>> is_mining_due(Config(epochs=9, mining=2, hard_share=0.1), State(epoch=2), State(epoch=3))
    True
    >>> is_mining_due(Config(epochs=9, mining=2, hard_share=0.1), State(epoch=3), State(epoch=4))
    False
    """

    def passed(state: State) -> int:
        by_time = state.seconds / (60 * config.max_minutes) if config.max_minutes else 0.0
        return int(max(state.epoch / config.epochs, by_time) * (config.mining + 1) + 1e-9)

    return passed(before) < passed(after) <= config.mining


def mine(setup: Setup, network: nn.Module, epoch: int, check: Callable[[], object] = keep_on) -> Tensor:
    """Segment whole training scans, and return float32[slices of the pool, 5].

    The columns are the weight of a slice, the square root of its number of false tumor pixels, and the box y0, x0, y1,
    x1 of the largest connected part of them. Slices of scans that were not chosen have no weight. Processes that train
    together divide the scans. `check` is called before each batch of slices, and may raise.
    """
    network.eval()
    chosen = choose_cases(setup, epoch)
    found = torch.zeros((len(setup.pool.slices), 5), device=setup.device)
    tumor = list(setup.labels.values).index(setup.labels.tumor or "")
    with progress("mine false tumor", len(chosen), "scans", quiet=not setup.processes.first) as advance:
        for index, case_id in enumerate(chosen):
            if index % setup.processes.count == setup.processes.rank:
                case = setup.store[case_id]
                reference = read_reference(case)
                is_false = predict_case(case, network, setup, check) == tumor + 1
                is_false &= reference != setup.labels.tumor_value()
                if setup.ignored is not None:
                    is_false &= reference != setup.ignored
                for z in np.flatnonzero(is_false.any(axis=(1, 2))):
                    row = torch.tensor(describe_false(is_false[z]))
                    found[setup.pool.number[case_id, int(z)]] = row.to(setup.device)
            advance(1, "")
    return setup.processes.sum(found).cpu()


def choose_cases(setup: Setup, epoch: int) -> list[str]:
    """Return the training cases to mine, others after each epoch."""
    rng = np.random.default_rng((setup.config.seed, epoch, 0))
    count = min(len(setup.split.train), CASES * len(setup.split.validation))
    return sorted(rng.choice(sorted(setup.split.train), size=count, replace=False).tolist())


def describe_false(mask: Mask) -> tuple[float, float, float, float, float]:
    """Return weight and box of the false tumor of a slice, bool[y, x] with at least one pixel.

    >>> describe_false(np.array([[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=bool))
    (2.0, 1.0, 2.0, 3.0, 4.0)
    """
    from scipy import ndimage

    numbers, count = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    rows, columns = ndimage.find_objects(numbers)[int(sizes.argmax())]
    return float(np.sqrt(mask.sum())), float(rows.start), float(columns.start), float(rows.stop), float(columns.stop)
