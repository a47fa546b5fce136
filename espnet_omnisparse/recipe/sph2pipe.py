"""A stand-in for LDC's `sph2pipe`, for machines where it is not installed.

`local/data.sh` of many recipes writes `sph2pipe -f wav -p -c 1 FILE |` into `wav.scp`.
This module answers that command line for whatever NIST SPHERE file libsndfile reads,
that is, all that are not compressed by shorten: `python3 -m
espnet_omnisparse.recipe.sph2pipe`.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import soundfile

from espnet_omnisparse.errors import UserError, one_sentence


def convert(source: Path, channel: int | None) -> bytes:
    """A recording as 16-bit WAV.

    Args:
        source: The SPHERE file.
        channel: Which one, from 1; `None`: all.

    Raises:
        UserError: If it is missing, compressed, or has no such channel.
    """
    if not source.is_file():
        raise UserError(f"{source} does not exist.")
    try:
        samples, rate = soundfile.read(source, dtype="int16", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"{source} cannot be read without sph2pipe itself ({error.error_string}): "
            "install it (ESPnet's tools/installers/install_sph2pipe.sh), and put it on "
            "PATH."
        ) from error
    if channel is not None:
        if not 1 <= channel <= samples.shape[1]:
            raise UserError(
                f"{source} has {samples.shape[1]} channels: -c {channel} is none of "
                "them."
            )
        samples = samples[:, channel - 1]
    wav = io.BytesIO()
    soundfile.write(wav, samples, rate, format="WAV", subtype="PCM_16")
    return wav.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the stand-in."""
    parser = argparse.ArgumentParser(prog="sph2pipe", description=__doc__)
    parser.add_argument("-f", choices=("wav", "rif"), required=True, help="of output")
    parser.add_argument("-p", action="store_true", help="16-bit samples, as always")
    parser.add_argument("-c", type=int, help="the channel alone")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, nargs="?")
    with one_sentence():
        args = parser.parse_args(argv)
        wav = convert(args.source, args.c)
        if args.target is None:
            sys.stdout.buffer.write(wav)
            sys.stdout.buffer.flush()
        else:
            args.target.write_bytes(wav)


if __name__ == "__main__":
    main()
