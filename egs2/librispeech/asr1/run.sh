#!/usr/bin/env bash
# LibriSpeech, one supernet, every size. Options: ESPnet's asr.sh, and those that
# `./run.sh --help` lists.
set -euo pipefail

# what the user typed, for the report: the outermost script's command
export OMNISPARSE_TYPED=${OMNISPARSE_TYPED:-$(printf '%q ' "$0" "$@")}

VENV=${VENV:-$(cd ../../.. && pwd)/.venv}
[ -d "${VENV}" ] && export PATH="${VENV}/bin:${PATH}"

python3 -m espnet_omnisparse.recipe \
    --lang en \
    --ngpu 1 \
    --nbpe 5000 \
    --max_wav_duration 30 \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --use_lm false \
    --asr_config conf/layer_prune.yaml \
    --train_set train_960 \
    --valid_set dev \
    --test_sets "test_clean test_other dev_clean dev_other" \
    "$@"
