"""An encoder chunk by chunk equals its forward under the mask of the same chunks."""

import dataclasses
import gc
import random

import pytest
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from helpers.encoders import transducer_encoder
from helpers.tiny import (
    FEATURES,
    SHAPE,
    STREAMING,
    SUPERNET,
    asr_config,
    shaken,
    transducer_config,
)

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.layout import space_of
from espnet_omnisparse.core.spec import SubnetSpec, fingerprint
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.nn.conformer import LayerPrunableConformerEncoder
from espnet_omnisparse.streaming.encoder import EncoderStream

CHUNKS = [Chunk(4, 6), Chunk(1, 0), Chunk(3, 3), Chunk(5, 12)]


def conformer(input_layer="conv2d", **conf):
    options = {**SHAPE, "input_layer": input_layer, "causal": True, **conf}
    torch.manual_seed(0)
    return shaken(LayerPrunableConformerEncoder(FEATURES, **options))


def transducer(factor=4, vgg_like=False, main_conf=None, **conf):
    inputs = {"vgg_like": vgg_like, "subsampling_factor": factor}
    if main_conf is None:
        main_conf = {**STREAMING, "norm_type": "basic_norm"}
    return shaken(transducer_encoder(inputs, main_conf, **conf))


FRONT_ENDS = {
    **{name: (conformer, name) for name in ("conv2d", "conv2d2", "conv2d6", "conv2d8")},
    **{f"transducer-{factor}": (transducer, factor) for factor in (2, 4, 6)},
}
ENCODERS = {"asr": conformer, "transducer": transducer}


@torch.no_grad()
def offline(encoder, feats, chunk, gates=None, sparsity=()):
    """The whole recording at once `[frames, size]`."""
    frames = encoder.front_end(feats[None], torch.tensor([len(feats)]))
    encoded, lengths = encoder.blocks(frames.with_chunk_mask(chunk), gates, sparsity)
    assert lengths.tolist() == [encoded.size(1)]
    return encoded[0]


def streamed(encoder, parts, chunk):
    stream = EncoderStream(encoder, chunk)
    outputs = [stream.push(part) for part in parts]
    assert all(len(out) % stream.chunk.size == 0 for out in outputs)
    return torch.cat([*outputs, stream.finish()])


def same(found, expected):
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def frames_for(encoder, outputs):
    """The fewest feature frames that make so many output frames."""
    front = EncoderStream(encoder, Chunk(1, 0)).subsampling
    return (outputs - 1) * front.stride + front.field


@pytest.mark.parametrize("conv_norm", ["batch_norm", "layer_norm"])
@pytest.mark.parametrize("name", FRONT_ENDS)
def test_chunk_by_chunk_is_the_whole_under_the_mask(name, conv_norm):
    make, front = FRONT_ENDS[name]
    encoder = make(front, conv_norm=conv_norm)
    for chunk in CHUNKS:
        size = chunk.size
        for outputs in (1, size - 1, size, size + 1, 3 * size, 3 * size + 1):
            if outputs < 1:
                continue
            # of one output frame, one less is none, which ESPnet refuses
            exact = frames_for(encoder, outputs)
            for count in (exact, exact - 1)[:outputs]:
                feats = torch.randn(count, FEATURES)
                expected = offline(encoder, feats, chunk)
                assert len(expected) == outputs - (exact - count)
                same(streamed(encoder, feats.split(7), chunk), expected)


def test_what_comes_out_depends_on_the_chunk():
    """Else the comparisons above could not tell a wrong mask."""
    for make in ENCODERS.values():
        encoder, feats = make(), torch.randn(100, FEATURES)
        outputs = [offline(encoder, feats, chunk) for chunk in [None, *CHUNKS]]
        for number, one in enumerate(outputs):
            for other in outputs[:number]:
                assert not torch.allclose(one, other, atol=1e-2)
        # a Conv at the start sees zeros, and not the frames of the chunk before
        again = EncoderStream(encoder, Chunk(4, 6))
        found = again.push(feats)
        assert not torch.allclose(again.push(feats)[:4], found[:4], atol=1e-2)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_features_too_few_for_an_output_frame_give_none(name):
    make, front = FRONT_ENDS[name]
    encoder = make(front)
    shortest = frames_for(encoder, 1)
    for count in (0, 1, shortest - 1):
        stream = EncoderStream(encoder, Chunk(4, 6))
        assert stream.push(torch.randn(count, FEATURES)).shape == (0, 16)
        assert stream.finish().shape == (0, 16)
    assert len(streamed(encoder, [torch.randn(shortest, FEATURES)], Chunk(4, 6))) == 1


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_any_division_of_the_features_gives_the_same(make):
    encoder, chunk = make(), Chunk(4, 6)
    feats = torch.randn(131, FEATURES)
    expected = offline(encoder, feats, chunk)
    source = random.Random(0)
    for largest in (1, 3, 16, 60, 131):
        rest, parts = feats, []
        while len(rest):
            count = source.randint(0 if parts else 1, largest)
            parts.append(rest[:count])
            rest = rest[count:]
        same(streamed(encoder, parts, chunk), expected)


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_a_chunk_is_given_out_with_the_last_feature_that_it_needs(make):
    encoder = make()
    stream = EncoderStream(encoder, Chunk(4, 6))
    due = {frames_for(encoder, 4 * chunk) for chunk in (1, 2, 3)}
    for count in range(1, max(due) + 1):
        assert len(stream.push(torch.randn(1, FEATURES))) == (4 if count in due else 0)


def test_the_chunk_is_the_encoders_unless_another_is_given():
    encoder = conformer(chunk={"size": 4, "left": 6})
    feats = torch.randn(100, FEATURES)
    for given, used in ((None, Chunk(4, 6)), (Chunk(8, 3), Chunk(8, 3))):
        assert EncoderStream(encoder, given).chunk == used
        same(streamed(encoder, [feats], given), offline(encoder, feats, used))


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_streams_over_one_model_do_not_meet(make):
    encoder, chunk = make(), Chunk(3, 5)
    recordings = [torch.randn(120, FEATURES) for _ in range(2)]
    alone = [streamed(encoder, feats.split(9), chunk) for feats in recordings]
    streams = [EncoderStream(encoder, chunk) for _ in recordings]
    found = [[], []]
    for parts in zip(*(feats.split(9) for feats in recordings), strict=True):
        for outputs, stream, part in zip(found, streams, parts, strict=True):
            outputs.append(stream.push(part))
    for outputs, stream, expected in zip(found, streams, alone, strict=True):
        assert torch.equal(torch.cat([*outputs, stream.finish()]), expected)


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_the_callers_buffer_may_be_used_again(make):
    """As a sound card's is: what the stream keeps is its own."""
    encoder, chunk = make(), Chunk(4, 6)
    feats = torch.randn(100, FEATURES)
    stream, outputs = EncoderStream(encoder, chunk), []
    buffer = torch.empty(5, FEATURES)
    for part in feats.split(5):
        buffer.copy_(part)
        outputs.append(stream.push(buffer))
        buffer.fill_(1e3)
    same(torch.cat([*outputs, stream.finish()]), offline(encoder, feats, chunk))


# of 2 blocks: (ffn1, mhsa, conv, ffn2); of components 4 + 2 + 1 + 4 each
SUBNETS = {
    "full": ("branch", (1,) * 8),
    "branches": ("branch", (1, 0, 1, 0, 0, 1, 1, 1)),
    "one-branch": ("branch", (0, 0, 0, 0, 0, 1, 0, 0)),
    "no-branch-of-a-block": ("branch", (0, 0, 0, 0, 1, 1, 1, 1)),
    "blocks": ("block", (0, 1)),
    "components": (
        "component",
        (1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 0) + (0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 1),
    ),
    "ffn-widths": (
        "component",
        (1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0) + (1,) * 11,
    ),
}
PATTERNS = [None, "8x1", "n:4"]
SIZES = {"sizes": {"small": 1}}


def asr_supernet(**encoder):
    return asr_config({"num_blocks": 2, "causal": True, **encoder}, SIZES)


def transducer_supernet(**encoder):
    return transducer_config({**SUPERNET, **SIZES}, blocks=2, encoder=encoder)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("subnet", SUBNETS)
@pytest.mark.parametrize(
    "supernet", [asr_supernet, transducer_supernet], ids=["asr", "transducer"]
)
def test_an_extracted_size_streams_what_its_supernet_computes(
    supernet, subnet, pattern
):
    granularity, kept = SUBNETS[subnet]
    # the norms take turns
    norm = "layer_norm" if len(subnet) % 2 else "batch_norm"
    config = supernet(granularity=granularity, pattern=pattern, conv_norm=norm)
    torch.manual_seed(0)
    model = shaken(family.build(config))
    state = model.state_dict()
    space = space_of(config, state)
    source, shares = random.Random(1), ()
    if pattern is not None:
        shares = tuple(source.choice((0.0, 0.25, 0.5, 0.75)) for _ in space.weights)
        model.encoder.refresh_masks()
    mark = fingerprint(state, config["token_list"])
    chunk, mask = Chunk(4, 6), tuple(map(bool, kept))
    spec = SubnetSpec("small", mark, space, mask, shares, chunk)
    size = family.build(*family.cut(config, state, spec)).encoder
    assert sum(p.numel() for p in size.parameters()) < sum(
        p.numel() for p in model.encoder.parameters()
    ) or all(mask)
    full = offline(model.encoder, torch.randn(60, FEATURES), chunk)
    for count in (7, 23, 60):
        feats = torch.randn(count, FEATURES)
        expected = offline(model.encoder, feats, chunk, spec.gates(), shares)
        same(streamed(size, feats.split(5), None), expected)
    if shares or not all(mask):
        plain = offline(model.encoder, feats, chunk)
        assert not torch.allclose(plain, expected, atol=1e-2)
    assert len(full) == len(expected)


def tensors_of(stream):
    """All tensors that a stream holds, wherever."""
    found, todo, seen = [], [stream], set()
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, torch.nn.Module | Chunk):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            found.append(one)
        elif isinstance(one, dict):
            todo += one.values()
        elif isinstance(one, list | tuple):
            todo += one
        elif hasattr(one, "__dict__"):
            todo += vars(one).values()
    return found


def held_bytes(stream):
    """Of storage, which may be larger than what is seen of it."""
    storages = {t.untyped_storage().data_ptr(): t for t in tensors_of(stream)}
    return sum(t.untyped_storage().nbytes() for t in storages.values())


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_half_an_hour_takes_no_more_memory_than_its_first_seconds(make):
    encoder, chunk = make(), Chunk(400, 100)
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    stream = EncoderStream(encoder, chunk)
    feats, held, objects, frames = torch.randn(1600, FEATURES), [], [], 0
    for number in range(112):  # of 16 s each
        frames += len(stream.push(feats))
        if number in (5, 60, 111):
            gc.collect()
            objects.append(len(gc.get_objects()))
            held.append(held_bytes(stream))
    assert frames == 112 * 400 - 400
    assert len(tensors_of(stream)) == 8  # frames, features, and 3 for each block
    # of a chunk: keys, values and inputs, not yet encoded frames, some features
    most = 4 * 16 * (2 * (2 * 500 + 406) + 400) + 4 * FEATURES * 20
    assert max(held) <= most
    assert held[0] == held[1] == held[2]
    assert objects[2] - objects[0] < 50
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("large", [400, 401])
def test_a_large_push_is_not_kept(make, large):
    encoder, chunk = make(), Chunk(4, 6)
    small, big = EncoderStream(encoder, chunk), EncoderStream(encoder, chunk)
    feats = torch.randn(large, FEATURES)
    for part in feats.split(8):
        small.push(part)
    big.push(feats)
    sizes = [sorted(tuple(t.shape) for t in tensors_of(one)) for one in (small, big)]
    assert sizes[0] == sizes[1]
    # keys and values of a chunk and its past, and less than a chunk of the rest
    most = 4 * 16 * (2 * (2 * 10 + 10) + 4) + 4 * FEATURES * 12
    assert held_bytes(small) <= most
    assert held_bytes(big) <= most


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_streaming_leaves_no_trace_in_the_model(make):
    encoder = make()

    def snapshot():
        return {
            f"{name}.{key}": value.clone() if isinstance(value, torch.Tensor) else value
            for name, module in encoder.named_modules()
            for key, value in vars(module).items()
            if not key.startswith("_") and not isinstance(value, list)
        }

    before = snapshot()
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    streamed(encoder, torch.randn(200, FEATURES).split(7), Chunk(4, 6))
    after = snapshot()
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(after[name], value), name
        else:
            assert after[name] is value or after[name] == value, name
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_nothing_is_recorded_for_gradients():
    encoder = conformer()
    stream = EncoderStream(encoder, Chunk(4, 6))
    feats = torch.randn(60, FEATURES, requires_grad=True)
    held = [stream.push(feats), *tensors_of(stream), stream.finish()]
    assert len(held) == 10
    assert not any(tensor.requires_grad for tensor in held)


def stock():
    return ConformerEncoder(FEATURES, output_size=16, linear_units=32, num_blocks=1)


REFUSED = {
    "symmetric": (lambda: conformer(causal=False), "Conv modules see the future"),
    "no-dynamic-chunks": (
        lambda: transducer(main_conf={}),
        "Conv modules see the future",
    ),
    "stock": (stock, "cannot stream"),
    "vgg": (
        lambda: transducer(vgg_like=True),
        "front end of convolutions without padding.* has ConvInput",
    ),
    "linear": (
        lambda: conformer("linear"),
        "front end of convolutions without padding",
    ),
}


@pytest.mark.parametrize("make, sentence", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("chunk", [Chunk(4, 6), None])
def test_what_cannot_stream_gets_its_sentence(make, sentence, chunk):
    encoder = make()
    if chunk is None and isinstance(encoder, torch.nn.Module):
        # told before a chunk is asked for, where both are wrong
        if getattr(encoder, "causal", False):
            sentence = "give a chunk to stream with, such as --chunk 16 --left 32"
    with pytest.raises(UserError, match=sentence):
        EncoderStream(encoder, chunk)


def test_a_net_of_whole_recordings_is_asked_for_a_chunk():
    for make in ENCODERS.values():
        with pytest.raises(UserError, match="give a chunk to stream with, such as"):
            EncoderStream(make())


def test_a_chunk_is_a_value():
    """The encoder's own is untouched by a stream with another."""
    encoder = conformer(chunk={"size": 4, "left": 6})
    streamed(encoder, [torch.randn(60, FEATURES)], Chunk(2, 2))
    assert encoder.chunk == Chunk(4, 6)
    with pytest.raises(dataclasses.FrozenInstanceError):
        encoder.chunk.size = 5
