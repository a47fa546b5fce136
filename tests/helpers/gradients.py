"""Losses and gradients by the obvious way, to hold those of an update against."""

import argparse
import itertools

import torch

from espnet_omnisparse.tasks import OmniASRTask


def rows(batch, index):
    """Some utterances of a batch, without padding that none of them needs."""
    part = {name: tensor[index] for name, tensor in batch.items()}
    part["speech"] = part["speech"][:, : part["speech_lengths"].max()]
    part["text"] = part["text"][:, : part["text_lengths"].max()]
    return part


def utterance_losses(model, draw, batch):
    """CTC loss and frames of each utterance on its own, by PyTorch's own CTC."""
    losses, frames = [], []
    for one in range(len(batch["speech"])):
        part = rows(batch, [one])
        encoded, lengths, _ = model.encoder(
            part["speech"], part["speech_lengths"], None, draw.gates, draw.sparsity
        )
        logits = model.head(draw.size).ctc_lo(encoded[0])
        losses.append(
            torch.nn.functional.ctc_loss(
                logits.log_softmax(-1),
                part["text"][0],
                lengths,
                part["text_lengths"],
                reduction="sum",
            )
        )
        frames.append(int(lengths))
    return losses, frames


def gradients(model, loss):
    """The gradient of every parameter by its name, zeros where there is none."""
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, parameters.values(), allow_unused=True)
    return {
        name: torch.zeros_like(parameters[name]) if grad is None else grad
        for name, grad in zip(parameters, found, strict=True)
    }


def assert_same_gradients(one, other):
    """Two sets of gradients agree but for rounding."""
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        assert torch.allclose(gradient, other[name], atol=1e-6), name


def seed_of_each_division(utterances, subnets):
    """A random seed for every way in which a batch can be divided, all alike likely."""
    count = {
        tuple(frozenset(p.tolist()) for p in torch.tensor(o).tensor_split(subnets))
        for o in itertools.permutations(range(utterances))
    }
    seeds = {}
    for seed in range(10_000):
        torch.manual_seed(seed)
        parts = torch.randperm(utterances).tensor_split(subnets)
        seeds.setdefault(tuple(frozenset(part.tolist()) for part in parts), seed)
        if len(seeds) == len(count):
            return list(seeds.values())
    raise AssertionError("some division was never drawn")


def optimizer_of(model, config, **changes):
    options = {"optim": "adamw", "optim_conf": {"lr": 0.01, "weight_decay": 0.1}}
    arguments = argparse.Namespace(**{**config, **options, **changes})
    (optimizer,) = OmniASRTask.build_optimizers(arguments, model)
    return optimizer
