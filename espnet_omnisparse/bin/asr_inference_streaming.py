"""`espnet2.bin.asr_inference_streaming` for our models.

ESPnet's own script streams contextual-block encoders alone; those it still does. It is
called by `asr.sh --use_streaming true`, with its options and outputs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from espnet2.bin import asr_inference_streaming as stock
from espnet2.fileio.datadir_writer import DatadirWriter
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed

from espnet_omnisparse.errors import UserError, one_sentence
from espnet_omnisparse.extract.experiment import build, located
from espnet_omnisparse.files import load_tensors, read_yaml
from espnet_omnisparse.streaming.recogniser import Recogniser
from espnet_omnisparse.tasks import OmniASRTask

STOCK_ENCODERS = ("contextual_block_conformer", "contextual_block_transformer")


def main(cmd: Sequence[str] | None = None) -> None:
    """Decodes a Kaldi-style list of recordings, each as a stream."""
    with one_sentence():
        args = stock.get_parser().parse_args(cmd)
        config = read_yaml(args.asr_train_config)
        if config.get("encoder") in STOCK_ENCODERS:
            stock.main(cmd)
            return
        if "encoder" not in config:
            raise UserError(
                f"{args.asr_train_config} is not of the task asr: decode it with "
                "--asr_task asr_transducer."
            )
        if args.ngpu:
            raise UserError(
                "Streams are decoded on the CPU: leave gpu_inference false."
            )
        if args.penalty or args.maxlenratio or args.minlenratio:
            raise UserError(
                "penalty, maxlenratio and minlenratio are not used in streams: set "
                "them to 0."
            )
        if args.nbest != 1 or args.lm_train_config or args.word_lm_train_config:
            raise UserError(
                "Streaming here gives the best hypothesis without a language model: "
                "leave nbest at 1 and set use_lm to false."
            )
        set_all_random_seed(args.seed)
        config = located(config, Path(args.asr_train_config).parent)
        model = build(config, load_tensors(args.asr_model_file))
        recogniser = Recogniser(model, config, beam=args.beam_size)
        decode(recogniser, _recordings(args), args.output_dir)


def decode(
    recogniser: Recogniser,
    recordings: Iterator[tuple[str, torch.Tensor]],
    output_dir: str,
) -> None:
    """Writes tokens and text of each recording as ESPnet's decoding does.

    Args:
        recogniser: What recognises.
        recordings: Utterance id -> samples `[n]`.
        output_dir: Folder to write.
    """
    block = round(recogniser.chunk_seconds * recogniser.sample_rate)
    with DatadirWriter(output_dir) as writer:
        best = writer["1best_recog"]
        for key, speech in recordings:
            stream = recogniser.stream()
            for part in speech.split(block):
                stream.push(part)
            text = stream.finish()
            best["token"][key] = " ".join(recogniser.tokens(stream.ids))
            best["token_int"][key] = " ".join(map(str, stream.ids))
            best["text"][key] = text


def _recordings(args: Any) -> Iterator[tuple[str, torch.Tensor]]:
    loader = OmniASRTask.build_streaming_iterator(
        args.data_path_and_name_and_type,
        dtype="float32",
        batch_size=1,
        key_file=args.key_file,
        num_workers=args.num_workers,
        preprocess_fn=None,
        collate_fn=OmniASRTask.build_collate_fn(args, False),
        allow_variable_data_keys=args.allow_variable_data_keys,
        inference=True,
    )
    for (key,), batch in loader:
        yield key, batch["speech"][0]


if __name__ == "__main__":
    main()
