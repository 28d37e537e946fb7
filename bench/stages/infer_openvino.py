"""OpenVINO compared with onnxruntime on the CPU: the default network in float32 and bfloat16, and the loss of Dice.

Bottleneck: the convolutions; with bfloat16 a core does twice as many per second. On a processor without bfloat16
OpenVINO computes in float32. The ratio of CPU time holds on a busy machine, too. Weights are random, and labels
follow marked HU (`slicemill.bench.harness.networks`).

With slicemill[openvino,train], for random weights, and for the Dice of a trained model on a scan:

    python -m slicemill.bench.stages.infer_openvino --json bench/results/openvino.json
    python -m slicemill.bench.stages.infer_openvino --model model.onnx --scan ct.nii.gz ...
"""

import argparse
import tempfile
from pathlib import Path

from slicemill.bench.harness.agreement import dice_losses, differing_share
from slicemill.bench.harness.clock import time_on_both_clocks
from slicemill.bench.harness.headline import Record
from slicemill.bench.harness.networks import MARKED, default_network, export_network, write_marked_scans
from slicemill.bench.harness.subject import phantom_subject
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.networks import OpenvinoRecord
from slicemill.bench.stages.infer_session import network_alone, open_on_all_cores
from slicemill.common.files import to_json, write_json
from slicemill.common.terminal import print_line
from slicemill.infer.inputs.gather import gather
from slicemill.infer.inputs.jobs import load_scan
from slicemill.infer.network.model import open_model
from slicemill.infer.single import segment_volume

SIZE = 512
SLICES = 2
"""Slices in a round: one batch."""
BASELINE = "onnxruntime fp32"


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser(description="OpenVINO compared with onnxruntime.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="File to write the record to.")
    parser.add_argument("--model", type=Path, help="A model file; by default the default network with random weights.")
    parser.add_argument("--scan", type=Path, help="A scan for the model; by default a phantom.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scan = options.scan
        if scan is None:
            write_marked_scans(Path(folder) / "scans", phantom_subject(8, size=SIZE), 1)
            scan = Path(folder) / "scans" / "scan-0.nii.gz"
        model = options.model or export_network(Path(folder) / "default.onnx", default_network(), MARKED, SIZE)
        record = measure(model, scan, options.rounds)
    if options.json:
        write_json(options.json, record)
    print_line(to_json(record))


def measure(path: Path, scan: Path, rounds: int) -> Record:
    """Return the record: slices per second, the ratio over onnxruntime, and Dice against its labels."""
    models = {BASELINE: open_on_all_cores(path), "openvino": open_model(path, "openvino")}
    loaded = load_scan(gather([scan])[0][0])
    labels = {
        name: segment_volume(model, loaded.volume, loaded.grid.spacing_mm).label for name, model in models.items()
    }
    contenders = {name: network_alone(model, scan, SLICES, batch=SLICES) for name, model in models.items()}
    times = time_on_both_clocks(contenders, rounds, lambda _: None)
    speedup = times.speedup("openvino", BASELINE)
    return OpenvinoRecord(
        **origin(),
        unit=f"slices of {SIZE}x{SIZE}",
        precision=models["openvino"].session.precision,
        results={name: timing.rate(SLICES) for name, timing in times.wall.items()},
        over_baseline=speedup.wall,
        cpu_over_baseline=speedup.cpu,
        labels_differing=differing_share(labels["openvino"], labels[BASELINE]),
        dice_loss=dice_losses(labels["openvino"], labels[BASELINE], models["openvino"].info.labels),
    ).as_json()


if __name__ == "__main__":
    main()
