#!/bin/sh
# Training on a GPU, in a few minutes: the tests that need CUDA, and steps per second compared with the bare network.
# Run in the repository with slicemill[ingest,train,gpu,dev] installed; writes OUT/train-*.json (default bench/results/gpu).
set -eu
out=${1:-bench/results/gpu}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
python -m pytest tests/train/test_cuda.py -q -rs
python -m slicemill bench train --slices 160 --config bench/gpu/train.toml --json "$out/train-compiled.json"
sed 's/^compile = true/compile = false/' bench/gpu/train.toml > "$out/eager.toml"
python -m slicemill bench train --slices 160 --config "$out/eager.toml" --json "$out/train-eager.json"
rm "$out/eager.toml"
