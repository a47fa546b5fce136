import copy
import dataclasses
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from helpers import WITHOUT_PACKAGE
from helpers.encoders import ABSOLUTE, BRANCH_MASKS, SPARSE, log_probs

from espnet_omnisparse import files
from espnet_omnisparse.core.layout import ASR_LAYOUT, space_of
from espnet_omnisparse.core.mask import Pattern
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import SubnetSpec, fingerprint
from espnet_omnisparse.core.spec_yaml import read_spec
from espnet_omnisparse.cost.count import count_packed_bytes
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import batch_norm
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.extract.config import cut_config
from espnet_omnisparse.extract.cut import cut_state
from espnet_omnisparse.extract.forms import form_of
from espnet_omnisparse.train.journal import read_specs, settled_specs, write_specs

BLOCK_MASKS = {"middle-out": (1, 0, 1), "last": (0, 0, 1), "full": (1, 1, 1)}
MASKS = [("branch", mask) for mask in BRANCH_MASKS.values()]
MASKS += [("block", mask) for mask in BLOCK_MASKS.values()]
IDS = [f"branch-{name}" for name in BRANCH_MASKS]
IDS += [f"block-{name}" for name in BLOCK_MASKS]


@pytest.fixture
def supernet(tiny_config, build):
    """A supernet's configuration, its model, and a spec of it."""

    def make(granularity, mask, name="small", change=None, **options):
        config = tiny_config(granularity=granularity, **options) | (change or {})
        model = build(config, update=60)
        space = SearchSpace(3, granularity, model.encoder.space.heads)
        mark = fingerprint(model.state_dict(), config["token_list"])
        return config, model, SubnetSpec(name, mark, space, tuple(map(bool, mask)))

    return make


@pytest.fixture
def sparse(supernet):
    """The same with masked weights: a random sparsity for each."""

    def make(granularity, mask, pattern="8x1", norm="l1", seed=0, encoder=None, **conf):
        options = {"pattern": pattern, "pattern_norm": norm, **(encoder or {})}
        change = {"encoder": "omni_sparse_conformer"}
        config, model, spec = supernet(
            granularity, mask, change=change, encoder=options, **conf
        )
        model.encoder.refresh_masks()
        space, source = model.encoder.space, random.Random(seed)
        shares = [source.choice((0.0, 0.3, 0.5, 0.9)) for _ in space.weights]
        more = {"space": space, "sparsity": tuple(shares)}
        return config, model, dataclasses.replace(spec, **more)

    return make


# the golden property: masked equals extracted


@pytest.mark.parametrize("granularity, mask", MASKS, ids=IDS)
@pytest.mark.parametrize("conv_norm", ["batch_norm", "layer_norm"])
@pytest.mark.parametrize("heads", ["shared", "per_size"])
def test_the_masked_supernet_equals_the_extracted_model(
    supernet, batch, granularity, mask, conv_norm, heads
):
    config, model, spec = supernet(granularity, mask, conv_norm=conv_norm, heads=heads)
    expected, lengths = log_probs(model, batch, spec.gates(), model.head(spec.name))
    small = family.build(*family.cut(config, model.state_dict(), spec))
    found, small_lengths = log_probs(small, batch)
    assert torch.equal(small_lengths, lengths)
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("granularity, mask", MASKS, ids=IDS)
def test_the_stock_form_equals_the_masked_supernet(supernet, batch, granularity, mask):
    config, model, spec = supernet(
        granularity, mask, conv_norm="batch_norm", heads="per_size"
    )
    expected, _ = log_probs(model, batch, spec.gates(), model.head(spec.name))
    stock_config, state = family.cut(config, model.state_dict(), spec, stock=True)
    assert stock_config["encoder"] == "conformer"
    assert stock_config["model"] == "espnet"
    found, _ = log_probs(family.build(stock_config, state), batch)
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)


def test_a_hybrid_model_keeps_its_decoder(supernet, batch):
    config, model, spec = supernet(
        "branch", BRANCH_MASKS["scattered"], attention=True, heads="per_size"
    )
    small = family.build(*family.cut(config, model.state_dict(), spec))
    decoder = model.decoder.state_dict()
    assert small.decoder.state_dict().keys() == decoder.keys()
    for name, tensor in small.decoder.state_dict().items():
        assert torch.equal(tensor, decoder[name])
    assert small.ctc_weight == 0.3
    assert small(**batch)[0].isfinite()


# what is in the file


@pytest.mark.parametrize("granularity, mask", MASKS, ids=IDS)
def test_exactly_the_dropped_branches_are_gone(supernet, granularity, mask):
    config, model, spec = supernet(granularity, mask)
    small = family.build(*family.cut(config, model.state_dict(), spec))
    dropped = 0
    for block, kept in zip(model.encoder.encoders, spec.kept_branches, strict=True):
        for branch in set(("ffn1", "mhsa", "conv", "ffn2")) - set(kept):
            norm, module = ASR_LAYOUT.parts[branch]
            for part in (getattr(block, norm), getattr(block, module)):
                dropped += sum(p.numel() for p in part.parameters())
        if granularity == "block" and not kept:
            dropped += sum(p.numel() for p in block.norm_final.parameters())
    full = [*model.encoder.parameters(), *model.ctc.parameters()]
    expected = sum(p.numel() for p in full) - dropped
    assert sum(p.numel() for p in small.parameters()) == expected
    assert (dropped > 0) == (not spec.is_full)


def test_a_size_is_an_ordinary_model_without_traces_of_the_supernet(supernet):
    config, model, spec = supernet(
        "branch", BRANCH_MASKS["scattered"], heads="per_size"
    )
    config["init_param"] = ["somewhere.pth"]
    before = copy.deepcopy(config)
    small_config, small = family.cut(config, model.state_dict(), spec)
    assert config == before
    assert small_config["model"] == "espnet"
    assert "supernet" not in small_config["model_conf"]
    assert small_config["init_param"] == []
    names = {name.split(".")[0] for name in small}
    assert names == {"encoder", "ctc"}
    own_head = model.size_ctc["ctc_small"].ctc_lo.weight
    assert torch.equal(small["ctc.ctc_lo.weight"], own_head)


def test_zeroed_branches_count_as_zero(supernet):
    config, model, spec = supernet(
        "branch", BRANCH_MASKS["empty-block"], conv_norm="batch_norm"
    )
    slim = family.build(*family.cut(config, model.state_dict(), spec))
    zeroed = family.build(*family.cut(config, model.state_dict(), spec, stock=True))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (slim, zeroed, model)]
    nonzero = sum(int(p.count_nonzero()) for p in zeroed.parameters())
    assert nonzero == sum(int(p.count_nonzero()) for p in slim.parameters())
    assert nonzero <= sizes[0] < sizes[1]
    assert all(t.isfinite().all() for t in zeroed.state_dict().values())


def test_layer_norm_has_no_stock_form(supernet):
    for granularity, mask in MASKS:
        config, model, spec = supernet(granularity, mask)
        with pytest.raises(UserError, match="layer_norm has no form that stock ESPnet"):
            family.cut(config, model.state_dict(), spec, stock=True)


@pytest.mark.parametrize(
    "granularity, mask, conv_norm, stock, form",
    [
        ("block", (1, 0, 1), "batch_norm", False, "stock"),
        ("block", (1, 0, 1), "layer_norm", False, "slim"),
        ("branch", (1,) * 12, "batch_norm", False, "stock"),
        ("branch", (1,) * 11 + (0,), "batch_norm", False, "slim"),
        ("branch", (1,) * 11 + (0,), "batch_norm", True, "stock-zeroed"),
        ("branch", (1,) * 12, "layer_norm", False, "slim"),
    ],
)
def test_the_form_of_a_file_is_told(
    supernet, granularity, mask, conv_norm, stock, form
):
    config, _, spec = supernet(granularity, mask, conv_norm=conv_norm)
    assert form_of(config, spec, stock).name == form


ISOLATED = """
import torch
from espnet2.tasks.asr import ASRTask

torch.set_num_threads(1)
speech, lengths = torch.load("speech.pth")
for form in sys.argv[1:]:
    model, _ = ASRTask.build_model_from_file(f"{form}.yaml", f"{form}.pth", "cpu")
    encoded = model.eval().encode(speech, lengths)[0]
    torch.save(model.ctc.log_softmax(encoded).detach(), f"{form}.out")
assert not any(name.startswith("espnet_omnisparse") for name in sys.modules)
"""


def test_an_espnet_without_this_package_loads_the_stock_forms(
    supernet, sparse, batch, tmp_path
):
    forms = {
        "whole-blocks": ("block", (1, 0, 1)),
        "zeroed": ("branch", BRANCH_MASKS["empty-block"]),
        "full": ("branch", BRANCH_MASKS["full"]),
    }
    masked = {
        "masked": ("branch", BRANCH_MASKS["full"]),
        "masked-blocks": ("block", (1, 0, 1)),
        "masked-zeroed": ("branch", BRANCH_MASKS["scattered"]),
    }
    expected = {}
    for form, (granularity, mask) in {**forms, **masked}.items():
        make = sparse if form in masked else supernet
        config, model, spec = make(granularity, mask, conv_norm="batch_norm")
        expected[form], _ = log_probs(
            model, batch, spec.gates(), sparsity=spec.sparsity
        )
        config, state = family.cut(config, model.state_dict(), spec, stock=True)
        files.write_yaml(tmp_path / f"{form}.yaml", config)
        files.save_tensors(tmp_path / f"{form}.pth", state)
    torch.save((batch["speech"], batch["speech_lengths"]), tmp_path / "speech.pth")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_PACKAGE + ISOLATED, *expected],
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    for form, log_probabilities in expected.items():
        found = torch.load(tmp_path / f"{form}.out")
        assert torch.allclose(found, log_probabilities, atol=1e-6, rtol=0), form


def test_the_core_knows_only_torch():
    core = "core.mask core.gate core.schedule core.spec supernet.supernet selection"
    core += " selection.simple_topk extract.forms cost.count extract.batch_norm files"
    core += " train.journal"
    code = "import sys\n"
    code += "".join(f"import espnet_omnisparse.{name}\n" for name in core.split())
    code += "assert 'espnet2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# masked weights


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize(
    "pattern, norm, conv_norm",
    [
        ("8x1", "l1", "batch_norm"),
        ("3x5", "l2", "layer_norm"),
        ("n:4", "l1", "batch_norm"),
        ("unstructured", "l1", "layer_norm"),
    ],
)
def test_the_masked_weights_are_extracted_with_their_zeros(
    sparse, batch, name, pattern, norm, conv_norm
):
    config, model, spec = sparse(*SPARSE[name], pattern, norm, conv_norm=conv_norm)
    expected, _ = log_probs(model, batch, spec.gates(), sparsity=spec.sparsity)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small_config, small = family.cut(config, model.state_dict(), spec)
    found, _ = log_probs(family.build(small_config, small), batch)
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)
    unmasked, _ = log_probs(model, batch, spec.gates())
    assert not torch.allclose(unmasked, expected, atol=1e-2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    # no weight of the small form differs from the supernet's but by its zeros
    dense = cut_state(before, dataclasses.replace(spec, sparsity=()))
    assert small.keys() == dense.keys()
    zeros = sum(int((t == 0).sum()) for t in small.values())
    assert zeros > 1000
    for name, tensor in small.items():
        assert torch.equal(tensor.masked_fill(tensor == 0, 0.0), tensor)
        assert ((tensor == dense[name]) | (tensor == 0)).all(), name
        # not a zero with a sign, which would not compress
        assert not tensor[tensor == 0].signbit().any()


@pytest.mark.parametrize("name", SPARSE)
def test_the_stock_form_of_masked_weights(sparse, batch, name):
    config, model, spec = sparse(*SPARSE[name], conv_norm="batch_norm")
    expected, _ = log_probs(model, batch, spec.gates(), sparsity=spec.sparsity)
    stock_config, state = family.cut(config, model.state_dict(), spec, stock=True)
    assert stock_config["encoder"] == "conformer" and stock_config["model"] == "espnet"
    found, _ = log_probs(family.build(stock_config, state), batch)
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)
    whole = name in ("full", "block")
    assert (form_of(config, spec).name == "stock") == whole
    assert form_of(config, spec, False).name == ("stock" if whole else "slim")
    assert form_of(config, spec, True).name == ("stock" if whole else "stock-zeroed")


def test_masked_weights_load_strictly_in_espnets_own_encoder(sparse, batch):
    config, model, spec = sparse(*SPARSE["full"], conv_norm="batch_norm")
    state = cut_state(model.state_dict(), spec)
    conf = {**cut_config(config, spec)["encoder_conf"]}
    stock = ConformerEncoder(config["input_size"], **conf).eval()
    prefix = "encoder."
    own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    stock.load_state_dict(own, strict=True)
    speech = batch["speech"], batch["speech_lengths"]
    expected = model.encoder(*speech, sparsity=spec.sparsity)[0]
    assert torch.allclose(stock(*speech)[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("conv_norm", ["batch_norm", "layer_norm"])
@pytest.mark.parametrize("name", SPARSE)
def test_the_configuration_knows_no_masks_any_more(sparse, name, conv_norm):
    config, _, spec = sparse(*SPARSE[name], conv_norm=conv_norm)
    small = cut_config(config, spec)
    stock = conv_norm == "batch_norm" and name in ("full", "block")
    assert small["encoder"] == ("conformer" if stock else "layer_prunable_conformer")
    assert not {"pattern", "pattern_norm", "granularity"} & small["encoder_conf"].keys()
    assert config["encoder"] == "omni_sparse_conformer"


def test_masks_are_made_anew_from_the_weights_that_are_cut(sparse, batch):
    config, model, spec = sparse(*SPARSE["scattered"])
    state = {n: t.clone() for n, t in model.state_dict().items()}
    for name, tensor in state.items():
        if name.endswith("w_1.weight"):
            state[name] = tensor.flip(0)  # as averaging changes what is large
    model.load_state_dict(state)
    found, _ = log_probs(family.build(*family.cut(config, state, spec)), batch)
    stale, _ = log_probs(model, batch, spec.gates(), sparsity=spec.sparsity)
    model.encoder.refresh_masks()
    expected, _ = log_probs(model, batch, spec.gates(), sparsity=spec.sparsity)
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(stale, expected, atol=1e-3)


@pytest.mark.parametrize("conf", [{}, {"pattern": "n:4"}, {"pattern_norm": "l2"}])
@pytest.mark.parametrize("absolute", [False, True])
def test_the_space_of_a_configuration_is_its_encoders(supernet, conf, absolute):
    if absolute:
        conf = {**conf, **ABSOLUTE}
    for encoder in ("omni_sparse_conformer", "layer_prunable_conformer"):
        config, model, _ = supernet(
            "branch", (1,) * 12, change={"encoder": encoder}, encoder=conf
        )
        found = space_of(config, model.state_dict())
        assert found == model.encoder.space


@pytest.mark.parametrize("source", ["layer_prunable_conformer", "conformer"])
@pytest.mark.parametrize("name", ["full", "scattered"])
def test_a_net_trained_without_masks_can_be_masked(sparse, batch, source, name):
    config, model, spec = sparse(*SPARSE[name], conv_norm="batch_norm", heads="shared")
    dense = copy.deepcopy(config)
    dense["encoder"] = source
    dense["encoder_conf"].pop("pattern")
    dense["encoder_conf"].pop("pattern_norm")
    dense["encoder_conf"].pop("granularity")
    if source == "conformer":
        dense["model"], dense["encoder_conf"]["macaron_style"] = "espnet", True
        dense["encoder_conf"].pop("conv_norm")
        dense["model_conf"].pop("supernet")
    state = {n: t for n, t in model.state_dict().items() if "supernet" not in n}
    family.build(dense).load_state_dict(state, strict=source == "conformer")
    expected, _ = log_probs(model, batch, spec.gates(), sparsity=spec.sparsity)
    found, _ = log_probs(family.build(*family.cut(dense, state, spec)), batch)
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)


def test_a_pattern_other_than_the_supernets_is_refused(sparse):
    config, model, spec = sparse(*SPARSE["full"])
    for key, value in (("pattern", "1x8"), ("pattern_norm", "l2")):
        conf = {**config["encoder_conf"], key: value}
        with pytest.raises(UserError, match="masks weights by the pattern 8x1 "):
            family.cut({**config, "encoder_conf": conf}, model.state_dict(), spec)


def test_a_weight_that_is_not_there_is_refused(sparse, supernet):
    _, _, spec = sparse(*SPARSE["full"])
    config, model, own = supernet("branch", (1,) * 12, encoder=ABSOLUTE)
    spec = dataclasses.replace(spec, supernet=own.supernet, sparsity=(0.5,) * 33)
    with pytest.raises(UserError, match="masks 0.mhsa.linear_pos, which this net"):
        family.cut(config, model.state_dict(), spec)


def test_a_folder_of_masked_weights_tells_what_they_cost(sparse, tmp_path):
    config, model, spec = sparse(*SPARSE["scattered"])
    source, out = tmp_path / "exp", tmp_path / "exp_small"
    source.mkdir()
    files.write_yaml(source / "config.yaml", config)
    checkpoint = source / "model.pth"
    torch.save(dict(model.state_dict()), checkpoint)
    assert family.extract_size(source, checkpoint, spec, out)
    assert not family.extract_size(source, checkpoint, spec, out)
    cost = family.read_cost(out)
    small = family.load_size(out)
    nonzero = sum(int(p.count_nonzero()) for p in small.parameters())
    assert cost["nonzero_parameters"] == nonzero < 0.9 * cost["parameters"]
    assert cost["packed_bytes"] == count_packed_bytes(small, Pattern(rows=8))
    assert cost["packed_bytes"] < count_packed_bytes(small)
    # another sparsity is another size, another order of the same ones as well
    other = dataclasses.replace(spec, sparsity=spec.sparsity[::-1])
    assert family.extract_size(source, checkpoint, other, out)
    assert not family.extract_size(source, checkpoint, other, out)
    assert read_spec(out / "subnet.yaml") == other
    dense = dataclasses.replace(spec, sparsity=())
    assert family.extract_size(source, checkpoint, dense, out)


def test_another_pattern_of_a_net_without_one_is_another_size(sparse, tmp_path):
    config, model, spec = sparse(*SPARSE["scattered"])
    config["encoder"] = "layer_prunable_conformer"
    for name in ("pattern", "pattern_norm"):
        config["encoder_conf"].pop(name)
    source = tmp_path / "exp"
    source.mkdir()
    files.write_yaml(source / "config.yaml", config)
    torch.save(dict(model.state_dict()), source / "model.pth")
    for pattern in (Pattern(rows=8), Pattern(rows=8, norm="l2"), Pattern(cols=8)):
        space = dataclasses.replace(spec.space, pattern=pattern)
        other = dataclasses.replace(spec, space=space)
        arguments = (source, source / "model.pth", other, tmp_path / "small")
        assert family.extract_size(*arguments)
        assert not family.extract_size(*arguments)


@pytest.mark.parametrize("mask", [BRANCH_MASKS["full"], BRANCH_MASKS["scattered"]])
def test_a_transducer_keeps_a_model_of_ours(supernet, mask):
    config, _, spec = supernet("branch", mask, conv_norm="batch_norm")
    config |= {"decoder": "transducer", "joint_net_conf": {"joint_space_size": 8}}
    small = cut_config(config, spec)
    assert small["model"] == "omni_transducer"
    assert small["joint_net_conf"] == config["joint_net_conf"]
    plain = spec.is_full
    assert small["encoder"] == ("conformer" if plain else "layer_prunable_conformer")
    assert form_of(config, spec).name != "stock"
    assert form_of(config, spec, False).name == "slim"
    with pytest.raises(UserError, match="A transducer has no form that stock ESPnet"):
        form_of(config, spec, stock=True)


# refusals


def test_a_spec_of_another_supernet_is_refused(supernet, tiny_config, build):
    config, model, spec = supernet("branch", BRANCH_MASKS["scattered"])
    other_config = tiny_config(encoder={"linear_units": 40})
    other = build(other_config)
    with pytest.raises(UserError, match="belongs to supernet"):
        family.cut(other_config, other.state_dict(), spec)
    renamed = {**config, "token_list": [*config["token_list"][:-1], "<eos>"]}
    with pytest.raises(UserError, match="belongs to supernet"):
        family.cut(renamed, model.state_dict(), spec)


def test_a_spec_with_a_block_too_few_is_refused(supernet):
    config, model, spec = supernet("branch", BRANCH_MASKS["full"])
    edited = SubnetSpec("small", spec.supernet, SearchSpace(2), (True,) * 8)
    with pytest.raises(UserError, match="2 .*3"):
        family.cut(config, model.state_dict(), edited)


def test_a_spec_of_another_granularity_is_refused(supernet):
    config, model, spec = supernet("branch", BRANCH_MASKS["full"])
    space = SearchSpace(3, "block")
    edited = SubnetSpec("small", spec.supernet, space, (True, False, True))
    with pytest.raises(UserError, match="granularity"):
        family.cut(config, model.state_dict(), edited)


def test_a_checkpoint_of_another_training_is_refused(tiny_config, tiny_model):
    other = tiny_model(encoder={"linear_units": 40})
    with pytest.raises(UserError, match="does not fit its config.yaml"):
        family.build(tiny_config(), other.state_dict())


def test_specs_of_a_settled_supernet_survive_their_folder(supernet, tmp_path):
    _, model, spec = supernet("branch", BRANCH_MASKS["full"])
    specs = settled_specs(model.supernet, spec.supernet)
    write_specs(tmp_path, specs)
    assert read_specs(tmp_path) == specs
    assert list(read_specs(tmp_path)) == ["small", "medium", "full"]
    small, medium, full = (set(np.flatnonzero(s.mask)) for s in specs.values())
    assert small < medium < full
    assert (len(small), len(medium), len(full)) == (4, 8, 12)


# BatchNorm statistics


def slow_statistics(model, batches):
    """Mean over the batches of each BatchNorm's batch mean and unbiased variance."""
    model = copy.deepcopy(model).eval()
    norms = {
        name: norm
        for name, norm in model.named_modules()
        if isinstance(norm, torch.nn.BatchNorm1d)
    }
    seen = {name: [] for name in norms}
    for name, norm in norms.items():
        norm.train()
        norm.register_forward_pre_hook(
            lambda _, inputs, name=name: seen[name].append(inputs[0].detach().clone())
        )
    for batch in batches:
        model.encode(batch["speech"], batch["speech_lengths"])
    statistics = {}
    for name, inputs in seen.items():
        values = [x.transpose(0, 1).flatten(1).double() for x in inputs]
        count = [v.size(1) for v in values]
        means = [v.sum(1) / n for v, n in zip(values, count, strict=True)]
        variances = [
            (v - m[:, None]).square().sum(1) / (n - 1)
            for v, m, n in zip(values, means, count, strict=True)
        ]
        statistics[f"{name}.running_mean"] = sum(means) / len(means)
        statistics[f"{name}.running_var"] = sum(variances) / len(variances)
    return statistics


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "speech": torch.randn(size, frames, 20, generator=generator),
            "speech_lengths": torch.full((size,), frames),
        }
        for size, frames in ((4, 60), (1, 90), (3, 44))
    ]


def test_reestimated_statistics_equal_the_slow_computation(tiny_model, batches):
    model = tiny_model(conv_norm="batch_norm", encoder={"dropout_rate": 0.5})
    expected = slow_statistics(model, batches)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    modes = []

    def run(batch):
        modes.append({m for m in model.modules() if m.training})
        model.encode(**batch)

    assert batch_norm.reestimate(model, run, iter(batches)) == 3
    norms = {m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)}
    assert modes == [norms] * 3
    assert not any(m.training for m in model.modules())
    assert all(norm.momentum == 0.1 for norm in norms)
    assert len(expected) == 6
    for name, tensor in model.state_dict().items():
        if name in expected:
            assert torch.allclose(tensor.double(), expected[name], atol=1e-5), name
            assert not torch.allclose(tensor, before[name], atol=1e-2)
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, before[name]), name


# experiment folders


@pytest.fixture
def experiment(supernet, tmp_path):
    """A trained supernet's folder, its checkpoint, and a spec."""

    def make(**options):
        config, model, spec = supernet("branch", BRANCH_MASKS["scattered"], **options)
        source = tmp_path / "exp"
        source.mkdir()
        files.write_yaml(source / "config.yaml", config)
        # views into one storage, as an optimiser or an averaged model may hold
        state = model.state_dict()
        floats = [name for name in state if state[name].is_floating_point()]
        flat = torch.cat([state[name].flatten() for name in floats])
        start = 0
        for name in floats:
            end = start + state[name].numel()
            state[name] = flat[start:end].view(state[name].shape)
            start = end
        torch.save(dict(state), source / "model.pth")
        return source, source / "model.pth", spec

    return make


def test_a_size_folder_has_an_ordinary_small_model(experiment, batch, tmp_path):
    source, checkpoint, spec = experiment(heads="per_size")
    out = tmp_path / "exp_small"
    assert family.extract_size(source, checkpoint, spec, out)
    tensors = torch.load(out / "model.pth", weights_only=True)
    assert all(type(tensor) is torch.Tensor for tensor in tensors.values())
    needed = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        assert tensor.untyped_storage().nbytes() == size, name
        needed += size
    overhead = 1000 * len(tensors)
    assert (out / "model.pth").stat().st_size < needed + overhead
    assert (out / "model.pth").stat().st_size < checkpoint.stat().st_size
    assert read_spec(out / "subnet.yaml") == spec
    supernet = family.build(family.read_config(source), files.load_tensors(checkpoint))
    head = supernet.head("small")
    expected, _ = log_probs(supernet, batch, spec.gates(), head)
    found, _ = log_probs(family.load_size(out), batch)
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)
    assert family.read_cost(out)["parameters"] == sum(
        p.numel() for p in family.load_size(out).parameters()
    )


def test_extraction_is_repeated_only_when_something_changed(experiment, tmp_path):
    source, checkpoint, spec = experiment()
    out = tmp_path / "exp_small"
    assert family.extract_size(source, checkpoint, spec, out)
    assert not family.extract_size(source, checkpoint, spec, out)
    state = files.load_tensors(checkpoint)
    state["ctc.ctc_lo.bias"] += 1.0
    torch.save(state, checkpoint)
    assert family.extract_size(source, checkpoint, spec, out)
    assert torch.equal(
        files.load_tensors(out / "model.pth")["ctc.ctc_lo.bias"],
        state["ctc.ctc_lo.bias"],
    )


@pytest.fixture
def training_audio(tmp_path):
    """Options of a configuration that reads waveforms, and the audio to read."""
    generator = np.random.default_rng(0)
    scp = tmp_path / "wav.scp"
    with scp.open("w") as lines:
        for number, seconds in enumerate((0.5, 0.8, 0.6, 1.0, 0.7)):
            path = tmp_path / f"{number}.wav"
            noise = 0.1 * generator.standard_normal(int(16_000 * seconds))
            soundfile.write(path, noise, 16_000)
            print(f"utt{number} {path}", file=lines)
    return {
        "input_size": None,
        "frontend": "default",
        "frontend_conf": {"fs": 16_000, "n_fft": 512, "hop_length": 160, "n_mels": 20},
        "train_data_path_and_name_and_type": [[str(scp), "speech", "sound"]],
    }


def test_files_of_a_size_are_found_from_its_own_folder(tmp_path, monkeypatch):
    size = tmp_path / "unpacked" / "exp" / "asr_small"
    size.mkdir(parents=True)
    stats = tmp_path / "unpacked" / "exp" / "stats.npz"
    stats.touch()
    here = tmp_path / "here"
    (here / "exp").mkdir(parents=True)
    (here / "exp" / "stats.npz").touch()  # another model's
    monkeypatch.chdir(here)
    config = {"bpemodel": None, "normalize_conf": {"stats_file": "exp/stats.npz"}}
    found = family.located(config, size)
    assert found == {"bpemodel": None, "normalize_conf": {"stats_file": str(stats)}}
    assert config["normalize_conf"]["stats_file"] == "exp/stats.npz"


def test_calibration_takes_the_same_audio_from_a_list_in_splits(
    experiment, training_audio, tmp_path
):
    source, _, _ = experiment(conv_norm="batch_norm", change=training_audio)
    config = family.read_config(source)
    whole = list(family.calibration_batches(config, 3))
    path, name, kind = next(
        entry
        for entry in config["train_data_path_and_name_and_type"]
        if entry[1] == "speech"
    )
    with open(path) as file:
        lines = file.readlines()
    split = tmp_path / "splits2" / "wav.scp"
    split.mkdir(parents=True)
    (split / "num_splits").write_text("2\n")
    (split / "split.0").write_text("".join(lines[::2]))
    (split / "split.1").write_text("".join(lines[1::2]))
    config["train_data_path_and_name_and_type"] = [[str(split), name, kind]]
    parts = list(family.calibration_batches(config, 3))
    assert len(parts) == len(whole)
    for one, other in zip(parts, whole, strict=True):
        assert torch.equal(one["speech"], other["speech"])
    for lost in (split / "split.1", split / "num_splits"):
        lost.unlink()
        with pytest.raises(UserError, match=r"wav\.scp.* is not whole.*stage 11"):
            list(family.calibration_batches(config, 3))


@pytest.mark.parametrize("stock", [False, True])
def test_an_extracted_size_has_batch_norm_statistics_of_its_own(
    experiment, training_audio, tmp_path, stock
):
    source, checkpoint, spec = experiment(conv_norm="batch_norm", change=training_audio)
    out = tmp_path / "exp_small"
    family.extract_size(source, checkpoint, spec, out, stock=stock)
    config, state = family.cut(
        family.read_config(source), files.load_tensors(checkpoint), spec
    )
    model = family.build(config, state)
    batches = list(family.calibration_batches(config, 400))
    assert sum(len(batch["speech"]) for batch in batches) == 5
    expected = slow_statistics(model, batches)
    written = files.load_tensors(out / "model.pth")
    for name, tensor in state.items():
        if name in expected:
            assert torch.allclose(written[name].double(), expected[name], atol=1e-4)
            assert not torch.allclose(written[name], tensor, atol=1e-2)
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(written[name], tensor), name
    # stochastic nowhere: the same folder again, tensor by tensor
    family.extract_size(source, checkpoint, spec, tmp_path / "again", stock=stock)
    for name, tensor in files.load_tensors(tmp_path / "again" / "model.pth").items():
        assert torch.equal(tensor, written[name])


def test_missing_training_audio_gets_a_sentence(experiment, training_audio, tmp_path):
    source, checkpoint, spec = experiment(conv_norm="batch_norm", change=training_audio)
    (tmp_path / "wav.scp").unlink()
    with pytest.raises(UserError, match="wav.scp.* does not exist: .*after stages 1-5"):
        family.extract_size(source, checkpoint, spec, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_a_folder_that_is_no_experiment_gets_a_sentence(tmp_path):
    with pytest.raises(UserError, match="is not an experiment folder"):
        family.read_config(tmp_path)
    (tmp_path / "config.yaml").write_text("model: omni\n")
    with pytest.raises(UserError, match="not the configuration of a training .it has"):
        family.read_config(tmp_path)
    (tmp_path / "config.yaml").write_text(
        "{token_list: [], encoder_conf: {}, model_conf: {}}\n"
    )
    with pytest.raises(UserError, match="has no sizes yet: training must pass step 1"):
        family.selected_specs(tmp_path)


# files


def test_bad_checkpoints_get_their_sentence_and_leave_nothing(experiment, tmp_path):
    source, checkpoint, spec = experiment()
    whole = checkpoint.read_bytes()
    bad = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "noise": os.urandom(1000),
    }
    torch.save({"code": subprocess.run}, tmp_path / "code.pth")
    bad["code"] = (tmp_path / "code.pth").read_bytes()
    (tmp_path / "code.pth").unlink()
    out = tmp_path / "out"
    for kind, content in bad.items():
        checkpoint.write_bytes(content)
        with pytest.raises(UserError, match="model.pth is corrupt or not a file"):
            family.extract_size(source, checkpoint, spec, out)
        assert not out.exists(), kind
    checkpoint.unlink()
    with pytest.raises(UserError, match="model.pth does not exist: train it first"):
        family.extract_size(source, checkpoint, spec, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exp"]


def test_an_interrupted_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "model.pth"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with files.atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_folder_leaves_the_old_one(tmp_path):
    path = tmp_path / "exp_small"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(path) as temporary:
        (temporary / "half").touch()
        raise KeyboardInterrupt
    assert os.listdir(path) == ["old"]
    assert list(tmp_path.iterdir()) == [path]
    with files.atomic_folder(path) as temporary:
        (temporary / "new").touch()
    assert os.listdir(path) == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_tensor_file_that_cannot_be_saved_leaves_the_old_one(tmp_path):
    path = tmp_path / "model.pth"
    files.save_tensors(path, {"a": torch.ones(2)})
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        files.save_tensors(path, {"a": torch.zeros(1000), "b": lambda: None})
    assert torch.equal(files.load_tensors(path)["a"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


def test_results_are_readable_by_all_that_the_umask_lets(tmp_path):
    old = os.umask(0o027)
    try:
        files.write_text(tmp_path / "file", "text")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_yaml_is_plain_and_keeps_its_order(tmp_path):
    value = {"b": [1, 2.5], "a": {"x": None, "y": "text"}}
    files.write_yaml(tmp_path / "a.yaml", value)
    assert list(files.read_yaml(tmp_path / "a.yaml")) == ["b", "a"]
    assert yaml.safe_load((tmp_path / "a.yaml").read_text()) == value
