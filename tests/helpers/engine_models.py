"""Tiny models of every kind that a packed file can hold, with much to say."""

import copy
import functools
import json
from pathlib import Path

import numpy as np
import torch

from espnet_omnisparse.export.description import describe
from espnet_omnisparse.export.packed import matrices_of, write_packed
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.files import save_tensors, write_yaml
from helpers.tiny import asr_config, build, transducer_config

RATE = 16000
TOKENS = ["<blank>", "<unk>", *"ABCDEFGH", "<space>", "<sos/eos>"]
AUDIO = {
    "token_list": TOKENS,
    "token_type": "char",
    "input_size": None,
    "frontend": "default",
    "frontend_conf": {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 20},
}
KALDI = {"frontend": "kaldi_fbank", "frontend_conf": {"n_mels": 20}}
CHUNK = {"size": 8, "left": 16}
STOCK = {"encoder": "conformer", "model": "espnet"}
ABSOLUTE = {"pos_enc_layer_type": "abs_pos"}
SIDES = {
    "cgmlp_linear_units": 24,
    "cgmlp_conv_kernel": 7,
    "use_ffn": True,
    "macaron_ffn": True,
}
LIVE = {"causal": True, "chunk": CHUNK}
#: of an E-Branchformer's blocks: either side, none, and both
ONE_SIDE = [["ffn1", "mhsa"], ["cgmlp", "ffn2"], ["ffn1"], ["mhsa", "cgmlp", "ffn2"]]
PARTS = [{"mhsa": 1, "ffn1": 3, "conv": 1}, {"ffn2": 4}, {"mhsa": 2, "ffn1": 1}]


def ctc(conf=None, share=0.0, **changes):
    """A model of CTC alone, `share` of its weights zeros, and its configuration."""
    config = asr_config(conf, **{**AUDIO, **changes})
    config["model_conf"].pop("supernet", None)
    return _talkative(_masked(build(config), share)), config


def e_branchformer(conf=None, share=0.0, **changes):
    """The same of an E-Branchformer, whose gates tell what is in them."""
    common = {**asr_config()["encoder_conf"], **SIDES, **(conf or {})}
    del common["cnn_module_kernel"]
    name = {"encoder": "layer_prunable_e_branchformer", "encoder_conf": common}
    return ctc(None, share, **{**name, **changes})


def transformer(conf=None, share=0.0, **changes):
    """The same of a Transformer."""
    common = {**asr_config()["encoder_conf"], **(conf or {})}
    del common["cnn_module_kernel"], common["rel_pos_type"]
    name = {"encoder": "layer_prunable_transformer", "encoder_conf": common}
    return ctc(None, share, **{**name, **changes})


def transducer(share=0.0, decoder="rnn", decoder_conf=None, asr=False, **encoder):
    """The same of the task asr_transducer, or of asr's transducer."""
    options = {"pattern": None, "chunk": CHUNK, **encoder}
    config = transducer_config(blocks=2, encoder=options, auxiliary_ctc_weight=0.1)
    config |= {
        **AUDIO,
        "decoder": decoder,
        "decoder_conf": decoder_conf or {"embed_size": 12, "hidden_size": 10},
    }
    return _talkative(_masked(build(config), share)), config


def asr_transducer():
    """A transducer of the task asr, with its LSTM of one width."""
    return ctc(
        LIVE,
        decoder="transducer",
        decoder_conf={"hidden_size": 12, "num_layers": 2},
        joint_net_conf={"joint_space_size": 14},
        model_conf={"ctc_weight": 0.3},
    )


def local(**changes):
    """A model without attention: a frame sees a second around it, and no more."""
    kept = [["ffn1", "conv"], [], ["conv", "ffn2"]]
    return ctc({"kept": kept}, **changes)


def _local_transducer():
    return local(
        decoder="transducer",
        decoder_conf={"hidden_size": 12},
        joint_net_conf={"joint_space_size": 14},
        model_conf={"ctc_weight": 0.3},
    )


def _gru():
    conf = {"rnn_type": "gru", "embed_size": 12, "hidden_size": 10, "num_layers": 2}
    return transducer(decoder_conf=conf)


#: kind of a model -> what makes it and its configuration
MAKERS = {
    "ctc": ctc,
    "dropped": lambda: ctc({"kept": [["mhsa"], [], ["ffn1", "conv", "ffn2"]]}),
    "components": lambda: ctc(
        {"kept": PARTS, "granularity": "component", "attention_heads": 4}
    ),
    "masked": lambda: ctc(share=0.8),
    "layer-norm": lambda: ctc({"conv_norm": "layer_norm"}),
    "one-ffn": lambda: ctc({"macaron_style": False}),
    "live": lambda: ctc(LIVE),
    "live-masked": lambda: ctc({**LIVE, "conv_norm": "layer_norm"}, share=0.7),
    "no-left": lambda: ctc({"causal": True, "chunk": {"size": 3, "left": 0}}),
    "conv2d6": lambda: ctc({**LIVE, "input_layer": "conv2d6"}),
    "conv2d8": lambda: ctc({**LIVE, "input_layer": "conv2d8"}),
    "conv2d2": lambda: ctc({**LIVE, "input_layer": "conv2d2"}),
    "global": lambda: _normalised(*ctc(LIVE), "global"),
    "utterance": lambda: _normalised(*ctc(), "utterance"),
    "kaldi": lambda: ctc(LIVE, **KALDI),
    "long-windows": lambda: ctc(
        frontend_conf={"n_fft": 1024, "hop_length": 200, "n_mels": 20, "htk": True}
    ),
    "transducer": transducer,
    "transducer-masked": lambda: transducer(0.6),
    "stateless": lambda: transducer(
        decoder="stateless", decoder_conf={"embed_size": 12}
    ),
    "gru": _gru,
    "asr-transducer": asr_transducer,
    "e-branchformer": e_branchformer,
    "e-branchformer-sides": lambda: e_branchformer({"kept": ONE_SIDE, "num_blocks": 4}),
    "e-branchformer-parts": lambda: e_branchformer(
        {
            "kept": [{"mhsa": 1, "ffn1": 3}, {"cgmlp": 1}, {"mhsa": 3, "cgmlp": 1}],
            "granularity": "component",
            "attention_heads": 4,
        }
    ),
    "e-branchformer-masked": lambda: e_branchformer(
        {"use_linear_after_conv": True}, share=0.7
    ),
    "e-branchformer-no-ffn": lambda: e_branchformer(
        {"use_ffn": False, "macaron_ffn": False, "gate_activation": "tanh"}
    ),
    "e-branchformer-one-ffn": lambda: e_branchformer(
        {"macaron_ffn": False, "gate_activation": "selu", "merge_conv_kernel": 31}
    ),
    "e-branchformer-absolute": lambda: e_branchformer(
        {
            **ABSOLUTE,
            "attention_layer_type": "selfattn",
            "use_linear_after_conv": True,
            "gate_activation": "hardtanh",
        }
    ),
    "e-branchformer-stock": lambda: e_branchformer(
        {"gate_activation": "swish"}, encoder="e_branchformer", model="espnet"
    ),
    "transformer": transformer,
    "transformer-dropped": lambda: transformer({"kept": [["mhsa"], [], ["ffn2"]]}),
    "transformer-masked": lambda: transformer(share=0.7),
    "transformer-stock": lambda: transformer(encoder="transformer", model="espnet"),
    "absolute": lambda: ctc({**ABSOLUTE, "selfattention_layer_type": "selfattn"}),
    "scaled-absolute": lambda: ctc(
        {
            "pos_enc_layer_type": "scaled_abs_pos",
            "selfattention_layer_type": "selfattn",
            "activation_type": "hardtanh",
        }
    ),
    "legacy": lambda: ctc({"rel_pos_type": "legacy"}, **STOCK),
    "legacy-sides": lambda: e_branchformer(
        {
            "kept": ONE_SIDE,
            "num_blocks": 4,
            "rel_pos_type": "legacy",
            "max_pos_emb_len": 20,
        }
    ),
    "stock-one-ffn": lambda: ctc({"macaron_style": False}, **STOCK),
    "stock-no-conv": lambda: ctc({"use_cnn_module": False}, **STOCK),
    "local": local,
    "local-transducer": _local_transducer,
}
#: the same of those that a packed file cannot have
OTHERS = {
    "post-norm": lambda: transformer(
        {"normalize_before": False}, encoder="transformer", model="espnet"
    ),
    "linear": lambda: ctc({"input_layer": "linear"}, **STOCK),
    "loudness": lambda: ctc(speech_volume_normalize=0.5),
}
TRANSDUCERS = ("transducer", "transducer-masked", "stateless", "gru", "asr-transducer")
STREAMING = (
    *("live", "live-masked", "no-left", "conv2d6", "conv2d8", "conv2d2", "global"),
    *("kaldi", *TRANSDUCERS),
)


@functools.cache
def made(kind: str):
    """The model of a kind, and its configuration."""
    return {**MAKERS, **OTHERS}[kind]()


def write(folder: Path, kind: str, dtype: str = "fp32") -> Path:
    """Its packed file."""
    model, config = made(kind)
    path = folder / f"{kind}-{dtype}.omni"
    if not path.exists():
        write_packed(path, model, describe(model, config), dtype)
    return path


def write_folder(folder: Path, kind: str) -> Path:
    """Its folder, as `omnisparse extract` writes one."""
    model, config = made(kind)
    path = folder / kind
    path.mkdir(exist_ok=True)
    save_tensors(path / family.MODEL, model.state_dict())
    write_yaml(path / family.CONFIG, json.loads(json.dumps(config, default=str)))
    return path


def sound(samples: int, seed: int = 0) -> np.ndarray:
    """Noise that comes and goes, as 16-bit samples divided by 32768."""
    source = np.random.default_rng(seed)
    wave = source.normal(0.0, 0.1, samples)
    wave *= np.repeat(source.uniform(0.05, 1.0, samples // 800 + 1), 800)[:samples]
    pcm = (wave * 32768).clip(-32768, 32767).astype("<i2")
    return pcm.astype(np.float32) / 32768


@torch.no_grad()
def encoded(model, wave: np.ndarray) -> torch.Tensor:
    """ESPnet's encoder output of a whole recording `[frames, size]`."""
    audio, length = torch.from_numpy(wave)[None], torch.tensor([len(wave)])
    return model.encode(audio, length)[0][0]


@torch.no_grad()
def log_probs(model, wave: np.ndarray) -> np.ndarray:
    """What its CTC head says of it `[frames, tokens]`."""
    hidden = encoded(model, wave)
    head = getattr(model, "ctc", None)
    logits = head.ctc_lo(hidden) if head is not None else model.ctc_lin(hidden)
    return logits.log_softmax(-1).numpy()


def exact_log_probs(model, wave: np.ndarray) -> np.ndarray:
    """The same in double precision, so that ESPnet's own rounding is not in it."""
    torch.set_default_dtype(torch.float64)  # the features' window is made in it
    try:
        return log_probs(copy.deepcopy(model).double(), wave.astype(np.float64))
    finally:
        torch.set_default_dtype(torch.float32)


def _masked(model, share):
    """Zeros in blocks of 8 x 1 of the encoder's blocks' matrices."""
    generator = torch.Generator().manual_seed(1)
    for name, (out, inputs) in matrices_of(model).items() if share else ():
        if ".encoders." in name:
            kept = torch.rand(-(-out // 8), inputs, generator=generator) > share
            mask = kept.repeat_interleave(8, 0)[:out]
            weight = model.get_parameter(name)
            with torch.no_grad():
                weight *= mask.view(weight.shape)
    return model


def _normalised(model, config, kind):
    """The same with a normalisation of the features."""
    from espnet2.layers.global_mvn import GlobalMVN
    from espnet2.layers.utterance_mvn import UtteranceMVN

    if kind == "utterance":
        model.normalize = UtteranceMVN(norm_vars=True)
        return _talkative(model), config
    generator = np.random.default_rng(0)
    normalize = GlobalMVN.__new__(GlobalMVN)
    torch.nn.Module.__init__(normalize)
    normalize.norm_means = normalize.norm_vars = True
    normalize.eps = 1e-20
    mean = torch.from_numpy(generator.normal(-5, 1, 20)).float()
    normalize.register_buffer("mean", mean)
    std = torch.from_numpy(generator.uniform(1, 3, 20)).float()
    normalize.register_buffer("std", std)
    model.normalize = normalize
    return _talkative(model), config


@torch.no_grad()
def _talkative(model):
    """Heads and joint network that tell the frames of `sound` apart."""
    generator = torch.Generator().manual_seed(2)
    hidden = encoded(model, sound(5 * RATE))
    for name in ("ctc.ctc_lo", "ctc_lin", "joint_network.lin_enc"):
        parts = name.split(".")
        if any(p is None for p in [getattr(model, parts[0], None)]):
            continue
        layer = model.get_submodule(name)
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        spread = (hidden @ layer.weight.T).std(0)[:, None] + 1e-6
        layer.weight *= (2.0 if "joint" in name else 5.0) / spread
        layer.bias.copy_(-(layer.weight @ hidden.mean(0)))
        if "joint" not in name:
            layer.bias[[1, -1]] -= 50.0
    joint = getattr(model, "joint_network", None)
    if joint is not None:
        shape = joint.lin_out.weight.shape
        joint.lin_out.weight.copy_(torch.randn(shape, generator=generator))
        joint.lin_out.bias.zero_()
        joint.lin_out.bias[[1, -1]] -= 50.0
        joint.lin_out.bias[0] += 2.0  # or a frame would have no end
    return model
