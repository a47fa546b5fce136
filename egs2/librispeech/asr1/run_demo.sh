#!/usr/bin/env bash
# The whole product on a corpus that needs no download: synthetic voices, a supernet
# and, beside it, the same net without supernet training.
set -euo pipefail

VENV=${VENV:-$(cd ../../.. && pwd)/.venv}
[ -d "${VENV}" ] && export PATH="${VENV}/bin:${PATH}"

corpus=downloads/demo/LibriSpeech
exp=exp/demo
options=(
    --ngpu 0
    --nj 2
    --inference_nj 1
    --token_type char
    --speed_perturb_factors ""
    --audio_format wav
    --min_wav_duration 0.1
    --lang demo
    --dumpdir dump/demo
    --expdir "${exp}"
    --train_set demo_train
    --valid_set demo_dev
    --test_sets demo_test
    --local_data_opts "--corpus ${corpus} --train_set demo_train --train_parts demo-train --valid_set demo_dev --valid_parts demo-dev --test_parts demo-test"
)
supernet=(--asr_config conf/demo_supernet.yaml --asr_tag supernet)
plain=(--asr_config conf/demo_plain.yaml --asr_tag plain)

python3 -m espnet_omnisparse.data.demo_corpus --out "${corpus}"

echo "== stages 1-10: data, tokens, statistics (log: ${exp}/prepare.log)"
mkdir -p "${exp}"
if ! ./run.sh "${options[@]}" "${supernet[@]}" --stop_stage 10 &> "${exp}/prepare.log"; then
    tail -n 20 "${exp}/prepare.log" >&2
    exit 1
fi

echo "== stage 11: two trainings side by side"
# each in a process group of its own, which ends as a whole if this script does
set -m
pids=()
stop_all() {
    local pid
    for pid in "${pids[@]}"; do
        kill -- "-${pid}" 2> /dev/null || true
    done
}
trap stop_all EXIT
./run.sh "${options[@]}" "${supernet[@]}" --stage 11 --stop_stage 11 &> "${exp}/supernet.log" &
pids+=($!)
./run.sh "${options[@]}" "${plain[@]}" --stage 11 --stop_stage 11 &> "${exp}/plain.log" &
pids+=($!)
python3 -m espnet_omnisparse.recipe.progress "${exp}/asr_supernet/train.log" "${exp}/asr_plain/train.log" &
pids+=($!)
disown  # it is ended on purpose, which is no news
wait "${pids[0]}" || { tail -n 20 "${exp}/supernet.log" >&2; exit 1; }
wait "${pids[1]}" || { tail -n 20 "${exp}/plain.log" >&2; exit 1; }
kill -- "-${pids[2]}" 2> /dev/null || true
pids=()

echo "== stages 12-13: every size, and the same branches cut out of the plain net"
./run.sh "${options[@]}" "${plain[@]}" --stage 12 --stop_stage 13 \
    --subnets "${exp}/asr_supernet/subnets" &> "${exp}/plain.log" &
pids=($!)
./run.sh "${options[@]}" "${supernet[@]}" --stage 12 --stop_stage 13 &> "${exp}/supernet.log" ||
    { tail -n 20 "${exp}/supernet.log" >&2; exit 1; }
wait "${pids[0]}" || { tail -n 20 "${exp}/plain.log" >&2; exit 1; }
pids=()

omnisparse report "${exp}/asr_supernet" \
    --baseline "without supernet training, small=${exp}/asr_plain_small" \
    --baseline "without supernet training, medium=${exp}/asr_plain_medium" \
    --baseline "without supernet training, full=${exp}/asr_plain_full"

echo "== on a device: packed files, and the smallest of them at work"
if ! python3 -c "from espnet_omnisparse import runtime; runtime.instruction_set()" 2> /dev/null; then
    echo "The engine is not built, for want of a C++ compiler: see docs/devices.md."
    exit
fi
quietly() {
    "$@" 2>> "${exp}/device.log" || { tail -n 5 "${exp}/device.log" >&2; exit 1; }
}
packed=()
for size in small medium full; do
    quietly omnisparse export "${exp}/asr_supernet_${size}" --to packed --dtype int8 \
        --out "${exp}/${size}_int8.omni"
    packed+=("${exp}/${size}_int8.omni")
done
quietly omnisparse bench "${packed[@]}" "${exp}/asr_supernet_full" --seconds 5
audio=$(find "${corpus}/demo-test" -name '*.flac' | sort | sed -n 1p)  # all is read: no broken pipe
echo "${audio}: $(grep "$(basename "${audio}" .flac)" "$(dirname "${audio}")"/*.trans.txt)"
# the engine's own program, which needs no Python; CMakeLists.txt there builds it as well
engine=../../../espnet_omnisparse/runtime/csrc
mapfile -t sources < <(find "${engine}/src" "${engine}/tools" -name '*.cpp')
quietly "${CXX:-c++}" -std=c++17 -O2 -pthread -I "${engine}/include" "${sources[@]}" \
    -o "${exp}/omnisparse-run"
python3 -c "import sys, soundfile as s; s.write(sys.argv[2], *s.read(sys.argv[1]))" \
    "${audio}" "${exp}/speech.wav"
quietly "${exp}/omnisparse-run" "${packed[0]}" "${exp}/speech.wav"
