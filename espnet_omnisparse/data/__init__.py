"""Corpora as Kaldi folders: checked, downloaded, or synthetic."""
