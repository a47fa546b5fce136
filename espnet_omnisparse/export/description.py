"""What a model is, in plain types: all that a run time needs beside the tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.global_mvn import GlobalMVN
from espnet2.layers.utterance_mvn import UtteranceMVN

from espnet_omnisparse.core.layout import LAYOUTS, is_standalone, stock_encoder
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.encoder import describe_encoder, input_scale
from espnet_omnisparse.export.modules import activation_of, name_of, weight_of
from espnet_omnisparse.nn import kaldi_fbank

#: Tokens that are no text; `<unk>` is one, as ESPnet's own decoding prints it.
SILENT = ("<blank>", "<sos/eos>", "<sos>", "<eos>")
_FLOOR = 1e-10  # of ESPnet's log-mel
_SPELLED = ("char", "bpe", "word", "phn", None)
_MODELS = ("espnet", "omni", "omni_transducer")
_ENCODERS = tuple(dict.fromkeys(layout.stock for layout in LAYOUTS))


def describe(model: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a model and where their tensors are, in the order of computation.

    Args:
        model: A size, or any model with an encoder of this package or of ESPnet.
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
        "encoder": describe_encoder(model, config),
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
    if stock_encoder(config) not in _ENCODERS:
        raise UserError(
            f"The encoder {config['encoder']} cannot be exported, only "
            f"{', '.join(_ENCODERS)}, the prunable ones that are made of them, and "
            "those of the task asr_transducer."
        )
    if model.encoder.interctc_use_conditioning:
        raise UserError(
            "An encoder with interctc_use_conditioning cannot be exported: train one "
            "without."
        )
    for block in model.encoder.encoders:
        before = getattr(block, "normalize_before", True)
        if not before or getattr(block, "concat_after", False):
            raise UserError(
                "Only an encoder with normalize_before, and without concat_after, can "
                "be exported: train one."
            )


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
                    **weight_of(model, module),
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
    return {
        "kind": "conv2d",
        "convs": convs,
        "output": None if output is None else weight_of(model, output),
        "scale": input_scale(model.encoder),
    }


def _head(model: Any) -> dict[str, Any] | None:
    ctc = getattr(model, "ctc", None)
    if ctc is not None:
        return weight_of(model, ctc.ctc_lo)
    auxiliary = getattr(model, "ctc_lin", None)  # the standalone transducer's
    return None if auxiliary is None else weight_of(model, auxiliary)


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
            "encoder": weight_of(model, joint.lin_enc),
            "decoder": weight_of(model, joint.lin_dec),
            "output": weight_of(model, joint.lin_out),
            "activation": activation_of(joint.joint_activation),
        },
    }
