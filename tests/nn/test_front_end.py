"""Masks on the front end: its convolutions, as matrices over windows, its output."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers.encoders import prunable, transducer_encoder
from helpers.gradients import assert_same_gradients, gradients, utterance_losses
from helpers.masks import go_on, smallest_blocks, with_masks
from helpers.tiny import FEATURES, asr_config, changed, transducer_config
from helpers.tiny import build as build_model
from helpers.trained import load
from helpers.training import assert_goes_on
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.layout import space_of, weight_tensors
from espnet_omnisparse.core.mask import Pattern, kept_groups
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import SubnetSpec, fingerprint
from espnet_omnisparse.core.spec_yaml import read_spec, write_spec
from espnet_omnisparse.cost.count import count_cost, packed_bytes
from espnet_omnisparse.cost.unit_costs import cost_table
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.packed import matrices_of, restored, stored
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.extract.cut import cut_state
from espnet_omnisparse.search import dev_set
from espnet_omnisparse.search.run import _genes
from espnet_omnisparse.search.spec_costs import SpecCosts
from espnet_omnisparse.streaming.encoder import EncoderStream

MASKED = {"pattern": "8x1", "mask_front_end": True}
# of a run of 100: warm start to 10, ramp to 30, settled from 70
CONF = {
    "method": "none",
    "sizes": {"s40": {"sparsity": 0.4}, "s80": {"sparsity": 0.8}},
    "sparsity": {
        "final": 0.8,
        "ramp": 20,
        "settle": 0.3,
        "own": "norms_and_biases",
        "sandwich": ["dense", "sparsest"],
    },
    "warm_start": 10,
}
FRONT = ("front.conv2", "front.out")
WEIGHTS = ("encoder.embed.conv.2.weight", "encoder.embed.out.weight")
BIASES = tuple(f"encoder.embed.{n}.bias" for n in ("conv.0", "conv.2", "out"))


def asr(supernet=None, **encoder):
    encoder = {**MASKED, "conv_norm": "layer_norm", **encoder}
    config = asr_config(encoder, changed(CONF, supernet or {}))
    return {**config, "encoder": "omni_sparse_conformer"}


def transducer(supernet=None, **encoder):
    supernet = changed(CONF, supernet or {})
    return transducer_config(supernet, blocks=2, encoder={**MASKED, **encoder})


def make(config, update=40):
    """A supernet whose sparsities have begun to own their norms and biases."""
    model = build_model(config, update=update)
    if model.supernet.own is not None:
        model.supernet.own.begin(model.encoder.vectors())
        with torch.no_grad():
            for parameter in model.supernet.own.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    model.encoder.refresh_masks()
    return model


def spec_of(config, model, shares, mask=None, chunk=None):
    state = model.state_dict()
    space = space_of(config, state)
    assert space == model.encoder.space
    mark = fingerprint(state, config["token_list"])
    shares = shares if isinstance(shares, tuple) else (shares,) * len(space.weights)
    mask = tuple(map(bool, mask or (1,) * len(space)))
    return SubnetSpec("s80", mark, space, mask, shares, chunk)


def ragged(space, seed=0):
    """A sparsity per weight, none of the front end's 0."""
    source = random.Random(seed)
    front = [source.choice((0.3, 0.5, 0.7)) for _ in space.front_end]
    blocks = len(space.weights) - len(front)
    return (*front, *(source.choice((0.0, 0.3, 0.8)) for _ in range(blocks)))


# what it masks


@pytest.mark.parametrize(
    "made, layers",
    [
        (lambda: prunable(**MASKED), ("conv2", "out")),
        (lambda: prunable(input_layer="conv2d8", **MASKED), ("conv2", "conv3", "out")),
        (lambda: transducer_encoder(**MASKED), ("conv2", "out")),
        (
            lambda: transducer_encoder({"vgg_like": True}, **MASKED),
            ("conv2", "conv3", "conv4", "out"),
        ),
    ],
)
def test_convolutions_but_the_first_and_the_output_layer_take_masks(made, layers):
    encoder = made()
    weights = encoder.maskable()
    assert encoder.space.front_end == layers
    assert tuple(weights)[: len(layers)] == tuple(f"front.{name}" for name in layers)
    assert tuple(weights) == encoder.space.weights
    inside = {id(p): n for n, p in encoder.embed.named_parameters()}
    masked = {inside[id(weights[f"front.{name}"])] for name in layers}
    matrices = {n for n, p in encoder.embed.named_parameters() if p.dim() > 1}
    assert matrices - masked == {"conv.0.weight"}


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_it_is_the_convolution_of_pruned_windows(share):
    encoder = prunable(**MASKED)
    encoder.refresh_masks()
    feats = torch.randn(2, 50, FEATURES)
    conv1, conv2, out = encoder.embed.conv[0], encoder.embed.conv[2], encoder.embed.out
    shares = (share, share) + (0.0,) * (len(encoder.space.weights) - 2)
    found = encoder.front_end(feats, torch.tensor([50, 50]), shares).x
    x = F.conv2d(feats[:, None], conv1.weight, conv1.bias, 2).relu()
    windows = F.unfold(x, 3, stride=2)  # [batch, in * 3 * 3, windows]
    matrix = conv2.weight.masked_fill(smallest_blocks(conv2.weight, share), 0.0)
    x = matrix.flatten(1) @ windows + conv2.bias[:, None]
    x = x.view(2, 16, -1, 4).relu()  # [batch, out, time, frequency]
    x = x.transpose(1, 2).flatten(2)
    pruned = out.weight.masked_fill(smallest_blocks(out.weight, share), 0.0)
    expected = (x @ pruned.T + out.bias) * 4.0  # sqrt(d), of the positions
    assert torch.allclose(found, expected, atol=1e-5)
    dense = encoder.front_end(feats, torch.tensor([50, 50])).x
    assert not torch.allclose(found, dense, atol=1e-2)


@pytest.mark.parametrize("made", [prunable, transducer_encoder])
def test_what_cannot_be_masked_gets_its_sentence(made):
    with pytest.raises(UserError, match="mask_front_end needs a pattern"):
        made(mask_front_end=True)


def test_a_front_end_without_convolutions_gets_its_sentence():
    with pytest.raises(UserError, match="needs a front end of convolutions"):
        prunable(input_layer="linear", **MASKED)


# the golden property: the extracted size computes what the supernet does


def offline(encoder, feats, lengths, spec):
    with torch.no_grad():
        hidden = encoder.front_end(feats, lengths, spec.sparsity)
        hidden = hidden.with_chunk_mask(spec.chunk)
        return encoder.blocks(hidden, spec.gates(), spec.sparsity)[0]


@pytest.mark.parametrize("task", [asr, transducer])
@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm"])
@pytest.mark.parametrize("pattern", ["8x1", "unstructured", "n:4", "3x5"])
@pytest.mark.parametrize("own", ["none", "norms_and_biases"])
def test_an_extracted_size_is_the_masked_supernet(task, norm, pattern, own):
    config = task({"sparsity": {"own": own}}, pattern=pattern, conv_norm=norm)
    model = make(config)
    feats, lengths = torch.randn(3, 60, FEATURES), torch.tensor([60, 52, 40])
    units = len(model.encoder.space)
    for shares in (0.8, ragged(model.encoder.space)):
        spec = spec_of(config, model, shares, [1, 0, 1, 1] * (units // 4))
        expected = offline(model.encoder, feats, lengths, spec)
        small_config, small = family.cut(config, model.state_dict(), spec)
        assert "mask_front_end" not in small_config["encoder_conf"]
        encoder = family.build(small_config, small).encoder
        with torch.no_grad():
            found = encoder(feats, lengths)[0]
        assert torch.allclose(found, expected, atol=1e-6, rtol=0)
        dense = model.encoder.front_end(feats, lengths).with_chunk_mask(spec.chunk)
        with torch.no_grad():
            other = model.encoder.blocks(dense, spec.gates(), spec.sparsity)[0]
        assert not torch.allclose(other, expected, atol=1e-2)


def test_the_stock_form_has_the_zeros_too():
    config = asr(conv_norm="batch_norm")
    model = make(config)
    feats, lengths = torch.randn(2, 60, FEATURES), torch.tensor([60, 52])
    spec = spec_of(config, model, 0.8)
    stock_config, state = family.cut(config, model.state_dict(), spec, stock=True)
    assert stock_config["encoder"] == "conformer"
    with torch.no_grad():
        found = family.build(stock_config, state).encoder(feats, lengths)[0]
    expected = offline(model.encoder, feats, lengths, spec)
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "config", [asr(causal=True), transducer()], ids=["asr", "transducer"]
)
def test_an_extracted_size_streams_what_its_supernet_computes(config):
    model = make(config)
    spec = spec_of(config, model, ragged(model.encoder.space), chunk=Chunk(4, 6))
    size = family.build(*family.cut(config, model.state_dict(), spec)).encoder
    for count in (7, 23, 60):
        feats = torch.randn(count, FEATURES)
        expected = offline(model.encoder, feats[None], torch.tensor([count]), spec)[0]
        stream = EncoderStream(size)
        parts = [stream.push(part) for part in feats.split(5)]
        found = torch.cat([*parts, stream.finish()])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# off, it is not there


def test_off_names_tensors_and_fingerprints_are_as_they_were():
    on, off = asr(), asr()
    del off["encoder_conf"]["mask_front_end"]
    masked, plain = (build_model(config).state_dict() for config in (on, off))
    marks = {fingerprint(state, on["token_list"]) for state in (masked, plain)}
    assert len(marks) == 1
    new = {n for n in masked if n not in plain}
    assert new == {
        *(f"supernet.order.{name}" for name in FRONT),
        *(
            f"supernet.own.{key}.front.{bias.removeprefix('encoder.embed.')}"
            for key in ("0p4", "0p8")
            for bias in BIASES
        ),
    }
    assert not any("front" in name for name in build_model(off).encoder.space.weights)


def test_specs_are_read_as_written_and_older_ones_leave_the_front_end_dense(tmp_path):
    config = asr()
    model = make(config)
    spec = spec_of(config, model, ragged(model.encoder.space))
    write_spec(spec, tmp_path / "new.yaml")
    assert read_spec(tmp_path / "new.yaml") == spec
    assert "front.conv2: 0." in (tmp_path / "new.yaml").read_text()
    off = {**config, "encoder_conf": {**config["encoder_conf"]}}
    off["encoder_conf"]["mask_front_end"] = False
    older = spec_of(off, make(off), 0.8)
    write_spec(older, tmp_path / "old.yaml")
    assert "front" not in (tmp_path / "old.yaml").read_text()
    assert read_spec(tmp_path / "old.yaml") == older
    small = cut_state(model.state_dict(), older)
    for name in WEIGHTS:
        assert torch.equal(small[name], model.state_dict()[name])
    family.cut(config, model.state_dict(), older)


def test_a_spec_that_masks_it_needs_a_supernet_that_was_trained_so(tmp_path):
    config = asr()
    model = make(config)
    spec = spec_of(config, model, 0.8)
    config["encoder_conf"]["mask_front_end"] = False
    sentence = "masks front.conv2, front.out, on which its supernet was trained without"
    with pytest.raises(UserError, match=sentence):
        family.cut(config, model.state_dict(), spec)


@pytest.mark.parametrize("wrong", ["conv2", [2]])
def test_a_spec_with_something_else_gets_its_sentence(tmp_path, wrong):
    space = SearchSpace(1, pattern=Pattern(rows=8), front_end=("conv2",))
    write_spec(SubnetSpec("x", "0f", space, (True,) * 4), tmp_path / "x.yaml")
    text = (tmp_path / "x.yaml").read_text()
    value = yaml.safe_load(text)
    assert value["weights"]["front_end"] == ["conv2"]
    value["weights"]["front_end"] = wrong
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(value))
    with pytest.raises(UserError, match="weights.front_end must list layers"):
        read_spec(tmp_path / "x.yaml")


# training


@pytest.mark.parametrize("task", [asr, transducer])
def test_gradients_reach_what_is_kept_and_nothing_else(batch, task):
    config = task({"sparsity": {"sandwich": ["sparsest"], "own": "none"}})
    model = make(config, update=60).train()
    found = gradients(model, model(**batch)[0])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for weight in FRONT:
        parameter = model.encoder.maskable()[weight]
        gradient, dropped = found[names[id(parameter)]], smallest_blocks(parameter, 0.8)
        assert not gradient[dropped].any()
        assert (gradient[~dropped] != 0.0).float().mean() > 0.5


@pytest.mark.parametrize("own", ["none", "norms_and_biases"])
def test_an_updates_gradients_are_those_of_its_subnets(batch, own):
    sandwich = ["dense", "sparsest", "dense"]
    config = asr({"sparsity": {"own": own, "sandwich": sandwich}})
    model = make(config, update=60).train()
    found = gradients(model, model(**batch)[0])
    draws = model.supernet.sample_subnets()
    assert [bool(one.sparsity) for one in draws] == [False, True, False]
    total = 0.0
    for draw in draws:
        losses, frames = utterance_losses(model, draw, batch)
        total = total + draw.weight * sum(losses) / sum(frames)
    total = total / sum(draw.weight for draw in draws)
    assert_same_gradients(found, gradients(model, total))
    if own != "none":
        for bias in BIASES:
            inside = bias.removeprefix("encoder.embed.")
            assert found[f"supernet.own.0p8.front.{inside}"].any()
            assert not found[f"supernet.own.0p4.front.{inside}"].any()


@pytest.mark.parametrize("update", ["per_batch", "split_batch"])
def test_the_teacher_has_the_dense_nets_front_end(batch, update, monkeypatch):
    model = make(asr({"distillation": "kl", "update": update}), update=60).train()
    heard = []

    def make_teacher(encoded, lengths, part):
        with torch.no_grad():
            heard.append((encoded, model.encoder(part.feats, part.feats_lengths)[0]))
        return type(model)._make_teacher(model, encoded, lengths, part)

    monkeypatch.setattr(model, "_make_teacher", make_teacher)
    loss = model(**batch)[0]
    ((encoded, expected),) = heard
    assert torch.allclose(encoded, expected, atol=1e-6)
    assert gradients(model, loss)[WEIGHTS[0]].any()


def test_every_kind_of_subnet_draws_sparsities_for_it():
    sandwich = ["dense", "sparsest", "random", "nearby", "uniform", "size"]
    model = make(asr({"sparsity": {"sandwich": sandwich}}), update=60)
    seen = {one: set() for one in (*sandwich[1:-1], "s40")}
    for update in range(60, 90):
        model.supernet.update = update
        for one in model.supernet.sample_subnets()[1:]:
            seen[one.size].add(one.sparsity[:2] or (0.0, 0.0))
    # the sparsest is s80, which is not drawn again
    assert seen["s40"] == {(0.4, 0.4)} and seen["sparsest"] == {(0.8, 0.8)}
    assert all(one == other for one, other in seen["uniform"])
    for kind in ("random", "nearby"):
        assert any(one != other for one, other in seen[kind])


def test_settled_masks_stay_are_nested_and_are_extracted(batch):
    config = asr({"sparsity": {"refresh": 7}})
    model = make(config, update=66)
    go_on(model, batch, 70)
    before = {n: model.get_parameter(n).detach().clone() for n in WEIGHTS}
    go_on(model, batch, 85)
    sizes = {
        share: cut_state(model.state_dict(), spec_of(config, model, share))
        for share in (0.4, 0.8)
    }
    for name in WEIGHTS:
        four, eight = (sizes[share][name] == 0 for share in (0.4, 0.8))
        assert torch.equal(four, smallest_blocks(before[name], 0.4))
        assert (four <= eight).all()
        moved = model.get_parameter(name)
        assert not torch.equal(four, smallest_blocks(moved, 0.4))
    spec = spec_of(config, model, 0.8)
    feats, lengths = batch["speech"], batch["speech_lengths"]
    expected = offline(model.eval().encoder, feats, lengths, spec)
    small = family.build(*family.cut(config, model.state_dict(), spec))
    with torch.no_grad():
        found = small.encoder(feats, lengths)[0]
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)


def test_the_flip_rate_counts_its_weights():
    model = make(asr(), update=60)
    before = model.mask_upkeep.ranks()
    name = FRONT[1]
    with torch.no_grad():
        model.get_parameter(WEIGHTS[1]).copy_(model.get_parameter(WEIGHTS[1]).flip(1))
    weight = model.encoder.maskable()[name]
    flipped = {
        size: float((now != now.flip(1)).sum())
        for size, share in (("s40", 0.4), ("s80", 0.8))
        for now in [smallest_blocks(weight, share)]
    }
    total = sum(w.numel() for w in model.encoder.maskable().values())
    found = model.mask_upkeep.flip_rates(before)
    assert found == {size: pytest.approx(n / total) for size, n in flipped.items()}
    assert found["s40"] > 0.0


# whole trainings: warm start to 2, ramp to 7, settled from 12 of 20 updates

TRAINING = with_masks(
    MASKED,
    settle=0.4,
    own="norms_and_biases",
    sandwich=["dense", "sparsest", "random", "size"],
)


@pytest.mark.parametrize("update", [7, 17])
def test_a_killed_training_goes_on_as_if_nothing_had_been(
    corpus, uninterrupted, tmp_path, update
):
    exp = tmp_path / "exp"
    assert_goes_on(corpus.command(exp, **TRAINING), exp, update, uninterrupted)


def test_a_trained_size_is_extracted_with_its_zeros_and_costs(uninterrupted, tmp_path):
    spec = family.selected_specs(uninterrupted)["small"]
    assert spec.sparsities["front.conv2"] == spec.sparsities["front.out"] == 0.8
    checkpoint = uninterrupted / "valid.loss_sizes.ave.pth"
    assert family.extract_size(uninterrupted, checkpoint, spec, tmp_path / "small")
    state = load(tmp_path / "small" / family.MODEL)
    for name in WEIGHTS:
        weight = state[name]
        kept = (weight.flatten(1).view(-1, 8, weight[0].numel()) != 0).any(1)
        groups = kept.numel() - round(0.8 * kept.numel())
        assert int(kept.sum()) == groups
    model = family.build(family.read_config(uninterrupted), load(checkpoint))
    space = model.encoder.space
    costs = SpecCosts(model, [(True,) * len(space)])
    packed = family.read_cost(tmp_path / "small")["packed_bytes"]
    assert packed == costs.of("bytes", 0, spec.sparsity) < costs.of("bytes", 0, ())


def test_the_search_scores_what_is_extracted(uninterrupted):
    config = family.read_config(uninterrupted)
    state = load(uninterrupted / "valid.loss_sizes.ave.pth")
    model = family.build(config, state)
    dev = dev_set.DevSet(model, config, "loss", utterances=4)
    scores = set()
    (part,) = dev_set._valid_batches(config, 4)
    for shares in (0.8, ragged(model.encoder.space), 0.0):
        spec = spec_of(config, model, shares)
        small = family.build(*family.cut(config, state, spec))
        expected = small(**part)[1]["loss_ctc"].item()
        assert dev.score(spec.mask, spec.sparsity) == pytest.approx(expected, rel=1e-5)
        scores.add(round(expected, 4))
    assert len(scores) == 3


# costs and search


@pytest.mark.parametrize("input_layer", ["conv2d", "conv2d8"])
def test_costs_are_those_of_the_extracted_size(input_layer):
    config = asr({"sparsity": {"own": "none", "settle": 0}}, input_layer=input_layer)
    model = make(config)
    mask = (True, False, True, True) * 3
    table = cost_table(model, "macs_10s")
    costs = SpecCosts(model, [mask], {"macs_10s": table})
    names = model.encoder.space.weights
    total = sum(weight.numel() for weight in model.encoder.maskable().values())
    multiplied = layer_macs(model)
    for shares in (0.4, 0.8, ragged(model.encoder.space)):
        spec = spec_of(config, model, shares, mask)
        small = family.build(*family.cut(config, model.state_dict(), spec))
        cost = count_cost(small, FEATURES, spec.space.pattern)
        for kind, expected in (
            ("nonzero", cost.nonzero_parameters),
            ("params", cost.parameters),
            ("bytes", cost.packed_bytes),
        ):
            assert costs.of(kind, 0, spec.sparsity) == expected
        left, skipped = 0, 0
        for name, weight in model.encoder.maskable().items():
            if ".mhsa." in name:
                continue
            share = dict(zip(names, spec.sparsity, strict=True))[name]
            zeros = int(smallest_blocks(weight, share).sum())
            left += weight.numel() - zeros
            skipped += multiplied[name] * zeros // weight.numel()
        assert costs.of("sparsity", 0, spec.sparsity) == left / total
        macs = cost.macs_10s - skipped
        assert costs.of("macs_10s", 0, spec.sparsity) == macs


def layer_macs(model):
    """Multiplications that PyTorch counts in the layer of each weight, for 10 s."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            model.encoder(torch.zeros(1, 1000, FEATURES), torch.tensor([1000]))
    counts = counter.get_flop_counts()
    modules = {id(getattr(m, "weight", None)): n for n, m in model.named_modules()}
    found = {}
    for name, weight in model.encoder.maskable().items():
        layer = modules[id(weight)].removeprefix("encoder.")
        (key,) = (key for key in counts if key.endswith(layer))
        found[name] = sum(counts[key].values()) // 2
    return found


def test_packed_bytes_of_a_front_end_by_hand():
    config = asr({"sparsity": {"own": "none"}})
    model = make(config)
    shares = (0.8, 0.8) + (0.0,) * (len(model.encoder.space.weights) - 2)
    dense = count_cost(model, FEATURES, Pattern(rows=8)).packed_bytes
    spec = spec_of(config, model, shares)
    small = family.build(*family.cut(config, model.state_dict(), spec))
    saved = 0
    for out, inputs in ((16, 16 * 9), (16, 16 * 4)):  # two rows of groups each
        groups = 2 * inputs - round(0.8 * 2 * inputs)
        saved += 4 * out * inputs - (groups * (8 * 4 + 2) + 3 * 4)
    found = count_cost(small, FEATURES, Pattern(rows=8)).packed_bytes
    # a supernet has what it trains with beside it
    assert found == dense - _training_only(model) - saved


@pytest.mark.parametrize("task", [asr, transducer])
def test_a_packed_file_stores_it_by_its_blocks(task):
    config = task({"sparsity": {"own": "none"}})
    model = make(config)
    spec = spec_of(config, model, 0.8)
    small = family.build(*family.cut(config, model.state_dict(), spec))
    arrays, sparse = stored(small.state_dict(), matrices_of(small), "fp32")
    tensors = weight_tensors(spec.space, small.state_dict())
    for weight in FRONT:
        name, shape = tensors[weight], model.encoder.maskable()[weight].shape
        assert sparse[name] == {"shape": list(shape), "block": [8, 1]}
        parts = (arrays[f"{name}.{part}"] for part in ("values", "columns", "rows"))
        groups = kept_groups(shape, 0.8, spec.space.pattern)
        size = packed_bytes(shape, groups, spec.space.pattern)
        assert sum(part.nbytes for part in parts) == size
    back = restored({"sparse": sparse}, arrays)
    for name, tensor in small.state_dict().items():
        assert np.array_equal(back[name], tensor.numpy())


def _training_only(model):
    floating = (b for b in model.supernet.buffers() if b.is_floating_point())
    values = sum(t.numel() for t in (*floating, *model.supernet.parameters()))
    return 4 * values


def test_the_search_has_genes_for_it():
    space = SearchSpace(2, pattern=Pattern(rows=8), front_end=("conv2", "out"))
    dropped = (False,) * 4 + (True,) * 4
    genes = _genes(space, [(True,) * 8, dropped], (0.0, 0.5))
    assert len(genes.alive[0]) == len(space.weights) == 2 + 2 * 11
    assert genes.alive[1] == (True, True) + (False,) * 11 + (True,) * 11
    single, blocks, kinds = genes.scales
    assert single == tuple(range(24))
    # the front end moves together, apart from every block and kind of layer
    assert blocks == (0,) * 2 + (1,) * 11 + (2,) * 11
    assert kinds[0] != kinds[1] and not {*kinds[:2]} & {*kinds[2:]}
