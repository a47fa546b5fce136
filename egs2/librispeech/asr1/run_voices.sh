#!/usr/bin/env bash
# Many synthetic voices, an open vocabulary: a set on which the size of a net matters and
# that two CPU cores can train on. TEXT names transcripts, lines of `id WORDS`, such as
# those of train-clean-100 (gzipped or not); HOURS is what is spoken of them.
set -euo pipefail

# what the user typed, for the report: the outermost script's command
export OMNISPARSE_TYPED=${OMNISPARSE_TYPED:-$(printf '%q ' "$0" "$@")}

corpus=${PWD}/downloads/voices/LibriSpeech
if [ -n "${TEXT:-}" ]; then
    python3 -m espnet_omnisparse.data.voices_corpus \
        --text "${TEXT}" --hours "${HOURS:-4}" --out "${corpus}"
elif [ ! -d "${corpus}" ]; then
    echo "error: TEXT must name a file of transcripts, lines of id WORDS." >&2
    exit 1
fi

LIBRISPEECH=${corpus} ./run.sh \
    --ngpu 0 \
    --nj 2 \
    --inference_nj 2 \
    --nbpe 300 \
    --speed_perturb_factors "" \
    --audio_format wav \
    --min_wav_duration 0.1 \
    --dumpdir dump/voices \
    --expdir exp/voices \
    --lang voices \
    --asr_config conf/tuning/voices_individual.yaml \
    --train_set voices_train \
    --valid_set voices_dev \
    --test_sets voices_test \
    --local_data_opts "--train_set voices_train --train_parts voices-train --valid_set voices_dev --valid_parts voices-dev --test_parts voices-test" \
    "$@"
