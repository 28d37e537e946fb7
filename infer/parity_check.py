"""Parity check: compare a device's labels with the CPU's on two real slices before it labels its first scan."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ModelError
from slicemill.infer.network.lanes import Lane, report_device_errors
from slicemill.infer.network.model import Model
from slicemill.infer.slices.batches import NetworkBatch, NetworkScan, Unit
from slicemill.store.label_differences import compare_labels

CHECKED_SLICES = 2
MAX_DIFFERENCE = 0.005
"""Share of label pixels in which a device may differ from the CPU on real slices, ties excluded."""
TIE = 1e-2
"""Limit of `slicemill.store.label_differences.compare_labels`.

TF32 and float16 round to 11 bits, 5e-4, bfloat16 to 8 bits; a network of twenty layers adds up several of these."""


def check_parity(model: Model, scan: NetworkScan, lane: Lane) -> None:
    """Compare a device with the CPU on slices from the middle of a scan.

    Raises
    ------
    ModelError
        The labels differ by more than rounding errors.
    ProviderError
        The network fails on the device.
    """
    batch = make_middle_batch(scan, max(1, min(CHECKED_SLICES, len(lane.image) // scan.plan.context)))
    image = batch.fill(lane.image)
    with report_device_errors(model.provider, "the network fails on its first slices"):
        label = lane.run(image, batch.neighbors, nullcontext()).label
    check_agreement(model, label, *model.run_on_cpu(image, batch.neighbors))
    model.parity_checked = True


def check_agreement(
    model: Model, label: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8], logits: npt.NDArray[Any] | None
) -> float:
    """Compare a model's labels with those of the CPU, and return the share of pixels that differ, ties excluded.

    Parameters
    ----------
    label, expected
        uint8[b, H, W], label values.
    logits
        float[b, k, H, W] of the CPU, where they are known.

    Raises
    ------
    ModelError
        More than MAX_DIFFERENCE of the pixels differ.
    """
    share = compare_labels(label, expected, logits, model.info.labels.table(), TIE).share
    if share > MAX_DIFFERENCE:
        raise ModelError(
            f"{model.info.name}: labels on {model.provider} differ from those on the CPU in {share:.2%} of the pixels "
            f"(limit {MAX_DIFFERENCE:.1%}); nothing was segmented. Use --provider cpu and report the versions that "
            "`slicemill doctor` prints."
        )
    return share


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
