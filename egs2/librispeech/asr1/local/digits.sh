# shellcheck shell=bash
# The options that the digits recipe has, however its model is trained.
# shellcheck disable=SC2034  # read by the script that this is sourced from
digits=(
    --ngpu 0
    --nj 2
    --inference_nj 2
    --token_type char
    --speed_perturb_factors ""
    --audio_format wav
    --dumpdir dump/digits
    --expdir exp/digits
    --lang digits
    --train_set digits_train
    --valid_set digits_dev
    --test_sets digits_test
    --local_data_opts "--train_set digits_train --train_parts digits-train --valid_set digits_dev --valid_parts digits-dev --test_parts digits-test"
)
