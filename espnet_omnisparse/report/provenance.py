"""The commands that trained, extracted, decoded and scored what a report tells of."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_omnisparse.core.spec import REPAIRED
from espnet_omnisparse.core.spec_yaml import read_spec
from espnet_omnisparse.extract.experiment import SPEC
from espnet_omnisparse.files import read_yaml
from espnet_omnisparse.report.results import Series, SizeResult
from espnet_omnisparse.train.journal import SUBNETS, read_specs


def commands(asr_exp: Path, command: str, series: Sequence[Series]) -> Iterator[str]:
    """The commands behind each number of a report, a remark above each.

    Args:
        asr_exp: The supernet's experiment folder.
        command: The one that made the report.
        series: The sizes in it.
    """
    yield f"# this report\n{command}"
    trained = set()
    for one in series:
        for size in one.sizes:
            origin = read_yaml(size.folder / "origin.yaml")
            source = Path(origin["supernet"])
            if source not in trained:
                yield from _asr_sh_command(f"training {source}", source / "run.sh")
                trained.add(source)
            if size.repair_updates:
                base = size.folder.name.removesuffix(REPAIRED)
                script = size.folder.with_name(f"{base}_repair") / "run.sh"
                yield from _asr_sh_command(f"{one.name}, {size.label}: repair", script)
            else:
                yield f"# {one.name}, {size.label}: extraction"
                yield _extraction_command(size, origin, asr_exp)
            for tag in sorted({name.split("/")[0] for name in size.wer}):
                script = size.folder / tag / "run.sh"
                yield from _asr_sh_command("decoding and scoring", script)


def _extraction_command(
    size: SizeResult, origin: Mapping[str, Any], asr_exp: Path
) -> str:
    source = Path(origin["supernet"])
    command = (
        f"omnisparse extract {source} --checkpoint {origin['checkpoint']} "
        f"--sizes {size.size} --calibration {origin['calibration']}"
    )
    if size.folder.name.endswith("_stock"):
        command += " --stock"
    spec = read_spec(size.folder / SPEC)
    if read_specs(source / SUBNETS).get(size.size) == spec:
        return command
    if read_specs(asr_exp / SUBNETS).get(size.size) == spec:
        return f"{command} --subnets {asr_exp / SUBNETS}"
    return f"{command}  # with the spec in {size.folder / SPEC}"


def _asr_sh_command(title: str, script: Path) -> Iterator[str]:
    if script.is_file():  # asr.sh leaves its command line there
        command = script.read_text(encoding="utf-8").strip()
        yield f"# {title}\n{command.removesuffix('"$@"; exit $?').strip()}"
