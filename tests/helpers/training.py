"""A tiny corpus, and real trainings on it in processes of their own."""

import hashlib
import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from helpers import REPOSITORY
from helpers.tiny import TRAINING, changed
from helpers.trained import assert_same_training

TOKENS = ("<blank>", "<unk>", "A", "B", "C", "<sos/eos>")
TRAIN, VALID = 20, 4
BATCH_SIZE = 4
#: batches per epoch, odd, so that accum_grad 2 leaves gradients over
BATCHES = TRAIN // BATCH_SIZE

CONFIG = {
    **TRAINING,
    "ngpu": 0,
    "batch_type": "sorted",
    "batch_size": BATCH_SIZE,
    "max_epoch": 4,
    "seed": 3,
    "token_list": list(TOKENS),
    "token_type": "char",
    "keep_nbest_models": 10,
    "log_interval": 2,
    "use_matplotlib": False,
    "use_tensorboard": False,
    "normalize": "utterance_mvn",
}


@dataclass(frozen=True)
class Corpus:
    """Kaldi-style files under `folder`, and the trainings on them."""

    folder: Path

    def command(
        self, output: Path, base: Mapping[str, Any] = CONFIG, **changes: Any
    ) -> list[str]:
        """The arguments of a training; the configuration is written beside `output`."""
        config = output.with_suffix(".yaml")
        output.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(changed(base, changes)))
        command = ["--config", str(config), "--output_dir", str(output)]
        for part in ("train", "valid"):
            for name, kind in (("speech", "sound"), ("text", "text")):
                file = "wav.scp" if kind == "sound" else "text"
                source = f"{self.folder / part / file},{name},{kind}"
                command += [f"--{part}_data_path_and_name_and_type", source]
            shape = self.folder / part / "speech_shape"
            command += [f"--{part}_shape_file", str(shape)]
        return command + ["--resume", "true"]


def write_corpus(folder: Path) -> Corpus:
    """Tones with a little noise: a letter is a pitch.

    The two longest utterances of each batch are equally long. ESPnet's features of an
    utterance depend on the longest one beside it, which is thus the same in a batch
    and in each half of it.
    """
    source = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("valid", VALID)):
        data = folder / part
        data.mkdir(parents=True)
        files: dict[str, list[str]] = {"wav.scp": [], "text": [], "speech_shape": []}
        for index in range(count):
            group, place = divmod(index, BATCH_SIZE)
            samples = 16000 - 1000 * group - (0, 0, 300, 700)[place]
            letters = "".join(source.choice(list("ABC"), 3))
            time = np.arange(samples)
            pitch = np.repeat([300.0 * ord(c) - 19000 for c in letters], 6000)[:samples]
            wave = 0.3 * np.sin(2 * np.pi * pitch * time / 16000)
            wave += 0.01 * source.standard_normal(samples)
            name = f"{part}-{index:02d}"
            soundfile.write(data / f"{name}.wav", wave, 16000)
            files["wav.scp"].append(f"{name} {data / name}.wav\n")
            files["text"].append(f"{name} {letters}\n")
            files["speech_shape"].append(f"{name} {samples}\n")
        for file, lines in files.items():
            (data / file).write_text("".join(lines))
    return Corpus(folder)


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit code (negative: the signal) and its output."""

    code: int
    output: str

    @property
    def sentence(self) -> str:
        """The one sentence of a refusal; anything else is a failure."""
        errors = [line for line in self.output.splitlines() if "error: " in line]
        assert self.code > 0, self.output
        assert "Traceback" not in self.output, self.output
        assert len(errors) == 1, self.output
        return errors[0]


@dataclass(frozen=True)
class Process:
    """A started training."""

    process: Any
    log: Path

    def wait(self, seconds: float = 240) -> Outcome:
        """Waits for the end."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds} s: {self.output}")
        return Outcome(self.process.exitcode, self.output)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()


def _context() -> Any:
    """Processes forked from a server that has imported everything, once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["espnet_omnisparse.bin.asr_train"])
    return context


def start(
    command: Sequence[str],
    log: Path,
    *,
    kill_at_update: int | None = None,
    kill_in_save: tuple[str, int] | None = None,
    print_draws: bool = False,
    one_backward: bool = False,
    spawn: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Starts a training in a process of its own.

    Args:
        command: The arguments of `asr_train`; with `-m` those of the launcher.
        log: File for its output.
        kill_at_update: Ends it by SIGKILL right after this update, mid-epoch.
        kill_in_save: A file's name and a number: ends it by SIGKILL when that file is
            half written for the time of this number.
        print_draws: Prints the subnets of each update, and what each epoch has made of
            the weights; see `draws` and `checksums`.
        one_backward: Leaves the gradients of all subnets to the trainer's backward.
        spawn: Trains in a spawned child, as multi-GPU training does.
        environment: Variables to set.
    """
    # for the server, and so for all processes: one thread each, as in a recipe
    os.environ["OMP_NUM_THREADS"] = "1"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    changes = []
    if kill_at_update is not None:
        changes.append((_kill_at_update, kill_at_update))
    if kill_in_save is not None:
        changes.append((_kill_in_save, *kill_in_save))
    if print_draws:
        changes += [(_print_draws,), (_print_checksums,)]
    if one_backward:
        changes.append((_keep_graphs,))
    process = _context().Process(
        target=_train, args=(list(command), log, changes, spawn, environment or {})
    )
    process.start()
    return Process(process, log)


def launch(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Runs the launcher as a user does, on this package."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "espnet_omnisparse.launch", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": "1",
        },
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def train(command: Sequence[str], log: Path, **options: Any) -> Outcome:
    """Runs a training in a process of its own, to its end."""
    return start(command, log, **options).wait()


def assert_goes_on(
    command: Sequence[str], exp: Path, update: int, expected: Path
) -> None:
    """A training killed after an update goes on as if nothing had been.

    Args:
        command: Of the training.
        exp: Its folder, which is not there yet.
        update: When it is killed.
        expected: The folder of the same training without an interruption.
    """
    log = exp.with_name("log")
    killed = train(command, log, kill_at_update=update)
    assert killed.code == -9, killed.output
    resumed = train(command, log)
    assert resumed.code == 0, resumed.output
    assert_same_training(exp, expected)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """A small corpus, written once for a file of tests."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def uninterrupted(request, corpus, tmp_path_factory) -> Path:
    """Experiment folder of the file's `TRAINING`, run from its beginning to its end."""
    exp = tmp_path_factory.mktemp("uninterrupted") / "exp"
    command = corpus.command(exp, **request.module.TRAINING)
    outcome = train(command, exp.with_name("log"))
    assert outcome.code == 0, outcome.output
    return exp


def two_processes(command: list[str], folder: Path) -> list[Outcome]:
    """Runs a training in two processes that share its batches, to their end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    workers = [
        start(
            command,
            folder / f"rank{rank}",
            print_draws=True,
            environment={
                "WORLD_SIZE": "2",
                "RANK": str(rank),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": port,
            },
        )
        for rank in (0, 1)
    ]
    outcomes = [worker.wait() for worker in workers]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    return outcomes


def _train(
    command: list[str],
    log: Path,
    changes: Sequence[tuple[Any, ...]],
    spawn: bool,
    environment: Mapping[str, str],
) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(environment)
    sys.argv = ["asr_train", *command]

    import torch

    from espnet_omnisparse import launch
    from espnet_omnisparse.bin import asr_train

    torch.set_num_threads(1)
    for change, *arguments in changes:
        change(*arguments)
    try:
        if spawn:
            _train_in_spawned_child(command)
        elif command[0] == "-m":
            launch.main(command)
        else:
            asr_train.main(command)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)


def _train_in_spawned_child(command: list[str]) -> None:
    from espnet2.train.distributed_utils import resolve_distributed_mode

    from espnet_omnisparse.tasks import OmniASRTask

    args = OmniASRTask.get_parser().parse_args(command)
    args.version = "spawned"
    resolve_distributed_mode(args)
    # as AbsTask.main starts its workers
    child = multiprocessing.get_context("spawn").Process(
        target=OmniASRTask.main_worker, args=(args,)
    )
    child.start()
    child.join()
    sys.exit(child.exitcode)


def _kill_at_update(update: int) -> None:
    from espnet_omnisparse.supernet.supernet import Supernet

    count = Supernet.count_update

    def count_update(supernet: Any) -> None:
        count(supernet)
        if supernet.update == update:
            os.kill(os.getpid(), signal.SIGKILL)

    Supernet.count_update = count_update


def _kill_in_save(name: str, time: int) -> None:
    import torch

    plain, seen = torch.save, 0

    def save(value: Any, target: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal seen
        if name in Path(target).name:
            seen += 1
        if seen < time:
            return plain(value, target, *args, **kwargs)
        whole = io.BytesIO()
        plain(value, whole, *args, **kwargs)
        with open(target, "wb") as stream:
            stream.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save


def _print_draws() -> None:
    from espnet_omnisparse.supernet.supernet import Supernet

    plain = Supernet.sample_subnets

    def sample_subnets(supernet: Any) -> list[Any]:
        draws = plain(supernet)
        kept = [[gate is not None for gate in draw.gates] for draw in draws]
        names = [draw.size for draw in draws]
        sparsity = [draw.sparsity for draw in draws]
        chunks = [draw.chunk for draw in draws]
        print(_DRAWS, supernet.update, names, kept, sparsity, chunks, flush=True)
        return draws

    Supernet.sample_subnets = sample_subnets


def _print_checksums() -> None:
    from espnet_omnisparse.train.trainer import OmniTrainer

    plain = OmniTrainer.train_one_epoch

    def train_one_epoch(*, model: Any, **others: Any) -> bool:
        invalid = plain(model=model, **others)
        state = getattr(model, "module", model).state_dict()
        values = b"".join(tensor.numpy().tobytes() for tensor in state.values())
        print(_CHECKSUM, hashlib.sha256(values).hexdigest(), flush=True)
        return invalid

    OmniTrainer.train_one_epoch = train_one_epoch


def _keep_graphs() -> None:
    from espnet_omnisparse.train import update

    update.in_float16 = lambda _: True


_DRAWS = "drawn subnets:"
_CHECKSUM = "checksum of all weights:"


def draws(output: str) -> list[str]:
    """What `print_draws` printed: a line per update."""
    return [line for line in output.splitlines() if line.startswith(_DRAWS)]


def checksums(output: str) -> list[str]:
    """What `print_draws` printed: a line per epoch."""
    return [line for line in output.splitlines() if line.startswith(_CHECKSUM)]


def files_below(folder: Path) -> list[str]:
    """Every file and folder below a folder, to see that nothing was written."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
