"""Small models that have learnt something, within seconds: to tell letters by pitch."""

from pathlib import Path

import numpy as np
import torch

from espnet_omnisparse.extract import experiment as family
from helpers.tiny import asr_config, transducer_config

RATE = 16000
TOKENS = ["<blank>", "<unk>", "A", "B", "C", "<space>", "<sos/eos>"]
PITCHES = {"A": 400.0, "B": 900.0, "C": 1700.0, " ": 0.0}
KALDI = {"frontend": "kaldi_fbank", "frontend_conf": {"fs": "16k"}}
CHUNK = {"size": 4, "left": 8}


def spoken(text: str, generator: np.random.Generator) -> np.ndarray:
    """A text as tones with noise: a letter is a pitch, a space silence."""
    parts = []
    for letter in text:
        time = np.arange(int(RATE * generator.uniform(0.16, 0.22))) / RATE
        tone = 0.3 * np.sin(2 * np.pi * PITCHES[letter] * time)
        parts += [tone, np.zeros(int(RATE * 0.06))]
    wave = np.concatenate([np.zeros(1600), *parts, np.zeros(5600)])
    wave = wave[: len(wave) // 160 * 160]  # whole frames
    return (wave + 0.003 * generator.standard_normal(len(wave))).astype(np.float32)


def sentences(count: int, seed: int = 0) -> list[tuple[str, np.ndarray]]:
    """Texts of two words, and what they sound like."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        words = ["".join(generator.choice(list("ABC"), 2, False)) for _ in range(2)]
        text = " ".join(words)
        found.append((text, spoken(text, generator)))
    return found


def config_of(kind: str, folder: Path, **encoder):
    """A CTC (`ctc`) or transducer configuration on Kaldi's features, normalised.

    Args:
        kind: Of the two.
        folder: Where the features' statistics go.
        encoder: Options to add to `encoder_conf`.
    """
    given = {
        **KALDI,
        "token_list": TOKENS,
        "token_type": "char",
        "input_size": None,
        "normalize": "global_mvn",
        "normalize_conf": {"stats_file": str(folder / "stats.npz")},
    }
    if kind == "ctc":
        plain = {"model": "espnet", "model_conf": {"ctc_weight": 1.0}}
        shape = {"output_size": 32, "num_blocks": 2, **encoder}
        return asr_config(shape, **plain, **given)
    block = {
        "hidden_size": 32,
        "linear_size": 32,
        "heads": 2,
        "block_type": "conformer",
    }
    block |= {"conv_mod_kernel_size": 5, "num_blocks": 2}
    shape = {"body_conf": [block], "pattern": None, **encoder}
    config = transducer_config(encoder=shape, auxiliary_ctc_weight=0.3)
    stateless = {"decoder": "stateless", "decoder_conf": {"embed_size": 32}}
    joint = {"joint_network_conf": {"joint_space_size": 32}}
    return {**config, **given, **stateless, **joint}


def learned(config, updates: int = 150):
    """A configuration's model, trained on sentences.

    Args:
        config: Of `config_of`.
        updates: Of 8 sentences each.
    """
    corpus = sentences(8 * 60)
    stats = Path(config["normalize_conf"]["stats_file"])
    if not stats.exists():
        _write_statistics(config, corpus, stats)
    torch.manual_seed(0)
    model = family.build(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, updates)
    for update in range(updates):
        start = 8 * update % len(corpus)
        loss, *_ = model(**_batch(corpus[start : start + 8]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def _batch(corpus) -> dict[str, torch.Tensor]:
    ids = {token: id for id, token in enumerate(TOKENS)} | {" ": 5}
    pad = torch.nn.utils.rnn.pad_sequence
    waves = [torch.from_numpy(wave) for _, wave in corpus]
    texts = [torch.tensor([ids[letter] for letter in text]) for text, _ in corpus]
    return {
        "speech": pad(waves, batch_first=True),
        "speech_lengths": torch.tensor([len(wave) for wave in waves]),
        "text": pad(texts, batch_first=True, padding_value=-1),
        "text_lengths": torch.tensor([len(text) for text in texts]),
    }


def _write_statistics(config, corpus, path: Path) -> None:
    plain = family.build({**config, "normalize": None, "normalize_conf": {}})
    batch = _batch(corpus)
    feats, lengths = plain.frontend(batch["speech"], batch["speech_lengths"])
    real = torch.cat([one[:n] for one, n in zip(feats, lengths, strict=True)]).double()
    values = {"count": len(real), "sum": real.sum(0), "sum_square": (real**2).sum(0)}
    np.savez(path, **{name: np.asarray(value) for name, value in values.items()})
