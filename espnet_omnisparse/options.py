"""Sections of a configuration as checked values: pydantic models, one per section.

A section is read from YAML, each mistake in it told in one sentence that names the
key, and written to the options page as a table, so that both say the same.
"""

import inspect
import logging
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field

from espnet_omnisparse.errors import UserError, check_keys


def _number(value: Any) -> Any:
    # to Python, and to pydantic, true is an int as well
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    return value


def _length(value: Any) -> Any:
    _number(value)
    if value < 0 or (isinstance(value, float) and not value <= 1.0):
        raise ValueError("no length")
    return value


Number = Annotated[float, BeforeValidator(_number)]
Count = Annotated[int, Field(ge=1, strict=True)]
#: Updates (an int), or a fraction of the run (a float).
Length = Annotated[int | float, BeforeValidator(_length)]
#: What a supernet's checkpoints are chosen by, as `best_model_criterion` has it.
CRITERION = ["valid", "loss_sizes", "min"]
_BOUNDS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
_LENGTH = "a number of updates, or a fraction of the run between 0.0 and 1.0"


def option(default: Any, meaning: str, must_be: str = "", **bounds: Any) -> Any:
    """A field of a section.

    Args:
        default: Its default.
        meaning: For the options page.
        must_be: What its value must be, for the sentence about a wrong one; empty:
            told by its type.
        bounds: As of `pydantic.Field`: `ge`, `gt`, `le`, `lt`.
    """
    extra = {"must_be": must_be}
    return Field(default, description=meaning, json_schema_extra=extra, **bounds)


class Section(pydantic.BaseModel):
    """One section of a configuration; a subclass declares its options as fields.

    >>> class Masks(Section):
    ...     name: ClassVar[str] = "supernet.masks"
    ...     final: Number = option(0.9, "of all weights", ge=0, lt=1)
    >>> Masks.read({"final": 0.5}).final
    0.5
    >>> Masks.read({"final": 1.5})
    Traceback (most recent call last):
    espnet_omnisparse.errors.UserError: supernet.masks.final must be a number of \
at least 0 and below 1, not 1.5.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    #: What messages call the section.
    name: ClassVar[str]
    #: Keys of earlier versions -> their present names; they are still read.
    renamed: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def read(cls, section: Any, name: str = "") -> Self:
        """Makes the value of a YAML section.

        Args:
            section: The mapping; `None`: nothing is given.
            name: What messages call it; empty: as all of its kind.

        Raises:
            UserError: If it is no mapping, a key is unknown or lacking, or a value is
                impossible.
        """
        name = name or cls.name
        if section is None:
            section = {}
        if not isinstance(section, Mapping):
            raise UserError(f"{name} must be a section of options: {section!r}.")
        values = dict(section)
        for old, new in cls.renamed.items():
            if old in values and new in values:
                raise UserError(
                    f"{name} has both {old} and {new}, which is its present name: "
                    f"remove {old}."
                )
            if old in values:
                logging.warning("%s.%s is called %s now.", name, old, new)
                values[new] = values.pop(old)
        check_keys(name, values, list(cls.model_fields))
        try:
            return cls(**values)
        except pydantic.ValidationError as error:
            raise UserError(cls._sentence(name, error.errors()[0])) from None

    @classmethod
    def _sentence(cls, name: str, error: Mapping[str, Any]) -> str:
        key = str(error["loc"][0])
        if error["type"] == "missing" and len(error["loc"]) == 1:
            return f"{name} has no {key}: add it."
        field = cls.model_fields[key]
        given, hint = repr(error["input"]), ""
        is_text = isinstance(error["input"], str) and len(error["loc"]) == 1
        if is_text and {int, float} & {*_kinds(field.annotation)}:
            # YAML reads 1e-3, without a point, as text
            hint = " (write powers of ten as 1.0e-3)" if "e" in given.lower() else ""
            given = f"the text {given}"
        return f"{name}.{key} must be {cls.must_be(key)}, not {given}{hint}."

    @classmethod
    def must_be(cls, key: str) -> str:
        """What the value of an option must be, in words."""
        field = cls.model_fields[key]
        stated = (field.json_schema_extra or {}).get("must_be", "")
        if stated:
            return stated
        kinds = _kinds(field.annotation)
        if int in kinds and float in kinds:
            return _LENGTH
        choices = _choices(field.annotation)
        if choices:
            return "one of " + ", ".join(str(choice) for choice in choices)
        if field.annotation is str:
            return "a text"
        names = {bool: "true or false", int: "a whole number", float: "a number"}
        words = next((names[kind] for kind in kinds if kind in names), "")
        bounds = [
            f"{text} {getattr(item, bound)}"
            for item in field.metadata
            for bound, text in _BOUNDS.items()
            if hasattr(item, bound)
        ]
        if bounds:
            return f"{words} {' and '.join(bounds)}"
        return words or "a section of options"

    @classmethod
    def as_table(cls) -> list[str]:
        """The lines of the options page's table of this section."""
        lines = ["| option | default | meaning |", "|---|---|---|"]
        for key, field in cls.model_fields.items():
            meaning = inspect.cleandoc(field.description or "").replace("\n", " ")
            default = "needed" if field.is_required() else _shown(field.default)
            lines.append(f"| `{key}` | {default} | {meaning} |")
        return lines


def supernet_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The supernet's options in a configuration; empty where absent or null.

    `--print_config` writes the section as null where every option has its default.
    """
    return (config.get("model_conf") or {}).get("supernet") or {}


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The plain types that an annotation is made of."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        parts = parts[:1]
    return (annotation, *(kind for part in parts for kind in _kinds(part)))


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    found = [_choices(part) for part in get_args(annotation)]
    return tuple(choice for part in found for choice in part)


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if default in ((), {}, ""):
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{default}`" if isinstance(default, str) else str(default)
