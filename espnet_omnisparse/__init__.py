"""Train one speech recogniser, deploy it at every size: supernets on stock ESPnet.

Importing `espnet_omnisparse.tasks` registers the encoder and the model with ESPnet.
`core`, `losses`, `cost`, `selection` and `supernet` need only PyTorch.
"""

from espnet_omnisparse.moved import keep_old_names

__version__ = "0.2.0"

keep_old_names()
