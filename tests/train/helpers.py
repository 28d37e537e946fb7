"""Shared by the tests of training."""

from safetensors.torch import load_file

from slicemill.train.run.checkpoint import LAST, read_state


def no_log(_line):
    """Log nothing."""


def checkpoint(run):
    """Return every tensor of a run's last checkpoint as bytes, and its losses."""
    tensors = {name: tensor.numpy().tobytes() for name, tensor in load_file(run / LAST).items()}
    return tensors, [metrics.loss for metrics in read_state(run).history]
