"""Parity check: compare a device's labels with the CPU's on two real slices before it labels its first scan."""

from contextlib import nullcontext

import numpy as np

from slicemill.infer.network.lanes import Lane
from slicemill.infer.network.model import Model, check_agreement, open_model
from slicemill.infer.slices.batches import NetworkBatch, NetworkScan, Unit

CHECKED_SLICES = 2


def check_parity(model: Model, scan: NetworkScan, lane: Lane) -> None:
    """Compare a device with the CPU on slices from the middle of a scan.

    Raises
    ------
    ModelError
        The labels differ by more than rounding errors.
    """
    batch = make_middle_batch(scan, max(1, min(CHECKED_SLICES, len(lane.image) // scan.plan.context)))
    image = batch.fill(lane.image)
    result = lane.run(image, batch.neighbors, nullcontext())
    expected = open_model(model.path, "cpu").run(image, batch.neighbors)
    check_agreement(model, result.label, expected.label)
    model.parity_checked = True


def make_middle_batch(scan: NetworkScan, slices: int) -> NetworkBatch:
    """Return a batch of `slices` slices from the middle of a scan."""
    count, tile = scan.plan.shape[0], scan.plan.tiles[len(scan.plan.tiles) // 2]
    zs = range(count // 2, min(count // 2 + slices, count))
    order = list(dict.fromkeys(near for z in zs for near in scan.plan.window(z)))
    return NetworkBatch(
        units=[Unit(scan, z, tile) for z in zs],
        rows=[Unit(scan, near, tile) for near in order],
        neighbors=np.array([[order.index(near) for near in scan.plan.window(z)] for z in zs], dtype=np.int32),
    )
