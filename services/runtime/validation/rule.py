"""What a validation rule is, and how a message type's rules are run and verified."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from services.runtime.errors import Violation, invalid

#: Says what is wrong with one present value, or None when nothing is.
ValueCheck = Callable[[Any], str | None]
#: Yields the violations of one message or element, whose own path is the second argument.
Check = Callable[[Any, str], Iterator[Violation]]
#: Raises ValueError when the rule cannot apply to messages of this type.
TypeCheck = Callable[[Descriptor], None]


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing a message must satisfy.

    A rule declared without a field name is `of_element`: it is about the value handed to it, and
    belongs inside `each` and `keys`.
    """

    check: Check
    verify: TypeCheck
    of_element: bool = False


#: The rules of a service, keyed by request type.
RuleTable = Mapping[type[Message], tuple[Rule, ...]]


class RuleSet:
    """A service's rules, verified once against the message types they are declared for."""

    def __init__(self, table: RuleTable) -> None:
        """Raises ValueError for a rule that names a field its message does not have."""
        self._table = dict(table)
        for message_type, rules in self._table.items():
            verify_all(cast(Descriptor, message_type.DESCRIPTOR), rules)

    def violations(self, message: Message) -> list[Violation]:
        """Everything wrong with `message`; a type without rules is always right."""
        rules = self._table.get(type(message), ())
        return [violation for rule in rules for violation in rule.check(message, "")]

    def check(self, message: Message) -> None:
        """Raises INVALID_ARGUMENT listing every violation at once."""
        found = self.violations(message)
        if found:
            raise invalid(*found)


def join(path: str, field: str) -> str:
    """The path of a field inside the message at `path`."""
    return f"{path}.{field}" if path and field else path or field


def field_of(descriptor: Descriptor, field: str) -> FieldDescriptor:
    """The field's descriptor; ValueError when the message has none of that name."""
    found = descriptor.fields_by_name.get(field)
    if found is None:
        raise ValueError(f"{descriptor.full_name} has no field {field!r}, but a rule names it")
    return found


def sent_field(message: Message, field: str) -> FieldDescriptor:
    """The descriptor of a field that `verify` has proved to exist."""
    return field_of(cast(Descriptor, message.DESCRIPTOR), field)


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field is declared as map<key, value>."""
    kind = field.message_type
    return kind is not None and kind.GetOptions().map_entry


def is_present(message: Message, field: FieldDescriptor) -> bool:
    """Whether the field was sent; without presence tracking, whether it differs from its zero."""
    if field.is_repeated:
        return len(getattr(message, field.name)) > 0
    if field.has_presence:
        return message.HasField(field.name)
    return bool(getattr(message, field.name) != field.default_value)


def verify_all(descriptor: Descriptor, rules: tuple[Rule, ...]) -> None:
    """Raises ValueError unless every rule is about a field of this message type."""
    for rule in rules:
        if rule.of_element:
            raise ValueError(f"a rule of {descriptor.full_name} names no field; only each() may")
        rule.verify(descriptor)


def value_rule(field: str, check: ValueCheck) -> Rule:
    """A rule about one singular value that passes when the field is absent."""

    def run_element(value: Any, path: str) -> Iterator[Violation]:
        wrong = check(value)
        if wrong is not None:
            yield Violation(path, wrong)

    def run(message: Message, path: str) -> Iterator[Violation]:
        if is_present(message, sent_field(message, field)):
            yield from run_element(getattr(message, field), join(path, field))

    def verify(descriptor: Descriptor) -> None:
        if field and field_of(descriptor, field).is_repeated:
            raise ValueError(f"{descriptor.full_name}.{field} is repeated: wrap the rule in each()")

    if field == "":
        return Rule(check=run_element, verify=verify, of_element=True)
    return Rule(check=run, verify=verify)
