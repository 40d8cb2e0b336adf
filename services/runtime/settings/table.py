"""Prints the table of a process's variables, so that the documentation cannot drift."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from services.runtime.settings.field import is_own, variables_of
from services.runtime.settings.groups import ServiceSettings


def settings_table(cls: type[ServiceSettings]) -> str:
    """A Markdown table of every variable of `cls`, its own settings first."""
    lines = ["| Variable | Default | Meaning |", "|---|---|---|", *_rows(cls)]
    return "\n".join(lines) + "\n"


def _rows(cls: type[ServiceSettings]) -> Iterator[str]:
    fields = sorted(cls.model_fields.items(), key=lambda item: (not is_own(item[1]), item[0]))
    for name, field in fields:
        named = " or ".join(f"`{each}`" for each in variables_of(name, field, cls.service))
        yield f"| {named} | {_default(field)} | {_meaning(field)} |"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return "" if field.default is None else f"`{field.default}`"


def _meaning(field: FieldInfo) -> str:
    text = (field.description or "").replace("|", "\\|")
    choices = getattr(field.annotation, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        text += " One of " + ", ".join(f"`{choice}`" for choice in choices) + "."
    return text
