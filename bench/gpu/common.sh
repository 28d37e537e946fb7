# Shared by one.sh and two.sh, which source it. They run in the repository's root with sh on a machine with a GPU.
# OUT: the folder for results (default bench/results/gpu). Where pack.sh has packed .gpu/, its packages come first.
# DRY=1: the same parts on a machine without a GPU, with tiny sizes; parts that need one are named and left out.
set -u
OUT=${OUT:-bench/results/gpu} PACK=${PACK:-.gpu} PYTHON=${PYTHON:-python3} DRY=${DRY:-0} failed=0
export PYTHONUNBUFFERED=1
mkdir -p "$OUT"

say() { echo "== $(date +%T) $*"; }

# part NAME SECONDS COMMAND...: run a command with a time limit, its output in OUT/NAME.log; go on if it fails.
part() {
  part_name=$1 part_limit=$2 # sh has no local variables
  shift 2
  say "$part_name (at most $part_limit s)"
  timeout -k 10 "$part_limit" "$@" > "$OUT/$part_name.log" 2>&1
  part_status=$?
  tail -n 12 "$OUT/$part_name.log" | cut -c 1-300
  if [ $part_status -ne 0 ]; then
    failed=1
    say "$part_name FAILED: exit status $part_status (124: time limit)"
  fi
}

# on_gpu PART...: the same, left out by name in a dry run.
on_gpu() {
  if [ "$DRY" = 1 ]; then say "$1: needs a GPU; left out"; else part "$@"; fi
}

unpack() {
  [ -d "$PACK" ] || { say "no packages in $PACK: the installed ones are used"; return 0; }
  mkdir -p "$PACK/site"
  for archive in ort site; do
    [ -f "$PACK/$archive.tar.xz" ] || { say "$PACK/$archive.tar.xz is missing; make it with bench/gpu/pack.sh"; exit 1; }
    $PYTHON -c "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter='data')" \
      "$PACK/$archive.tar.xz" "$PACK/site" || exit 1
  done
  PYTHONPATH=$(cd "$PACK/site" && pwd):$PWD
  # torch brings CUDA's libraries as packages; onnxruntime-gpu looks for them on this path.
  if libraries=$($PYTHON -c "import nvidia; print(':'.join(f'{p}/{d}' for p in nvidia.__path__ for d in ('cu13/lib', 'cudnn/lib')))" 2>/dev/null)
  then export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  else say "no packages of CUDA's libraries (nvidia): the system's are used"; fi
}

finish() {
  say "results in $OUT"
  ls -l "$OUT"
  [ $failed = 0 ] && say "all parts passed" || say "some parts FAILED, see above"
  exit $failed
}

PYTHONPATH=${PYTHONPATH:-$PWD}
say "unpacking"
unpack
export PYTHONPATH
[ "$DRY" = 1 ] || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
$PYTHON -c "import sys, torch, onnxruntime; print(sys.version.split()[0], 'torch', torch.__version__, 'onnxruntime', onnxruntime.__version__, onnxruntime.__file__)" \
  || failed=1
