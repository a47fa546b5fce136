"""`espnet2.bin.asr_transducer_train` with our task."""

from collections.abc import Sequence

from espnet_omnisparse.bin.asr_train import train
from espnet_omnisparse.tasks import OmniASRTransducerTask


def main(cmd: Sequence[str] | None = None) -> None:
    """Trains, collects statistics or prints the configuration, as ESPnet does."""
    train(OmniASRTransducerTask, cmd)


if __name__ == "__main__":
    main()
