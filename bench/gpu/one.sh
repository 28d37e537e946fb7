#!/bin/sh
# Inference on a GPU: does it start, does it label as the CPU does, how fast is it? About 5 minutes; no part stops the others.
#   [OUT=FOLDER] sh bench/gpu/one.sh                         with slicemill[ingest,train,gpu,dev] installed, or packed by pack.sh
. bench/gpu/common.sh
export TORCH_COMPILE_DISABLE=1
if [ "$DRY" = 1 ]; then work="--device cpu --size 64 --batch 2 --batches 2 --scans 2 --slices 8 --rounds 1" limit=400
else work="--rounds 3 --scans 192 --slices 64" limit=270; fi

on_gpu doctor 40 $PYTHON -m slicemill doctor
# -W default: a warning of another version of torch or numpy fails no test.
on_gpu infer-tests 120 $PYTHON -m pytest -W default -q -rs -p no:cacheprovider tests/infer/test_cuda.py \
  -k "two_lanes or made_anew or rebuilt or no_setting or byte_flavor or auto"
part infer $limit $PYTHON -m slicemill.bench.stages.infer_gpu $work --json "$OUT/infer.json" \
  --only peak labels engines files profile settings
finish
