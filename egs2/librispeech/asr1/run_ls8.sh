#!/usr/bin/env bash
# ls8: 7.7 hours of LibriSpeech in a split of our own (see RESULTS.md), for one GPU.
# LIBRISPEECH names the tree that holds ls8-train, -dev, -test and -test-other.
set -euo pipefail

# what the user typed, for the report: the outermost script's command
export OMNISPARSE_TYPED=${OMNISPARSE_TYPED:-$(printf '%q ' "$0" "$@")}

./run.sh \
    --ngpu 1 \
    --nj 2 \
    --inference_nj 2 \
    --nbpe 300 \
    --speed_perturb_factors "" \
    --dumpdir dump/ls8 \
    --expdir exp/ls8 \
    --lang ls8 \
    --asr_config conf/tuning/ls8_simple_topk.yaml \
    --train_set ls8_train \
    --valid_set ls8_dev \
    --test_sets "ls8_test ls8_test_other" \
    --local_data_opts "--train_set ls8_train --train_parts ls8-train --valid_set ls8_dev --valid_parts ls8-dev --test_parts ls8-test,ls8-test-other" \
    "$@"
