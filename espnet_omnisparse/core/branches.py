"""The four residual branches of a Conformer block, and the weights in them."""

# branch -> its residual scale, in the order in which a block computes them
SCALES = {"ffn1": 0.5, "mhsa": 1.0, "conv": 1.0, "ffn2": 0.5}
BRANCHES = tuple(SCALES)
FFN_CHUNKS = 4
# branch -> its linear layers and pointwise convolutions, whose weights can be masked
PRUNABLE = {
    "ffn1": ("w_1", "w_2"),
    "mhsa": ("linear_q", "linear_k", "linear_v", "linear_out", "linear_pos"),
    "conv": ("pointwise_conv1", "pointwise_conv2"),
    "ffn2": ("w_1", "w_2"),
}
