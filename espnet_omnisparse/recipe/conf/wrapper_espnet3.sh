#!/usr/bin/env bash
# This recipe as a supernet and all of its sizes: ESPnet's stages, and the extraction of
# the sizes in between. Written by `omnisparse recipe`. What is done is not done again;
# an interrupted training goes on.
#   ./@WRAPPER@ [SIZE ...]     the sizes to decode and score (all)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# the Python of ESPnet's stages
if [ -f ../../../tools/activate_python.sh ]; then
    . ./path.sh
fi
if ! ours=$(python3 -c "import espnet_omnisparse as o; print(o.__path__[0])"); then
    echo "error: espnet-omnisparse is not installed in $(command -v python3), the" \
        "Python of this recipe's path.sh: install it there." >&2
    exit 1
fi
# behind all others: a stand-in for sph2pipe
export PATH=$PATH:$ours/recipe/bin

exp=exp/training_@NAME@
config=conf/training_@NAME@.yaml
python3 -m espnet_omnisparse.recipe.espnet3 "$config" "$exp" "$@"
python3 run.py --stages create_dataset train_tokenizer collect_stats \
    --training_config "$config"
# a process of its own: collect_stats leaves the configuration without `normalize`
python3 run.py --stages train --training_config "$config"
python3 -m espnet_omnisparse.cli extract "$exp"

if [ $# = 0 ]; then
    for spec in "$exp"/subnets/*.yaml; do
        set -- "$@" "$(basename "$spec" .yaml)"
    done
fi
for SIZE in "$@"; do
    export SIZE
    python3 run.py --stages infer measure --inference_config conf/inference_@NAME@.yaml \
        --metrics_config conf/metrics.yaml
done
# RESULTS.md, a row for each size
python3 -m espnet_omnisparse.cli report "$exp"
