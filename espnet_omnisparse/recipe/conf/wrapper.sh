#!/usr/bin/env bash
# This recipe as a supernet and all of its sizes: run.sh, which stays as it is, with
# another ./asr.sh. Written by `omnisparse recipe`. Options: those of ESPnet's asr.sh,
# and those that ./@WRAPPER@ --help lists; they count more than what is below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# what the user typed, for the report
export OMNISPARSE_TYPED=${OMNISPARSE_TYPED:-$(printf '%q ' "$0" "$@")}

# ESPnet's template is the checkout's own, where there is one
if [ -z "${ESPNET_ROOT:-}" ] && [ -d ../../../tools ] &&
    [ -f ../../TEMPLATE/asr1/asr.sh ]; then
    ESPNET_ROOT=$(cd ../../.. && pwd)
    export ESPNET_ROOT
fi

# the Python of ESPnet's stages
. ./path.sh
if ! python3 -c "import espnet_omnisparse" 2>/dev/null; then
    echo "error: espnet-omnisparse is not installed in $(command -v python3), the" \
        "Python of this recipe's path.sh: install it there." >&2
    exit 1
fi

options=(
    @OPTIONS@
    "$@")

# stages 1-11, then for each size its extraction and stages 12-15
./asr.sh() {
    python3 -m espnet_omnisparse.recipe "$@" "${options[@]}"
}

set --  # run.sh would hand them on before ours
. ./run.sh
