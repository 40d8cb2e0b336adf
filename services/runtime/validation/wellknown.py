"""Rules about well-known messages: times, durations, amounts, masks and free-form JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from services.runtime.errors import Violation
from services.runtime.jsonvalues import JSON_DEPTH_MAX
from services.runtime.validation.rule import (
    Check,
    Rule,
    field_of,
    join,
    presence,
    value_rule,
)

_ASSET = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,31}")
_DECIMAL = re.compile(r"-?[0-9]{1,38}(\.[0-9]{1,38})?")

#: google.protobuf.Timestamp covers year 1 to 9999, in whole seconds from the epoch.
_TIMESTAMP_SECONDS_MIN, _TIMESTAMP_SECONDS_MAX = -62_135_596_800, 253_402_300_799
_UNSTORABLE = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
#: google.protobuf.Duration covers about 10,000 years either way.
_DURATION_SECONDS_MAX = 315_576_000_000
_NANOS_MAX = 999_999_999


def timestamp(
    field: str = "",
    *,
    min: datetime | None = None,
    max: datetime | None = None,
    stored: bool = True,
) -> Rule:
    """A valid Timestamp within both bounds (aware datetimes), inclusive.

    The first and the last microsecond there are must not be `stored`: asyncpg writes them as
    PostgreSQL's infinities and gives those back without a zone, so nobody could read the row. As
    a bound of a search they mean what they say.
    """
    lowest = min.astimezone(UTC) if min is not None else None
    highest = max.astimezone(UTC) if max is not None else None

    def check(value: Any) -> str | None:
        if not (
            _TIMESTAMP_SECONDS_MIN <= value.seconds <= _TIMESTAMP_SECONDS_MAX
            and 0 <= value.nanos <= _NANOS_MAX
        ):
            return "is not a valid timestamp (years 1 to 9999, nanos 0 to 999,999,999)"
        moment = value.ToDatetime(tzinfo=UTC)
        if stored and moment in _UNSTORABLE:
            return (
                "must not be the first or the last microsecond of the years 1 to 9999; "
                "leave it out when there is no such time"
            )
        if lowest is not None and moment < lowest:
            return f"must not be before {lowest.isoformat()}"
        if highest is not None and moment > highest:
            return f"must not be after {highest.isoformat()}"
        return None

    return value_rule(field, check)


def duration(
    field: str = "", *, min: timedelta | None = None, max: timedelta | None = None
) -> Rule:
    """A valid Duration within both bounds, inclusive."""

    def check(value: Any) -> str | None:
        if not (
            abs(value.seconds) <= _DURATION_SECONDS_MAX
            and abs(value.nanos) <= _NANOS_MAX
            and value.seconds * value.nanos >= 0
        ):
            return "is not a valid duration (seconds and nanos of one sign, nanos under a second)"
        length = value.ToTimedelta()
        if min is not None and length < min:
            return f"must be at least {min.total_seconds():g}s"
        if max is not None and length > max:
            return f"must be at most {max.total_seconds():g}s"
        return None

    return value_rule(field, check)


def amount(field: str = "", *, positive: bool = False, nonnegative: bool = False) -> Rule:
    """A `cogni.type.v1.Amount`: an asset code, and an exact plain decimal of the wanted sign.

    Both parts are required in a present Amount and reported by their own paths.
    """

    def check(message: Any, path: str) -> Iterator[Violation]:
        if _ASSET.fullmatch(message.asset) is None:
            yield Violation(join(path, "asset"), "must be an asset code such as USD")
        wrong = _wrong_decimal(message.value, positive=positive, nonnegative=nonnegative)
        if wrong is not None:
            yield Violation(join(path, "value"), wrong)

    return message_rule(field, check)


def _wrong_decimal(value: str, *, positive: bool, nonnegative: bool) -> str | None:
    if _DECIMAL.fullmatch(value) is None:
        return "must be a plain decimal number such as 12.5, with no exponent"
    if positive and Decimal(value) <= 0:
        return "must be greater than zero"
    if nonnegative and Decimal(value) < 0:
        return "must not be negative"
    return None


def mask(field: str, paths: frozenset[str] | set[str] | tuple[str, ...]) -> Rule:
    """A FieldMask that names only the given updatable paths, and at least one when present."""
    allowed = frozenset(paths)
    listed = ", ".join(sorted(allowed))

    def check(message: Any, path: str) -> Iterator[Violation]:
        named: list[str] = list(message.paths)
        if not named:
            yield Violation(join(path, "paths"), "must name at least one field")
        for index, name in enumerate(named):
            if name not in allowed:
                yield Violation(
                    join(path, f"paths[{index}]"),
                    f"{name!r} cannot be updated; these can: {listed}",
                )

    return message_rule(field, check)


def struct(field: str = "", *, max_bytes: int) -> Rule:
    """Free-form JSON (Struct, ListValue or Value) of bounded size and depth that JSON can hold.

    What is taken must be fit to be shown: nothing nested deeper can be sent back.
    NaN and infinities are not JSON, and PostgreSQL's jsonb cannot hold NUL characters.
    """

    def check(value: Any) -> str | None:
        size = value.ByteSize()
        if size > max_bytes:
            return f"must be at most {max_bytes} bytes when encoded, it has {size}"
        return _wrong_json(value)

    return value_rule(field, check)


def _wrong_json(root: Any) -> str | None:
    pending = [(root, 1)]
    while pending:
        node, depth = pending.pop()
        if depth > JSON_DEPTH_MAX:
            return f"must not be nested deeper than {JSON_DEPTH_MAX} levels"
        kind = node.DESCRIPTOR.name
        if kind == "Value":
            wrong = _wrong_scalar(node)
            if wrong is not None:
                return wrong
            # A Value that wraps a Struct or ListValue is not a JSON level of its own.
            if node.WhichOneof("kind") in ("struct_value", "list_value"):
                pending.append((getattr(node, node.WhichOneof("kind")), depth))
        elif kind == "Struct":
            if any("\x00" in key for key in node.fields):
                return "must not contain a NUL character"
            pending.extend((child, depth + 1) for child in node.fields.values())
        else:
            pending.extend((child, depth + 1) for child in node.values)
    return None


def _wrong_scalar(value: Any) -> str | None:
    kind = value.WhichOneof("kind")
    if kind == "number_value" and not math.isfinite(value.number_value):
        return "must not contain NaN or infinite numbers"
    if kind == "string_value" and "\x00" in value.string_value:
        return "must not contain a NUL character"
    return None


def message_rule(field: str, check: Check) -> Rule:
    """A rule about one present sub-message (or, with no field name, an element inside each())."""

    def bind(descriptor: Descriptor) -> Check:
        inner = field_of(descriptor, field)
        if inner.message_type is None:
            raise ValueError(f"{descriptor.full_name}.{field} is not a message")
        is_present = presence(inner)

        def run(message: Message, path: str) -> Iterable[Violation]:
            if not is_present(message):
                return ()
            return check(getattr(message, field), join(path, field))

        return run

    if field == "":
        return Rule(bind=lambda descriptor: check, of_element=True)
    return Rule(bind=bind)
