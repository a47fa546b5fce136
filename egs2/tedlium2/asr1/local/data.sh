#!/usr/bin/env bash
# Stage 1 of asr.sh: TED-LIUM release 2 as Kaldi folders.
set -euo pipefail

log() {
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (${BASH_SOURCE[1]##*/}:${BASH_LINENO[0]}) $*"
}

corpus=${TEDLIUM2:-downloads/TEDLIUM_release2}  # holds train, dev and test
url=https://www.openslr.org/resources/19        # where the release is downloaded from
data_dir=data
splits="train dev test"  # separated by spaces, or by commas inside --local_data_opts
keep_noise_tags=true     # true: {NOISE} becomes the word [NOISE]; false: it is dropped
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
        "(separate splits by commas)." >&2
    exit 2
fi

# counts and errors go to stderr; what is captured is the folders written
written=$(python3 -m espnet_omnisparse.data.tedlium \
    --corpus "${corpus}" --url "${url}" --data_dir "${data_dir}" \
    --splits "${splits}" --keep_noise_tags "${keep_noise_tags}" \
    --fs "${fs}" --shortest "${shortest}" --convert "${convert}" \
    --leave_out "${leave_out}" --perturb "${perturb}")

mapfile -t folders <<< "${written}"
# --non-print: it looks for such characters in the C locale, where it finds no UTF-8 one,
# and what is read has none
for folder in "${folders[@]}"; do
    utils/validate_data_dir.sh --no-feats --non-print "${folder}"
done

log "Successfully finished. [elapsed=${SECONDS}s]"
