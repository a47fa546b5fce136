"""Trainings of hybrid models whose decoder takes masks, or is shorter in a size."""

import pytest
import soundfile
from espnet2.bin.asr_inference import Speech2Text
from helpers.tiny import DECODER
from helpers.trained import load
from helpers.training import assert_goes_on, train

from espnet_omnisparse import cli
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.search.run import SearchOptions, read_problem, run_search

# warm start to 2, ramp to 7, settled from 12 of 20 updates
TRAINING = {
    "encoder": "omni_sparse_conformer",
    "encoder_conf": {"pattern": "8x1", "conv_norm": "layer_norm"},
    "decoder": "transformer",
    "decoder_conf": {**DECODER, "num_blocks": 2},
    "optim_conf": {"lr": 0.02},
    "model_conf": {
        "ctc_weight": 0.3,
        "mask_decoder": True,
        "supernet": {
            "method": "none",
            "score_lr": None,
            "step1": 0.6,
            "sizes": {
                "small": {"sparsity": 0.8, "decoder": 1},
                "medium": {"sparsity": 0.4},
            },
            "sparsity": {
                "final": 0.8,
                "ramp": 5,
                "refresh": 3,
                "settle": 0.4,
                "own": "norms_and_biases",
                "sandwich": ["dense", "sparsest", "size", "size"],
            },
            "warm_start": 2,
            "update": "split_batch",
        },
    },
}


@pytest.mark.parametrize("update", [7, 17])
def test_a_killed_training_goes_on_as_if_nothing_had_been(
    corpus, uninterrupted, tmp_path, update
):
    exp = tmp_path / "exp"
    assert_goes_on(corpus.command(exp, **TRAINING), exp, update, uninterrupted)


def test_another_decoder_is_not_gone_on_with(corpus, uninterrupted, tmp_path):
    command = corpus.command(uninterrupted, **TRAINING)
    changes = {**TRAINING, "model_conf": {**TRAINING["model_conf"]}}
    changes["model_conf"]["mask_decoder"] = False
    command = corpus.command(uninterrupted, **changes)
    refused = train(command, tmp_path / "log")
    assert "was trained with encoder's decoder: 2, not 0" in refused.sentence


def test_sizes_are_decoded_jointly_by_espnet_alone(corpus, uninterrupted):
    cli.main(["extract", str(uninterrupted), "--sizes", "small", "medium"])
    wave, _ = soundfile.read(corpus.folder / "valid/valid-00.wav", dtype="float32")
    for size, layers, share in (("small", 1, 0.8), ("medium", 2, 0.4)):
        folder = uninterrupted.with_name(f"{uninterrupted.name}_{size}")
        state = load(folder / "model.pth")
        weights = [
            tensor
            for name, tensor in state.items()
            if name.startswith("decoder.decoders.") and tensor.dim() == 2
        ]
        assert len(weights) == 10 * layers
        for weight in weights:
            zeros = float((weight == 0).float().mean())
            assert zeros == pytest.approx(share, abs=0.05)
        files = folder / "config.yaml", folder / "model.pth"
        recognise = Speech2Text(*files, beam_size=3, ctc_weight=0.3)
        ((text, *_),) = recognise(wave)
        assert {*text} <= {*"ABC "}


def test_a_search_by_ctc_alone_is_refused(uninterrupted):
    problem = read_problem(uninterrupted, "valid.loss_sizes.ave.pth", ())
    assert problem.model.encoder.space.decoder == 2
    with pytest.raises(UserError, match="search with --objective loss"):
        run_search(problem, SearchOptions(), "wer", 4, 4)


def test_what_the_checkpoint_settled_is_what_is_cut(uninterrupted):
    state = load(uninterrupted / "valid.loss_sizes.ave.pth")
    spec = family.selected_specs(uninterrupted)["medium"]
    config = family.read_config(uninterrupted)
    _, small = family.cut(config, state, spec)
    name = "decoder.0.feed_forward.w_1"
    ranks = state[f"supernet.order.{name}"]
    kept = small["decoder.decoders.0.feed_forward.w_1.weight"] != 0
    groups = kept.view(-1, 8, kept.size(1)).any(1)
    # nested: the groups kept are the first of the order
    assert ranks[groups].sort().values.tolist() == [*range(int(groups.sum()))]
