"""A model as the modules that become ONNX graphs, one each."""

from collections.abc import Mapping
from typing import Any

import torch

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.export.onnx_encoder import (
    Encoder,
    Subsampling,
    chunk_hides,
    hides_unfilled,
)
from espnet_omnisparse.export.onnx_features import Features

#: Added to the score of a token that must not be found.
NEVER = -1e4


class Head(torch.nn.Module):
    """What is made of an encoder's output: CTC's log-probabilities, or a joint's input.

    Args:
        model: The model.
        description: What `describe` tells of it.
        kind: `ctc` or `transducer`.
        never: Tokens that must not be found.
    """

    def __init__(
        self,
        model: Any,
        description: Mapping[str, Any],
        kind: str,
        never: tuple[int, ...] = (),
    ):
        super().__init__()
        joint = description["transducer"]
        told = description["head"] if kind == "ctc" else joint["joint"]["encoder"]
        self.linear = model.get_submodule(told["weight"].removesuffix(".weight"))
        self.ctc = kind == "ctc"
        bias = torch.zeros(self.linear.out_features)
        bias[list(never)] = NEVER
        self.register_buffer("bias", bias if never else None)

    def forward(self, encoded: torch.Tensor) -> torch.Tensor:
        """Maps `[batch, time, size]`."""
        out = self.linear(encoded)
        if self.bias is not None:
            out = out + self.bias
        return torch.log_softmax(out, -1) if self.ctc else out


class Recording(torch.nn.Module):
    """A whole recording: waveform in, the head's output out.

    Args:
        model: The model.
        description: What `describe` tells of it.
        head: See `Head`.
    """

    def __init__(self, model: Any, description: Mapping[str, Any], head: Head):
        super().__init__()
        self.features = Features(model, description)
        self.subsampling = Subsampling(model, description)
        self.encoder = Encoder(model, description)
        self.head = head
        chunk = description["encoder"]["chunk"]
        self.chunk = None if chunk is None else Chunk(**chunk)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """`[1, time, outputs]` of samples `[1, n]`."""
        x = self.subsampling(self.features(samples))
        hidden = None if self.chunk is None else chunk_hides(self.chunk, x.size(1))
        return self.head(self.encoder(x, hidden)[0])


class LiveChunk(torch.nn.Module):
    """A chunk of a stream: the waveform that its frames see in, its output out.

    Args:
        model: The model.
        description: What `describe` tells of it.
        chunk: Of the stream.
        head: See `Head`.
    """

    def __init__(
        self, model: Any, description: Mapping[str, Any], chunk: Chunk, head: Head
    ):
        super().__init__()
        self.features = Features(model, description)
        self.subsampling = Subsampling(model, description)
        self.encoder = Encoder(model, description, chunk)
        self.head, self.chunk = head, chunk

    def forward(
        self,
        samples: torch.Tensor,
        attended: torch.Tensor,
        convolved: torch.Tensor,
        frames: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encodes a chunk, the last one being a shorter one perhaps.

        Args:
            samples: All windows of its frames `[1, n]`.
            attended: Zeros at the start, then what the chunk before has returned.
            convolved: The same.
            frames: Encoder frames so far `[1]`.

        Returns:
            `[1, time, outputs]` and the last three for the next chunk.
        """
        x = self.subsampling(self.features.of_windows(samples))
        hidden = hides_unfilled(self.chunk.left, x.size(1), frames)
        x, attended, convolved = self.encoder(x, hidden, None, attended, convolved)
        return self.head(x), attended, convolved, frames + x.size(1)


class Predictor(torch.nn.Module):
    """One step of a prediction network, projected for the joint network.

    Args:
        model: A transducer.
        description: What `describe` tells of it.

    Attributes:
        kind: `stateless`, `lstm` or `gru`.
        state: Layers and width of a state.
    """

    def __init__(self, model: Any, description: Mapping[str, Any]):
        super().__init__()
        told = description["transducer"]["predictor"]
        self.kind, layers = told["kind"], told["layers"]
        self.state = (len(layers), told["hidden"])
        name = told["embedding"].removesuffix(".weight")
        self.embedding = model.get_submodule(name)
        self.layers = torch.nn.ModuleList(model.get_submodule(n) for n in layers)
        self.projection = model.joint_network.lin_dec

    def forward(self, labels: torch.Tensor, *states: torch.Tensor) -> Any:
        """Reads a label.

        Args:
            labels: The last label of each text `[batch, 1]`, blank at the start.
            states: Of an LSTM h and c `[layers, batch, width]`, of a GRU h; zeros at
                the start.

        Returns:
            The joint network's input `[batch, joint]`, and the next states.
        """
        x = self.embedding(labels)
        found = []
        for number, layer in enumerate(self.layers):
            state = tuple(one[number : number + 1] for one in states)
            x, state = layer(x, state if self.kind == "lstm" else state[0])
            found.append(state if self.kind == "lstm" else (state,))
        out = _product(self.projection, x[:, 0])
        return (out, *(torch.cat(one) for one in zip(*found, strict=True)))


class Joiner(torch.nn.Module):
    """The joint network behind its two projections.

    Args:
        model: A transducer.
        never: As in `Head`.
    """

    def __init__(self, model: Any, never: tuple[int, ...] = ()):
        super().__init__()
        joint = model.joint_network
        self.activation, self.output = joint.joint_activation, joint.lin_out
        bias = torch.zeros(self.output.out_features)
        bias[list(never)] = NEVER
        self.register_buffer("bias", bias)

    def forward(self, encoded: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Scores `[batch, tokens]`.

        Args:
            encoded: `[batch, joint]`.
            predicted: The same of a predictor.
        """
        return _product(self.output, self.activation(encoded + predicted)) + self.bias


def _product(linear: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """A linear layer on `[batch, size]` as a matrix product, which can become int8."""
    return linear(x[:, None])[:, 0]
