"""What a recipe's `run.sh` calls, around ESPnet's unmodified `asr.sh`."""
