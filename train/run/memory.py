"""The largest batch that fits into a GPU's memory, measured with small batches."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from slicemill.common.errors import ConfigError
from slicemill.ct.labels import Labels
from slicemill.train.config import Config
from slicemill.train.network.losses import multi_level_loss
from slicemill.train.network.step import make_learner, mixed_precision

AUTO = 0
"""The value of the setting `batch` that requests a measurement."""
PROBES = (2, 4)
"""Batch sizes that are tried; the difference of their memory is the cost of two slices."""
FREE_SHARE = 0.1
"""Share of the memory left for fragmentation, validation and other programs."""
MAX_BATCH = 256
"""Largest batch that a measurement returns."""


def fitting_batch(
    labels: Labels, config: Config, size: tuple[int, int], device: torch.device, precision: torch.dtype
) -> int:
    """Return the number of slices of `size` that fit into a step on this GPU.

    Raises
    ------
    ConfigError
        The device is not a GPU, or the smallest batch does not fit.
    """
    if device.type != "cuda":
        raise ConfigError(f"batch = auto: needs a GPU, whose memory it measures; on {device.type}, set a number.")
    used = []
    before = torch.cuda.memory_allocated(device)
    for batch in PROBES:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            _step_of_zeros(labels, config, (batch, config.context, *size), device, precision)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{batch} slices of {size[0]}x{size[1]} do not fit into the memory of {device}; "
                "set crop or a smaller width."
            ) from error
        used.append(torch.cuda.max_memory_allocated(device) - before)
        torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return largest_batch((used[0], used[1]), free)


@contextmanager
def explain_out_of_memory(
    labels: Labels, config: Config, size: tuple[int, int], device: torch.device, precision: torch.dtype
) -> Iterator[None]:
    """Replace an out-of-memory error of a step by a message with the largest batch that fits.

    Raises
    ------
    ConfigError
        The step does not fit into memory.
    """
    out_of_memory = False
    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # the frames keep the step's tensors alive
        out_of_memory = True
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise ConfigError(
            f"batch = {config.batch}: a step does not fit into the memory of this machine; "
            "set a smaller batch, or crop."
        ) from error
    if out_of_memory:
        torch.cuda.empty_cache()
        fits = fitting_batch(labels, config, size, device, precision)
        raise ConfigError(
            f"batch = {config.batch}: a step does not fit into the memory of {device}; "
            f"the largest batch is {fits} slices per GPU. "
            "Set batch, or --batch auto."
        )


def largest_batch(used: tuple[int, int], free: int) -> int:
    """Return the largest even batch that fits, extrapolating linearly from the bytes `used` by the PROBES.

    >>> largest_batch((3_000, 4_000), 20_000)
    32
    """
    bytes_per_slice = max((used[1] - used[0]) / (PROBES[1] - PROBES[0]), 1)
    fixed = max(used[0] - PROBES[0] * bytes_per_slice, 0)
    return max(2, min(MAX_BATCH, int((free * (1 - FREE_SHARE) - fixed) / bytes_per_slice)) // 2 * 2)


def _step_of_zeros(
    labels: Labels, config: Config, shape: tuple[int, int, int, int], device: torch.device, precision: torch.dtype
) -> None:
    """Run forward and backward once, with the memory of a real step."""
    learner = make_learner(labels, config.replace(compile=False), device, precision)
    image = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
    label = torch.zeros((shape[0], *shape[2:]), dtype=torch.long, device=device)
    with mixed_precision(device, precision):
        levels = learner.forward(image)
    loss, _ = multi_level_loss(levels, label, learner.class_weights)
    loss.backward()  # type: ignore[no-untyped-call]
    learner.optimizer.step()
