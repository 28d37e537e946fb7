#!/bin/sh
# Training on a GPU, and torch's compiled network beside inference: about 8 minutes, the longest last; no part stops the others.
#   [OUT=FOLDER] sh bench/gpu/two.sh                         with slicemill[ingest,train,gpu,dev] installed, or packed by pack.sh
. bench/gpu/common.sh
settings=$(mktemp -d)
trap 'rm -rf "$settings"' EXIT
cp bench/gpu/train.toml "$settings/compiled.toml"
sed 's/^compile = true/compile = false/' bench/gpu/train.toml > "$settings/eager.toml"
work="--rounds 3" train="--quick --slices 32" limit=1
if [ "$DRY" = 1 ]; then
  work="--device cpu --size 64 --batch 2 --batches 2 --rounds 1" train="--rounds 1 --slices 8" limit=4
  sed -i -e 's/^device.*/device = "cpu"/' -e 's/^width.*/width = 4/' -e 's/^batch.*/batch = 2/' -e 's/^precision.*/precision = "fp32"/' "$settings"/*.toml
fi

on_gpu train-tests 90 $PYTHON -m pytest -W default -q -rs -p no:cacheprovider tests/train/test_cuda.py
part train-eager $((80 * limit)) $PYTHON -m slicemill bench train $train --config "$settings/eager.toml" --json "$OUT/train-eager.json"
part train-compiled $((150 * limit)) $PYTHON -m slicemill bench train $train --config "$settings/compiled.toml" --json "$OUT/train-compiled.json"
part peers $((160 * limit)) $PYTHON -m slicemill.bench.stages.infer_gpu $work --json "$OUT/peers.json" --only peak compiled
finish
