"""What a model is, in plain types: all that a run time needs beside the tensors."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.global_mvn import GlobalMVN
from espnet2.layers.utterance_mvn import UtteranceMVN

from espnet_omnisparse.core.branches import BRANCHES, SCALES, is_ffn
from espnet_omnisparse.core.components import heads_of
from espnet_omnisparse.core.layout import is_standalone, layout_of
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.nn import kaldi_fbank

# activation's class -> its name in a description
ACTIVATIONS = {
    "Swish": "swish",
    "SiLU": "swish",
    "ReLU": "relu",
    "Tanh": "tanh",
    "GELU": "gelu",
}
#: Tokens that are no text; `<unk>` is one, as ESPnet's own decoding prints it.
SILENT = ("<blank>", "<sos/eos>", "<sos>", "<eos>")
_FLOOR = 1e-10  # of ESPnet's log-mel
_SPELLED = ("char", "bpe", "word", "phn", None)
_MODELS = ("espnet", "omni", "omni_transducer")
_ENCODERS = ("conformer", "layer_prunable_conformer", "omni_sparse_conformer")


def describe(model: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a model and where their tensors are, in the order of computation.

    Args:
        model: A size, or any model with a Conformer of this package or of ESPnet.
        config: The configuration that it was built with.

    Returns:
        Plain types, as `docs/devices.md` explains them.

    Raises:
        UserError: If a part of the model is none that a packed file can have.
    """
    _check_kind(model, config)
    if config.get("speech_volume_normalize"):
        raise UserError(
            "A model trained with speech_volume_normalize cannot be exported: the "
            "exported one would have to hear the whole recording first."
        )
    if config.get("token_type") not in _SPELLED:
        raise UserError(
            f"A model of token_type {config['token_type']} cannot be exported, because "
            "a packed file has no such tokenizer: train one with char, bpe, word or "
            "phn."
        )
    features = _features(model.frontend)
    transducer = _transducer(model)
    return {
        "task": "transducer" if transducer else "ctc",
        "sample_rate": features.pop("sample_rate"),
        "features": features,
        "normalize": _normalize(model.normalize),
        "front_end": _front_end(model),
        "encoder": _encoder(model, config),
        "head": _head(model),
        "transducer": transducer,
        "tokens": list(config["token_list"]),
        "blank": 0,
        "silent": [token for token in SILENT if token in config["token_list"]],
        "text": {"kind": config.get("token_type"), "space": "<space>"},
    }


def _check_kind(model: Any, config: Mapping[str, Any]) -> None:
    for part in ("preencoder", "postencoder"):
        if getattr(model, part, None) is not None:
            raise UserError(
                f"A model with a {part} cannot be exported: train one without."
            )
    if is_standalone(config):
        return
    if config.get("model", "espnet") not in _MODELS:
        raise UserError(
            f"A model of the kind {config['model']} cannot be exported, only those "
            f"that are {', '.join(_MODELS)}."
        )
    if config["encoder"] not in _ENCODERS:
        raise UserError(
            f"The encoder {config['encoder']} cannot be exported, only "
            f"{', '.join(_ENCODERS)}, and those of the task asr_transducer."
        )
    if model.encoder.interctc_use_conditioning:
        raise UserError(
            "An encoder with interctc_use_conditioning cannot be exported: train one "
            "without."
        )
    for block in model.encoder.encoders:
        stock = not hasattr(block, "kept")
        if stock and (
            block.feed_forward_macaron is None
            or block.conv_module is None
            or not block.normalize_before
            or block.concat_after
        ):
            raise UserError(
                "Only a Conformer with macaron_style, use_cnn_module and "
                "normalize_before, and without concat_after, can be exported: train "
                "one."
            )


def name_of(model: torch.nn.Module, module: torch.nn.Module) -> str:
    """Under which name a model has a module.

    Args:
        model: Any.
        module: A part of it.
    """
    return next(name for name, found in model.named_modules() if found is module)


def blocks_of(model: Any, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The branches of each block, by name, as pairs of pre-norm and module.

    Args:
        model: With a Conformer of this package or of ESPnet.
        config: The configuration that it was built with.
    """
    layout = layout_of(config)
    for block in model.encoder.get_submodule(layout.blocks):
        parts = {branch: layout.parts[branch] for branch in BRANCHES}
        kept = getattr(block, "kept", BRANCHES)
        yield {
            branch: (getattr(block, norm), getattr(block, module))
            for branch, (norm, module) in parts.items()
            if branch in kept and getattr(block, module, None) is not None
        }


def _features(frontend: Any) -> dict[str, Any]:
    if type(frontend) is kaldi_fbank.KaldiFbank:
        return {
            "kind": "kaldi",
            "sample_rate": frontend.fs,
            "n_mels": frontend.n_mels,
            "frame_length": frontend.window_length,
            "frame_shift": frontend.hop_length,
            "n_fft": frontend.n_fft,
            "low": kaldi_fbank.LOWEST,
            "high": -kaldi_fbank.BELOW_NYQUIST,
            "preemphasis": kaldi_fbank.PRE_EMPHASIS,
            "window": "povey",
        }
    if type(frontend) is not DefaultFrontend or frontend.stft is None:
        name = type(frontend).__name__ if frontend is not None else "none"
        raise UserError(
            "Only models with ESPnet's default frontend or kaldi_fbank can be "
            f"exported, and this one has {name}."
        )
    enhancement = frontend.frontend
    if enhancement is not None and (enhancement.use_wpe or enhancement.use_beamformer):
        raise UserError(
            "A frontend with WPE or a beamformer cannot be exported: train one "
            "without."
        )
    stft, mel = frontend.stft, frontend.logmel
    if stft.window != "hann" or not stft.onesided:
        raise UserError(
            f"Only a one-sided STFT with a Hann window can be exported, and this one "
            f"has {stft.window}, onesided: {stft.onesided}."
        )
    return {
        "kind": "stft",
        "sample_rate": mel.mel_options["sr"],
        "n_fft": stft.n_fft,
        "win_length": stft.win_length,
        "hop_length": stft.hop_length,
        "window": stft.window,
        "center": stft.center,
        "normalized": stft.normalized,
        "n_mels": mel.melmat.size(1),
        "mel": "frontend.logmel.melmat",
        "log_base": mel.log_base,
        "floor": _FLOOR,
    }


def _normalize(normalize: Any) -> dict[str, Any] | None:
    if normalize is None:
        return None
    if isinstance(normalize, GlobalMVN):
        kind = {"kind": "global_mvn", "mean": "normalize.mean", "std": "normalize.std"}
    elif isinstance(normalize, UtteranceMVN):
        kind = {"kind": "utterance_mvn"}
    else:
        raise UserError(
            f"The normalisation {type(normalize).__name__} cannot be exported: train "
            "with global_mvn or utterance_mvn."
        )
    return {
        **kind,
        "norm_means": normalize.norm_means,
        "norm_vars": normalize.norm_vars,
        "eps": normalize.eps,
    }


def _front_end(model: Any) -> dict[str, Any]:
    embed = model.encoder.embed
    convs = []
    for module in getattr(embed, "conv", ()):
        if isinstance(module, torch.nn.Conv2d) and module.padding == (0, 0):
            convs.append(
                {
                    **_weight(model, module),
                    "kernel": list(module.kernel_size),
                    "stride": list(module.stride),
                }
            )
        elif not isinstance(module, torch.nn.ReLU):
            convs = []
            break
    if not convs:
        raise UserError(
            "Only front ends of convolutions without padding can be exported, such as "
            f"input_layer: conv2d, and this model has {type(embed).__name__}."
        )
    output = getattr(embed, "output", getattr(embed, "out", None))
    if isinstance(output, torch.nn.Sequential):
        output = output[0]
    positions = getattr(embed, "pos_enc", None)
    return {
        "kind": "conv2d",
        "convs": convs,
        "output": None if output is None else _weight(model, output),
        "scale": float(getattr(positions, "xscale", 1.0)),
    }


def _scale(block: torch.nn.Module, branch: str) -> float:
    """A branch's residual scale: an FFN that is alone in its block has another."""
    own = getattr(block, "ff_scale", SCALES[branch])
    return own if is_ffn(branch) else SCALES[branch]


def _encoder(model: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    encoder, layout = model.encoder, layout_of(config)
    blocks = []
    norms = set()
    positions = set()
    block_modules = encoder.get_submodule(layout.blocks)
    for number, block in enumerate(blocks_of(model, config)):
        branches = []
        for branch, (norm, module) in block.items():
            norms.add(_epsilon(norm))
            told = {
                "kind": "ffn" if branch.startswith("ffn") else branch,
                "scale": _scale(block_modules[number], branch),
                "norm": name_of(model, norm),
                "module": name_of(model, module),
            }
            if branch == "mhsa":
                positions.add(_positions(module))
                told |= {"heads": heads_of(module), "head_width": module.d_k}
            elif branch == "conv":
                told |= _conv(module)
            elif not hasattr(module, "w_1") or not isinstance(
                module.w_1, torch.nn.Linear
            ):
                raise UserError(
                    "Feed-forward modules of convolutions cannot be exported: train "
                    "with positionwise_layer_type: linear."
                )
            else:
                told["activation"] = _activation(module.activation)
            branches.append(told)
        last = model.encoder.get_submodule(f"{layout.blocks}.{number}").norm_final
        norms.add(_epsilon(last))
        blocks.append({"branches": branches, "norm": name_of(model, last)})
    final = getattr(encoder, "after_norm", None)
    if final is None:
        final = encoder.encoders.norm_blocks
    norms.add(_epsilon(final))
    if len(norms) > 1 or len(positions) > 1:
        raise UserError("A model whose blocks are not of one kind cannot be exported.")
    width = getattr(encoder, "width", None) or encoder.output_size()
    chunk = getattr(encoder, "chunk", None)
    return {
        "width": width,
        "causal": bool(getattr(encoder, "causal", False)),
        "chunk": None if chunk is None else {"size": chunk.size, "left": chunk.left},
        "positions": positions.pop() if positions else "none",
        "blocks": blocks,
        "norm": name_of(model, final),
        "norm_eps": norms.pop(),
    }


def _conv(module: Any) -> dict[str, Any]:
    norm = module.norm
    batch = isinstance(norm, torch.nn.BatchNorm1d)
    return {
        "kernel": module.depthwise_conv.kernel_size[0],
        "activation": _activation(module.activation),
        "conv_norm": "batch_norm" if batch else "layer_norm",
        "norm_eps": norm.eps if batch else _epsilon(norm.channels),
    }


def _positions(attention: Any) -> str:
    name = type(attention).__name__
    if name == "RelPositionMultiHeadedAttention":
        if getattr(attention, "zero_triu", False):
            raise UserError("A model with zero_triu cannot be exported.")
        return "relative"
    raise UserError(
        f"The attention {name} cannot be exported: train with rel_pos_type: latest."
    )


def _epsilon(norm: Any) -> float:
    if isinstance(norm, torch.nn.LayerNorm):
        return norm.eps
    raise UserError(
        f"The norm {type(norm).__name__} cannot be exported: train with layer_norm."
    )


def _activation(activation: Any) -> str:
    name = type(activation).__name__
    if name not in ACTIVATIONS:
        raise UserError(
            f"The activation {name} cannot be exported: train with one of "
            f"{', '.join(sorted(set(ACTIVATIONS.values())))}."
        )
    if isinstance(beta := getattr(activation, "beta", 1.0), float) and beta > 1.0:
        raise UserError(
            f"A swish with a beta of {beta:g} cannot be exported: train with 1."
        )
    return ACTIVATIONS[name]


def _weight(model: Any, module: torch.nn.Module) -> dict[str, str | None]:
    name = name_of(model, module)
    bias = f"{name}.bias" if module.bias is not None else None
    return {"weight": f"{name}.weight", "bias": bias}


def _head(model: Any) -> dict[str, Any] | None:
    ctc = getattr(model, "ctc", None)
    if ctc is not None:
        return _weight(model, ctc.ctc_lo)
    auxiliary = getattr(model, "ctc_lin", None)  # the standalone transducer's
    return None if auxiliary is None else _weight(model, auxiliary)


def _transducer(model: Any) -> dict[str, Any] | None:
    joint = getattr(model, "joint_network", None)
    if joint is None:
        if getattr(model, "ctc", None) is None:
            raise UserError(
                "This model has neither a CTC head nor a transducer: train with "
                "ctc_weight above 0."
            )
        return None
    decoder = model.decoder
    name = name_of(model, decoder)
    kind = type(decoder).__name__
    if kind == "StatelessDecoder":
        predictor = {"kind": "stateless", "layers": [], "hidden": decoder.output_size}
    elif kind == "TransducerDecoder":
        layers = [f"{name}.decoder.{number}" for number in range(decoder.dlayers)]
        predictor = {"kind": decoder.dtype, "layers": layers, "hidden": decoder.dunits}
    elif kind == "RNNDecoder":
        layers = [f"{name}.rnn.{number}" for number in range(decoder.dlayers)]
        predictor = {
            "kind": decoder.dtype,
            "layers": layers,
            "hidden": decoder.output_size,
        }
    else:
        raise UserError(
            f"The prediction network {kind} cannot be exported: train with a stateless "
            "one, or an LSTM or GRU."
        )
    return {
        "predictor": {**predictor, "embedding": f"{name}.embed.weight"},
        "joint": {
            "encoder": _weight(model, joint.lin_enc),
            "decoder": _weight(model, joint.lin_dec),
            "output": _weight(model, joint.lin_out),
            "activation": _activation(joint.joint_activation),
        },
    }
