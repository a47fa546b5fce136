import argparse
import copy
import dataclasses
import functools
import json
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import soundfile
import torch
from espnet2.asr_transducer.utils import get_transducer_task_io, make_chunk_mask
from espnet2.tasks.asr_transducer import ASRTransducerTask
from helpers import WITHOUT_PACKAGE, tiny
from helpers.gradients import assert_same_gradients, gradients
from helpers.tiny import (
    BLOCK,
    FEATURES,
    STREAMING,
    SUPERNET,
    TOKENS,
    shaken,
    transducer_config,
)
from helpers.training import train, write_corpus
from helpers.transducers import AUDIO, TRAINING, encode, features, slow_loss

from espnet_omnisparse import cli, files
from espnet_omnisparse.bin.asr_transducer_inference import Speech2Text
from espnet_omnisparse.core.branches import BRANCHES
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.gate import mask_gates
from espnet_omnisparse.core.layout import expanded
from espnet_omnisparse.core.spec import FULL, SubnetSpec, fingerprint
from espnet_omnisparse.core.spec_yaml import read_spec
from espnet_omnisparse.cost.count import count_cost
from espnet_omnisparse.cost.unit_costs import cost_table
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.extract.forms import form_of
from espnet_omnisparse.extract.names import CHECKPOINT
from espnet_omnisparse.losses.distillation import collapse, lattice_loss
from espnet_omnisparse.losses.rnnt import TorchaudioRNNTLoss
from espnet_omnisparse.search import dev_set as evaluation
from espnet_omnisparse.tasks import OmniASRTransducerTask, is_supernet
from espnet_omnisparse.train import update
from espnet_omnisparse.train.transducer_model import (
    OmniTransducerModel,
    TransducerModel,
)

build = functools.partial(tiny.build, update=60, noise=0)
SPARSITY = {"final": 0.8, "ramp": 2, "sandwich": ["dense", "sparsest", "random"]}


def stock_config(config):
    """The same net for an ESPnet without supernets."""
    config = copy.deepcopy(config)
    for name in ("supernet", "loss_normalization"):
        config["model_conf"].pop(name, None)
    for name in ("pattern", "conv_norm", "granularity", "kept", "chunk"):
        config["encoder_conf"].pop(name, None)
    return config


def stock_model(config):
    config = stock_config(config)
    model = ASRTransducerTask.build_model(argparse.Namespace(**config)).eval()
    model.encoder.dynamic_chunk_training = False  # ESPnet draws chunks in eval as well
    return model


def net_state(model):
    """Its tensors without the plan's."""
    state = model.state_dict()
    return {n: t for n, t in state.items() if not n.startswith("supernet.")}


# the task


def test_a_supernet_section_that_is_null_is_none(tmp_path, capsys):
    config = transducer_config(supernet={})
    assert is_supernet(config)  # a section of defaults
    absent, null = transducer_config(), transducer_config(supernet={})
    null["model_conf"]["supernet"] = None
    found = {}
    for name, config in {"absent": absent, "null": null}.items():
        config |= {"frontend": "default", "input_size": None}
        assert not is_supernet(config)
        torch.manual_seed(0)
        model = family.build(config)
        assert type(model) is TransducerModel
        files.write_yaml(tmp_path / name / "config.yaml", config)
        files.save_tensors(tmp_path / name / CHECKPOINT, model.state_dict())
        folder = str(tmp_path / name)
        cli.main(["profile", folder, "--json", "--rounds", "1"])
        ((_, found[name]),) = json.loads(capsys.readouterr().out).items()
        found[name].pop("rtf")
        with pytest.raises(SystemExit):
            cli.main(["extract", folder])
        assert "has no sizes yet" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            cli.main(["search", folder, "--budgets", "50%"])
        assert "was not trained with masks" in capsys.readouterr().err
    assert found["null"] == found["absent"]


def test_the_task_builds_supernets_and_plain_nets():
    plain = family.build(transducer_config())
    assert type(plain) is TransducerModel
    assert isinstance(plain.criterion_transducer, TorchaudioRNNTLoss)
    config = transducer_config(SUPERNET)
    before = copy.deepcopy(config)
    model = family.build(config)
    assert type(model) is OmniTransducerModel
    assert len(model.encoder.space) == 12
    assert config == before  # ESPnet writes defaults into what it is given


@pytest.mark.parametrize("supernet", [None, SUPERNET])
def test_names_are_espnets_so_that_its_checkpoints_load(supernet):
    config = transducer_config(supernet, auxiliary_ctc_weight=0.5)
    model, stock = build(config), stock_model(config)
    ours, theirs = net_state(model), stock.state_dict()
    assert {n: t.shape for n, t in ours.items()} == {
        n: t.shape for n, t in theirs.items()
    }
    stock.load_state_dict(ours)
    found = model.load_state_dict(shaken(stock).state_dict(), strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("supernet.") for name in found.missing_keys)


def test_a_batch_norm_checkpoint_is_refused_for_layer_norm(tmp_path):
    path = tmp_path / "stock.pth"
    torch.save(stock_model(transducer_config()).state_dict(), path)
    config = transducer_config(SUPERNET, encoder={"conv_norm": "layer_norm"})
    args = argparse.Namespace(**config, **{"unused": None})
    args.init_param = [f"{path}:encoder:encoder"]
    with pytest.raises(UserError, match="has BatchNorm .* use batch_norm"):
        OmniASRTransducerTask.main_worker(args)


# the encoder


@pytest.mark.parametrize("norm", ["layer_norm", "basic_norm", "rms_norm", "scale_norm"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_full_context_is_espnets(norm, causal):
    main = {"norm_type": norm, "dynamic_chunk_training": causal}
    config = transducer_config(main=main)
    config["encoder_conf"]["input_conf"]["subsampling_factor"] = 6 if causal else 4
    model, stock = build(config), stock_model(config)
    stock.load_state_dict(model.state_dict())
    speech = features()
    with torch.no_grad():
        expected, lengths = stock.encoder(*speech)
        found, ours = model.encoder(*speech)
    assert torch.equal(found, expected) and torch.equal(ours, lengths)
    assert len(set(lengths.tolist())) > 2


@pytest.mark.parametrize("size, left_chunks", [(1, 2), (4, 1), (5, 0), (40, 1)])
def test_a_chunks_forward_is_espnets_under_its_mask(size, left_chunks):
    frames = 14
    # ESPnet's 0 is the whole past
    chunk = {"size": size, "left": left_chunks * size or frames}
    config = transducer_config(encoder={"chunk": chunk})
    model, stock = build(config), stock_model(config)
    stock.load_state_dict(model.state_dict())
    feats, lengths = features()
    with torch.no_grad():
        x, padding = stock.encoder.embed(feats, lengths[:, None] <= torch.arange(60))
        assert x.size(1) == frames
        mask = make_chunk_mask(frames, size, left_chunks)
        expected, _ = stock.encoder.encoders(
            x, stock.encoder.pos_enc(x), padding, chunk_mask=mask
        )
    assert torch.equal(encode(model, feats, lengths), expected)
    model.encoder.chunk = None
    whole = encode(model, feats, lengths)
    assert torch.equal(whole, expected) == (size == 40)


@pytest.mark.parametrize("left_chunks", [0, 1, -1])
def test_random_chunks_are_drawn_as_by_espnet(left_chunks):
    main = {**STREAMING, "num_left_chunks": left_chunks, "short_chunk_size": 4}
    main["short_chunk_threshold"] = 0.4
    config = transducer_config(main=main)
    model, stock = build(config), stock_model(config)
    stock.load_state_dict(model.state_dict())
    stock.encoder.dynamic_chunk_training = True
    feats, lengths = features()
    whole = Chunk(99, 99).mask(14)
    contexts = []
    run = model.encoder.blocks
    model.encoder.blocks = lambda frames, *rest: (
        contexts.append(frames.attention_mask) or run(frames, *rest)
    )
    model.train()
    stock.train()
    for seed in range(8):
        torch.manual_seed(seed)
        expected, _ = stock.encoder(feats, lengths)
        torch.manual_seed(seed)
        found, _ = model.encoder(feats, lengths)
        assert torch.equal(found, expected), seed
    full = [one is None or torch.equal(one, whole) for one in contexts]
    assert True in full
    drawn = [len(one.unique(dim=0)) for one in contexts if one is not None]
    assert len(set(drawn)) > 1


def test_dropped_branches_are_not_computed_and_have_no_gradient():
    model = build(transducer_config(SUPERNET)).train()
    mask = (1, 0, 1, 1, 0, 1, 0, 1, 0, 0, 0, 0)
    branches = [(block, branch) for block in range(3) for branch in BRANCHES]
    called = set()
    for block, branch in branches:
        layer = model.encoder.layers[block]
        for module in (layer.norm(branch), layer.module(branch)):
            module.register_forward_hook(lambda *_, b=(block, branch): called.add(b))
    encoded, _ = model.encoder(*features(), mask_gates(torch.tensor(mask)))
    encoded.square().sum().backward()
    kept = {one for one, keep in zip(branches, mask, strict=True) if keep}
    assert called == kept
    for block, branch in branches:
        layer = model.encoder.layers[block]
        norm, module = layer.norm(branch), layer.module(branch)
        for parameter in [*norm.parameters(), *module.parameters()]:
            assert (parameter.grad is not None) == ((block, branch) in kept)


# sizes

# per block: FFN quarters, heads, Conv, FFN quarters
COMPONENTS = "1010 01 1 0001  0100 11 0 1111  1111 00 1 0110"
WIDTHS = "1010 11 1 0110  1111 11 1 1111  0001 11 1 1000"
SCATTERED = "1011 0000 1110"
SPECS = {
    "branches": ("branch", SCATTERED),
    "blocks": ("block", "101"),
    "components": ("component", COMPONENTS),
    "widths": ("component", WIDTHS),
    "full": ("branch", "1" * 12),
}
CHUNK = Chunk(4, 6)


def supernet_and_spec(kind, masked=False, chunk=None, change=None, **encoder):
    """A supernet's configuration, its model, and a size of it."""
    granularity, mask = SPECS[kind]
    sizes = {"small": 1} if granularity == "block" else {"small": 4}
    supernet = {"method": "simple_topk", "sizes": sizes}
    encoder["granularity"] = granularity
    config = transducer_config(supernet, encoder=encoder) | (change or {})
    model = build(config)
    model.encoder.refresh_masks()
    space = model.encoder.space
    mark = fingerprint(model.state_dict(), config["token_list"])
    shares = [(0.0, 0.3, 0.5, 0.75)[n % 4] for n in range(len(space.weights))]
    mask = tuple(keep == "1" for keep in mask.replace(" ", ""))
    spec = SubnetSpec(kind, mark, space, mask, tuple(shares) if masked else (), chunk)
    return config, model, spec


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm"])
@pytest.mark.parametrize("masked, chunk", [(False, CHUNK), (True, None)])
def test_the_supernet_computes_what_is_cut_out_of_it(kind, norm, masked, chunk):
    config, model, spec = supernet_and_spec(kind, masked, chunk, conv_norm=norm)
    speech = features()
    expected = encode(model, *speech, spec)
    small_config, state = family.cut(config, model.state_dict(), spec)
    small = family.build(small_config, state)
    assert type(small) is TransducerModel and small.encoder.chunk == chunk
    assert torch.allclose(encode(small, *speech), expected, atol=1e-6, rtol=0)
    if masked or chunk:
        seen_whole = dataclasses.replace(spec, sparsity=(), chunk=None)
        other = encode(model, *speech, seen_whole)
        assert not torch.allclose(other, expected, atol=1e-2)
    before, after = (
        sum(p.numel() for p in one.encoder.parameters()) for one in (model, small)
    )
    assert after == before if spec.is_full else after < 0.9 * before
    zeros = sum(int((p == 0).sum()) for p in small.encoder.parameters())
    assert (zeros > 1000) == masked


@pytest.mark.parametrize("kind", SPECS)
def test_the_form_of_a_file_is_told(kind):
    config, model, spec = supernet_and_spec(kind)
    small = kind in ("blocks", "widths", "full")
    slim = "stock" if small else "slim"
    assert form_of(config, spec, False).name == slim
    assert form_of(config, spec, True).name == ("stock" if small else "stock-zeroed")
    streaming = dataclasses.replace(spec, chunk=CHUNK)
    assert form_of(config, streaming, False).name == "slim"
    layer_norm, _, other = supernet_and_spec(kind, conv_norm="layer_norm")
    assert form_of(layer_norm, other, False).name == "slim"
    with pytest.raises(UserError, match="conv_norm: layer_norm has no form that stock"):
        form_of(layer_norm, other, stock=True)


ISOLATED = """
import torch
from espnet2.bin.asr_transducer_inference import Speech2Text

torch.set_num_threads(1)
speech = torch.load("speech.pth")
for form in sys.argv[1:]:
    loaded = Speech2Text(
        f"{form}.yaml", f"{form}.pth", streaming=True, decoding_window=640, beam_size=1
    )
    assert type(loaded.asr_model).__module__.startswith("espnet2")
    encoded = loaded.asr_model.encode(speech[None], torch.tensor([len(speech)]))[0]
    torch.save(encoded.detach(), f"{form}.out")
    parts = speech.split(10240)
    for number, part in enumerate(parts, start=1):
        hypotheses = loaded.streaming_decode(part, is_final=number == len(parts))
    assert torch.isfinite(torch.tensor(float(hypotheses[0].score)))
assert not any(name.startswith("espnet_omnisparse") for name in sys.modules)
"""


def test_an_espnet_without_this_package_loads_and_streams_the_stock_forms(tmp_path):
    speech = 0.1 * torch.randn(24000)
    torch.save(speech, tmp_path / "speech.pth")
    whole = {"blocks", "widths", "full"}
    expected = {}
    for kind in SPECS:
        masked = kind in ("blocks", "components")
        config, model, spec = supernet_and_spec(kind, masked, change=AUDIO)
        feats = model.features(speech[None], torch.tensor([len(speech)]))
        expected[kind] = encode(model, *feats, spec)
        small, state = family.cut(config, model.state_dict(), spec, stock=True)
        body = expanded(small["encoder_conf"]["body_conf"])
        widths = [block["linear_size"] for block in body]
        narrow = {"blocks": [32, 32], "widths": [16, 32, 8]}
        assert widths == narrow.get(kind, [32, 32, 32])
        count, full = (
            sum(t.numel() for n, t in one.items() if n.startswith("encoder."))
            for one in (state, model.state_dict())
        )
        assert (count < full) == (kind in whole - {"full"})
        files.write_yaml(tmp_path / f"{kind}.yaml", small)
        files.save_tensors(tmp_path / f"{kind}.pth", state)
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_PACKAGE + ISOLATED, *SPECS],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        check=True,
    )
    for kind, encoded in expected.items():
        found = torch.load(tmp_path / f"{kind}.out")
        assert torch.allclose(found, encoded, atol=1e-6, rtol=0), kind


# blocks that are not alike

UNEQUAL = [
    {**BLOCK, "linear_size": 64, "conv_mod_kernel_size": 9},
    {**BLOCK, "num_blocks": 2},
    {**BLOCK, "linear_size": 96},
]


@pytest.mark.parametrize("granularity", ["branch", "block", "component"])
@torch.no_grad()
def test_unequal_blocks_cost_what_is_cut_out_of_them(granularity):
    encoder = {"body_conf": UNEQUAL, "granularity": granularity, "pattern": None}
    supernet = {"method": "uniform", "sizes": {"small": 2}}
    config = transducer_config(supernet, encoder=encoder)
    model = build(config)
    space, state = model.encoder.space, model.state_dict()
    tables = {kind: cost_table(model, kind) for kind in ("params", "macs_10s")}
    mark = fingerprint(state, TOKENS)
    masks = (torch.rand(5, len(space)) < 0.5).int()
    masks[:, -1] = 1
    for mask in [*masks.tolist(), [1] * len(space), [1] + [0] * (len(space) - 1)]:
        spec = SubnetSpec("small", mark, space, tuple(map(bool, mask)))
        counted = count_cost(family.build(*family.cut(config, state, spec)), FEATURES)
        kept = torch.tensor(mask).bool()
        assert tables["params"].of(kept) == counted.parameters
        assert tables["macs_10s"].of(kept) == counted.macs_10s


def test_heads_that_differ_by_block_are_no_components():
    body = [{**BLOCK, "heads": 4}, {**BLOCK, "heads": 2}]
    supernet = {"method": "uniform", "sizes": {"small": 2}}
    encoder = {"body_conf": body, "granularity": "component"}
    with pytest.raises(UserError, match="granularity: component needs .* heads"):
        family.build(transducer_config(supernet, encoder=encoder))
    for granularity in ("branch", "block"):
        family.build(
            transducer_config(
                {"method": "uniform", "sizes": {"small": 1}},
                encoder={"body_conf": body, "granularity": granularity},
            )
        )


def test_a_width_is_divided_by_four_only_for_components():
    body = [{**BLOCK, "linear_size": 30}] * 3
    config = transducer_config(SUPERNET, encoder={"body_conf": body, "pattern": None})
    model = build(config)
    mask = (True, False, True, True, False, True) * 2
    mark = fingerprint(model.state_dict(), TOKENS)
    spec = SubnetSpec("small", mark, model.encoder.space, mask)
    small = family.build(*family.cut(config, model.state_dict(), spec)).eval()
    feats, lengths = features()
    expected = encode(model, feats, lengths, spec)
    assert torch.allclose(encode(small, feats, lengths), expected, atol=1e-5)


# refusals

BRANCHFORMER = {**BLOCK, "block_type": "branchformer"}
BAD_ENCODERS = [
    ({"body_conf": [BLOCK, BRANCHFORMER]}, "blocks of type branchformer: only conform"),
    (
        {"body_conf": [{**BLOCK, "linear_size": 30}], "granularity": "component"},
        "linear_size divisible by 4",
    ),
    ({"body_conf": [{"linear_size": 32}]}, "an entry without block_type: write block"),
    ({"main_conf": {"simplified_att_score": True}}, "simplified_att_score cannot be"),
    ({"main_conf": {"blockdrop_rate": 0.1}}, "blockdrop_rate cannot .*layer dropout"),
    (
        {"main_conf": {}, "chunk": {"size": 4, "left": 8}},
        "chunk needs main_conf.dynamic_chunk_training: true",
    ),
    (
        {"chunk": {"size": 4, "rigth": 8}},
        "unknown key 'rigth'; did you mean 'right'|" "unknown key 'rigth'",
    ),
    ({"conv_norm": "group_norm"}, "conv_norm must be one of batch_norm, layer_norm"),
    ({"kept": [["ffn1"]]}, "kept names 1 blocks, but body_conf has 3"),
    ({"granularityy": "block"}, "encoder_conf has an unknown key 'granularityy'; did"),
]


@pytest.mark.parametrize("conf, sentence", BAD_ENCODERS)
def test_a_bad_encoder_option_gets_its_sentence(conf, sentence):
    with pytest.raises(UserError, match=sentence):
        family.build(transducer_config(encoder=conf))


BAD_MODELS = [
    ({"transducer_wieght": 1.0}, "model_conf has an unknown key 'transducer_wieght'"),
    ({"use_k2_pruned_loss": True}, "use_k2_pruned_loss cannot be combined with a sup"),
    ({"fastemit_lambda": 0.01}, "fastemit_lambda needs warprnnt_pytorch"),
    ({"loss_normalization": "tokens"}, "loss_normalization must be one of frames, b"),
    ({"supernet": {**SUPERNET, "heads": "per_size"}}, "heads: per_size is made for CT"),
    ({"supernet": {**SUPERNET, "szies": {}}}, "unknown key 'szies'; did you mean 'siz"),
]


@pytest.mark.parametrize("conf, sentence", BAD_MODELS)
def test_a_bad_model_option_gets_its_sentence(monkeypatch, conf, sentence):
    monkeypatch.setitem(sys.modules, "warprnnt_pytorch", None)
    config = transducer_config(SUPERNET)
    config["model_conf"] |= conf
    with pytest.raises(UserError, match=sentence):
        family.build(config)


@pytest.mark.parametrize(
    "conf",
    [
        {"chunks": ["full", {"size": 4, "left": 8}]},
        {"sizes": {"small": {"units": 4, "chunk": {"size": 4, "left": 8}}}},
    ],
)
def test_chunks_of_a_net_that_is_not_causal_are_refused(conf):
    with pytest.raises(
        UserError, match="chunks, .* causal.*dynamic_chunk_training: true"
    ):
        family.build(transducer_config({**SUPERNET, **conf}, main={}))


# losses


def joint_of(model, encoded, lengths, text):
    decoder_in, target, t_len, u_len = get_transducer_task_io(text, lengths, -1)
    predicted = model.decoder(decoder_in)[:, None]
    return model.joint_network(encoded[:, :, None], predicted), target, t_len, u_len


@pytest.mark.parametrize("normalization", ["frames", "batch"])
def test_the_loss_is_the_forward_algorithms(batch, normalization):
    none = {"method": "none", "sizes": {}}
    config = transducer_config(none, loss_normalization=normalization)
    model = build(config).train()
    loss, stats, weight = model(**batch)
    hidden = model.encoder.front_end(batch["speech"], batch["speech_lengths"])
    encoded, lengths = model.encoder.blocks(hidden)
    joint, target, t_len, u_len = joint_of(model, encoded, lengths, batch["text"])
    expected = slow_loss(joint, target, t_len, u_len, 0)
    frames = normalization == "frames"
    assert weight.item() == (int(lengths.sum()) if frames else 4)
    expected = expected * (4 / lengths.sum() if frames else 1.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert stats["loss_full"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


def test_losses_and_error_rates_are_those_of_espnets_forward(batch):
    conf = {
        "auxiliary_ctc_weight": 0.5,
        "auxiliary_lm_loss_weight": 0.3,
        "report_cer": True,
        "report_wer": True,
    }
    plain = build(transducer_config(**conf))
    expected, rates, _ = plain(**batch)
    none = {"method": "none", "sizes": {}}
    model = build(transducer_config(none, loss_normalization="batch", **conf))
    model.load_state_dict(plain.state_dict(), strict=False)
    loss, stats, weight = model(**batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert weight.item() == 4
    names = ("loss_transducer", "loss_aux_ctc", "loss_aux_lm")
    for name in (*names, "cer_transducer", "wer_transducer"):
        assert stats[f"{name}_full"].item() == pytest.approx(rates[name].item())
    assert 0.0 < stats["cer_transducer_full"].item()


def test_validation_tells_of_every_size(batch):
    for norm, note in (("layer_norm", ""), ("batch_norm", "_uncalibrated")):
        encoder = {"conv_norm": norm}
        model = build(transducer_config(SUPERNET, encoder=encoder, report_cer=True))
        _, stats, _ = model(**batch)
        for size, mask in model.supernet.size_masks().items():
            assert f"cer_transducer_{size}{note}" in stats
            hidden = model.encoder.front_end(batch["speech"], batch["speech_lengths"])
            encoded, lengths = model.encoder.blocks(hidden, mask_gates(mask))
            found = slow_loss(*joint_of(model, encoded, lengths, batch["text"]), 0)
            mean = 4 * found.item() / int(lengths.sum())
            assert stats[f"loss_{size}{note}"].item() == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("kind", ["kl", "alpha"])
def test_the_largest_net_teaches_and_is_not_taught(batch, kind, split):
    supernet = {
        "method": "none",
        "sizes": {"s50": {"sparsity": 0.5}},
        "sparsity": SPARSITY,
        "chunks": ["full", {"size": 3, "left": 3}],
        "distillation": kind,
        "distillation_weight": 0.25,
        "update": "split_batch" if split else "per_batch",
    }
    model = build(transducer_config(supernet, loss_normalization="batch")).train()
    torch.manual_seed(3)
    loss, stats, _ = model(**batch)
    draws = model.supernet.sample_subnets()
    made = model.make_batch(**batch)
    parts = [made] * 3
    if split:
        torch.manual_seed(3)
        order = torch.randperm(4).tensor_split(3)
        parts = [made.split([part.sort().values])[0] for part in order]
    total, apart = 0.0, []
    for draw, part in zip(draws, parts, strict=True):
        hidden = model.encoder.front_end(part.feats, part.feats_lengths)
        within = hidden.with_chunk_mask(draw.chunk)
        encoded, lengths = model.encoder.blocks(within, draw.gates, draw.sparsity)
        student = joint_of(model, encoded, lengths, part.text)
        mean = slow_loss(*student, 0)
        if draw.size != FULL:
            with torch.no_grad():
                teacher, _ = model.encoder.blocks(hidden)
                says, target, *_ = joint_of(model, teacher, lengths, part.text)
            taught = lattice_loss(
                student[0], collapse(says, target, 0), *student[1:], 0, kind
            )
            apart.append(taught.item())
            mean = 0.75 * mean + 0.25 * taught
        assert stats[f"loss_{draw.size}"].item() == pytest.approx(mean.item(), 1e-5)
        total = total + draw.weight * mean
    assert min(apart) > 0.01
    total = total / sum(draw.weight for draw in draws)
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    expected = gradients(model, total)
    for name, gradient in gradients(model, loss).items():
        assert torch.allclose(gradient, expected[name], atol=1e-5), name


@pytest.mark.parametrize("in_float16", [False, True])
def test_never_are_the_joint_outputs_of_two_subnets_alive(
    batch, monkeypatch, in_float16
):
    supernet = {
        "method": "none",
        "sizes": {"s50": {"sparsity": 0.5}},
        "sparsity": SPARSITY,
        "distillation": "kl",
    }
    model = build(transducer_config(supernet, auxiliary_ctc_weight=0.3)).train()
    monkeypatch.setattr(update, "in_float16", lambda _: in_float16)
    kept, alive = [], []

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor

    def keep(tensor):
        one = Kept(tensor)
        if tensor.dim() == 4 and tensor.size(2) == 5:  # states: four labels and one
            kept.append(weakref.ref(one))
        return one

    def count(*_):
        alive.append(sum(one() is not None for one in kept))

    model.joint_network.register_forward_pre_hook(count)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one.tensor):
        loss, _, _ = model(**batch)
    count()
    assert len(kept) > 6
    # before the dense net, the teacher, two that it teaches, and after them
    first, *later = alive
    assert first == 0 and len(later) == 4
    if in_float16:
        assert 0 < later[0] == later[1] < later[2] < later[3] == len(kept)
    else:
        assert later == [0, 0, 0, 0]
    loss.backward()


# a real training

MAES = {"search_type": "maes"}
LIVE = {"size": 16, "left": 8}  # 640 ms, and less than decoding looks back


def launched(arguments, log):
    """What `python -m espnet_omnisparse.launch` does, in a process of its own."""
    outcome = train(arguments, log)
    assert outcome.code == 0, outcome.output
    return outcome.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of a supernet of both axes and of two sizes of it, and its corpus."""
    folder = tmp_path_factory.mktemp("transducer")
    corpus = write_corpus(folder / "data").folder
    supernet = {
        "method": "simple_topk",
        "sizes": {"small": {"units": 6, "sparsity": 0.5}},
        "sparsity": {**SPARSITY, "ramp": 2},
        "step1": 3,
        "chunks": ["full", LIVE],
        "distillation": "kl",
    }
    config = transducer_config(supernet, blocks=2)
    parts = ("encoder_conf", "decoder", "decoder_conf", "joint_network_conf")
    config = {name: config[name] for name in (*parts, "model_conf")}
    config |= {**AUDIO, **TRAINING}
    files.write_yaml(folder / "train.yaml", config)
    files.write_yaml(folder / "decode.yaml", {"beam_search_config": MAES})
    exp = folder / "exp"
    command = ["-m", "espnet2.bin.asr_transducer_train"]
    command += ["--config", f"{folder}/train.yaml", "--output_dir", str(exp)]
    for part in ("train", "valid"):
        data = corpus / part
        for source in (f"{data}/wav.scp,speech,sound", f"{data}/text,text,text"):
            command += [f"--{part}_data_path_and_name_and_type", source]
        command += [f"--{part}_shape_file", f"{data}/speech_shape"]
    launched(command, folder / "train.log")
    cli.main(["extract", str(exp), "--calibration", "8"])
    lines = (corpus / "valid" / "wav.scp").read_text().splitlines(keepends=True)
    (folder / "wav.scp").write_text("".join(lines[:2]))
    return folder


def decoded(folder, size, name, *options):
    """Tokens and scores by utterance, of ESPnet's script."""
    out = folder / name
    command = ["-m", "espnet2.bin.asr_transducer_inference", "--output_dir", str(out)]
    command += ["--asr_train_config", f"{folder}/exp_{size}/config.yaml"]
    command += ["--asr_model_file", f"{folder}/exp_{size}/model.pth"]
    command += ["--data_path_and_name_and_type", f"{folder}/wav.scp,speech,sound"]
    command += ["--beam_size", "2", "--config", f"{folder}/decode.yaml"]
    launched([*command, *options], folder / f"{name}.log")
    tokens, scores = (
        dict(line.split(" ", 1) for line in (out / "1best_recog" / file).open())
        for file in ("token_int", "score")
    )
    return {key: (tokens[key].split(), float(scores[key])) for key in tokens}


def test_a_trained_size_hears_the_same_in_a_stream(trained):
    offline = decoded(trained, "small", "offline")
    window = ("--streaming", "true", "--decoding_window", "640")
    streamed = decoded(trained, "small", "streamed", *window)
    assert len(offline) == 2 and len({score for _, score in offline.values()}) == 2
    folder = trained / "exp_small"
    speech2text = Speech2Text(
        folder / "config.yaml",
        folder / "model.pth",
        streaming=True,
        decoding_window=320,  # whatever it is, a size keeps its chunk
        beam_size=2,
        beam_search_config=MAES,
    )
    assert speech2text._encoder.chunk == Chunk(**LIVE)
    for line in (trained / "wav.scp").read_text().splitlines():
        key, path = line.split()
        # the last part, which ends the recording, is empty
        parts = np.split(soundfile.read(path, dtype="float32")[0], [100, 7000, 9000])
        for part in parts:
            speech2text.streaming_decode(part)
        best = speech2text.streaming_decode(parts[0][:0], is_final=True)[0]
        tokens = [str(token) for token in best.yseq if token]
        for found, score in (streamed[key], (tokens, best.score)):
            assert found == offline[key][0]
            assert float(score) == pytest.approx(offline[key][1], rel=1e-4)


def test_a_size_without_chunk_streams_in_the_windows_chunks(trained):
    folder = trained / "exp_full"

    def load(window):
        model = folder / "config.yaml", folder / "model.pth"
        return Speech2Text(
            *model, streaming=True, decoding_window=window, left_context=7
        )

    assert load(200)._encoder.chunk == Chunk(5, 7)
    for window in (30, 650):
        with pytest.raises(UserError, match="must be a multiple of 40 ms"):
            load(window)


def test_a_search_scores_what_is_extracted(trained):
    config = family.read_config(trained / "exp")
    state = files.load_tensors(trained / "exp" / CHECKPOINT)
    spec = read_spec(trained / "exp_small" / "subnet.yaml")
    small = family.load_size(trained / "exp_small")
    supernet = family.build(config, state)
    losses = []
    dev = evaluation.DevSet(supernet, config, "loss", utterances=4, calibration=8)
    for batch in evaluation._valid_batches(config, 4):
        with torch.no_grad():
            losses.append(small(**batch)[0])
    (expected,) = losses
    found = dev.score(spec.mask, spec.sparsity)
    assert found == pytest.approx(expected.item(), rel=1e-5)
    assert dev.score((True,) * len(spec.mask), ()) != pytest.approx(found, rel=1e-4)
