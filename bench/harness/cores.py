"""The cores that a contender may use."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def pin_to_one_core() -> Iterator[None]:
    """Pin this process to the last of its cores while the block runs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set the number of torch threads while the block runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
