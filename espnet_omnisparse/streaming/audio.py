"""Audio as it comes: block by block, from a file or from a pipe."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
import torch

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.progress import say


