"""Train one speech recogniser, deploy it at every size: supernets on stock ESPnet.

Importing `espnet_omnisparse.tasks` registers the encoder and the model with ESPnet.
The core modules (mask, gate, schedule, subnet, selection, cost, extract) need only
PyTorch.
"""

__version__ = "0.1.0"
