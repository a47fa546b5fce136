#!/usr/bin/env bash
# Stage 11 of the digits recipe by ESPnet alone, after stages 1-10 of run_digits.sh: a
# model as a user has it before this package comes in.
set -euo pipefail

VENV=${VENV:-$(cd ../../.. && pwd)/.venv}
[ -d "${VENV}" ] && export PATH="${VENV}/bin:${PATH}"

# shellcheck source=egs2/librispeech/asr1/local/digits.sh
. local/digits.sh
# path.sh may put another python3 first
./asr.sh "${digits[@]}" \
    --python "$(command -v python3)" \
    --stage 11 \
    --stop_stage 11 \
    --use_lm false \
    "$@"
