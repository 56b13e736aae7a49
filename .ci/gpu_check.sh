#!/usr/bin/env bash
# All checks that need a card, in one run of under five minutes on an H100: .ci/gpu_check.sh [folder for the figures]
# On a CPU, with small numbers: SMALL=1 DEVICE=cpu .ci/gpu_check.sh. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" .ci/gpu_check.py --device "${DEVICE:-cuda}" ${SMALL:+--small} "${1:-${OUT:-eval/test_output/gpu_check}}"
