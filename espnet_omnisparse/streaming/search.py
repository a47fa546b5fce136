"""Searches over a live stream: encoder frames go in as they come, text comes out.

A search holds all the state of one stream. The modules it is given are shared: any
number of searches may run interleaved over one model. How the frames are divided into
pushes does not matter. Nothing grows with the stream but the text.

>>> ctc = CTC(odim=3, encoder_output_size=3).requires_grad_(False)
>>> _ = ctc.ctc_lo.weight.copy_(torch.eye(3)), ctc.ctc_lo.bias.zero_()
>>> search = GreedyCTC(ctc)
>>> search.push(torch.eye(3)[[1, 1]])
>>> search.push(torch.eye(3)[[1, 0, 1, 2]])
>>> search.best()
[1, 1, 2]
"""

import math
from heapq import nlargest
from itertools import takewhile
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.decoder.transducer_decoder import TransducerDecoder
from espnet2.asr_transducer.beam_search_transducer import (
    BeamSearchTransducer,
    Hypothesis,
)
from espnet2.asr_transducer.decoder.abs_decoder import AbsDecoder
from espnet2.asr_transducer.joint_network import JointNetwork

from espnet_omnisparse.errors import UserError

BLANK = 0
#: Steps of the prediction network that a beam search remembers; it asks for some
#: dozens of them in a frame, and mostly for the same ones in the next.
CACHED_STEPS = 256
#: Labels that a beam may leave undecided. Two texts that differ in one old label can
#: stay in a beam for ever, and all that follows would be held, and copied, with both.
UNDECIDED = 128


class Search(Protocol):
    """The search for the text of one stream.

    Attributes:
        revises: Whether the best hypothesis may change what it once began with.
    """

    revises: bool = False

    def push(self, encoded: torch.Tensor) -> None:
        """Takes the encoder's next frames `[T, D]`; T may be 0."""

    def best(self) -> list[int]:
        """Token ids of the best hypothesis so far, without blanks."""

    def finish(self) -> None:
        """Tells that the stream has ended: nothing is pushed any more."""


class GreedyCTC(Search):
    """The best token of every frame, repeats joined and blanks dropped.

    Args:
        ctc: The model's CTC head.
    """

    def __init__(self, ctc: CTC):
        self._ctc = ctc
        self._last = BLANK
        self._tokens: list[int] = []

    @torch.no_grad()
    def push(self, encoded: torch.Tensor) -> None:
        """Takes the encoder's next frames `[T, D]`."""
        for token in self._ctc.argmax(encoded[None])[0].tolist():
            if token not in (self._last, BLANK):
                self._tokens.append(token)
            self._last = token

    def best(self) -> list[int]:
        """Token ids of the text so far."""
        return list(self._tokens)


class _Prefix:
    """A text as its last token and the text before that; equal only to itself."""

    __slots__ = ("parent", "token", "__weakref__")

    def __init__(self, parent: "_Prefix | None", token: int):
        self.parent = parent
        self.token = token

    def path(self) -> "list[_Prefix]":
        """The texts that it grew from, the first one and itself included."""
        path = [self]
        while path[-1].parent is not None:
            path.append(path[-1].parent)
        return path[::-1]

    def tokens(self) -> list[int]:
        return [prefix.token for prefix in self.path()[1:]]


class PrefixBeamCTC(Search):
    """CTC prefix beam search: the text most probable over all of its alignments.

    Hannun et al., First-Pass Large Vocabulary Continuous Speech Recognition using
    Bi-Directional Recurrent DNNs, 2014, arXiv:1408.2873, without a language model.

    Args:
        ctc: The model's CTC head.
        beam: Texts kept after each frame.
        prune: Tokens that may extend a text in a frame, the most probable ones. Blank
            and a repeat of the last token extend nothing and are always scored.
    """

    revises = True

    def __init__(self, ctc: CTC, beam: int = 8, prune: int = 8):
        self._ctc = ctc
        self._beam = beam
        self._prune = prune
        self._settled: list[int] = []
        # log probabilities of the alignments that end in blank, and in a token
        self._beams = {_Prefix(None, BLANK): (0.0, -math.inf)}
        # One object per text, so that the ways to it meet. Weak: what no text in the
        # beam continues is gone, and the rest is a tree that the beam shares.
        self._children: WeakValueDictionary[tuple[_Prefix, int], _Prefix] = (
            WeakValueDictionary()
        )

    @torch.no_grad()
    def push(self, encoded: torch.Tensor) -> None:
        """Takes the encoder's next frames `[T, D]`."""
        log_probs = self._ctc.log_softmax(encoded[None])[0].double().cpu()
        tokens = log_probs[:, 1:]
        top = tokens.topk(min(self._prune, tokens.shape[1])).indices + 1
        for frame, candidates in zip(log_probs.numpy(), top.tolist(), strict=True):
            self._advance(frame.item, candidates)
        self._settle()

    def _advance(self, log_prob, candidates: list[int]) -> None:
        grown: dict[_Prefix, tuple[float, float]] = {}

        def add(prefix: _Prefix, in_blank: float, in_token: float) -> None:
            blank, token = grown.get(prefix, (-math.inf, -math.inf))
            grown[prefix] = _log_add(blank, in_blank), _log_add(token, in_token)

        for prefix, (blank, token) in self._beams.items():
            either = _log_add(blank, token)
            add(prefix, either + log_prob(BLANK), token + log_prob(prefix.token))
            for candidate in candidates:
                # without a blank between them, two equal tokens are one
                before = blank if candidate == prefix.token else either
                if before > -math.inf:
                    child = self._child(prefix, candidate)
                    add(child, -math.inf, before + log_prob(candidate))
        self._beams = dict(
            nlargest(self._beam, grown.items(), key=lambda item: _log_add(*item[1]))
        )

    def _child(self, prefix: _Prefix, token: int) -> _Prefix:
        child = self._children.get((prefix, token))
        if child is None:
            child = self._children[prefix, token] = _Prefix(prefix, token)
        return child

    def _settle(self) -> None:
        """Goes with the best text, where the beam has been undecided for long."""
        path = next(iter(self._beams)).path()
        decided = len(path) - 1 - UNDECIDED
        if decided <= UNDECIDED:
            return
        root = path[decided]
        self._settled += [prefix.token for prefix in path[1 : decided + 1]]
        self._beams = {
            prefix: scores
            for prefix, scores in self._beams.items()
            if root in prefix.path()
        }
        del self._children[root.parent, root.token]
        root.parent = None

    def best(self) -> list[int]:
        """Token ids of the best text so far."""
        return self._settled + next(iter(self._beams)).tokens()

    def log_probability(self) -> float:
        """Of the best text so far, over those of its alignments that were searched."""
        return _log_add(*next(iter(self._beams.values())))


def _log_add(a: float, b: float) -> float:
    low, high = sorted((a, b))
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


class _Predictor:
    """What one stream sees of a prediction network, as ESPnet's beam search wants it.

    ESPnet's decoders remember all label sequences that they have ever scored, and do
    so in the decoder, which streams share. Here the stream remembers some of the
    latest steps. A step is told by the state it starts from and its label, so the
    search may forget old labels in the meantime.

    Args:
        decoder: Of the task `asr_transducer`, or `asr`'s `transducer`.
    """

    def __init__(self, decoder: AbsDecoder | TransducerDecoder):
        # they make states where they were built, which may have been another device
        decoder.set_device(next(decoder.parameters()).device)
        self._decoder = decoder
        self.vocab_size = decoder.embed.num_embeddings
        self.init_state = decoder.init_state
        self.select_state = decoder.select_state
        self.score_cache: dict[tuple[int, int], tuple] = {}

    def set_device(self, device: torch.device) -> None:
        """Nothing to do: the constructor has."""

    def batch_score(self, hyps: list[Hypothesis]) -> tuple[torch.Tensor, Any]:
        """Output `[B, D]` and states after the last label of each hypothesis."""
        if isinstance(self._decoder, TransducerDecoder):
            return self._decoder.batch_score(hyps, None, {}, use_lm=False)[:2]
        return self._decoder.batch_score(hyps)

    def step(self, label: int, state: Any) -> tuple[torch.Tensor, Any]:
        """Output `[1, D]` and state after one more label."""
        out, states = self.batch_score([Hypothesis(0.0, [label], state)])
        return out, self.select_state(states, 0)

    def score(self, labels: list[int], state: Any) -> tuple[torch.Tensor, Any]:
        """The same for the last of some labels, remembered."""
        key = id(state), labels[-1]
        # the state is kept as well: its id stays its own for as long as it lives
        known = self.score_cache.pop(key, None) or (state, self.step(labels[-1], state))
        self.score_cache[key] = known
        if len(self.score_cache) > CACHED_STEPS:
            del self.score_cache[next(iter(self.score_cache))]
        return known[1]


class GreedyTransducer(Search):
    """The best token again and again until it is blank, then the next frame.

    Args:
        decoder: The prediction network, of `asr_transducer` or `asr`.
        joint: The joint network.
        max_symbols: Tokens at most in one frame; with 1 it is the greedy search of
            ESPnet's `asr`.
    """

    def __init__(
        self,
        decoder: AbsDecoder | TransducerDecoder,
        joint: JointNetwork,
        max_symbols: int = 5,
    ):
        self._predictor = _Predictor(decoder)
        self._joint = joint
        self._max_symbols = max_symbols
        self._tokens: list[int] = []
        with torch.no_grad():
            start = self._predictor.init_state(1)
            self._out, self._state = self._predictor.step(BLANK, start)

    @torch.no_grad()
    def push(self, encoded: torch.Tensor) -> None:
        """Takes the encoder's next frames `[T, D]`."""
        for frame in encoded.split(1) if len(encoded) else ():
            for _ in range(self._max_symbols):
                token = int(self._joint(frame, self._out).argmax())
                if token == BLANK:
                    break
                self._tokens.append(token)
                self._out, self._state = self._predictor.step(token, self._state)

    def best(self) -> list[int]:
        """Token ids of the text so far."""
        return list(self._tokens)


class BeamTransducer(Search):
    """ESPnet's beam search of `asr_transducer`, over a stream of any length.

    Args:
        decoder: The prediction network, of `asr_transducer` or `asr`.
        joint: The joint network.
        beam: Hypotheses kept after each frame, at most the vocabulary's size, and two
            less for `maes`.
        search_type: `default`, `tsd` or `maes`, as ESPnet calls them. The first one is
            done with a frame when the beam's hypotheses are better than all that might
            still be extended, and never, where the model repeats a token for ever; the
            others bound the tokens of a frame.
        score_norm: Whether the best hypothesis is the best per token, as in `asr`, and
            not in total, as in `asr_transducer`.
    """

    revises = True

    def __init__(
        self,
        decoder: AbsDecoder | TransducerDecoder,
        joint: JointNetwork,
        beam: int = 4,
        search_type: str = "default",
        score_norm: bool = False,
    ):
        self._search = BeamSearchTransducer(
            _Predictor(decoder), joint, beam, search_type=search_type, streaming=True
        )
        self._score_norm = score_norm
        self._settled: list[int] = []
        self._hyps = [Hypothesis(0.0, [BLANK])]

    @torch.no_grad()
    def push(self, encoded: torch.Tensor) -> None:
        """Takes the encoder's next frames `[T, D]`."""
        for frame in encoded.split(1) if len(encoded) else ():
            self._hyps = self._search(frame, is_final=False)
            self._settle()

    def _settle(self) -> None:
        # ESPnet copies the whole text for each hypothesis that it tries. What all of
        # them begin with decides nothing any more, save for the last label of each.
        labels = zip(*(hyp.yseq[:-1] for hyp in self._hyps), strict=False)
        common = [same[0] for same in takewhile(lambda x: len(set(x)) == 1, labels)]
        best = max(self._hyps, key=self._rank).yseq
        if len(best) - len(common) > 2 * UNDECIDED:
            common = best[:-UNDECIDED]
            # in place: it is the list that the search goes on with
            self._hyps[:] = [
                hyp
                for hyp in self._hyps
                if hyp.yseq[: len(common)] == common and len(hyp.yseq) > len(common)
            ]
        self._settled += common
        for hyp in self._hyps:
            hyp.yseq = hyp.yseq[len(common) :]

    def best(self) -> list[int]:
        """Token ids of the best hypothesis so far."""
        best = max(self._hyps, key=self._rank)
        return (self._settled + best.yseq)[1:]

    def _rank(self, hyp: Hypothesis) -> float:
        length = len(self._settled) + len(hyp.yseq) if self._score_norm else 1
        return hyp.score / length


def greedy_search(model: Any) -> Search:
    """A greedy search of what a model of either task has: a transducer, or CTC.

    Raises:
        UserError: If it has attention alone.
    """
    if getattr(model, "joint_network", None) is not None:
        return GreedyTransducer(model.decoder, model.joint_network)
    return GreedyCTC(_ctc_of(model))


def beam_search(model: Any, beam: int) -> Search:
    """The same with so many hypotheses.

    Args:
        model: The model.
        beam: Hypotheses that are kept.

    Raises:
        UserError: If it has attention alone.
    """
    if getattr(model, "joint_network", None) is not None:
        # ESPnet's default may find no end of a frame; this one is bounded, and takes no
        # larger beam: it looks at two labels more
        beam = max(1, min(beam, model.decoder.embed.num_embeddings - 2))
        return BeamTransducer(model.decoder, model.joint_network, beam, "maes")
    return PrefixBeamCTC(_ctc_of(model), beam)


def _ctc_of(model: Any) -> CTC:
    if model.ctc is None:
        raise UserError(
            "This model has neither CTC nor a transducer, and attention alone cannot "
            "stream: train with ctc_weight above 0."
        )
    return model.ctc
