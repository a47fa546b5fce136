"""`espnet2.bin.pack` that lets a size keep what makes it one.

ESPnet packs a model's tensors and configuration; which size it is, where it was cut out
of and what it costs lie beside them and are packed as well.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from espnet2.bin import pack as stock

from espnet_omnisparse.errors import one_sentence
from espnet_omnisparse.extract.experiment import COST, ORIGIN, SPEC


def main(cmd: Sequence[str] | None = None) -> None:
    """Packs a model, as ESPnet does."""
    with one_sentence():
        cmd = list(sys.argv[1:] if cmd is None else cmd)
        given = stock.get_parser().parse_args(cmd)
        config = getattr(given, "asr_train_config", None)
        for name in (SPEC, ORIGIN, COST) if config else ():
            path = Path(config).with_name(name)
            if path.is_file():
                cmd += ["--option", str(path)]
        stock.main(cmd)


if __name__ == "__main__":
    main()
