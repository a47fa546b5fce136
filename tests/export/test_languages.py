"""No language is assumed: tokens of any script, extracted, packed, streamed, scored."""

import editdistance
import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
from helpers.engine_models import RATE, encoded, sound
from helpers.recipes import run_sclite
from helpers.tiny import asr_config, build

from espnet_omnisparse import runtime
from espnet_omnisparse.cli import main
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import SubnetSpec, fingerprint
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.description import describe
from espnet_omnisparse.extract import experiment
from espnet_omnisparse.files import save_tensors, write_yaml
from espnet_omnisparse.runtime import Token
from espnet_omnisparse.runtime.library import VARIABLE
from espnet_omnisparse.streaming.recogniser import Recogniser
from espnet_omnisparse.streaming.text import settled_text, tokenizer_of
from espnet_omnisparse.transcribe.words import as_text, words_of

LINES = ("東京で日本語を話す", "今日は 天気 が いい", "привет мир", "größe und straße")
CAUSAL = {"causal": True, "conv_norm": "layer_norm", "chunk": {"size": 8, "left": 16}}
#: kind of tokens, and a list of them without ESPnet's own
PHONEMES = ("phn", ["ɑː", "tʃʰ", "ŋ̍", "ʔ", "˥˩", "h#", "sil", "AH0"])
HAN = ("char", ["<space>", *"東京日本語話", "。", "𠮷"])
MARKS = (
    "char",
    ["<space>", "e", "\u0301", "क", "\u094d", "ष", "i", "\u0307", "\u200d"],
)
WORDS = ("word", ["привет", "größe", "İstanbul", "நன்றி", "o'clock", "日本"])


@pytest.fixture(scope="module")
def bytes_of_pieces(tmp_path_factory):
    """A BPE model whose pieces spell what they have not by its bytes."""
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "lines.txt").write_text("\n".join(LINES[2:]), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "lines.txt"),
        model_prefix=str(folder / "bpe"),
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        character_coverage=1.0,
    )
    model = str(folder / "bpe.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=model)
    return model, [pieces.id_to_piece(number) for number in range(3, len(pieces))]


@pytest.fixture(
    params=(PHONEMES, HAN, MARKS, WORDS, "bytes"),
    ids=lambda p: p if isinstance(p, str) else p[1][1],
)
def size(request, tmp_path, bytes_of_pieces):
    """A size that streams, cut out of a supernet of such tokens, and its tokenizer."""
    if request.param == "bytes":
        (bpemodel, tokens), kind = bytes_of_pieces, "bpe"
    else:
        (kind, tokens), bpemodel = request.param, None
    config = asr_config(
        CAUSAL,
        token_list=["<blank>", "<unk>", *tokens, "<sos/eos>"],
        input_size=None,
        frontend="default",
        frontend_conf={"n_fft": 512, "hop_length": 160, "n_mels": 20},
        token_type=kind,
        bpemodel=bpemodel,
    )
    model = build(config)
    state = model.state_dict()
    exp = tmp_path / "exp"
    write_yaml(exp / "config.yaml", config)
    save_tensors(exp / "model.pth", state)
    kept = tuple(unit % 3 != 1 for unit in range(12))
    name = fingerprint(state, config["token_list"])
    chunk = Chunk.parse(CAUSAL["chunk"], "chunk")
    spec = SubnetSpec("small", name, SearchSpace(3), kept, chunk=chunk)
    experiment.extract_size(exp, exp / "model.pth", spec, tmp_path / "small")
    talkative(tmp_path / "small")
    return tmp_path / "small"


@torch.no_grad()
def talkative(folder):
    """Gives a size a head that finds many tokens in `sound`, never ESPnet's own."""
    model = experiment.load_size(folder)
    hidden, head = encoded(model, sound(3 * RATE)), model.ctc.ctc_lo
    head.weight.normal_()
    head.weight *= 5.0 / ((hidden @ head.weight.T).std(0)[:, None] + 1e-6)
    head.bias.copy_(-(head.weight @ hidden.mean(0)))
    head.bias[[1, -1]] -= 90.0
    save_tensors(folder / "model.pth", model.state_dict())


@pytest.fixture
def engine(engine_library, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(engine_library))


@pytest.fixture
def noise(tmp_path):
    soundfile.write(tmp_path / "a.wav", sound(3 * RATE), RATE, "PCM_16")
    return tmp_path / "a.wav"


def squeezed(text):
    return " ".join(text.split())


def test_all_that_recognise_spell_alike(size, noise, engine, tmp_path, capsys):
    config = experiment.read_config(size)
    main(["export", str(size), "--to", "packed", "--out", str(tmp_path / "x.omni")])
    samples = soundfile.read(noise, dtype="float32")[0]
    model = runtime.load(tmp_path / "x.omni")
    recogniser = Recogniser.load(size)
    stream = recogniser.stream()
    for part in np.array_split(samples, 7):
        stream.push(torch.from_numpy(part))
    text = stream.finish()
    tokens = recogniser.tokens(stream.ids)
    assert len({*tokens}) > 3 and squeezed(text)
    assert squeezed(tokenizer_of(config).tokens2text(tokens)) == squeezed(text)
    assert squeezed(model.recognize(samples, RATE)) == squeezed(text)
    capsys.readouterr()
    main(["transcribe", str(tmp_path / "x.omni"), str(noise)])
    assert squeezed(capsys.readouterr().out.split(":", 1)[-1]) == squeezed(text)
    for beam in ("1", "4"):
        told = []
        for one in (size, tmp_path / "x.omni"):
            main(["stream", "--model", str(one), str(noise), "--beam", beam])
            told.append(capsys.readouterr().out)
        assert told[0] == told[1]


def test_bytes_become_characters_as_in_sentencepiece(bytes_of_pieces):
    bpemodel, _ = bytes_of_pieces
    pieces = sentencepiece.SentencePieceProcessor(model_file=bpemodel)
    tokens = pieces.encode("東京 鬱😀é straße", out_type=str)
    assert sum(token.startswith("<0x") for token in tokens) > 8
    cut = [[*tokens[:n], *tokens[n + 1 :]] for n in range(len(tokens))]
    for some in [tokens, *cut]:
        spelt = words_of([Token(t, 2, 0.1) for t in some], {"kind": "bpe", "space": ""})
        assert as_text(list(spelt)) == squeezed(pieces.decode(some))


def test_a_character_is_shown_when_it_is_whole():
    for n in range(1, len("日本".encode())):
        part = "日本".encode()[:n].decode(errors="replace")
        assert "日本".startswith(settled_text(part, revises=False))


@pytest.mark.parametrize("line", (*LINES, "कक्षा में", "ɑː tʃʰ ŋ̍"))
def test_scores_count_characters_as_written(line, tmp_path, capsys):
    spelt = list(line.replace(" ", "_"))
    wrong = [*spelt[1:3], *reversed(spelt[3:])]
    lines = [" ".join(one) + "\t(s-1)\n" for one in (spelt, wrong)]
    run_sclite(tmp_path, *lines)
    row = next(r for r in capsys.readouterr().out.splitlines() if "Sum/Avg" in r)
    errors = float(row.split("|")[3].split()[4])
    distance = editdistance.eval(spelt, wrong)
    assert errors >= round(100 * distance / len(spelt), 1)
    run_sclite(tmp_path, lines[0], lines[0])
    row = next(r for r in capsys.readouterr().out.splitlines() if "Sum/Avg" in r)
    assert row.split("|")[3].split()[4] == "0.0"


def test_tokens_that_need_a_tokenizer_of_their_own_are_not_exported(tmp_path):
    config = asr_config(token_type="hugging_face", bpemodel="some/model")
    with pytest.raises(UserError, match="token_type hugging_face"):
        describe(build(config), config)
