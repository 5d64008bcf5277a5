#!/bin/sh
# ResNet-18 on CIFAR-10 with one GPU: pretraining, population, fit, 20 generations, their stale and
# white-box rows, in one call of at most ten minutes on an H200; results under $OUT.
#
#   benchmarks/gpu.sh              needs CUDA, and CIFAR-10's packed arrays in $DATA
#   benchmarks/gpu.sh --rehearse   the same path on the CPU: a tiny network, images of noise
#
# $PYTHON is the interpreter (python3), $DATA the data (shared/data/cifar10), $OUT where results and
# vaults go (a new folder under /tmp).
set -eu
cd "$(dirname "$0")/.."
OUT=${OUT:-$(mktemp -d)}
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 G2D_STATE="$OUT/state"
export CUBLAS_WORKSPACE_CONFIG=:4096:8
if [ "${1:-}" = --rehearse ]; then
    set -- --network tiny --device cpu
else
    set -- --network resnet18 --device cuda --data "${DATA:-shared/data/cifar10}"
fi
mkdir -p "$OUT/state"
exec "${PYTHON:-python3}" -m benchmarks.generation.cifar --short --out "$OUT" --work "$OUT/work" "$@"
