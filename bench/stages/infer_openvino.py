"""OpenVINO beside onnxruntime on the CPU: the default network at 512x512, in float32 and bfloat16, interleaved, and what Dice loses.

What bounds it: the convolutions; bfloat16 doubles what they may do. The weights are random, the labels those of
coarse HU (`slicemill.bench.stages.infer_cpu`).

    python -m slicemill.bench.stages.infer_openvino --json bench/results/openvino.json        # with slicemill[openvino,train]
    python -m slicemill.bench.stages.infer_openvino --model model.onnx --scan ct.nii.gz ...   # Dice of a trained model on a scan
"""

import argparse
import datetime as dt
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slicemill.bench.harness.clock import interleaved, ratio
from slicemill.bench.stages.infer_cpu import SIZE, all_cores, exported, made_scans, network_of
from slicemill.common.files import to_json, write_json
from slicemill.common.machine import machine_info
from slicemill.common.terminal import print_line
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import load
from slicemill.infer.network.lanes import make_lane
from slicemill.infer.network.model import Model, open_model
from slicemill.infer.runtime.capacity import capacity_of
from slicemill.infer.single import segment_volume
from slicemill.infer.slices.assembly import plan_of
from slicemill.infer.slices.batches import Filler, Scan

SLICES = 2
"""Slices in a round: one batch."""


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser(description="OpenVINO beside onnxruntime.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="Where the record goes.")
    parser.add_argument("--model", type=Path, help="A model file; the default network with random weights if absent.")
    parser.add_argument("--scan", type=Path, help="A scan for it; a phantom if absent.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scan = given.scan or made_scans(Path(folder) / "scans", 8, 1)[0] / "scan-0.nii.gz"
        model = given.model or exported(Path(folder) / "default.onnx", *network_of("default"), SIZE)
        record = measure(model, scan, given.rounds)
    if given.json:
        write_json(given.json, record)
    print_line(to_json(record))


def measure(path: Path, scan: Path, rounds: int) -> dict[str, Any]:
    """Return the record: slices a second, ratios over onnxruntime, and Dice against its labels."""
    models = {"onnxruntime fp32": all_cores(path), "openvino": open_model(path, "openvino")}
    loaded = load(gather([scan])[0][0])
    labels = {
        name: segment_volume(model, loaded.volume, loaded.grid.spacing_mm).label for name, model in models.items()
    }
    times = interleaved({name: batch_of(model, loaded.volume) for name, model in models.items()}, rounds=rounds)
    expected, found = labels["onnxruntime fp32"], labels["openvino"]
    return {
        "benchmark": "openvino",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "unit": f"slices of {SIZE}x{SIZE}",
        "precision": models["openvino"].session.precision,
        "results": {name: timing.as_json(SLICES) for name, timing in times.items()},
        "over onnxruntime fp32": round(ratio(times["onnxruntime fp32"], times["openvino"]), 3),
        "labels_differing": float(np.count_nonzero(expected != found)) / expected.size,
        "dice_loss": {
            name: round(1 - dice(found == value, expected == value), 6)
            for name, value in models["openvino"].info.labels.values.items()
        },
        "machine": machine_info(),
    }


def batch_of(model: Model, volume: npt.NDArray[np.int16]) -> Callable[[], object]:
    """Return the work of one batch of a volume int16[z, y, x] that lies in memory."""
    plan = plan_of(model.info, (len(volume), *volume.shape[1:]), (1.0, 1.0, 1.0))
    filler = Filler(capacity_of(model.info, model.provider, SLICES))
    filler.add(Scan(plan, plan.seen(volume)))
    batch = filler.next()
    lane = make_lane(model, capacity_of(model.info, model.provider, SLICES), plan.wanted)
    image = batch.show(lane.image)
    return lambda: lane.run(image, batch.neighbors, nullcontext())


def dice(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """Return the Dice coefficient of two masks; 1 where both are empty."""
    total = np.count_nonzero(one) + np.count_nonzero(other)
    return 2 * np.count_nonzero(one & other) / total if total else 1.0


if __name__ == "__main__":
    main()
