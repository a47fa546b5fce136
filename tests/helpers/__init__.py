"""What tests of several packages share."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
