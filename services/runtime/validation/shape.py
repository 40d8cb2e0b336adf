"""Rules about structure: list sizes, elements, nested messages, oneofs, and rules of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from services.runtime.errors import Violation
from services.runtime.validation.rule import (
    Rule,
    field_of,
    is_map,
    is_present,
    join,
    sent_field,
    verify_all,
)


def items(field: str, *, max_items: int, min_items: int = 0) -> Rule:
    """A repeated or map field of bounded length; an empty one breaks a `min_items` of 1."""

    def run(message: Message, path: str) -> Iterator[Violation]:
        count = len(getattr(message, field))
        if count > max_items:
            yield Violation(join(path, field), f"must have at most {max_items} items, has {count}")
        if count < min_items:
            yield Violation(join(path, field), f"must have at least {min_items} items, has {count}")

    return Rule(check=run, verify=_must_repeat(field))


def each(field: str, *rules: Rule) -> Rule:
    """Every element (every value of a map) satisfies the rules.

    Elements that are messages take rules about their fields; scalar elements take rules declared
    without a field name: `each("connection_ids", uuid())`.
    """

    def run(message: Message, path: str) -> Iterator[Violation]:
        descriptor = sent_field(message, field)
        for key, element in _elements(message, descriptor):
            where = f"{join(path, field)}[{key}]"
            for rule in rules:
                yield from rule.check(element, where)

    def verify(descriptor: Descriptor) -> None:
        _must_repeat(field)(descriptor)
        _verify_element(field_of(descriptor, field), rules)

    return Rule(check=run, verify=verify)


def keys(field: str, *rules: Rule) -> Rule:
    """Every key of a map satisfies the rules, which are declared without a field name."""

    def run(message: Message, path: str) -> Iterator[Violation]:
        for key in sorted(getattr(message, field)):
            for rule in rules:
                yield from rule.check(key, f"{join(path, field)}[{key!r}]")

    def verify(descriptor: Descriptor) -> None:
        if not is_map(field_of(descriptor, field)):
            raise ValueError(f"{descriptor.full_name}.{field} is not a map")
        _verify_scalar(f"{descriptor.full_name}.{field}", rules)

    return Rule(check=run, verify=verify)


def nested(field: str, *rules: Rule) -> Rule:
    """The sub-message, when present, satisfies the rules."""

    def run(message: Message, path: str) -> Iterator[Violation]:
        if is_present(message, sent_field(message, field)):
            for rule in rules:
                yield from rule.check(getattr(message, field), join(path, field))

    def verify(descriptor: Descriptor) -> None:
        inner = field_of(descriptor, field)
        if inner.message_type is None or inner.is_repeated:
            raise ValueError(f"{descriptor.full_name}.{field} is not a single message")
        verify_all(inner.message_type, rules)

    return Rule(check=run, verify=verify)


def one_of_set(oneof: str) -> Rule:
    """Exactly one member of the oneof is sent."""

    def run(message: Message, path: str) -> Iterator[Violation]:
        if message.WhichOneof(oneof) is None:
            members = ", ".join(
                member.name for member in message.DESCRIPTOR.oneofs_by_name[oneof].fields
            )
            yield Violation(join(path, oneof), f"one of {members} is required")

    def verify(descriptor: Descriptor) -> None:
        if oneof not in descriptor.oneofs_by_name:
            raise ValueError(f"{descriptor.full_name} has no oneof {oneof!r}, but a rule names it")

    return Rule(check=run, verify=verify)


def custom(check: Callable[[Any], Iterable[Violation]]) -> Rule:
    """A rule of one's own over the whole message; its violations' paths are relative to it."""

    def run(message: Message, path: str) -> Iterator[Violation]:
        for violation in check(message):
            yield Violation(join(path, violation.field), violation.description)

    return Rule(check=run, verify=lambda descriptor: None)


def _elements(message: Message, field: FieldDescriptor) -> Iterator[tuple[str, Any]]:
    value = getattr(message, field.name)
    if is_map(field):
        for key in sorted(value):
            yield repr(key), value[key]
    else:
        for index, element in enumerate(value):
            yield str(index), element


def _must_repeat(field: str) -> Callable[[Descriptor], None]:
    def verify(descriptor: Descriptor) -> None:
        if not field_of(descriptor, field).is_repeated:
            raise ValueError(f"{descriptor.full_name}.{field} is not repeated")

    return verify


def _verify_element(field: FieldDescriptor, rules: tuple[Rule, ...]) -> None:
    kind = field.message_type
    if kind is not None and is_map(field):
        kind = kind.fields_by_name["value"].message_type
    if kind is None:
        _verify_scalar(field.full_name, rules)
        return
    for rule in rules:
        rule.verify(kind)


def _verify_scalar(field: str, rules: tuple[Rule, ...]) -> None:
    if not all(rule.of_element for rule in rules):
        raise ValueError(f"{field} has scalar elements: give the rules no field names")
