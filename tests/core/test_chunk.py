"""Chunks: the mask, the nets that see them, specs, and encoders that do not look on."""

import dataclasses
from collections import Counter

import pytest
import torch
import yaml
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr_transducer.utils import make_chunk_mask
from helpers.encoders import transducer_encoder as causal_transducer
from helpers.tiny import FEATURES, SHAPE, shaken

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.layout import space_of
from espnet_omnisparse.core.mask import Pattern
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import FULL, SubnetSpec, fingerprint
from espnet_omnisparse.core.spec_yaml import read_spec, write_spec
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.extract.forms import form_of
from espnet_omnisparse.nn.conformer import LayerPrunableConformerEncoder
from espnet_omnisparse.supernet.config import SupernetConfig
from espnet_omnisparse.supernet.supernet import Supernet

SHORT, LONG, OWN = ({"size": size, "left": 2 * size} for size in (4, 8, 6))
STREAM = {"causal": True, "chunk": SHORT}


@pytest.mark.parametrize("size", [1, 2, 3, 16])
@pytest.mark.parametrize("left", [0, 1, 5, 40])
def test_the_mask_is_the_obvious_one(size, left):
    for frames in (0, 1, 2, 7, 20):
        mask = Chunk(size, left).mask(frames)
        assert mask.shape == (frames, frames) and mask.dtype == torch.bool
        for row in range(frames):
            chunk = row // size
            for column in range(frames):
                seen = chunk * size - left <= column < (chunk + 1) * size
                assert mask[row, column] == seen, (row, column)


@pytest.mark.parametrize("size, left_chunks", [(1, 1), (3, 2), (4, 1), (5, 9)])
def test_whole_left_chunks_are_masked_as_in_espnet(size, left_chunks):
    for frames in (1, size, size + 1, 4 * size, 23):
        hidden = make_chunk_mask(frames, size, left_chunks)
        assert torch.equal(Chunk(size, left_chunks * size).mask(frames), ~hidden)


def test_options_are_parsed():
    assert Chunk.parse(None, "x") is None
    assert Chunk.parse("full", "x") is None
    assert Chunk.parse({"left": 0, "size": 3}, "x") == Chunk(3, 0)
    assert Chunk.parse(Chunk(3, 7).as_dict(), "x") == Chunk(3, 7)


BAD = [
    (0, "x must be full, or a chunk"),
    (16, "x must be full, or a chunk"),
    ("whole", "x must be full, or a chunk .* not 'whole'"),
    ([16, 32], "x must be full, or a chunk"),
    ({}, "x must be full, or a chunk"),
    ({"size": 16}, "x must be full, or a chunk"),
    ({"size": 16, "right": 2}, "x has an unknown key 'right'"),
    ({"size": 16, "left": 2, "right": 2}, "x has an unknown key 'right'"),
    ({"size": 0, "left": 2}, "size must be a number of encoder frames, at least 1"),
    ({"size": 1, "left": -1}, "left must be a number of encoder frames, at least 0"),
    ({"size": 1.0, "left": 2}, "size must be .* not 1.0"),
    ({"size": True, "left": 2}, "size must be .* not True"),
    ({"size": 4, "left": "2"}, "left must be .* not '2'"),
]


@pytest.mark.parametrize("value, sentence", BAD, ids=str)
def test_a_bad_chunk_gets_its_sentence(value, sentence):
    with pytest.raises(UserError, match=sentence):
        Chunk.parse(value, "x")


def supernet(updates=0, encoder=None, pattern=None, **conf):
    conf = {
        "method": "simple_topk",
        "sizes": {"small": 4, "medium": 6, "large": 8},
        "warm_start": 10,
        "step1": 50,
        **conf,
    }
    space = SearchSpace(3, pattern=pattern)
    net = Supernet(SupernetConfig.read(conf), space, chunk=encoder)
    net.set_run_length(100)
    net.update = updates
    return net


def sparse(updates=60, **conf):
    """A supernet of the weight axis alone."""
    conf = {
        "method": "none",
        "sizes": {},
        "warm_start": 0,
        "step1": 0,
        "sparsity": {
            "final": 0.9,
            "sandwich": ["dense", "sparsest", "random", "nearby"],
        },
        **conf,
    }
    return supernet(updates, pattern=Pattern.parse("8x1"), **conf)


def seen(draws):
    return {draw.size: draw.chunk for draw in draws}


CHUNKS = ["full", LONG, SHORT]


def test_on_the_layer_axis_the_largest_net_sees_the_first_and_sizes_the_last():
    net = supernet(chunks=CHUNKS)
    assert seen(net.sample_subnets()) == {FULL: None}
    net.update = 30
    assert seen(net.sample_subnets()) == {FULL: None, "current": Chunk(4, 8)}
    found = set()
    for update in range(60, 80):
        net.update = update
        draws = seen(net.sample_subnets())
        assert draws.pop(FULL) is None
        assert set(draws.values()) == {Chunk(4, 8)}
        found |= set(draws)
    assert found == {"small", "medium", "large"}


def test_a_warm_start_trains_the_full_net_on_each_chunk_in_turn():
    for make in (supernet, sparse):
        net = make(chunks=CHUNKS, warm_start=10)
        heard = []
        for update in range(6):
            net.update = update
            (draw,) = net.sample_subnets()
            assert draw.is_main and draw.gates == (1.0,) * 12
            heard.append(draw.chunk)
        assert heard == 2 * list(net.chunks)
        (draw,) = net.validation_subnets()
        assert draw.chunk is None  # what is validated is always the same


def test_on_the_weight_axis_the_nets_between_see_any_chunk():
    net = sparse(chunks=CHUNKS)
    options = [None, Chunk(8, 16), Chunk(4, 8)]
    assert net.chunks == tuple(options)
    found = {"random": Counter(), "nearby": Counter()}
    for update in range(60, 100):
        net.update = update
        draws = seen(net.sample_subnets())
        assert draws[FULL] is None and draws["sparsest"] == Chunk(4, 8)
        for name, counts in found.items():
            counts[draws[name]] += 1
    for counts in found.values():
        assert set(counts) == set(options) and min(counts.values()) > 4


def test_the_same_update_draws_the_same_chunks():
    one, other = sparse(chunks=CHUNKS), sparse(chunks=CHUNKS)
    several = set()
    for update in range(60, 70):
        other.sample_subnets()  # what was drawn before does not matter
        for net in (one, other):
            net.update = update
        draws = one.sample_subnets()
        assert [(d.chunk, d.sparsity) for d in draws] == [
            (d.chunk, d.sparsity) for d in other.sample_subnets()
        ]
        several.add(tuple(draw.chunk for draw in draws))
    assert len(several) > 3


def test_a_single_chunk_is_everyones():
    for net in (sparse(chunks=[SHORT]), supernet(60, chunks=[SHORT])):
        draws = net.sample_subnets() + net.validation_subnets()
        assert {draw.chunk for draw in draws} == {Chunk(4, 8)}


def test_without_chunks_all_see_what_the_encoder_does():
    for encoder in (None, Chunk(5, 7)):
        for net in (supernet(60, encoder), supernet(30, encoder)):
            assert {draw.chunk for draw in net.sample_subnets()} == {encoder}
            assert {draw.chunk for draw in net.validation_subnets()} == {encoder}
    net = supernet(60, Chunk(5, 7), chunks=["full", SHORT])
    assert Chunk(5, 7) not in seen(net.sample_subnets()).values()


def test_a_size_may_name_its_own_chunk():
    sizes = {
        "small": {"units": 4, "chunk": OWN},
        "medium": {"units": 6, "chunk": "full"},
        "large": 8,
    }
    net = supernet(60, sizes=sizes, chunks=CHUNKS)
    expected = {"small": Chunk(6, 12), "medium": None, "large": Chunk(4, 8)}
    assert seen(net.validation_subnets()) == {FULL: None, **expected}
    trained = {}
    for update in range(60, 80):
        net.update = update
        trained |= seen(net.sample_subnets())
    assert trained == {FULL: None, **expected}
    with pytest.raises(UserError, match="supernet.sizes.small.chunk must be full, or"):
        supernet(sizes={"small": {"units": 4, "chunk": 16}})


def test_a_size_told_by_its_chunk_alone_is_the_whole_net():
    sizes = {"small": 4, "stream": {"chunk": OWN}}
    net = supernet(60, sizes=sizes, chunks=["full", SHORT])
    assert (
        net.sizes["stream"].keeps_all_units and not net.sizes["small"].keeps_all_units
    )
    assert all(net.size_masks()["stream"]) and sum(net.size_masks()["small"]) == 4
    draws = {draw.size: draw for draw in net.validation_subnets()}
    assert draws["stream"].chunk == Chunk(6, 12)
    assert draws["stream"].gates == (1.0,) * 12
    # the selection is about units, of which it drops none
    assert list(net.selection.masks()) == ["small"]


def test_a_whole_size_is_trained_under_its_chunk_on_the_layer_axis():
    sizes = {"small": 4, "stream": {"chunk": OWN}}
    net = supernet(60, sizes=sizes, chunks=["full", SHORT])
    heard = Counter()
    for update in range(60, 80):
        net.update = update
        heard.update((draw.size, draw.chunk) for draw in net.sample_subnets())
    assert heard == {
        (FULL, None): 20,
        ("small", Chunk(4, 8)): 20,
        ("stream", Chunk(6, 12)): 20,
    }


def test_one_net_can_be_trained_for_both_uses_without_smaller_sizes():
    sizes = {"stream": {"chunk": OWN}}
    net = supernet(
        10, method="none", sizes=sizes, chunks=["full", OWN], warm_start=10, step1=0
    )
    trained = seen(net.sample_subnets())
    assert trained == {FULL: None, "stream": Chunk(6, 12)}
    assert net.subnets_per_update == 2 and seen(net.validation_subnets()) == trained
    net.update = 9
    assert seen(net.sample_subnets()) == {FULL: Chunk(6, 12)}  # still the warm start


def test_methods_that_train_the_full_net_alone_refuse_a_whole_size():
    sizes = {"small": 4, "stream": {"chunk": OWN}}
    with pytest.raises(UserError, match="sizes.stream, which drops nothing: choose"):
        supernet(method="layerdrop", sizes=sizes, chunks=["full", OWN])


def test_in_validation_the_full_net_sees_the_first_and_sizes_their_own():
    net = supernet(30, chunks=CHUNKS)
    assert seen(net.validation_subnets()) == {FULL: None, "current": Chunk(4, 8)}
    sizes = {"s5": {"sparsity": 0.5}, "s9": {"sparsity": 0.9, "chunk": LONG}}
    net = sparse(95, sizes=sizes, chunks=CHUNKS)
    expected = {FULL: None, "s5": Chunk(4, 8), "s9": Chunk(8, 16)}
    assert seen(net.validation_subnets()) == expected


def test_chunks_that_are_no_list_are_refused():
    for wrong in (SHORT, "full", 16):
        with pytest.raises(UserError, match="supernet.chunks must be a list, such as"):
            supernet(chunks=wrong)
    with pytest.raises(UserError, match="supernet.chunks must be full, or a chunk"):
        supernet(chunks=["full", 16])


@pytest.mark.parametrize("training", [True, False])
def test_each_net_has_its_loss_under_its_own_mask(tiny_config, build, batch, training):
    chunks = ["full", {"size": 2, "left": 1}]
    config = tiny_config(encoder={"causal": True}, supernet={"chunks": chunks})
    model = build(config, update=70).train(training)
    plan = model.supernet
    draws = plan.sample_subnets() if training else plan.validation_subnets()
    assert {draw.chunk for draw in draws} == {None, Chunk(2, 1)}
    _, stats, _ = model(**batch)
    part = model.make_batch(**batch)
    frames = model.encoder.front_end(part.feats, part.feats_lengths)
    for draw in draws:
        losses = {}
        for chunk in (None, Chunk(2, 1)):
            encoded, lengths = model.encoder.blocks(
                frames.with_chunk_mask(chunk), draw.gates
            )
            loss = model.ctc(encoded, lengths, part.text, part.text_lengths)
            losses[chunk] = float(loss.detach()) * len(part) / int(lengths.sum())
        found = float(stats[f"loss_{draw.size}"])
        assert found == pytest.approx(losses.pop(draw.chunk), rel=1e-5)
        (other,) = losses.values()
        assert found != pytest.approx(other, rel=1e-4)


@pytest.fixture
def spec():
    mask = (True, True, False, True, False, False, False, False)
    return SubnetSpec("small", "01", SearchSpace(2), mask, chunk=Chunk(4, 8))


def test_a_spec_keeps_its_chunk(spec, tmp_path):
    path = tmp_path / "spec.yaml"
    write_spec(spec, path)
    assert yaml.safe_load(path.read_text())["chunk"] == SHORT
    assert read_spec(path) == spec
    whole = dataclasses.replace(spec, chunk=None)
    assert len({spec, whole}) == 2
    write_spec(whole, path)
    assert "chunk" not in yaml.safe_load(path.read_text())
    assert read_spec(path) == whole
    assert SubnetSpec.full("01", SearchSpace(2), Chunk(4, 8)).chunk == Chunk(4, 8)


@pytest.mark.parametrize("wrong", [4, {"size": 4}, {"size": 0, "left": 2}, "whole"])
def test_a_spec_with_a_bad_chunk_is_refused(spec, wrong, tmp_path):
    path = tmp_path / "spec.yaml"
    write_spec(spec, path)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"chunk": wrong}))
    with pytest.raises(UserError, match="chunk"):
        read_spec(path)


@pytest.fixture
def streaming(tiny_config, build):
    """Configuration and state of a supernet, and a spec of each of its sizes."""

    def make(conv_norm="batch_norm", **encoder):
        config = tiny_config(
            conv_norm,
            encoder={**STREAM, **encoder},
            supernet={"chunks": ["full", LONG], "warm_start": 0},
        )
        state = build(config).state_dict()
        space = space_of(config, state)
        mark = fingerprint(state, config["token_list"])
        mask = tuple(i % 3 > 0 for i in range(len(space)))
        sizes = {
            "whole": SubnetSpec.full(mark, space),
            "live": SubnetSpec.full(mark, space, Chunk(8, 16)),
            "small": SubnetSpec("small", mark, space, mask, chunk=Chunk(8, 16)),
        }
        return config, state, sizes

    return make


def test_extraction_writes_the_chunk_of_the_size(streaming):
    config, state, sizes = streaming()
    for name, spec in sizes.items():
        small_config, small = family.cut(config, state, spec)
        encoder = family.build(small_config, small).encoder
        assert small_config["encoder"] == "layer_prunable_conformer"
        assert encoder.causal
        if name == "whole":  # not the supernet's own
            assert "chunk" not in small_config["encoder_conf"]
            assert encoder.chunk is None
        else:
            assert small_config["encoder_conf"]["chunk"] == LONG
            assert encoder.chunk == Chunk(8, 16)
    assert config["encoder_conf"]["chunk"] == SHORT


def test_an_extracted_size_sees_by_itself_what_it_saw_in_its_supernet(streaming):
    config, state, sizes = streaming()
    supernet = family.build(config, state).encoder
    feats, lengths = torch.randn(2, 90, FEATURES), torch.tensor([90, 71])
    outputs = {}
    for name, spec in sizes.items():
        frames = supernet.front_end(feats, lengths).with_chunk_mask(spec.chunk)
        expected, _ = supernet.blocks(frames, spec.gates())
        size = family.build(*family.cut(config, state, spec)).encoder
        found, out_lengths, _ = size(feats, lengths)
        for row, length in enumerate(out_lengths):
            assert torch.allclose(
                found[row, :length], expected[row, :length], atol=1e-6
            )
        outputs[name] = found
    assert not torch.allclose(outputs["whole"], outputs["live"], atol=1e-3)


def test_a_causal_size_has_no_stock_form(streaming):
    config, state, sizes = streaming()
    for spec in sizes.values():
        assert form_of(config, spec).name != "stock"
        with pytest.raises(UserError, match="causal: true has no form that stock"):
            family.cut(config, state, spec, stock=True)
        assert form_of(config, spec, stock=False).name == "slim"


def encoder(**conf):
    torch.manual_seed(0)
    return shaken(
        LayerPrunableConformerEncoder(FEATURES, **{**SHAPE, **STREAM, **conf})
    )


REFUSED = [
    ({"rel_pos_type": "legacy"}, "causal needs rel_pos_type: latest"),
    ({"zero_triu": True}, "without zero_triu"),
    (
        {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"},
        "causal needs rel_pos_type: latest, with its rel_pos",
    ),
    ({"causal": False}, "encoder_conf.chunk needs causal: true"),
    ({"chunk": {"size": 16}}, "encoder_conf.chunk must be full, or a chunk such as"),
]


@pytest.mark.parametrize("conf, sentence", REFUSED, ids=str)
def test_what_cannot_stream_is_refused(conf, sentence):
    with pytest.raises(UserError, match=sentence):
        encoder(**conf)


def test_causal_alone_needs_relative_positions_as_well():
    with pytest.raises(UserError, match="rel_pos_type: latest"):
        encoder(chunk=None, rel_pos_type="legacy")
    assert encoder(chunk="full").chunk is None


def test_the_transducers_encoder_needs_causal_convolutions_for_a_chunk():
    with pytest.raises(UserError, match="dynamic_chunk_training: true"):
        transducer_encoder(main={})


def transducer_encoder(**conf):
    return causal_transducer(**{"chunk": SHORT, **conf}).eval()


def test_a_stock_checkpoint_starts_a_causal_encoder():
    stock = ConformerEncoder(FEATURES, **SHAPE, macaron_style=True)
    causal = encoder(pattern="8x1")
    causal.load_state_dict(stock.state_dict(), strict=True)
    for name, tensor in stock.state_dict().items():
        assert torch.equal(causal.state_dict()[name], tensor), name
    # the same taps, three frames later
    old = stock.encoders[0].conv_module.depthwise_conv
    new = causal.encoders[0].conv_module.depthwise_conv
    x = torch.randn(1, 16, 12)
    assert torch.allclose(new(x)[:, :, 3:], old(x)[:, :, :-3], atol=1e-6)


@pytest.mark.parametrize("make", [encoder, transducer_encoder])
@pytest.mark.parametrize("conv_norm", ["batch_norm", "layer_norm"])
@pytest.mark.parametrize("chunk", [SHORT, {"size": 1, "left": 0}, LONG])
def test_a_frame_does_not_see_beyond_its_chunk(make, conv_norm, chunk):
    net = make(conv_norm=conv_norm, chunk=chunk)
    size, frames = chunk["size"], 19
    feats = torch.randn(1, 4 * (frames - 1) + 7, FEATURES)
    lengths = torch.tensor([feats.size(1)])
    before = net(feats, lengths)[0]
    assert before.size(1) == frames
    for chunks in range(1, -(-frames // size)):
        last = chunks * size - 1
        changed = feats.clone()
        changed[:, 4 * last + 7 :] += 5.0  # the first frame that `last` does not see
        after = net(changed, lengths)[0]
        assert torch.equal(after[:, : last + 1], before[:, : last + 1])
        assert not torch.allclose(after[:, last + 1], before[:, last + 1], atol=1e-2)


@pytest.mark.parametrize("make", [encoder, transducer_encoder])
def test_a_frame_sees_its_whole_chunk_and_left_context_and_nothing_before(make):
    kept = [["mhsa"]] + [[]]  # one block, whose Convs reach nowhere
    net = make(kept=kept, chunk={"size": 4, "left": 3})
    frames = net.front_end(torch.randn(1, 95, FEATURES), torch.tensor([95]))
    before, _ = net.blocks(frames)
    count = frames.x.size(1)
    expected = Chunk(4, 3).mask(count)
    for changed in range(count):
        x = frames.x.clone()
        x[:, changed] += 3.0 * torch.randn(x.size(2))
        after, _ = net.blocks(dataclasses.replace(frames, x=x))
        moved = (after - before).abs().amax(2)[0] > 1e-6
        assert torch.equal(moved, expected[:, changed])


def test_one_block_of_convolutions_sees_the_kernel_before_it():
    net = encoder(kept=[["conv"], []])
    frames = net.front_end(torch.randn(1, 95, FEATURES), torch.tensor([95]))
    before, _ = net.blocks(frames)
    x = frames.x.clone()
    x[:, 10] += 3.0 * torch.randn(x.size(2))
    after, _ = net.blocks(dataclasses.replace(frames, x=x))
    moved = (after - before).abs().amax(2)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == list(range(10, 17))
