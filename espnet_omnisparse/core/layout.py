"""Under which names ESPnet's encoders keep what can be pruned.

All that knows ESPnet's tensor and option names and needs no ESPnet is here.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from espnet_omnisparse.core.branches import MERGE
from espnet_omnisparse.core.components import is_divided
from espnet_omnisparse.core.decoder import DECODER, in_layers, layer_count
from espnet_omnisparse.core.mask import DEFAULT_PATTERN, Pattern
from espnet_omnisparse.core.search_space import FRONT, SearchSpace, place

# of tensors that only a supernet has
TRAINING_ONLY = ("supernet.", "size_ctc.")
MASK_ORDER = "supernet.order."  # what `weight_masks.MaskOrder` has settled
OWN_PARAMETERS = "supernet.own."
FRONT_END = "encoder.embed."  # of both tasks
_STOCK_HEADS = 4  # ESPnet's default
_POSITIONS, _GATE_LINEAR = "linear_pos.weight", "csgu.linear.weight"
_CONVOLUTION = re.compile(re.escape(FRONT_END) + r"conv\.(\d+)\.weight")


@dataclass(frozen=True)
class Layout:
    """Under which names one of ESPnet's encoders keeps what can be pruned.

    Attributes:
        blocks: The list of blocks, in the encoder.
        parts: Branch -> its pre-norm and its module, in a block.
        stock: ESPnet's name of the encoder, in the task `asr`.
        sign: What only this layout's tensors of a block begin with; empty: it is known
            by `blocks` alone.
    """

    blocks: str
    parts: Mapping[str, tuple[str, str]]
    stock: str = "conformer"
    sign: str = ""

    @property
    def prefix(self) -> str:
        """What the names of the blocks' tensors begin with, in the model."""
        return f"encoder.{self.blocks}."

    def branch_of(self, name: str) -> str | None:
        """The branch that a block's tensor belongs to; `None`: the block's own.

        A merge's are those that its sides divide. The bias of its projection belongs to
        no side: it is the block's own.

        >>> ASR_LAYOUT.branch_of("conv_module.norm.weight")
        'conv'
        >>> ASR_LAYOUT.branch_of("norm_final.weight") is None
        True
        """
        first = name.split(".", 1)[0]
        for branch, names in self.parts.items():
            if first in names:
                return branch
        return MERGE if is_divided(MERGE, name) else None

    def inside(self, branch: str, name: str) -> str:
        """A tensor's name in the module of its branch; a merge's is the block itself.

        Args:
            branch: What `branch_of` says.
            name: The tensor's name in its block.
        """
        return name if branch == MERGE else name.split(".", 1)[1]

    def weight_of(self, branch: str, layer: str) -> str:
        """The name in its block of the weight of a layer; the inverse of `inside`.

        Args:
            branch: A branch, or `MERGE`.
            layer: Its layer's name.
        """
        module = "" if branch == MERGE else f"{self.parts[branch][1]}."
        return f"{module}{layer}.weight"


ASR_LAYOUT = Layout(
    "encoders",
    {
        "ffn1": ("norm_ff_macaron", "feed_forward_macaron"),
        "mhsa": ("norm_mha", "self_attn"),
        "conv": ("norm_conv", "conv_module"),
        "ffn2": ("norm_ff", "feed_forward"),
    },
)
# the standalone transducer's Conformer, of the task asr_transducer
TRANSDUCER_LAYOUT = Layout(
    "encoders.blocks",
    {
        "ffn1": ("norm_macaron", "feed_forward_macaron"),
        "mhsa": ("norm_self_att", "self_att"),
        "conv": ("norm_conv", "conv_mod"),
        "ffn2": ("norm_feed_forward", "feed_forward"),
    },
)
E_BRANCHFORMER_LAYOUT = Layout(
    "encoders",
    {
        "ffn1": ("norm_ff_macaron", "feed_forward_macaron"),
        "mhsa": ("norm_mha", "attn"),
        "cgmlp": ("norm_mlp", "cgmlp"),
        "ffn2": ("norm_ff", "feed_forward"),
    },
    "e_branchformer",
    "merge_proj.",
)
TRANSFORMER_LAYOUT = Layout(
    "encoders",
    {"mhsa": ("norm1", "self_attn"), "ffn2": ("norm2", "feed_forward")},
    "transformer",
    "norm2.",
)
LAYOUTS = (ASR_LAYOUT, TRANSDUCER_LAYOUT, E_BRANCHFORMER_LAYOUT, TRANSFORMER_LAYOUT)
LAYER_PRUNABLE, OMNI_SPARSE = "layer_prunable_", "omni_sparse_"


def stock_encoder(config: Mapping[str, Any]) -> str:
    """ESPnet's name of the encoder of a configuration of the task `asr`.

    >>> stock_encoder({"encoder": "omni_sparse_e_branchformer"})
    'e_branchformer'
    """
    name = config["encoder"].removeprefix(LAYER_PRUNABLE)
    return name.removeprefix(OMNI_SPARSE)


def is_standalone(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of the standalone transducer's task."""
    return "body_conf" in (config.get("encoder_conf") or {})


def has_ctc_alone(config: Mapping[str, Any]) -> bool:
    """Whether the model of a configuration has CTC and no decoder.

    Args:
        config: Of either task; what it does not say has ESPnet's defaults.
    """
    if is_standalone(config):
        return False
    weight = (config.get("model_conf") or {}).get("ctc_weight", 0.5)
    return weight == 1.0 and config.get("decoder") != "transducer"


def layout_of(config: Mapping[str, Any]) -> Layout:
    """Where the model of a configuration keeps its blocks."""
    if is_standalone(config):
        return TRANSDUCER_LAYOUT
    stock = stock_encoder(config) if "encoder" in config else ASR_LAYOUT.stock
    signed = (layout for layout in LAYOUTS if layout.sign and layout.stock == stock)
    return next(signed, ASR_LAYOUT)


def layout_in(state: Collection[str]) -> Layout:
    """The layout that the names of tensors show."""
    if any(name.startswith(TRANSDUCER_LAYOUT.prefix) for name in state):
        return TRANSDUCER_LAYOUT
    prefix = ASR_LAYOUT.prefix
    inside = {
        name.removeprefix(prefix).split(".", 1)[1]
        for name in state
        if name.startswith(prefix)
    }
    for layout in LAYOUTS:
        if layout.sign and any(name.startswith(layout.sign) for name in inside):
            return layout
    return ASR_LAYOUT


def locate(name: str, layout: Layout) -> tuple[int, str | None, str]:
    """Block, branch (see `Layout.branch_of`) and name within the block of a tensor.

    Args:
        name: The tensor's name in the model.
        layout: Where the model keeps its blocks.
    """
    number, rest = name.removeprefix(layout.prefix).split(".", 1)
    return int(number), layout.branch_of(rest), rest


def front_layers(names: Collection[str]) -> dict[str, str]:
    """The front end's layers whose weights can be masked, and their tensors.

    The convolutions but the first, which has a single input channel, and the output
    layer; none of a front end without convolutions.

    Args:
        names: Of the model's tensors.

    >>> front_layers([f"encoder.embed.{n}.weight" for n in ("conv.0", "conv.2", "out")])
    {'conv2': 'encoder.embed.conv.2.weight', 'out': 'encoder.embed.out.weight'}
    """
    numbers = sorted(int(found[1]) for n in names if (found := _CONVOLUTION.match(n)))
    if not numbers:
        return {}
    layers = {
        f"conv{count}": f"{FRONT_END}conv.{number}.weight"
        for count, number in enumerate(numbers, start=1)
    }
    del layers["conv1"]
    # as the task asr, and as the task asr_transducer calls it
    for out in ("out", "output"):
        if (name := f"{FRONT_END}{out}.weight") in names:
            layers["out"] = name
    return layers


def weight_tensors(space: SearchSpace, names: Collection[str]) -> dict[str, str]:
    """The weights of a space that a model has, and its tensors.

    Args:
        space: What can be pruned.
        names: Of the model's tensors.
    """
    layout, front, found = layout_in(names), front_layers(names), {}
    for weight in space.weights:
        at = place(weight)
        if at.branch == FRONT:
            tensor = front.get(at.layer)
        elif at.block is None:
            tensor = f"{in_layers(weight)}.weight"
        else:
            inside = layout.weight_of(at.branch, at.layer)
            tensor = f"{layout.prefix}{at.block}.{inside}"
        if tensor in names:
            found[weight] = tensor
    return found


def own_tensor(name: str, layout: Layout) -> str:
    """The tensor instead of which a subnet has one of its own.

    Args:
        name: Its name in an `OwnParameters`: in the list of blocks, the front end, or
            the decoder's layers.
        layout: Where the model keeps its blocks.
    """
    if name.startswith(f"{FRONT}."):
        return FRONT_END + name.removeprefix(f"{FRONT}.")
    if name.startswith(DECODER):
        return in_layers(name)
    return layout.prefix + name


def expanded(body_conf: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A configuration for each block, as ESPnet reads `num_blocks`.

    >>> expanded([{"linear_size": 8, "num_blocks": 2}, {"linear_size": 4}])
    [{'linear_size': 8}, {'linear_size': 8}, {'linear_size': 4}]
    """
    blocks = []
    for block in body_conf:
        one = {name: value for name, value in block.items() if name != "num_blocks"}
        blocks += [dict(one) for _ in range(block.get("num_blocks") or 1)]
    return blocks


def head_name(size: str) -> str:
    """Key of a size's own CTC head; the prefix keeps `half` from being a method."""
    return f"ctc_{size}"


def space_of(config: Mapping[str, Any], state: Mapping[str, Any]) -> SearchSpace:
    """What can be pruned in the net that a configuration and its tensors describe.

    Args:
        config: An ESPnet configuration.
        state: State dict of the model.
    """
    layout = layout_of(config)
    found = [locate(n, layout) for n in state if n.startswith(layout.prefix)]
    blocks = {number for number, _, _ in found}
    branches = {branch for _, branch, _ in found}
    conf, model_conf = config["encoder_conf"], config.get("model_conf") or {}
    if is_standalone(config):
        heads = conf["body_conf"][0].get("heads", _STOCK_HEADS)
    else:
        heads = conf.get("attention_heads", _STOCK_HEADS)
    masked = str(config.get("encoder")).startswith(OMNI_SPARSE)
    pattern = conf.get("pattern", DEFAULT_PATTERN if masked else None)
    return SearchSpace(
        len(blocks),
        conf.get("granularity", "branch"),
        heads,
        (
            None
            if pattern is None
            else Pattern.parse(pattern, conf.get("pattern_norm", "l1"))
        ),
        any(name.endswith(_POSITIONS) for name in state),
        tuple(front_layers(state)) if conf.get("mask_front_end") else (),
        tuple(branch for branch in layout.parts if branch in branches),
        has_gate_linear(state),
        layer_count(state) if model_conf.get("mask_decoder") else 0,
    )


def has_gate_linear(names: Collection[str]) -> bool:
    """Whether cgMLPs have a linear layer behind their convolution.

    Args:
        names: Of an encoder's tensors.
    """
    return any(name.endswith(_GATE_LINEAR) for name in names)
