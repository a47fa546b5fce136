"""The residual branches of an encoder's block, and the weights in them."""

# of a Conformer, in the order in which a block computes them; -> its residual scale
SCALES = {"ffn1": 0.5, "mhsa": 1.0, "conv": 1.0, "ffn2": 0.5}
BRANCHES = tuple(SCALES)
QUARTERS = 4
# of an E-Branchformer's block: what joins the outputs of two branches, and is itself
# none; the branches in the order in which it has their channels
MERGE = "merge"
SIDES = ("mhsa", "cgmlp")
# branch -> its linear layers and pointwise convolutions, whose weights can be masked
PRUNABLE = {
    "ffn1": ("w_1", "w_2"),
    "mhsa": ("linear_q", "linear_k", "linear_v", "linear_out", "linear_pos"),
    "conv": ("pointwise_conv1", "pointwise_conv2"),
    "cgmlp": ("channel_proj1.0", "csgu.linear", "channel_proj2"),
    "ffn2": ("w_1", "w_2"),
}
MERGE_PRUNABLE = ("merge_proj",)


def is_ffn(branch: str) -> bool:
    """Whether a branch is an FFN; where a block has a single one, it is `ffn2`."""
    return branch in ("ffn1", "ffn2")


def parts_of(branch: str, heads: int) -> int:
    """Into how many components a branch is divided.

    Args:
        branch: A key of `PRUNABLE`.
        heads: Of the attention.
    """
    if branch == "mhsa":
        return heads
    return QUARTERS if is_ffn(branch) or branch == "cgmlp" else 1
