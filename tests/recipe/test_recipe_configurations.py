"""Every training configuration of ESPnet's asr1 recipes, as a supernet."""

import argparse
import collections
import contextlib
import io

import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask, preencoder_choices
from helpers import REPOSITORY
from helpers.espnet_source import espnet_source
from helpers.tiny import TOKENS

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.recipe.derive import SUPERNETS, derive
from espnet_omnisparse.tasks import OmniASRTask, encoder_choices

ENCODERS = ("conformer", "e_branchformer", "transformer")
FEATURES = 80
#: why there is no supernet of a configuration -> how the sentence begins
REFUSED = {
    "post-norm": "encoder_conf.normalize_before: False cannot be combined",
    "several blanks": "model_conf.transducer_multi_blank_durations is not supported",
    "another model": "Its model is maskctc, of which there is no supernet",
    "a postencoder": "Its postencoder is hugging_face_transformers, which",
}


def configurations():
    """Recipe and file -> configuration, of those whose encoder can be pruned."""
    root = espnet_source() / "egs2"
    found = {}
    for path in sorted(root.glob("*/asr1/conf/**/*.yaml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(config, dict) and config.get("encoder") in ENCODERS:
            found[str(path.relative_to(root))] = config
    return found


def arguments(task, config, tmp_path):
    """What a training with this configuration is called with; `None`: it is not.

    Features are given, because some front ends are downloaded when they are built.
    """
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    given = ["--config", str(path), "--output_dir", str(tmp_path / "exp")]
    with contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            args = task.get_parser().parse_args(given)
        except SystemExit:
            assert "unrecognized arguments" in told.getvalue()
            return None
    values = vars(args)
    values |= {"token_list": TOKENS, "init": None, "input_size": FEATURES}
    return values | {"normalize": None, "specaug": None}


def stock_encoder(config, tmp_path):
    """ESPnet's own encoder, of shapes alone; `None`: ESPnet does not build it."""
    args = arguments(ASRTask, config, tmp_path)
    if args is None:
        return None
    size = FEATURES
    if (preencoder := preencoder_choices.get_class(args["preencoder"])) is not None:
        size = preencoder(**args["preencoder_conf"]).output_size()
    stock = encoder_choices.get_class(args["encoder"])
    try:
        with torch.device("meta"):
            return stock(input_size=size, **args["encoder_conf"])
    except TypeError as error:
        assert "unexpected keyword argument" in str(error)
        return None


def supernet(config, axis, tmp_path):
    """The supernet of a configuration, without what is not installed here."""
    args = arguments(OmniASRTask, derive(config, axis), tmp_path)
    build = OmniASRTask.build_model
    try:
        return build(argparse.Namespace(**args))
    except ImportError:
        args |= {"decoder": None, "ctc_conf": {}}
        args["model_conf"]["ctc_weight"] = 1.0
        return build(argparse.Namespace(**args))


def shapes(encoder):
    return {name: tensor.shape for name, tensor in encoder.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("axis", SUPERNETS)
def test_every_configuration_of_espnets_recipes_has_a_supernet(
    axis, tmp_path, monkeypatch
):
    convolutions = torch.nn.modules.conv._ConvNd
    for layer in (torch.nn.Linear, convolutions, torch.nn.Embedding, torch.nn.RNNBase):
        # shapes count, not values
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)
    counts = {name: collections.Counter() for name in ENCODERS}
    for file, config in configurations().items():
        told = counts[config["encoder"]]
        stock = stock_encoder(config, tmp_path)
        if stock is None:
            told["not built by ESPnet"] += 1
            continue
        try:
            model = supernet(config, axis, tmp_path)
        except UserError as error:
            reasons = [
                r for r, words in REFUSED.items() if str(error).startswith(words)
            ]
            assert reasons, f"{file}: {error}"
            told[reasons[0]] += 1
            continue
        except Exception as error:
            raise AssertionError(file) from error
        mine, theirs = shapes(model.encoder), shapes(stock)
        if config["encoder_conf"].get("interctc_use_conditioning"):
            theirs = {n: s for n, s in theirs.items() if "conditioning_layer" not in n}
        assert mine == theirs, file
        told["built"] += 1
    print()
    page = (REPOSITORY / "docs" / "any_recipe.md").read_text(encoding="utf-8")
    for name, told in counts.items():
        print(f"{name}: {told['built']} of {told.total()} {dict(told)}")
        assert f"| {name} | {told.total()} | {told['built']} |" in page
