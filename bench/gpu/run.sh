#!/bin/sh
# All that needs a card: inference and training, each with its tests. Neither's failure keeps the other from running; exit 1 tells of it.
# Writes OUT/*.json and OUT/train.log, OUT/infer.log (default bench/results/gpu).
#   sh bench/gpu/run.sh OUT [train | infer]      one of them alone, where a command's time is limited
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
