"""ESPnet's own unit tests of its encoders, with ours in their place.

Wherever one of these tests runs an encoder, its output and gradients are those of
ESPnet's own encoder with the same weights, and under masks those of ESPnet's own with
the masked weights.
"""

import inspect
import re

import pytest
import torch
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
from helpers.espnet_source import cases_of, espnets_tests, pairwise

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.tasks import encoder_choices

#: ESPnet's name of an encoder -> the file of its tests, the class that they test
TESTED = {
    "conformer": ("test_conformer_encoder", "ConformerEncoder"),
    "e_branchformer": ("test_e_branchformer_encoder", "EBranchformerEncoder"),
    "transformer": ("test_transformer_encoder", "TransformerEncoder"),
}
AXES = ("layer_prunable", "omni_sparse")
EVERY = pytest.mark.parametrize("name", TESTED)
BOTH = pytest.mark.parametrize("axis", AXES)
#: option of ESPnet's grids that must say nothing, such as 0.0 -> what is told otherwise
REFUSED = {
    "interctc_layer_idx": "interctc_layer_idx: .* set it to",
    "stochastic_depth_rate": "stochastic_depth_rate: .*layer dropout is an option of",
    "layer_drop_rate": "layer_drop_rate: .*layer dropout is an option of model_conf",
}
OF_MASKS = "fast_selfattn has neither masks nor components"
FAST = {"attention_layer_type": "fast_selfattn", "pos_enc_layer_type": "abs_pos"}
SMALL = {"output_size": 8, "attention_heads": 2, "num_blocks": 1}
DROPOUT = ("dropout_rate", "positional_dropout_rate")


def beside_espnets(ours, stock):
    """A class of ours that computes nothing without comparing it to ESPnet's own."""

    class Beside(ours):
        def __init__(self, input_size, **options):
            if options.get("output_size") == 2:
                # the norm of two channels is a sign, and whether rounding flips it luck
                options["output_size"] = 8
            if issubclass(ours, EBranchformerEncoder):
                # it draws a number for each layer, of which none is dropped
                options |= dict.fromkeys(DROPOUT, 0.0)
            super().__init__(input_size, **options)
            if "macaron_style" in inspect.signature(stock).parameters:
                options = {"macaron_style": True} | options  # our default
            self.espnets = [stock(input_size, **options)]  # in a list: no part of it

        def forward(self, feats, lengths):
            (own,) = self.espnets
            own.load_state_dict(self.state_dict(), strict=True)
            own.train(self.training)
            drawn = torch.get_rng_state()
            expected, own_lengths, _ = own(feats, lengths)
            torch.set_rng_state(drawn)  # the same dropout
            encoded, our_lengths, more = super().forward(feats, lengths)
            assert torch.equal(our_lengths, own_lengths) and more is None
            assert torch.allclose(encoded, expected, atol=1e-6, rtol=0)
            if encoded.requires_grad:
                _same_gradients(self, encoded, own, expected)
            if self.space.pattern is not None:
                _same_masked(self, own, feats, lengths, super().forward)
            return encoded, our_lengths, None

    return Beside


def _same_gradients(ours, encoded, stock, expected):
    weights = torch.linspace(-1, 1, encoded.numel()).view_as(encoded)
    pairs = []
    for encoder, output in ((ours, encoded), (stock, expected)):
        parameters = dict(encoder.named_parameters())
        found = torch.autograd.grad(
            (weights * output).sum(),
            list(parameters.values()),
            retain_graph=True,
            allow_unused=True,
        )
        pairs.append(dict(zip(parameters, found, strict=True)))
    for name, gradient in pairs[1].items():
        if gradient is None:
            assert pairs[0][name] is None
        else:
            assert torch.allclose(pairs[0][name], gradient, atol=1e-4, rtol=1e-4), name


@torch.no_grad()
def _same_masked(ours, stock, feats, lengths, forward):
    was_training = ours.training
    ours.eval(), stock.eval()
    ours.refresh_masks()
    sparsity = (0.5,) * len(ours.space.weights)
    kept = ours.kept_weights(sparsity)
    names = {id(parameter): name for name, parameter in ours.named_parameters()}
    for weight, parameter in ours.maskable().items():
        stock.get_parameter(names[id(parameter)]).mul_(kept[weight])
    encoded = forward(feats, lengths, sparsity=sparsity)[0]
    expected = stock(feats, lengths)[0]
    assert torch.allclose(encoded, expected, atol=1e-6, rtol=0)
    ours.train(was_training)


def refusals_of(test, case, axis):
    """What a case may be told, a sentence for each option that it has wrong.

    Two tests of ESPnet's are of wrong values of such an option alone.
    """
    told = [
        words
        for option, words in REFUSED.items()
        if case.get(option) or test.endswith(f"invalid_{option}")
    ]
    if axis == "omni_sparse" and case.get("attention_layer_type") == "fast_selfattn":
        told.append(OF_MASKS)
    return told


def run(name, axis, full):
    """Runs ESPnet's tests of an encoder; returns how many cases ran, and were refused.

    Args:
        name: ESPnet's name of the encoder.
        axis: Which of ours takes its place.
        full: Every case of its grids, not only one for each pair of values.
    """
    file, stock = TESTED[name]
    ran = refused = 0
    with espnets_tests(file) as module:
        espnets = getattr(module, stock)
        ours = encoder_choices.classes[f"{axis}_{name}"]
        setattr(module, stock, beside_espnets(ours, espnets))
        for test, function in inspect.getmembers(module, inspect.isfunction):
            if not test.lower().startswith("test_"):
                continue
            cases = cases_of(function)
            taken = [case for case in cases if not refusals_of(test, case, axis)]
            left = [case for case in cases if refusals_of(test, case, axis)]
            if not full:
                taken, left = pairwise(taken), pairwise(left)
            for case in taken:
                try:
                    function(**case)
                except Exception as error:
                    raise AssertionError(f"{test}: {case}") from error
            for case in left:
                with pytest.raises(UserError) as told:
                    function(**case)
                assert re.search(
                    "|".join(refusals_of(test, case, axis)), str(told.value)
                ), case
            ran, refused = ran + len(taken), refused + len(left)
    return ran, refused


@EVERY
@BOTH
def test_espnets_own_tests_pass_with_our_encoder(name, axis):
    ran, refused = run(name, axis, full=False)
    assert ran and refused


@pytest.mark.slow
@EVERY
def test_espnets_own_tests_pass_with_our_encoder_in_every_case(name):
    ran, refused = run(name, "layer_prunable", full=True)
    print(f"{name}: {ran} cases run, {refused} refused")


@pytest.mark.parametrize(
    "encoder, options, words",
    [
        ("layer_prunable_conformer", {"use_cnn_module": False}, "set it to True"),
        ("layer_prunable_conformer", {"ctc_trim": True}, "set it to False"),
        ("layer_prunable_transformer", {"normalize_before": False}, "set it to True"),
        ("layer_prunable_transformer", {"concat_after": True}, "set it to False"),
        (
            "layer_prunable_e_branchformer",
            {"gradient_checkpoint_layers": [1]},
            "gradient_checkpoint_layers cannot be combined",
        ),
        (
            "layer_prunable_e_branchformer",
            {**FAST, "granularity": "component"},
            OF_MASKS,
        ),
        ("omni_sparse_e_branchformer", FAST, OF_MASKS),
    ],
)
def test_what_espnets_tests_leave_out_and_we_refuse(encoder, options, words):
    with pytest.raises(UserError, match=words):
        encoder_choices.classes[encoder](20, **SMALL, **options)
