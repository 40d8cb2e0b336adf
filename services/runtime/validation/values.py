"""Rules about one scalar: present, a UUID, a text, a number, an enum value, a page."""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from services.runtime.errors import Violation
from services.runtime.validation.rule import (
    Check,
    Rule,
    field_of,
    join,
    presence,
    value_rule,
)

#: A page never holds more items than this, so that one answer stays well under 4 MiB.
PAGE_SIZE_MAX = 1000
#: Page tokens are opaque and short; a longer one was not made by us.
PAGE_TOKEN_LENGTH_MAX = 4096
# A third of what making a UUID and its text takes.
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def required(field: str) -> Rule:
    """The field must be sent; empty strings, zeros without `optional` and empty lists are not."""

    def bind(descriptor: Descriptor) -> Check:
        is_present = presence(field_of(descriptor, field))

        def run(message: Message, path: str) -> Iterable[Violation]:
            # An `optional string` sent empty names nothing, whatever presence says.
            if is_present(message) and getattr(message, field) not in ("", b""):
                return ()
            return (Violation(join(path, field), "is required"),)

        return run

    return Rule(bind=bind)


def uuid(field: str = "") -> Rule:
    """A UUID in its canonical form: lower case, with hyphens.

    Other spellings are refused, not normalised: ids are compared as texts by clients and logs.
    """

    def check(value: str) -> str | None:
        canonical = _UUID.fullmatch(value) is not None
        return None if canonical else "must be a UUID in lower case with hyphens"

    return value_rule(field, check)


def text(
    field: str = "",
    *,
    max_length: int,
    pattern: str | None = None,
    says: str = "",
    min_length: int = 0,
) -> Rule:
    """A text of bounded length (characters) that matches `pattern` as a whole; `says` is what
    people are told instead of the pattern."""
    compiled = re.compile(pattern) if pattern is not None else None

    def check(value: str) -> str | None:
        if len(value) > max_length:
            return f"must be at most {max_length} characters long, it has {len(value)}"
        if len(value) < min_length:
            return f"must be at least {min_length} characters long, it has {len(value)}"
        # PostgreSQL's text cannot hold NUL: without this the INSERT fails as INTERNAL.
        if "\x00" in value:
            return "must not contain a NUL character"
        if compiled is not None and compiled.fullmatch(value) is None:
            return says or f"must match {pattern}"
        return None

    return value_rule(field, check)


def blob(field: str = "", *, max_bytes: int, min_bytes: int = 0) -> Rule:
    """A `bytes` value of bounded size."""

    def check(value: bytes) -> str | None:
        if not min_bytes <= len(value) <= max_bytes:
            return f"must be {min_bytes} to {max_bytes} bytes long, it has {len(value)}"
        return None

    return value_rule(field, check)


def integer(field: str = "", min: int | None = None, max: int | None = None) -> Rule:
    """A number within both bounds, inclusive."""

    def check(value: int) -> str | None:
        if min is not None and value < min:
            return f"must be at least {min}"
        if max is not None and value > max:
            return f"must be at most {max}"
        return None

    return value_rule(field, check)


def enum_set(field: str) -> Rule:
    """The enum must be sent with a value this server knows; `optional` makes absence right."""
    return _enum_rule(field, zero_is_absent=False)


def enum_known(field: str) -> Rule:
    """The enum, when sent, must be a value this server knows; works on repeated enums too."""
    return _enum_rule(field, zero_is_absent=True)


def _enum_rule(field: str, *, zero_is_absent: bool) -> Rule:
    def bind(descriptor: Descriptor) -> Check:
        found = field_of(descriptor, field)
        if found.enum_type is None:
            raise ValueError(f"{descriptor.full_name}.{field} is not an enum")

        def run(message: Message, path: str) -> Iterable[Violation]:
            for where, number in _enum_values(message, found):
                wrong = _wrong_enum(found, number, zero_is_absent)
                if wrong is not None:
                    yield Violation(join(path, where), wrong)

        return run

    return Rule(bind=bind)


def _enum_values(message: Message, field: FieldDescriptor) -> Iterable[tuple[str, int]]:
    if field.is_repeated:
        for index, number in enumerate(getattr(message, field.name)):
            yield f"{field.name}[{index}]", number
    elif not field.has_presence or message.HasField(field.name):
        yield field.name, getattr(message, field.name)


def _wrong_enum(field: FieldDescriptor, number: int, zero_is_absent: bool) -> str | None:
    if number == 0 and zero_is_absent and not field.is_repeated:
        return None
    if number == 0:
        return "must be set"
    kind = field.enum_type
    known = kind is not None and number in kind.values_by_number
    return None if known else f"{number} is not a value this server knows"


def page() -> tuple[Rule, Rule]:
    """The two fields of every list request; unpack it: `(*page(), ...)`.

    A page_size over the limit is refused rather than cut, so that no client believes it has seen
    everything it asked for.
    """
    return (
        integer("page_size", min=0, max=PAGE_SIZE_MAX),
        text("page_token", max_length=PAGE_TOKEN_LENGTH_MAX),
    )
