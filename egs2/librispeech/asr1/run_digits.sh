#!/usr/bin/env bash
# Connected digits in LibriSpeech layout: the recipe on a set that two CPU cores can
# train on. LIBRISPEECH names the tree that holds digits-train, -dev and -test.
set -euo pipefail

# what the user typed, for the report: the outermost script's command
export OMNISPARSE_TYPED=${OMNISPARSE_TYPED:-$(printf '%q ' "$0" "$@")}

./run.sh \
    --ngpu 0 \
    --nj 2 \
    --inference_nj 2 \
    --token_type char \
    --speed_perturb_factors "" \
    --audio_format wav \
    --dumpdir dump/digits \
    --expdir exp/digits \
    --lang digits \
    --asr_config conf/tuning/digits_simple_topk.yaml \
    --train_set digits_train \
    --valid_set digits_dev \
    --test_sets digits_test \
    --local_data_opts "--train_set digits_train --train_parts digits-train --valid_set digits_dev --valid_parts digits-dev --test_parts digits-test" \
    "$@"
