import argparse
import copy
import itertools
import sys
import types

import pytest
import torch
import yaml
from espnet2.asr.ctc import CTC
from espnet2.asr.decoder.transducer_decoder import TransducerDecoder
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr_transducer.joint_network import JointNetwork
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask, model_choices
from helpers.tiny import ENCODER, FEATURES, TOKENS, asr_config
from helpers.transducers import forward_algorithm, slow_loss

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.losses.distillation import collapse, lattice_loss
from espnet_omnisparse.losses.rnnt import TorchaudioRNNTLoss, make_criterion, rnnt_loss
from espnet_omnisparse.train.transducer_asr_model import TransducerASRModel

ONE_BLOCK = {**ENCODER, "num_blocks": 1}
JOINT = {"joint_space_size": 16}


def all_alignments(log_probs, labels, blank):
    """The same by adding up the probability of every alignment."""
    frames, states, _ = log_probs.shape
    steps = frames + states - 2  # the last step is a blank
    total = 0.0
    for emits in itertools.combinations(range(steps), states - 1):
        t = u = 0
        path = 1.0
        for step in range(steps):
            if step in emits:
                path *= log_probs[t, u, labels[u]].exp().item()
                u += 1
            else:
                path *= log_probs[t, u, blank].exp().item()
                t += 1
        total += path * log_probs[t, u, blank].exp().item()
    return -torch.tensor(total, dtype=torch.float64).log()


@pytest.fixture
def lattices():
    """Five utterances, of one frame and of no label among them."""
    generator = torch.Generator().manual_seed(3)
    joint = 2 * torch.randn(5, 6, 4, 5, generator=generator)
    labels = torch.randint(1, 4, (5, 3), generator=generator)
    t_len = torch.tensor([6, 4, 1, 3, 1])
    u_len = torch.tensor([2, 3, 1, 0, 0])
    return joint.requires_grad_(), labels, t_len, u_len


def test_the_oracle_adds_up_all_alignments():
    generator = torch.Generator().manual_seed(0)
    for frames, labels in [(3, [1, 2]), (4, [2, 2, 1]), (1, [1]), (2, [])]:
        logits = torch.randn(frames, len(labels) + 1, 4, generator=generator)
        log_probs = logits.double().log_softmax(-1)
        expected = all_alignments(log_probs, labels, 3)
        found = forward_algorithm(log_probs, labels, 3)
        assert found.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("blank", [0, 4])
def test_loss_and_gradient_equal_the_forward_algorithm(lattices, blank):
    joint, labels, t_len, u_len = lattices
    loss = rnnt_loss(joint, labels, t_len, u_len, blank)
    expected = slow_loss(joint, labels, t_len, u_len, blank)
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(3 * loss, joint)
    (expected_gradient,) = torch.autograd.grad(3 * expected, joint)
    assert torch.allclose(gradient, expected_gradient.float(), atol=1e-6)
    assert gradient.abs().max() > 0.1


def test_padding_does_not_matter(lattices):
    joint, labels, t_len, u_len = lattices
    expected = rnnt_loss(joint, labels, t_len, u_len, 0)
    real = (torch.arange(6) < t_len[:, None])[:, :, None] & (
        torch.arange(4) <= u_len[:, None]
    )[:, None]
    dirty = torch.where(real[..., None], joint, 50 * torch.randn_like(joint)).detach()
    dirty.requires_grad_()
    other = torch.where(torch.arange(3) < u_len[:, None], labels, -1)
    loss = rnnt_loss(dirty, other, t_len, u_len, 0)
    assert torch.equal(loss, expected)
    (gradient,) = torch.autograd.grad(loss, dirty)
    assert gradient[~real].eq(0).all() and gradient[real].abs().amax(-1).gt(0).all()


def test_an_utterance_without_frames_has_no_loss(lattices):
    joint, labels, t_len, u_len = lattices
    none = t_len.clone()
    none[1] = 0
    joint = joint.detach().requires_grad_()
    loss = rnnt_loss(joint, labels, none, u_len, 0)
    loss.backward()
    rest = torch.arange(len(t_len)) != 1
    alone = joint.detach()[rest].requires_grad_()
    others = rnnt_loss(alone, labels[rest], t_len[rest], u_len[rest], 0)
    others.backward()
    share = (len(t_len) - 1) / len(t_len)
    torch.testing.assert_close(loss, share * others)
    torch.testing.assert_close(joint.grad[rest], share * alone.grad)
    assert not joint.grad[1].any()

    joint = joint.detach().requires_grad_()
    loss = rnnt_loss(joint, labels, 0 * t_len, u_len, 0)
    loss.backward()
    assert loss == 0.0 and not joint.grad.any()


def test_padding_that_no_utterance_needs_is_accepted(lattices):
    joint, labels, t_len, u_len = lattices
    some = [2, 3]  # 1 of 6 frames and 3 of 6, 1 label of 3 and none
    found = rnnt_loss(joint[some], labels[some], t_len[some], u_len[some], 0)
    expected = slow_loss(joint[some], labels[some], t_len[some], u_len[some], 0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_any_integer_type_and_memory_layout_will_do(lattices):
    joint, labels, t_len, u_len = lattices
    expected = rnnt_loss(joint, labels, t_len, u_len, 0)
    strided = joint.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    other = labels.t().contiguous().t().to(torch.int16)
    found = rnnt_loss(strided, other, t_len.int(), u_len.short(), 0)
    assert torch.equal(found, expected)


def test_the_loss_is_in_float32_under_autocast_and_in_low_precision(lattices):
    joint, *rest = lattices
    half = joint.detach().bfloat16().requires_grad_()
    expected = rnnt_loss(half.float(), *rest, 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = rnnt_loss(half, *rest, 0)
    assert torch.equal(loss, expected) and loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss, half)
    assert gradient.dtype == torch.bfloat16 and gradient.abs().max() > 0.01
    peaky = (80 * joint.detach().sign()).bfloat16().requires_grad_()
    loss = rnnt_loss(peaky, *rest, 0)
    (gradient,) = torch.autograd.grad(loss, peaky)
    assert loss.isfinite() and gradient.isfinite().all()


def test_the_module_has_warprnnts_signature(lattices):
    joint, labels, t_len, u_len = lattices
    criterion = TorchaudioRNNTLoss(blank=4)
    found = criterion(acts=joint, labels=labels, act_lens=t_len, label_lens=u_len)
    assert torch.equal(found, rnnt_loss(joint, labels, t_len, u_len, 4))
    assert not torch.equal(found, rnnt_loss(joint, labels, t_len, u_len, 0))
    assert not criterion.state_dict()


class FakeWarpRNNT(TorchaudioRNNTLoss):
    """Stands for `warprnnt_pytorch.RNNTLoss`, with the arguments ESPnet gives it."""

    def __init__(self, blank, fastemit_lambda):
        super().__init__(blank)
        self.fastemit_lambda = fastemit_lambda


@pytest.fixture
def no_warprnnt(monkeypatch):
    monkeypatch.setitem(sys.modules, "warprnnt_pytorch", None)


@pytest.fixture
def warprnnt(monkeypatch):
    module = types.ModuleType("warprnnt_pytorch")
    module.RNNTLoss = FakeWarpRNNT
    monkeypatch.setitem(sys.modules, "warprnnt_pytorch", module)


def test_the_criterion_is_torchaudios_without_warprnnt(no_warprnnt):
    criterion = make_criterion(3)
    assert type(criterion) is TorchaudioRNNTLoss and criterion.blank == 3


def test_the_criterion_is_warprnnts_where_it_is_installed(warprnnt):
    criterion = make_criterion(3)
    assert type(criterion) is FakeWarpRNNT
    assert criterion.blank == 3 and criterion.fastemit_lambda == 0.0


def parts(transducer=True):
    """What ESPnet's ASR model is made of; the same parameters every time."""
    torch.manual_seed(0)
    vocabulary = len(TOKENS)
    encoder = ConformerEncoder(FEATURES, **ONE_BLOCK)
    decoder = TransducerDecoder(vocabulary, hidden_size=12)
    joint = JointNetwork(vocabulary, 16, 12, **JOINT)
    return {
        "vocab_size": vocabulary,
        "token_list": list(TOKENS),
        "frontend": None,
        "specaug": None,
        "normalize": None,
        "preencoder": None,
        "encoder": encoder,
        "postencoder": None,
        "decoder": decoder if transducer else None,
        "ctc": CTC(vocabulary, 16),
        "joint_network": joint if transducer else None,
    }


def described(model):
    """The model's attributes and modules, by type and plain value."""
    attributes = {**vars(model), **vars(model)["_modules"]}
    plain = (str, int, float, bool, list, dict, type(None))
    return {
        name: value if isinstance(value, plain) else type(value)
        for name, value in attributes.items()
        if name not in ("_modules", "_parameters", "_buffers")
    }


@pytest.fixture
def batch():
    """Three utterances, each token 20 frames of a pattern of its own."""
    generator = torch.Generator().manual_seed(1)
    patterns = 2 * torch.randn(len(TOKENS), FEATURES, generator=generator)
    text = torch.tensor([[3, 4, 2], [4, -1, -1], [2, 3, -1]])
    speech = patterns[text].repeat_interleave(20, 1)
    return {
        "speech": speech + 0.1 * torch.randn(speech.shape, generator=generator),
        "speech_lengths": torch.tensor([60, 20, 40]),
        "text": text,
        "text_lengths": torch.tensor([3, 1, 2]),
    }


@pytest.mark.parametrize(
    "ctc_weight, reports",
    [
        (0.0, (True, True)),
        (0.0, (False, False)),
        (0.3, (False, True)),
        (0.3, (False, False)),
        (1.0, (True, False)),
    ],
)
def test_the_model_is_what_espnets_constructor_makes(
    warprnnt, batch, ctc_weight, reports
):
    conf = {
        "ctc_weight": ctc_weight,
        "report_cer": reports[0],
        "report_wer": reports[1],
        "lsm_weight": 0.1,
        "sym_space": "a",
    }
    ours = TransducerASRModel(**parts(), **conf)
    stock = ESPnetASRModel(**parts(), **conf)
    assert described(ours) == described(stock)
    assert "criterion_att" not in described(ours)
    for name in ("error_calculator", "error_calculator_trans"):
        one, other = getattr(ours, name), getattr(stock, name)
        for value in ("report_cer", "report_wer", "space", "blank", "char_list"):
            assert getattr(one, value, None) == getattr(other, value, None)
    if ours.error_calculator_trans is not None:
        assert ours.error_calculator_trans.decoder is ours.decoder
        assert ours.error_calculator_trans.beam_search.joint_network is (
            ours.joint_network
        )
    weights = stock.state_dict()
    assert ours.state_dict().keys() == weights.keys()
    assert all(torch.equal(v, weights[name]) for name, v in ours.state_dict().items())
    for model in (ours, stock):
        model.eval()
    (loss, stats, count), (stock_loss, stock_stats, _) = ours(
        **copy.deepcopy(batch)
    ), stock(**copy.deepcopy(batch))
    assert torch.equal(loss, stock_loss) and count == 3
    assert stats == stock_stats and (stats["cer_transducer"] is None) != reports[0]


def test_without_a_joint_network_it_is_the_stock_model(no_warprnnt):
    found = TransducerASRModel(**parts(transducer=False), ctc_weight=1.0)
    stock = ESPnetASRModel(**parts(transducer=False), ctc_weight=1.0)
    assert described(found) == described(stock)
    assert not found.use_transducer_decoder and found.error_calculator.report_cer


def test_several_blanks_are_refused_with_a_sentence(no_warprnnt):
    with pytest.raises(UserError, match="transducer_multi_blank_durations"):
        TransducerASRModel(**parts(), transducer_multi_blank_durations=[2])
    TransducerASRModel(**parts(), transducer_multi_blank_durations=[])


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_one_step_trains_every_part(no_warprnnt, batch, ctc_weight):
    model = TransducerASRModel(**parts(), ctc_weight=ctc_weight).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss, stats, _ = model(**batch)
    loss.backward()
    for part in ("encoder", "decoder", "joint_network"):
        for name, parameter in getattr(model, part).named_parameters():
            if not name.endswith("linear_k.bias"):  # softmax does not see it
                assert parameter.grad.abs().max() > 0, f"{part}.{name}"
    optimizer.step()
    after, _, _ = model(**batch)
    assert after.item() < loss.item()
    expected = stats["loss_transducer"] + ctc_weight * stats.get("loss_ctc", 0.0)
    assert stats["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_lattice_serves_both_losses(no_warprnnt, batch):
    model = TransducerASRModel(**parts(), ctc_weight=0.0).train()
    text = batch["text"]
    encoded, lengths = model.encode(batch["speech"], batch["speech_lengths"])
    expected, _, _ = model._calc_transducer_loss(encoded, lengths, text)
    wide = torch.nn.functional.pad(encoded, (0, 0, 0, 5))  # padding nobody needs
    lattice = model.lattice(wide, lengths, text)
    joint, target, t_len, u_len = lattice
    assert joint.shape == (3, int(lengths.max()), 4, len(TOKENS))
    assert target.tolist() == text.masked_fill(text == -1, 0).tolist()
    assert t_len.tolist() == lengths.tolist() and u_len.tolist() == [3, 1, 2]
    assert torch.equal(model.criterion_transducer(*lattice), expected)
    slow = slow_loss(joint, text, lengths, batch["text_lengths"], 0)
    assert expected.item() == pytest.approx(slow.item(), rel=1e-5)

    teacher = collapse(joint.detach(), target, model.blank_id)
    student = joint + torch.randn(len(TOKENS))
    for kind in ("kl", "alpha"):
        assert lattice_loss(joint, teacher, *lattice[1:], 0, kind) == 0.0
        loss = lattice_loss(student, teacher, *lattice[1:], 0, kind)
        (gradient,) = torch.autograd.grad(
            loss, model.joint_network.lin_out.weight, retain_graph=True
        )
        assert loss > 0 and gradient.abs().max() > 0


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(model_choices.classes, "omni_transducer", TransducerASRModel)
    return asr_config(
        {"num_blocks": 1},
        model="omni_transducer",
        encoder="conformer",
        decoder="transducer",
        decoder_conf={"hidden_size": 12},
        joint_net_conf=JOINT,
        model_conf={"ctc_weight": 0.3},
        token_type="char",
    )


def test_a_trained_model_decodes_what_it_learnt(no_warprnnt, config, batch, tmp_path):
    torch.manual_seed(0)
    model = ASRTask.build_model(argparse.Namespace(**copy.deepcopy(config)))
    assert type(model) is TransducerASRModel
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        model(**batch)[0].backward()
        optimizer.step()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(model.state_dict(), tmp_path / "model.pth")

    for search in ("default", "tsd"):
        speech2text = Speech2Text(
            str(tmp_path / "config.yaml"),
            str(tmp_path / "model.pth"),
            beam_size=3,
            transducer_conf={"search_type": search},
        )
        assert speech2text.beam_search_transducer is not None
        for one, length in enumerate(batch["speech_lengths"]):
            (text, _, tokens, _), *_ = speech2text(batch["speech"][one, :length])
            labels = batch["text"][one]
            assert tokens == labels[labels != -1].tolist()
            assert text == "".join(TOKENS[token] for token in tokens)

    stats = model.eval()(**batch)[1]
    assert stats["cer_transducer"] == stats["wer_transducer"] == 0.0
