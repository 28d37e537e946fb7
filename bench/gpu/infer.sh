#!/bin/sh
# Inference on a GPU, in a few minutes: the tests that need CUDA, and the rows of bench/stages/infer_gpu.py.
# Run in the repository with slicemill[ingest,train,gpu,dev] installed; writes OUT/infer.json (default bench/results/gpu).
set -eu
out=${1:-bench/results/gpu}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
failed=0
python -m pytest tests/infer/test_cuda.py -q -rs || failed=1
python -m slicemill.bench.stages.infer_gpu --json "$out/infer.json" || failed=1
exit $failed
