"""ESPnet's `Speech2Text` and its command, which know our classes here.

ESPnet3's `conf/inference.yaml` names it: `_target_:
espnet_omnisparse.bin.asr_inference.Speech2Text`.
"""

import logging
import sys
from collections.abc import Sequence

from espnet2.bin import asr_inference as stock
from espnet2.bin.asr_inference import Speech2Text

import espnet_omnisparse.tasks  # noqa: F401  (registers them)
from espnet_omnisparse.core.layout import has_ctc_alone
from espnet_omnisparse.files import read_yaml

__all__ = ["Speech2Text", "main"]


def main(cmd: Sequence[str] | None = None) -> None:
    """Decodes a Kaldi-style list of recordings.

    A model without a decoder is decoded by CTC alone, whatever the configuration of
    the decoding says: sizes of a family share one, and some may have no decoder.
    """
    cmd = list(sys.argv[1:] if cmd is None else cmd)
    args = stock.get_parser().parse_args(cmd)
    path = args.asr_train_config
    if path and args.ctc_weight < 1.0 and has_ctc_alone(read_yaml(path)):
        logging.warning("%s has no decoder: it is decoded by CTC alone.", path)
        cmd += ["--ctc_weight", "1.0"]
    stock.main(cmd)


if __name__ == "__main__":
    main()
