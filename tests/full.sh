#!/usr/bin/env bash
# The counts that .ci/run leaves out, by hand: every property with 10^5 cases where proptest has 256 (PROPTEST_CASES says
# how many), and the judge on all cases of a folder that tools/demo_model/cases.py made. It takes hours. What it prints goes
# to benches/results/DATE-CARD-full.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
card=${1:?usage: tests/full.sh CARD [CASES]; CARD is cpu, h100 or another word for the machine, CASES a folder of cases}
cases=${2:-}

results="benches/results/$(date +%F)-$card-full.txt"
exec > >(tee "$results") 2>&1
export PROPTEST_CASES=${PROPTEST_CASES:-100000}
echo "commit $(git describe --always --dirty), $PROPTEST_CASES cases a property"
cargo test --release --lib --test plan
[ -z "$cases" ] || cargo run --release -- judge --cases "$cases" --quiet
