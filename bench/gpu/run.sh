#!/bin/sh
# Everything that needs a GPU: inference and training, each with its tests. If one fails, the other still runs, and the exit status is 1.
# Writes OUT/*.json and OUT/train.log, OUT/infer.log (default bench/results/gpu).
#   sh bench/gpu/run.sh OUT [train | infer]      only one of them, if the time of a command is limited
set -u
out=${1:-bench/results/gpu}
mkdir -p "$out"
failed=0
for part in ${2:-infer train}; do
  echo "== $part: $out/$part.log"
  sh "bench/gpu/$part.sh" "$out" > "$out/$part.log" 2>&1 || failed=1
  tail -n 15 "$out/$part.log"
done
ls -l "$out"
exit $failed
