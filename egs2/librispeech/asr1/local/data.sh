#!/usr/bin/env bash
# Stage 1 of asr.sh: LibriSpeech, or any corpus laid out as it is, as Kaldi folders.
# Lists of parts are separated by spaces or commas; commas pass through asr.sh's
# --local_data_opts, which splits its value at spaces.
set -euo pipefail

log() {
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (${BASH_SOURCE[1]##*/}:${BASH_LINENO[0]}) $*"
}

corpus=${LIBRISPEECH:-downloads/LibriSpeech}  # the folder that holds the parts
url=https://www.openslr.org/resources/12      # where missing standard parts are
data_dir=data
train_set=train_960
train_parts="train-clean-100 train-clean-360 train-other-500"
valid_set=dev
valid_parts="dev-clean dev-other"
test_parts="test-clean test-other dev-clean dev-other"
# run.sh says what its --fs is, and whether it decodes streams, of any length, or
# perturbs the speed of the training set
fs=${OMNISPARSE_FS:-16k}              # samples per second
shortest=${OMNISPARSE_SHORTEST:-0.06} # seconds that test utterances have at least
perturb=${OMNISPARSE_PERTURB:-false}  # true: paths of training audio must suit a shell
convert=false    # true: resample and mix down recordings that need it
leave_out=false  # true: go on without recordings that cannot be used
# shellcheck disable=SC2034  # read by parse_options.sh
help_message="Options and their defaults: $(sed -n '/^corpus=/,/^leave_out=/p' "$0")"

log "$0 $*"
# shellcheck source=/dev/null
. utils/parse_options.sh

if [ $# -ne 0 ]; then
    log "error: no positional arguments are taken, but there is '$1'" \
        "(separate parts by commas)." >&2
    exit 2
fi

# progress and errors go to stderr; what is captured is the folders written
written=$(python3 -m espnet_omnisparse.data.librispeech \
    --corpus "${corpus}" --url "${url}" --data_dir "${data_dir}" \
    --train_set "${train_set}" --train_parts "${train_parts}" \
    --valid_set "${valid_set}" --valid_parts "${valid_parts}" \
    --test_parts "${test_parts}" \
    --fs "${fs}" --shortest "${shortest}" --convert "${convert}" \
    --leave_out "${leave_out}" --perturb "${perturb}")

mapfile -t folders <<< "${written}"
# --non-print: it looks for such characters in the C locale, where it finds no UTF-8 one,
# and what is read has none
for folder in "${folders[@]}"; do
    utils/validate_data_dir.sh --no-feats --non-print "${folder}"
done

log "Successfully finished. [elapsed=${SECONDS}s]"
