"""`espnet2.bin.asr_train` with our task."""

from collections.abc import Sequence

from espnet_omnisparse.errors import one_sentence
from espnet_omnisparse.tasks import OmniASRTask


def main(cmd: Sequence[str] | None = None) -> None:
    """Trains, collects statistics or prints the configuration, as ESPnet does."""
    with one_sentence():
        OmniASRTask.main(cmd=cmd)


if __name__ == "__main__":
    main()
