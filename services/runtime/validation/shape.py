"""Rules about structure: list sizes, elements, nested messages, oneofs, and rules of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from services.runtime.errors import Violation
from services.runtime.validation.rule import (
    Check,
    Rule,
    bind_all,
    check_all,
    field_of,
    is_map,
    join,
    presence,
)


def items(field: str, *, max_items: int, min_items: int = 0) -> Rule:
    """A repeated or map field of bounded length; an empty one breaks a `min_items` of 1."""

    def bind(descriptor: Descriptor) -> Check:
        _repeated(descriptor, field)

        def run(message: Message, path: str) -> Iterable[Violation]:
            count = len(getattr(message, field))
            if count > max_items:
                return (_size(path, f"must have at most {max_items} items, has {count}"),)
            if count < min_items:
                return (_size(path, f"must have at least {min_items} items, has {count}"),)
            return ()

        return run

    def _size(path: str, wrong: str) -> Violation:
        return Violation(join(path, field), wrong)

    return Rule(bind=bind)


def each(field: str, *rules: Rule) -> Rule:
    """Every element (every value of a map) satisfies the rules.

    Elements that are messages take rules about their fields; scalar elements take rules declared
    without a field name: `each("connection_ids", uuid())`.
    """

    def bind(descriptor: Descriptor) -> Check:
        repeated = _repeated(descriptor, field)
        checks = _element_checks(repeated, rules)
        elements = _map_elements if is_map(repeated) else _list_elements

        def run(message: Message, path: str) -> Iterable[Violation]:
            value = getattr(message, field)
            if not value:
                return ()
            where = join(path, field)
            return [
                violation
                for key, element in elements(value)
                for violation in check_all(checks, element, f"{where}[{key}]")
            ]

        return run

    return Rule(bind=bind)


def keys(field: str, *rules: Rule) -> Rule:
    """Every key of a map satisfies the rules, which are declared without a field name."""

    def bind(descriptor: Descriptor) -> Check:
        found = field_of(descriptor, field)
        if not is_map(found):
            raise ValueError(f"{descriptor.full_name}.{field} is not a map")
        checks = _scalar_checks(found, rules)

        def run(message: Message, path: str) -> Iterable[Violation]:
            where = join(path, field)
            return [
                violation
                for key in sorted(getattr(message, field))
                for violation in check_all(checks, key, f"{where}[{key!r}]")
            ]

        return run

    return Rule(bind=bind)


def nested(field: str, *rules: Rule) -> Rule:
    """The sub-message, when present, satisfies the rules."""

    def bind(descriptor: Descriptor) -> Check:
        inner = field_of(descriptor, field)
        if inner.message_type is None or inner.is_repeated:
            raise ValueError(f"{descriptor.full_name}.{field} is not a single message")
        checks, is_present = bind_all(inner.message_type, rules), presence(inner)

        def run(message: Message, path: str) -> Iterable[Violation]:
            if not is_present(message):
                return ()
            return check_all(checks, getattr(message, field), join(path, field))

        return run

    return Rule(bind=bind)


def one_of_set(oneof: str) -> Rule:
    """Exactly one member of the oneof is sent."""

    def bind(descriptor: Descriptor) -> Check:
        if oneof not in descriptor.oneofs_by_name:
            raise ValueError(f"{descriptor.full_name} has no oneof {oneof!r}, but a rule names it")
        members = ", ".join(each.name for each in descriptor.oneofs_by_name[oneof].fields)

        def run(message: Message, path: str) -> Iterable[Violation]:
            if message.WhichOneof(oneof) is not None:
                return ()
            return (Violation(join(path, oneof), f"one of {members} is required"),)

        return run

    return Rule(bind=bind)


def custom(check: Callable[[Any], Iterable[Violation]]) -> Rule:
    """A rule of one's own over the whole message; its violations' paths are relative to it."""

    def run(message: Message, path: str) -> Iterable[Violation]:
        return [Violation(join(path, each.field), each.description) for each in check(message)]

    return Rule(bind=lambda descriptor: run)


def _map_elements(value: Any) -> Iterable[tuple[str, Any]]:
    return [(repr(key), value[key]) for key in sorted(value)]


def _list_elements(value: Any) -> Iterable[tuple[int, Any]]:
    return enumerate(value)


def _repeated(descriptor: Descriptor, field: str) -> FieldDescriptor:
    found = field_of(descriptor, field)
    if not found.is_repeated:
        raise ValueError(f"{descriptor.full_name}.{field} is not repeated")
    return found


def _element_checks(field: FieldDescriptor, rules: tuple[Rule, ...]) -> tuple[Check, ...]:
    kind = field.message_type
    if kind is not None and is_map(field):
        kind = kind.fields_by_name["value"].message_type
    if kind is None:
        return _scalar_checks(field, rules)
    return tuple(rule.bind(kind) for rule in rules)


def _scalar_checks(field: FieldDescriptor, rules: tuple[Rule, ...]) -> tuple[Check, ...]:
    if not all(rule.of_element for rule in rules):
        raise ValueError(f"{field.full_name} has scalar elements: give the rules no field names")
    # Rules about a value itself ask nothing of the message it is in.
    within = cast(Descriptor, field.containing_type)
    return tuple(rule.bind(within) for rule in rules)
