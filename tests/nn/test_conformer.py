import pytest
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from helpers.encoders import CONF, VARIANTS, prunable, randomize
from helpers.tiny import FEATURES

from espnet_omnisparse.core.branches import BRANCHES
from espnet_omnisparse.core.gate import mask_gates
from espnet_omnisparse.core.layout import ASR_LAYOUT
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.nn.batch_norm import has_batch_norm
from espnet_omnisparse.nn.conformer import LayerPrunableConformerEncoder


@pytest.fixture
def feats():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 60, FEATURES, generator=generator), torch.tensor([60, 51, 40])


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("conf", VARIANTS.values(), ids=VARIANTS.keys())
def test_at_full_size_it_is_espnets_conformer(conf, train, feats):
    stock = randomize(ConformerEncoder(FEATURES, **{**CONF, **conf})).train(train)
    ours = LayerPrunableConformerEncoder(FEATURES, **{**CONF, **conf}).train(train)
    ours.load_state_dict(stock.state_dict(), strict=True)
    expected, lengths, _ = stock(*feats)
    for gates in (None, (1.0,) * 12):
        encoded, own_lengths, _ = ours(*feats, gates=gates)
        assert torch.equal(own_lengths, lengths)
        assert torch.allclose(encoded, expected, atol=1e-6, rtol=0)
        # BatchNorm's running statistics, where the full net was trained once
        if gates is None:
            for name, tensor in stock.state_dict().items():
                assert torch.equal(ours.state_dict()[name], tensor), name


def test_gradients_at_full_size_are_those_of_espnets_conformer(feats):
    stock = randomize(ConformerEncoder(FEATURES, **CONF))
    ours = LayerPrunableConformerEncoder(FEATURES, **CONF)
    ours.load_state_dict(stock.state_dict())
    for encoder in (stock, ours):
        encoder(*feats)[0].square().mean().backward()
    expected = {name: p.grad for name, p in stock.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-7), name


MASK = (
    *(True, False, True, False),
    *(False, False, False, False),
    *(False, True, True, True),
)


def record_calls(encoder):
    """Collects "block.branch" as the modules of each branch are called."""
    calls = []
    for number, block in enumerate(encoder.encoders):
        for branch, (norm, module) in ASR_LAYOUT.parts.items():
            for part in (norm, module):
                getattr(block, part).register_forward_hook(
                    lambda *_, unit=f"{number}.{branch}": calls.append(unit)
                )
        block.norm_final.register_forward_hook(
            lambda *_, unit=f"{number}.final": calls.append(unit)
        )
    return calls


def test_a_dropped_branch_is_not_computed_and_gets_no_gradient(feats):
    encoder = prunable()
    calls = record_calls(encoder)
    encoder(*feats, gates=mask_gates(MASK))[0].square().mean().backward()
    units = encoder.space.units
    kept = [unit for unit, keep in zip(units, MASK, strict=True) if keep]
    finals = [f"{block}.final" for block in range(3)]
    assert sorted(calls) == sorted(2 * kept + finals)
    for number, block in enumerate(encoder.encoders):
        for branch, parts in ASR_LAYOUT.parts.items():
            parameters = [
                p for part in parts[:2] for p in getattr(block, part).parameters()
            ]
            trained = f"{number}.{branch}" in kept
            assert all((p.grad is not None) == trained for p in parameters)


def test_a_dropped_branch_adds_nothing(feats):
    encoder = prunable().eval()
    masked = encoder(*feats, gates=mask_gates(MASK))[0]
    zero_gates = tuple(torch.tensor(float(keep)) for keep in MASK)
    assert torch.allclose(masked, encoder(*feats, gates=zero_gates)[0], atol=1e-6)
    assert not torch.allclose(masked, encoder(*feats)[0], atol=1e-2)


def test_every_branch_is_computed_under_a_tensor_gate(feats):
    encoder = prunable()
    calls = record_calls(encoder)
    gates = torch.zeros(12, requires_grad=True)
    encoder(*feats, gates=tuple(gates.unbind()))[0].square().mean().backward()
    assert set(encoder.space.units) <= set(calls)
    assert (gates.grad != 0).all()


@pytest.mark.parametrize("granularity, units", [("branch", 12), ("block", 3)])
def test_a_tensor_gate_of_one_is_no_gate(granularity, units, feats):
    encoder = prunable(granularity=granularity).eval()
    ones = tuple(torch.ones(units).unbind())
    expected = encoder(*feats)[0]
    assert torch.allclose(encoder(*feats, gates=ones)[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("granularity, units", [("branch", 12), ("block", 3)])
def test_a_gate_per_sequence_drops_the_unit_for_that_sequence(
    granularity, units, feats
):
    encoder = prunable(granularity=granularity, conv_norm="layer_norm").eval()
    gate = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    gates = [1.0] * units
    gates[1] = gate
    encoded = encoder(*feats, gates=gates)[0]
    gates[1] = None
    without = encoder(*feats, gates=gates)[0]
    expected = torch.where(gate > 0, encoder(*feats)[0], without)
    assert torch.allclose(encoded, expected, atol=1e-6)


def test_a_soft_branch_gate_scales_the_branch(feats):
    encoder = prunable().eval()
    frames = encoder.front_end(*feats)
    block = encoder.encoders[0]
    block.norm_final = torch.nn.Identity()
    nothing = frames.x
    for unit in range(4):
        gates = [None] * 4
        gates[unit] = 1.0
        full = block(frames, gates) - nothing
        gates[unit] = torch.tensor(0.25)
        assert torch.allclose(block(frames, gates) - nothing, 0.25 * full, atol=1e-6)


def test_a_whole_block_takes_its_final_norm_along(feats):
    encoder = prunable(granularity="block").eval()
    calls = record_calls(encoder)
    encoded = encoder(*feats, gates=(1.0, None, 1.0))[0]
    assert {unit.split(".")[0] for unit in calls} == {"0", "2"}

    shorter = ConformerEncoder(FEATURES, **{**CONF, "num_blocks": 2}).eval()
    state = {
        name.replace("encoders.2.", "encoders.1."): tensor
        for name, tensor in encoder.state_dict().items()
        if not name.startswith("encoders.1.")
    }
    shorter.load_state_dict(state)
    assert torch.allclose(encoded, shorter(*feats)[0], atol=1e-6, rtol=0)


def test_four_dropped_branches_leave_the_final_norm(feats):
    encoder = prunable().eval()
    calls = record_calls(encoder)
    gates = (1.0,) * 4 + (None,) * 4 + (1.0,) * 4
    encoded = encoder(*feats, gates=gates)[0]
    assert calls.count("1.final") == 1
    encoder.space = type(encoder.space)(3, "block")
    assert not torch.allclose(encoded, encoder(*feats, gates=(1.0, None, 1.0))[0])


def test_the_front_end_runs_once_for_all_subnets(feats):
    encoder = prunable().eval()
    frames = encoder.front_end(*feats)
    for gates in (None, mask_gates(MASK)):
        encoded, lengths = encoder.blocks(frames, gates)
        expected, expected_lengths, _ = encoder(*feats, gates=gates)
        assert torch.equal(encoded, expected)
        assert torch.equal(lengths, expected_lengths)


def test_a_wrong_number_of_gates_is_an_error(feats):
    with pytest.raises(ValueError):
        prunable()(*feats, gates=(1.0,) * 8)


EXCLUDED = [
    {"use_cnn_module": False},
    {"normalize_before": False},
    {"concat_after": True},
    {"interctc_layer_idx": [1]},
    {"interctc_use_conditioning": True},
    {"ctc_trim": True},
    {"stochastic_depth_rate": 0.1},
    {"stochastic_depth_rate": [0.0, 0.1, 0.2]},
    {"layer_drop_rate": 0.1},
]


@pytest.mark.parametrize("conf", EXCLUDED, ids=str)
def test_an_option_that_excludes_pruning_is_refused(conf):
    (name,) = conf
    with pytest.raises(UserError, match=f"encoder_conf.{name}: .* cannot be combined"):
        prunable(**conf)


HARMLESS = [
    {"stochastic_depth_rate": [0.0, 0.0, 0.0]},
    {"stochastic_depth_rate": (0, 0, 0)},
    {"stochastic_depth_rate": None},
    {"layer_drop_rate": 0},
    {"interctc_layer_idx": ()},
    {"interctc_layer_idx": None},
    {"ctc_trim": None},
]


@pytest.mark.parametrize("conf", HARMLESS, ids=str)
def test_an_option_that_says_nothing_may_be_spelt_as_one_likes(feats, conf):
    plain, spelt = prunable().eval(), prunable(**conf).eval()
    spelt.load_state_dict(plain.state_dict())
    assert torch.equal(spelt(*feats)[0], plain(*feats)[0])
    assert len(spelt.resized([list(BRANCHES)] * 2).encoders) == 2


def test_impossible_options_get_their_sentence():
    with pytest.raises(UserError, match="conv_norm must be one of batch_norm, layer"):
        prunable(conv_norm="group_norm")
    with pytest.raises(UserError, match="granularity must be one of branch, block"):
        prunable(granularity="layer")
    with pytest.raises(UserError, match="kept names 2 blocks, but num_blocks is 3"):
        prunable(kept=[list(BRANCHES)] * 2)


def test_a_kept_list_builds_only_those_branches():
    encoder = prunable(kept=[["conv", "ffn1"], [], list(BRANCHES)])
    names = {name for name, _ in encoder.encoders[0].named_children()}
    assert names == {
        *("norm_ff_macaron", "feed_forward_macaron", "norm_conv", "conv_module"),
        *("norm_final", "dropout"),
    }
    names = {name for name, _ in encoder.encoders[1].named_children()}
    assert names == {"norm_final", "dropout"}


def test_layer_norm_replaces_every_batch_norm_under_names_of_its_own():
    stock, ours = prunable().state_dict(), prunable(conv_norm="layer_norm").state_dict()
    lost = {name.split(".", 2)[2] for name in stock.keys() - ours.keys()}
    assert all(name.startswith("conv_module.norm.") for name in lost)
    assert len(lost) == 5  # weight, bias and three statistics
    assert not any("running" in name for name in ours)


def test_layer_norm_normalises_each_frame_over_its_channels(feats):
    norm = prunable(conv_norm="layer_norm").encoders[0].conv_module.norm
    x = torch.randn(2, 16, 9)
    weight, bias = norm.channels.weight, norm.channels.bias
    expected = torch.empty_like(x)
    for frame in range(9):
        column = x[:, :, frame]
        centred = column - column.mean(1, keepdim=True)
        scale = (centred.square().mean(1, keepdim=True) + norm.channels.eps).sqrt()
        expected[:, :, frame] = centred / scale * weight + bias
    assert torch.allclose(norm(x), expected, atol=1e-5)


def test_as_subnet_normalise_by_the_batch_without_recording_it(feats):
    frozen, plain = prunable().train(), prunable().train()
    before = {name: t.clone() for name, t in frozen.state_dict().items()}
    with frozen.as_subnet():
        encoded = frozen(*feats)[0]
    for name, tensor in frozen.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.allclose(encoded, plain(*feats)[0], atol=1e-6)
    frozen(*feats)  # and records again afterwards
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(frozen.state_dict()[name], tensor), name


def test_as_subnet_thaw_after_an_exception(feats):
    encoder = prunable().train()
    with pytest.raises(KeyError), encoder.as_subnet():
        raise KeyError
    encoder(*feats)
    assert encoder.encoders[0].conv_module.norm.num_batches_tracked == 1


def test_as_subnet_change_nothing_in_eval(feats):
    encoder = prunable().eval()
    expected = encoder(*feats)[0]
    with encoder.as_subnet():
        assert torch.equal(encoder(*feats)[0], expected)


def test_an_utterance_too_short_to_subsample_gets_espnets_error():
    from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
        TooShortUttError,
    )

    with pytest.raises(TooShortUttError):
        prunable()(torch.zeros(1, 5, FEATURES), torch.tensor([5]))


def test_only_with_batch_norm_there_are_statistics():
    assert has_batch_norm(prunable(conv_norm="batch_norm"))
    assert not has_batch_norm(prunable(conv_norm="layer_norm"))
