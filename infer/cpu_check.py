"""What a provider says of real slices, beside what the CPU says of them: no other device labels a scan before they agree."""

from contextlib import nullcontext

import numpy as np

from slicemill.infer.network.lanes import Lane
from slicemill.infer.network.model import Model, compare, open_model
from slicemill.infer.slices.batches import Batch, Scan

GATE_SLICES = 2


def check_parity(model: Model, scan: Scan, lane: Lane) -> None:
    """Compare a device with the CPU on slices from the middle of a scan.

    Raises
    ------
    ModelError
        The labels differ by more than rounding explains.
    """
    batch = middle_of(scan, max(1, min(GATE_SLICES, len(lane.image) // scan.plan.context)))
    image = batch.show(lane.image)
    found = lane.run(image, batch.neighbors, nullcontext())
    expected = open_model(model.path, "cpu").run(image, batch.neighbors)
    compare(model, found.label, expected.label)
    model.gated = True


def middle_of(scan: Scan, slices: int) -> Batch:
    """Return so many slices from the middle of a scan as a batch."""
    count, view = scan.plan.shape[0], scan.plan.views[len(scan.plan.views) // 2]
    zs = range(count // 2, min(count // 2 + slices, count))
    rows = {near: None for z in zs for near in scan.plan.window(z)}
    order = list(rows)
    return Batch(
        units=[(scan, z, view) for z in zs],
        rows=[(scan, near, view) for near in order],
        neighbors=np.array([[order.index(near) for near in scan.plan.window(z)] for z in zs], dtype=np.int32),
    )
