"""ESPnet's `Speech2Text` and its command, which know our classes here.

ESPnet3's `conf/inference.yaml` names it: `_target_:
espnet_omnisparse.bin.asr_inference.Speech2Text`.
"""

from espnet2.bin.asr_inference import Speech2Text, main

import espnet_omnisparse.tasks  # noqa: F401  (registers them)

__all__ = ["Speech2Text", "main"]

if __name__ == "__main__":
    main()
