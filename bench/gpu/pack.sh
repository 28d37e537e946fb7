#!/bin/sh
# Packs what one.sh and two.sh need on a GPU machine without a network into OUT (default .gpu): ort.tar.xz and site.tar.xz.
# That machine has Python 3.12 on x86-64, and torch for CUDA 13 with its libraries. Needs pip, readelf, strip, xz; takes minutes.
#   sh bench/gpu/pack.sh OUT [ARCH [PYTHON_VERSION]]      ARCH 90: H100, H200
set -eu
out=${1:-.gpu} arch=${2:-90} version=${3:-3.12} python=${PYTHON:-python3}
cd "$(dirname "$0")/../.."
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
# Without dependencies: torch brings numpy, jinja2 and others, and must not be replaced.
$python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -c constraints.txt -d "$wheels" \
  --python-version "$version" --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_24_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
  --platform manylinux_2_5_x86_64 --platform manylinux1_x86_64 \
  onnxruntime-gpu \
  zarr numcodecs donfig google-crc32c nibabel isal connected-components-3d msgspec typer \
  dask distributed partd locket zict tblib toolz tornado msgpack sortedcontainers cloudpickle
$python bench/gpu/pack.py "$wheels" "$out" --arch "$arch"
