#!/usr/bin/env bash
# Connected digits in LibriSpeech layout: the recipe on a set that two CPU cores can
# train on. FSDD names a clone of the Free Spoken Digit Dataset, of whose recordings it
# is made; or LIBRISPEECH a tree that holds digits-train, -dev and -test.
set -euo pipefail

# what the user typed, for the report: the outermost script's command
export OMNISPARSE_TYPED=${OMNISPARSE_TYPED:-$(printf '%q ' "$0" "$@")}

corpus=${PWD}/downloads/digits/LibriSpeech
if [ -n "${FSDD:-}" ]; then
    python3 -m espnet_omnisparse.data.digits_corpus --fsdd "${FSDD}" --out "${corpus}"
fi
if [ -d "${corpus}" ]; then
    export LIBRISPEECH=${LIBRISPEECH:-${corpus}}
fi

# shellcheck source=egs2/librispeech/asr1/local/digits.sh
. local/digits.sh
./run.sh "${digits[@]}" --asr_config conf/tuning/digits_simple_topk.yaml "$@"
