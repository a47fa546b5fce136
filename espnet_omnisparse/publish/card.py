"""A repository's model card: what the model is, costs and recognises, and its family.

Nothing in it is typed: every number is one that extraction, scoring or timing has left.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from huggingface_hub import ModelCardData

from espnet_omnisparse.core.layout import has_ctc_alone
from espnet_omnisparse.cost.metrics import METRICS
from espnet_omnisparse.extract.experiment import read_config
from espnet_omnisparse.extract.forms import FORMS
from espnet_omnisparse.publish.plan import Member
from espnet_omnisparse.report.tables import Table

_COSTS = [
    METRICS[name] for name in ("params", "nonzero", "macs_10s", "bytes", "file", "rtf")
]
_NONE = "–"


@dataclass(frozen=True)
class About:
    """What no file of an experiment tells.

    Attributes:
        licence: An identifier of the Hub's, such as `cc-by-4.0`.
        language: Its code.
        data: What was trained on, in words.
    """

    licence: str | None = None
    language: str | None = None
    data: str | None = None


def card(member: Member, members: Sequence[Member], about: About) -> str:
    """The text of README.md.

    Args:
        member: The repository.
        members: All of the family.
        about: What no file tells.
    """
    data = ModelCardData(
        language=about.language,
        license=about.licence,
        library_name="espnet",
        pipeline_tag="automatic-speech-recognition",
        tags=["espnet", "omnisparse", "automatic-speech-recognition"],
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_lines(member, members, about))


def _lines(member: Member, members: Sequence[Member], about: About) -> Iterator[str]:
    yield f"# {member.repo.split('/')[1]}\n"
    yield from _introduction(member, members)
    yield "## The family\n"
    yield "One training gave all of these sizes.\n"
    yield from _table(member, members).markdown()
    yield ""
    yield from _definitions(members)
    if member.size is not None:
        yield from _scores(member)
    yield "## Use\n"
    yield from _use(member)
    yield "\n## Data\n"
    yield f"{about.data or 'Not stated.'}\n"
    yield "## Licence\n"
    yield f"{about.licence or 'Not stated: ask before you use it.'}\n"


def _introduction(member: Member, members: Sequence[Member]) -> Iterator[str]:
    if member.size is None:
        yield (
            "A supernet of speech recognisers, trained with "
            "[ESPnet](https://github.com/espnet/espnet) and espnet-omnisparse: sizes "
            "are cut out of it, and it serves to cut out others. To recognise speech, "
            "take one of the sizes below.\n"
        )
        return
    size, whole = member.size, members[-1]
    how = "also recognises speech while it arrives" if member.streams else ""
    yield (
        f"A speech recogniser for [ESPnet](https://github.com/espnet/espnet): the size "
        f"`{size.size}` of the supernet [{whole.repo}](https://huggingface.co/"
        f"{whole.repo}). It keeps {size.kept} of {size.of} units, and "
        f"{100 * size.zeros:.1f} % of its parameters are zero."
        + (f" It {how}." if how else "")
        + "\n"
    )


def _table(member: Member, members: Sequence[Member]) -> Table:
    names = list(dict.fromkeys(n for m in members if m.size for n in m.size.wer))
    table = Table(
        ["model", *(m.heading for m in _COSTS), *(f"WER {name} (%)" for name in names)]
    )
    for one in members:
        if one.size is None:
            continue
        link = f"[{one.repo.split('/')[1]}](https://huggingface.co/{one.repo})"
        costs = [one.size.value(metric) for metric in _COSTS]
        shown = [
            _NONE if cost is None else metric.shown(cost)
            for metric, cost in zip(_COSTS, costs, strict=True)
        ]
        found = [one.size.wer.get(name) for name in names]
        errors = [_NONE if score is None else str(score.err) for score in found]
        table.rows.append([f"**{link}**" if one is member else link, *shown, *errors])
    return table


def _definitions(members: Sequence[Member]) -> Iterator[str]:
    yield (
        "MACs are multiply-accumulates for 10 s of audio; *packed* is the model with "
        "masked weights stored by their blocks; WER is that of the named test set."
    )
    timing = next((one.timing for one in members if one.timing), None)
    if timing is None:
        yield "RTF: not measured.\n"
        return
    stated = ", ".join(f"{name} {value}" for name, value in timing.environment.items())
    yield (
        "RTF is computing time per second of audio (10 s, batch 1, 1 thread, PyTorch, "
        f"median of {timing.rounds} rounds) with {stated}.\n"
    )


def _scores(member: Member) -> Iterator[str]:
    yield "## Word errors\n"
    if not member.size.wer:
        yield "Not scored.\n"
        return
    table = Table(["test set", "utterances", "words", "Sub", "Del", "Ins", "WER (%)"])
    for name, score in member.size.wer.items():
        values = (score.sentences, score.words, score.sub, score.del_, score.ins)
        table.rows.append([name, *map(str, values), str(score.err)])
    yield from (*table.markdown(), "")


def _use(member: Member) -> Iterator[str]:
    home = f"exp/{member.folder.name}"
    yield "```sh"
    yield "pip install espnet-omnisparse"
    yield f"hf download {member.repo} --local-dir my-model"
    if member.size is None:
        checkpoint = f" --checkpoint {member.model.name}"
        yield f"cd my-model && omnisparse profile {home}{checkpoint}"
    else:
        yield f"omnisparse transcribe my-model/{home} recording.wav"
        if member.streams:
            yield f"omnisparse stream recording.wav --model my-model/{home}"
    for name in member.exports:
        if name.endswith(".omni"):
            yield f"omnisparse transcribe my-model/{name} recording.wav  # no PyTorch"
    yield "```"
    if member.size is None or member.size.form not in FORMS:
        return
    yield "\nIn Python, by ESPnet:\n\n```python"
    if member.size.form == "slim":
        yield "import espnet_omnisparse.tasks"
    yield "from espnet2.bin.asr_inference import Speech2Text\n"
    alone = has_ctc_alone(read_config(member.folder))
    weight = ", ctc_weight=1.0" if alone else ""  # ESPnet's default needs a decoder
    yield f'recognise = Speech2Text.from_pretrained("{member.repo}"{weight})'
    yield "text, *_ = recognise(samples)[0]"
    yield "```"
    others = [name for name in member.exports if not name.endswith(".omni")]
    if others:
        yield f"\nFor ONNX run times: `{'`, `'.join(others)}`."
