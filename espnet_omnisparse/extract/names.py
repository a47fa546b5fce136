"""How a supernet's checkpoint and the folders of its sizes are called."""

#: The checkpoint that sizes are cut out of.
CHECKPOINT = "valid.loss_sizes.ave.pth"
#: Training utterances for BatchNorm's statistics of an extracted size.
CALIBRATION = 400


def size_folder(asr_exp: str, size: str, stock: bool = False) -> str:
    """The experiment folder of one size.

    Args:
        asr_exp: The supernet's experiment folder.
        size: The size's name.
        stock: Whether it is the form that stock ESPnet loads.
    """
    return f"{asr_exp}_{size}" + ("_stock" if stock else "")
