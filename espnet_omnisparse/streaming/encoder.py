"""An encoder, chunk by chunk: equal to its forward under the mask of the same chunks.

What a chunk needs of the past (feature frames, keys and values, inputs of the causal
convolutions) lies in a state of its own, not in the modules, so that any number of
streams can run through one model.
"""

import math

import torch

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.components import heads_of
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.nn.asr_encoder import PrunableAsrEncoder
from espnet_omnisparse.nn.block import PrunableBlock
from espnet_omnisparse.nn.encoder import PrunableEncoder


class EncoderStream:
    """One stream through an encoder.

    Args:
        encoder: In eval; it is read only.
        chunk: What each frame sees; `None`: as the encoder was configured.

    Raises:
        UserError: If the encoder cannot stream.
    """

    def __init__(self, encoder: PrunableEncoder, chunk: Chunk | None = None):
        self.chunk = _chunk_of(encoder, chunk)
        self._encoder = encoder
        self.subsampling = Subsampling(encoder)
        self._waiting = next(encoder.parameters()).new_empty(1, 0, encoder.width)
        self._blocks = [BlockState() for _ in encoder.layers]

    @torch.no_grad()
    def push(self, feats: torch.Tensor) -> torch.Tensor:
        """Takes features in and gives out the chunks that are complete with them.

        Args:
            feats: The next frames `[frames, features]`, any number.

        Returns:
            `[output frames, size]`, a multiple of the chunk's size.
        """
        frames = self.subsampling.push(feats)
        if frames.size(1):
            self._waiting = torch.cat((self._waiting, frames), 1)
        size = self.chunk.size
        return self._encode(self._waiting.size(1) // size * size)

    @torch.no_grad()
    def finish(self) -> torch.Tensor:
        """Encodes what is left of the last chunk `[output frames, size]`."""
        return self._encode(self._waiting.size(1))

    def _encode(self, frames: int) -> torch.Tensor:
        ready, rest = self._waiting.tensor_split([frames], 1)
        if frames == 0:
            return ready[0]
        self._waiting = rest.clone()  # or all of a long push would stay with it
        parts = ready.split(self.chunk.size, 1)
        return torch.cat([self._chunk(part)[0] for part in parts])

    def _chunk(self, x: torch.Tensor) -> torch.Tensor:
        for block, state in zip(self._encoder.layers, self._blocks, strict=True):
            x = self._block(block, state, x)
        return self._encoder.final_norm(x)

    def _block(
        self, block: PrunableBlock, state: "BlockState", x: torch.Tensor
    ) -> torch.Tensor:
        for branch in block.kept:
            module = block.module(branch)
            inside = block.norm(branch)(x)
            if branch == "mhsa":
                inside = self._attend(module, state, inside)
            elif branch == "conv":
                inside = _convolve(module, state, inside)
            else:
                inside = module(inside)
            x = x + block.scale(branch) * inside
        return block.norm_final(x)

    def _attend(
        self, attention: torch.nn.Module, state: "BlockState", x: torch.Tensor
    ) -> torch.Tensor:
        """Relative attention of a chunk to itself and to the kept past."""
        query, key, value = attention.forward_qkv(x, x, x)
        if state.key is not None:
            key = torch.cat((state.key, key), 2)
            value = torch.cat((state.value, value), 2)
        past = max(key.size(2) - self.chunk.left, 0)
        state.key, state.value = key[:, :, past:], value[:, :, past:]
        heads, width = heads_of(attention), attention.d_k
        positions = self._encoder.positions(query.size(2), key.size(2))
        positions = attention.linear_pos(positions).view(1, -1, heads, width)
        content = query + attention.pos_bias_u[:, None]
        place = query + attention.pos_bias_v[:, None]
        scores = content @ key.transpose(2, 3)
        scores = scores + _shift(place @ positions.permute(0, 2, 3, 1), key.size(2))
        weights = torch.softmax(scores / math.sqrt(width), -1)
        seen = (weights @ value).transpose(1, 2).flatten(2)
        return attention.linear_out(seen)


class BlockState:
    """What a block keeps of a stream's past.

    Attributes:
        key: Of its attention `[1, heads, frames, width]`.
        value: The same.
        inputs: Of its convolution `[1, channels, kernel - 1]`.
    """

    def __init__(self):
        self.key: torch.Tensor | None = None
        self.value: torch.Tensor | None = None
        self.inputs: torch.Tensor | None = None


def _convolve(
    conv: torch.nn.Module, state: BlockState, x: torch.Tensor
) -> torch.Tensor:
    """A causal Conv module on a chunk."""
    x = torch.nn.functional.glu(conv.pointwise_conv1(x.transpose(1, 2)), 1)
    depthwise = conv.depthwise_conv
    past = depthwise.kernel_size[0] - 1
    if state.inputs is None:  # silence, as the padding of a whole recording
        state.inputs = x.new_zeros(1, x.size(1), past)
    x = torch.cat((state.inputs, x), 2)
    state.inputs = x[:, :, x.size(2) - past :]
    x = torch.nn.functional.conv1d(
        x, depthwise.weight, depthwise.bias, groups=depthwise.groups
    )
    return conv.pointwise_conv2(conv.activation(conv.norm(x))).transpose(1, 2)


def _shift(scores: torch.Tensor, keys: int) -> torch.Tensor:
    """Scores by distance as scores by key: `[..., queries, distances]` in."""
    *batch, queries, distances = scores.shape
    padded = torch.nn.functional.pad(scores, (1, 0))
    shifted = padded.view(*batch, distances + 1, queries)[..., 1:, :]
    return shifted.reshape(*batch, queries, distances)[..., :keys]


class Subsampling:
    """A front end of convolutions without padding, on a stream of feature frames.

    Args:
        encoder: Whose front end it is.

    Attributes:
        stride: Feature frames per output frame.
        field: Feature frames that one output frame sees.

    Raises:
        UserError: If the front end is not of that kind.
    """

    def __init__(self, encoder: PrunableEncoder):
        self._encoder = encoder
        self.stride, self.field = _receptive_field(encoder)
        self._feats: torch.Tensor | None = None

    def push(self, feats: torch.Tensor) -> torch.Tensor:
        """Gives out the frames for which `feats` `[frames, features]` suffice.

        Returns:
            `[1, output frames, size]`.
        """
        if self._feats is not None:
            feats = torch.cat((self._feats, feats))
        frames = max((len(feats) - self.field) // self.stride + 1, 0)
        # a copy: the caller may use its memory again, and a long push does not stay
        self._feats = feats[frames * self.stride :].clone()
        if frames == 0:
            return feats.new_empty(1, 0, 0)
        used = feats[: (frames - 1) * self.stride + self.field]
        return self._encoder.subsample(used[None])


def _receptive_field(encoder: PrunableEncoder) -> tuple[int, int]:
    """Stride and field of the front end along time, in feature frames."""
    stride = field = 1
    inside = list(getattr(encoder.embed, "conv", ()))
    for module in inside:
        if isinstance(module, torch.nn.Conv2d) and module.padding[0] == 0:
            field += (module.kernel_size[0] - 1) * stride
            stride *= module.stride[0]
        elif not isinstance(module, torch.nn.ReLU):
            inside = []
    if not inside:
        raise UserError(
            "Streaming needs a front end of convolutions without padding, such as "
            "input_layer: conv2d (or vgg_like: false): this model has "
            f"{type(encoder.embed).__name__}."
        )
    return stride, field


def _chunk_of(encoder: PrunableEncoder, chunk: Chunk | None) -> Chunk:
    """The chunk given, or the encoder's own, if it can stream at all."""
    if isinstance(encoder, PrunableAsrEncoder) and not encoder.can_stream:
        raise UserError(
            f"This model cannot stream, since its encoder, {encoder.layout.stock}, "
            "needs the whole recording: recognise segments of up to 30 s with ESPnet's "
            "Speech2Text, or train a Conformer with encoder_conf.causal: true."
        )
    if not isinstance(encoder, PrunableEncoder) or not encoder.causal:
        raise UserError(
            "This model cannot stream, since its Conv modules see the future: train it "
            "with encoder_conf.causal: true (of the task asr_transducer: "
            "main_conf.dynamic_chunk_training: true), or recognise segments of up to "
            "30 s with ESPnet's Speech2Text (docs/streaming.md, Long recordings)."
        )
    chunk = chunk or encoder.chunk
    if chunk is None:
        raise UserError(
            "This model has no chunk of its own: give a chunk to stream with, such as "
            "--chunk 16 --left 32 of omnisparse stream, extract a size with one, or "
            "recognise segments of up to 30 s with ESPnet's Speech2Text "
            "(docs/streaming.md, Long recordings)."
        )
    return chunk
