#!/usr/bin/env bash
# TED-LIUM 2, one supernet, every size. Options: ESPnet's asr.sh, and those that
# `./run.sh --help` lists. Speed perturbation needs sox.
set -euo pipefail

# what the user typed, for the report: the outermost script's command
export OMNISPARSE_TYPED=${OMNISPARSE_TYPED:-$(printf '%q ' "$0" "$@")}

VENV=${VENV:-$(cd ../../.. && pwd)/.venv}
[ -d "${VENV}" ] && export PATH="${VENV}/bin:${PATH}"

python3 -m espnet_omnisparse.recipe \
    --lang en \
    --ngpu 1 \
    --nbpe 500 \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --use_lm false \
    --asr_config conf/layer_prune.yaml \
    --train_set train \
    --valid_set dev \
    --test_sets "dev test" \
    "$@"
