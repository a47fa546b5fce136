import copy
import functools
import gc
import itertools
import math
import sys
import types
import weakref

import pytest
import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.decoder.transducer_decoder import TransducerDecoder
from espnet2.asr.transducer.beam_search_transducer import (
    BeamSearchTransducer as AsrBeamSearch,
)
from espnet2.asr_transducer.beam_search_transducer import BeamSearchTransducer
from espnet2.asr_transducer.decoder.rnn_decoder import RNNDecoder
from espnet2.asr_transducer.decoder.stateless_decoder import StatelessDecoder
from espnet2.asr_transducer.joint_network import JointNetwork
from torch.nn.utils.rnn import pad_sequence

from espnet_omnisparse.losses.rnnt import rnnt_loss
from espnet_omnisparse.streaming import search as search_module
from espnet_omnisparse.streaming.search import (
    BeamTransducer,
    GreedyCTC,
    GreedyTransducer,
    PrefixBeamCTC,
    beam_search,
)

VOCAB, SIZE, UNITS = 6, 5, 8
DECODERS = {
    "lstm": lambda: RNNDecoder(VOCAB, UNITS, UNITS, "lstm", num_layers=2),
    "gru": lambda: RNNDecoder(VOCAB, UNITS, UNITS, "gru"),
    "stateless": lambda: StatelessDecoder(VOCAB, UNITS),
    "asr": lambda: TransducerDecoder(VOCAB, hidden_size=UNITS, num_layers=2),
}
STANDALONE = ["lstm", "gru", "stateless"]
SEARCHES = {
    "ctc greedy": lambda: (GreedyCTC, make_ctc()),
    "ctc prefix": lambda: (PrefixBeamCTC, make_ctc()),
    **{
        f"{name} greedy": lambda name=name: (GreedyTransducer, *transducer(name))
        for name in DECODERS
    },
    **{
        f"{name} {kind}": lambda name=name, kind=kind: (
            lambda *modules: BeamTransducer(*modules, 3, kind),
            *transducer(name),
        )
        for name, kind in itertools.product(DECODERS, ["default", "tsd", "maes"])
    },
}


def make_ctc(vocab=VOCAB, sharpness=3.0):
    ctc = CTC(vocab, SIZE).eval()
    torch.nn.init.normal_(ctc.ctc_lo.weight, std=sharpness)
    return ctc


def speech(frames, share=0.4, noise=0.4):
    """Noise `[T, D]` with a token's own vector in it now and then, and the tokens."""
    tokens = torch.randint(SIZE, (frames,))
    spoken = torch.rand(frames) < share
    encoded = spoken[:, None] * 2 * torch.eye(SIZE)[tokens]
    return encoded + noise * torch.randn(frames, SIZE), tokens[spoken] + 1


@functools.cache
def transducer(name):
    """A prediction and a joint network that have learnt a little of `speech`.

    Random ones emit the same token in one frame for ever, as no trained one does.
    """
    torch.manual_seed(0)
    decoder, joint = DECODERS[name](), JointNetwork(VOCAB, SIZE, UNITS, 16)
    parameters = [*decoder.parameters(), *joint.parameters()]
    optimizer = torch.optim.Adam(parameters, 0.05)
    with torch.enable_grad():
        for _ in range(150):
            encoded, texts = zip(*(speech(8) for _ in range(16)), strict=True)
            labels = pad_sequence(texts, batch_first=True)
            seen = decoder(torch.nn.functional.pad(labels, (1, 0)))
            logits = joint(torch.stack(encoded)[:, :, None], seen[:, None])
            lengths = torch.tensor([len(text) for text in texts])
            loss = rnnt_loss(logits, labels, torch.full((16,), 8), lengths, 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return decoder.eval(), joint.eval()


def talkative(name):
    """Random ones, which give several tokens in many a frame."""
    decoder, joint = (
        DECODERS[name]().eval(),
        JointNetwork(VOCAB, SIZE, UNITS, 16).eval(),
    )
    for parameter in [*decoder.parameters(), *joint.parameters()]:
        torch.nn.init.normal_(parameter)
    joint.lin_out.bias[0] += 3
    return decoder, joint


def run(search, *pushes):
    for encoded in pushes:
        search.push(encoded)
    search.finish()
    return search.best()


def ctc_frames(path, sure=20.0):
    """A CTC head and frames of which each is sure of its token of `path`."""
    ctc = CTC(SIZE, SIZE).eval()
    with torch.no_grad():
        ctc.ctc_lo.weight.copy_(sure * torch.eye(SIZE))
        ctc.ctc_lo.bias.zero_()
    return ctc, torch.eye(SIZE)[path]


def collapse(path):
    return tuple(token for token, _ in itertools.groupby(path) if token)


def all_texts(ctc, encoded):
    """Every text's probability: the sum over all of its alignments."""
    frames = ctc.log_softmax(encoded[None])[0].double().exp()
    texts = {}
    for path in itertools.product(range(frames.shape[1]), repeat=len(frames)):
        p = math.prod(frames[t, token].item() for t, token in enumerate(path))
        texts[collapse(path)] = texts.get(collapse(path), 0.0) + p
    return texts


def slow_greedy(decoder, joint, encoded, max_symbols):
    """Greedy search that runs the prediction network over the whole text each time."""
    text, t, here = [0], 0, 0
    while t < len(encoded):
        out = decoder(torch.tensor([text]))[0, -1]
        token = int(joint(encoded[t], out).argmax())
        if token == 0 or here == max_symbols:
            t, here = t + 1, 0
        else:
            text, here = text + [token], here + 1
    return text[1:]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", SEARCHES)
def test_the_division_into_pushes_does_not_matter(name):
    make, *modules = SEARCHES[name]()
    encoded, _ = speech(40)
    whole = run(make(*modules), encoded)
    assert len(set(whole)) > 1 and len(whole) >= 4
    assert run(make(*modules), *encoded.split(1)) == whole
    uneven = encoded.split([0, 7, 1, 0, 0, 19, 2, 11, 0])
    assert run(make(*modules), *uneven) == whole
    assert run(make(*modules), encoded[:0]) == run(make(*modules)) == []


@pytest.mark.parametrize("name", SEARCHES)
def test_interleaved_streams_do_not_touch_each_other_or_the_model(name):
    make, *modules = SEARCHES[name]()
    before = [copy.deepcopy(vars(module)) for module in modules]
    (one, _), (two, _) = speech(30), speech(30)
    alone = [run(make(*modules), one), run(make(*modules), two)]
    assert alone[0] != alone[1]
    searches = make(*modules), make(*modules)
    for pieces in zip(one.split(3), two.split(3), strict=True):
        for search, piece in zip(searches, pieces, strict=True):
            search.push(piece)
            search.best().append(-1)  # asking changes nothing
    assert [search.best() for search in searches] == alone
    for module, old in zip(modules, before, strict=True):
        own = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        assert own == {k: old[k] for k in own}


def test_greedy_ctc_joins_repeats_and_drops_blanks_across_pushes():
    ctc, frames = ctc_frames([0, 1, 1, 0, 1, 2, 2, 3, 0, 0, 3])
    assert run(GreedyCTC(ctc), *frames.split(2)) == [1, 1, 2, 3, 3]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("vocab, frames", [(3, 6), (4, 4)])
def test_prefix_search_finds_the_text_of_the_largest_sum_over_alignments(
    vocab, frames, seed
):
    torch.manual_seed(seed)
    ctc, encoded = make_ctc(vocab, sharpness=0.5), torch.randn(frames, SIZE)
    texts = all_texts(ctc, encoded)
    assert sum(texts.values()) == pytest.approx(1)
    search = PrefixBeamCTC(ctc, beam=len(texts), prune=vocab)
    best = max(texts, key=texts.get)
    assert run(search, *encoded.split(2)) == list(best)
    assert math.exp(search.log_probability()) == pytest.approx(texts[best])


def test_prefix_search_beats_greedy_where_alignments_add_up():
    better = 0
    for seed in range(20):
        torch.manual_seed(seed)
        ctc, encoded = make_ctc(3, sharpness=0.3), torch.randn(5, SIZE)
        texts = all_texts(ctc, encoded)
        greedy, prefix = (
            texts[tuple(run(make(ctc), encoded))] for make in (GreedyCTC, PrefixBeamCTC)
        )
        assert prefix >= greedy
        better += prefix > greedy
    assert better > 5


def test_prefix_search_of_sure_frames_is_greedy():
    ctc, frames = ctc_frames([0, 1, 1, 0, 1, 2, 2, 3, 0, 0, 3, 4])
    for beam, prune in [(1, 1), (8, 8)]:
        assert run(PrefixBeamCTC(ctc, beam, prune), frames) == [1, 1, 2, 3, 3, 4]


def test_prefix_search_extends_by_the_likeliest_tokens_alone():
    ctc, frames = ctc_frames([1], sure=1.0)
    frames[0, 2] = 0.9
    frames = frames.repeat(3, 1)
    texts = all_texts(ctc, frames)
    seen = [text for text in texts if set(text) <= {1, 2}]
    search = PrefixBeamCTC(ctc, beam=len(texts), prune=2)
    assert tuple(run(search, frames)) == max(seen, key=texts.get)
    assert len(search._beams) == len(seen) < len(texts)


def test_prefix_search_keeps_what_the_beam_consists_of_alone():
    search = PrefixBeamCTC(make_ctc())
    for _ in range(5):
        search.push(torch.randn(60, SIZE))
        alive = set()
        for prefix in search._beams:
            while prefix.parent is not None:
                alive.add(prefix)
                prefix = prefix.parent
        assert set(search._children.values()) == alive
    assert len(search.best()) > 100


@pytest.mark.parametrize("max_symbols", [1, 2, 5])
@pytest.mark.parametrize("name", DECODERS)
def test_greedy_transducer_equals_the_obvious_loop(name, max_symbols):
    decoder, joint = talkative(name)
    encoded, _ = speech(30)
    expected = slow_greedy(decoder, joint, encoded, max_symbols)
    assert run(GreedyTransducer(decoder, joint, max_symbols), encoded) == expected
    assert slow_greedy(decoder, joint, encoded, max_symbols + 1) != expected != []


def test_greedy_transducer_with_one_symbol_is_that_of_asr():
    decoder, joint = talkative("asr")
    encoded, _ = speech(40)
    stock = AsrBeamSearch(decoder, joint, beam_size=1)(encoded)[0].yseq[1:]
    assert run(GreedyTransducer(decoder, joint, 1), encoded) == stock
    assert run(GreedyTransducer(decoder, joint, 2), encoded) != stock


@pytest.mark.parametrize("kind", ["default", "tsd", "maes"])
@pytest.mark.parametrize("name", STANDALONE)
def test_beam_in_pieces_equals_the_stock_search_over_the_whole(name, kind):
    decoder, joint = transducer(name)
    encoded, _ = speech(60)
    stock = BeamSearchTransducer(decoder, joint, 3, search_type=kind)(encoded)[0]
    search = BeamTransducer(decoder, joint, 3, kind)
    assert run(search, *encoded.split(7)) == stock.yseq[1:]
    assert max(hyp.score for hyp in search._hyps) == pytest.approx(stock.score)


@pytest.mark.parametrize("score_norm", [True, False])
def test_beam_in_pieces_equals_the_stock_search_of_asr(score_norm):
    decoder, joint = transducer("asr")
    for _ in range(5):
        encoded, _ = speech(40)
        stock = AsrBeamSearch(decoder, joint, 3, score_norm=score_norm)(encoded)[0]
        search = BeamTransducer(decoder, joint, 3, score_norm=score_norm)
        assert run(search, *encoded.split(7)) == stock.yseq[1:]


@pytest.mark.parametrize("name", DECODERS)
def test_beam_keeps_a_bounded_cache_and_what_is_undecided(name, monkeypatch):
    decoder, joint = transducer(name)
    encoded, _ = speech(300)
    expected = run(BeamTransducer(decoder, joint, 3), encoded)
    monkeypatch.setattr(search_module, "CACHED_STEPS", 12)
    search = BeamTransducer(decoder, joint, 3)
    for piece in encoded.split(10):
        search.push(piece)
        assert len(search._search.decoder.score_cache) <= 12
        tails = [hyp.yseq for hyp in search._hyps]
        assert len({tail[0] for tail in tails}) > 1 or min(map(len, tails)) == 1
    assert search.best() == expected and len(expected) > 50
    assert not getattr(decoder, "score_cache", None)


# --- half an hour ------------------------------------------------------------------

MINUTE = 1500  # frames of 40 ms
QUICK = ["ctc greedy", "ctc prefix", "gru greedy", "gru maes"]
LONG = ["gru default", "gru tsd"]
LONG += [f"{name} {kind}" for name in DECODERS for kind in ("greedy", "maes")]
# what is no part of a stream's state, or leads out of it to everything there is
APART = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
# besides lists of ids: the tree that the texts of a prefix search are
TEXTS = (search_module._Prefix, weakref.WeakValueDictionary)


def held_bytes(*roots):
    """Of everything that can be reached from some objects, save for texts."""
    found, todo, seen = 0, list(roots), set()
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, (*APART, *TEXTS)):
            continue
        seen.add(id(one))
        if isinstance(one, list) and all(type(item) is int for item in one):
            continue
        if isinstance(one, torch.Tensor):
            storage = one.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                found += storage.nbytes()
        found += sys.getsizeof(one)
        todo += gc.get_referents(one)
    return found


def objects_besides_texts(search):
    """Of the whole process, of those that the garbage collector knows."""
    gc.collect()
    # a prefix, the reference to it and the key under which that lies
    return len(gc.get_objects()) - 3 * len(getattr(search, "_children", ()))


def undecided(search):
    """Tokens of the longest text in a beam after those that all texts begin with."""
    if isinstance(search, BeamTransducer):
        return max(len(hyp.yseq) for hyp in search._hyps)
    texts = []
    for prefix in search._beams:
        text = []
        while prefix is not None:
            text.append(prefix)
            prefix = prefix.parent
        texts.append(text[::-1])
    common = itertools.takewhile(lambda x: len(set(x)) == 1, zip(*texts, strict=False))
    return max(map(len, texts)) - len(list(common))


@functools.cache
def half_an_hour(name):
    """What is said, heard and held, minute by minute, at five tokens a second."""
    make, *modules = SEARCHES[name]()
    torch.manual_seed(1)
    search = make(*modules)
    beam = isinstance(search, BeamTransducer | PrefixBeamCTC)
    keys = ("said", "heard", "undecided", "held", "objects")
    found = {key: [] for key in keys}
    for minute in range(1, 31):
        encoded, tokens = speech(MINUTE, share=0.2, noise=0.3)
        held, late = [], [0]
        for second, piece in enumerate(encoded.split(25)):
            search.push(piece)
            if minute in (1, 15, 30):
                held.append(held_bytes(search, *modules))
            if beam and second % 20 == 0:
                late.append(undecided(search))
        found["said"].append(len(tokens))
        found["heard"].append(len(search.best()))
        found["undecided"].append(max(late))
        if held:
            found["held"].append(max(held))
            found["objects"].append(objects_besides_texts(search))
    return found


@pytest.mark.parametrize(
    "name",
    QUICK + [pytest.param(n, marks=pytest.mark.slow) for n in LONG if n not in QUICK],
)
def test_half_an_hour_takes_no_more_memory_than_its_first_minute_but_for_texts(name):
    found = half_an_hour(name)
    heard, held, objects = found["heard"], found["held"], found["objects"]
    assert heard[-1] > 25 * heard[0] > 10 * found["said"][0]
    assert max(held) <= 1.05 * held[0]
    assert max(objects) < objects[0] + 100
    # what is decided is dropped, however long that may have taken
    assert min(found["undecided"][1:]) < heard[0]


@pytest.mark.parametrize("name", ["ctc prefix", "gru maes"])
def test_a_beam_leaves_no_more_than_so_much_undecided(name):
    found = half_an_hour(name)
    # twice that, and what the last frames said
    assert max(found["undecided"]) <= 2 * search_module.UNDECIDED + 10
    assert sum(found["said"]) > 25 * search_module.UNDECIDED


@pytest.mark.parametrize("beam", [1, VOCAB - 2, VOCAB - 1, 100])
def test_a_beam_larger_than_the_vocabulary_is_as_large_as_it_can_be(beam):
    decoder, joint = transducer("gru")
    model = types.SimpleNamespace(decoder=decoder, joint_network=joint)
    search = beam_search(model, beam)
    search.push(speech(5)[0])
    assert len(search._hyps) <= VOCAB - 2
