"""What tests of several packages share."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

#: how a script begins that must do without this package
WITHOUT_PACKAGE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "espnet_omnisparse":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
"""
