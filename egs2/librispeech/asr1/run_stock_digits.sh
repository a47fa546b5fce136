#!/usr/bin/env bash
# Stage 11 of the digits recipe by ESPnet alone, after stages 1-10 of run_digits.sh: a
# model as a user has it before this package comes in.
set -euo pipefail

VENV=${VENV:-$(cd ../../.. && pwd)/.venv}
[ -d "${VENV}" ] && export PATH="${VENV}/bin:${PATH}"

# path.sh may put another python3 first
./asr.sh \
    --python "$(command -v python3)" \
    --stage 11 \
    --stop_stage 11 \
    --ngpu 0 \
    --token_type char \
    --speed_perturb_factors "" \
    --audio_format wav \
    --dumpdir dump/digits \
    --expdir exp/digits \
    --lang digits \
    --use_lm false \
    --train_set digits_train \
    --valid_set digits_dev \
    --test_sets digits_test \
    "$@"
