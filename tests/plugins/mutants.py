"""Makes requests of every shape: valid-looking ones, and copies with one field turned hostile."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

#: A message that a request holds in more fields than these is walked in the first of them.
_WALKS_MAX = 3
#: Messages that hold messages like themselves are followed so far.
DEPTH_MAX = 7
_INT32 = (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SFIXED32)
_UINT32 = (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_FIXED32)
_UINT64 = (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64)
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799
_INFINITE = (math.nan, math.inf, -math.inf)

_UNICODE = "\N{ZERO WIDTH JOINER}\N{RIGHT-TO-LEFT OVERRIDE}\N{GRINNING FACE}e\u0301\uffff"
#: What every text is set to.
_TEXTS = (
    "",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "9" * 38,
    _UNICODE,
    "a\x00b",
    "x" * 10_000,
    f"0.{'0' * 37}1",
)
#: Of these each text gets one, which its path seeds.
_ODD_TEXTS = (
    " ",
    "\x7f\x1b[2J",
    "0198c2a0-0000-7000-8000-00000000000",
    "0198C2A0-0000-7000-8000-0000000000AA",
    "{0198c2a0-0000-7000-8000-0000000000aa}",
    "MQ==",
    "1e400",
    "NaN",
    "-1",
    "%s {} ' \" \\ ; --",
)
_BYTES = (b"", b"\x00" * 32, b"\xff" * 10_000, b"a,b\n\xfe", b'"')
_TIMES = (
    Timestamp(seconds=_FIRST_SECOND),
    Timestamp(seconds=_FIRST_SECOND, nanos=1_000),
    Timestamp(seconds=_LAST_SECOND, nanos=999_999_999),
    Timestamp(seconds=_LAST_SECOND, nanos=999_998_000),
    Timestamp(seconds=2**63 - 1, nanos=2**31 - 1),
    Timestamp(seconds=1, nanos=-1),
)
_DURATIONS = (
    Duration(nanos=1),
    Duration(seconds=1, nanos=-1),
    Duration(seconds=315_576_000_000, nanos=999_999_999),
    Duration(seconds=2**63 - 1, nanos=2**31 - 1),
    Duration(seconds=-(2**63)),
)


class Shapes:
    """Valid-looking messages: what `known` says by field name or message name, else a guess."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._known = known
        self._ids = count(1)

    def of(self, descriptor: Descriptor, depth: int = 0) -> Any:
        """A message with every field set; of a oneof, the first."""
        if descriptor.full_name in self._known:
            known = _copy(self._known[descriptor.full_name])
            if "request_id" in descriptor.fields_by_name and known.request_id:
                known.request_id = self._scalar(descriptor.fields_by_name["request_id"])
            return known
        if descriptor.full_name in _FREE:
            return _free(descriptor)
        message = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            oneof = field.containing_oneof
            if oneof is None or len(oneof.fields) == 1 or message.WhichOneof(oneof.name) is None:
                self._set(message, field, depth)
        return message

    def _set(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        if field.name in self._known:
            value = self._known[field.name]
        elif is_map(field):
            return
        elif field.message_type is not None:
            if depth >= DEPTH_MAX:
                return
            value = self.of(field.message_type, depth + 1)
        else:
            value = self._scalar(field)
        put(message, field, value)

    def _scalar(self, field: FieldDescriptor) -> Any:
        if field.enum_type is not None:
            return field.enum_type.values[min(1, len(field.enum_type.values) - 1)].number
        if field.name == "request_id":
            return f"0198c2a0-0000-7000-8000-{next(self._ids):012x}"
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return b"\x01" * 32
            if field.name.endswith("_id") or field.name.endswith("_ids"):
                return "0198c2a0-0000-7000-8000-0000000000aa"
            return {"asset": "USD", "value": "1.5"}.get(field.name, "")
        return field.cpp_type == FieldDescriptor.CPPTYPE_BOOL or 1


def mutants(
    base: Any, shapes: Shapes, descriptor: Descriptor, depth_max: int
) -> Iterator[tuple[str, Any]]:
    """Copies of `base` with one field, however deep, set to a hostile value, and what that is."""
    yield from _mutants(base, shapes, descriptor, depth_max, "", Counter())


def _mutants(
    base: Any,
    shapes: Shapes,
    descriptor: Descriptor,
    depth_max: int,
    path: str,
    walked: Counter[str],
) -> Iterator[tuple[str, Any]]:
    for field in descriptor.fields:
        name = f"{path}{field.name}"
        for value in _hostile(field, name):
            yield f"{name} = {_told(value)}", _with(base, field, value)
        if field.is_repeated and not is_map(field) and (present := getattr(base, field.name)):
            yield f"{name} twice", _with(base, field, [*present, *present])
        if field.message_type is None or is_map(field) or field.message_type.full_name in _FREE:
            continue
        kind = field.message_type.full_name
        if path.count(".") + 1 < depth_max and walked[kind] < _WALKS_MAX:
            walked[kind] += 1
            inner = _inner(base, field) or shapes.of(field.message_type)
            within = _mutants(inner, shapes, field.message_type, depth_max, f"{name}.", walked)
            for what, mutant in within:
                yield what, _with(base, field, mutant)


def put(message: Any, field: FieldDescriptor, value: Any) -> None:
    """Set a field of any kind; a single value becomes the only element of a repeated field."""
    message.ClearField(field.name)
    if is_map(field):
        held = getattr(message, field.name)
        for key, each in value.items():
            held[key] = each
    elif field.is_repeated:
        getattr(message, field.name).extend(value if isinstance(value, list | tuple) else [value])
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, value)


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field is a map, which the descriptors show as repeated entries."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _inner(base: Any, field: FieldDescriptor) -> Any:
    if field.is_repeated:
        present = getattr(base, field.name)
        return present[0] if present else None
    return getattr(base, field.name) if base.HasField(field.name) else None


def _with(base: Any, field: FieldDescriptor, value: Any) -> Any:
    changed = _copy(base)
    put(changed, field, value)
    return changed


def _copy(message: Any) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def _told(value: Any) -> str:
    text = repr(value) if not isinstance(value, Message) else str(value).replace("\n", " ")
    return text if len(text) < 80 else f"{text[:60]}… ({len(text)})"


def _texts(path: str) -> tuple[str, ...]:
    """Fewer within a message that a request holds: most of the walk is there."""
    odd = _ODD_TEXTS[zlib.crc32(path.encode()) % len(_ODD_TEXTS)]
    return (*(_TEXTS[-4:] if "." in path else _TEXTS), odd)


def _hostile(field: FieldDescriptor, path: str) -> Iterator[Any]:
    if is_map(field):
        key = field.message_type.fields_by_name["key"]
        if key.type == FieldDescriptor.TYPE_STRING and (
            field.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING
        ):
            yield from ({text: "a"} for text in _texts(path))
            yield from ({"a": text} for text in _texts(path))
            yield {f"key{n}": "a" for n in range(1000)}
    elif field.message_type is not None:
        yield from _hostile_message(field.message_type, path)
    elif field.enum_type is not None:
        yield from (0, -1, 99, -(2**31), field.enum_type.values[-1].number)
    else:
        yield from _hostile_scalar(field, path)


def _hostile_scalar(field: FieldDescriptor, path: str) -> Iterator[Any]:
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            yield from _texts(path)
        case FieldDescriptor.TYPE_BYTES:
            yield from _BYTES
        case FieldDescriptor.TYPE_BOOL:
            yield from (False, True)
        case FieldDescriptor.TYPE_DOUBLE:
            yield from (*_INFINITE, 1e308, -1e308, 5e-324, 0.0, -0.0)
        case FieldDescriptor.TYPE_FLOAT:
            yield from (*_INFINITE, 3e38)
        case kind if kind in _INT32:
            yield from (0, -1, 2**31 - 1, -(2**31))
        case kind if kind in _UINT32:
            yield from (0, 2**31, 2**32 - 1)
        case kind if kind in _UINT64:
            yield from (0, 2**63, 2**64 - 1)
        case _:
            yield from (0, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63))


def _hostile_message(descriptor: Descriptor, path: str) -> Iterator[Any]:
    yield GetMessageClass(descriptor)()
    match descriptor.full_name:
        case "google.protobuf.Timestamp":
            yield from _TIMES
        case "google.protobuf.Duration":
            yield from _DURATIONS
        case "google.protobuf.FieldMask":
            yield from (FieldMask(paths=[each]) for each in ("", "no.such", "*", "run.", "a\x00"))
        case "google.protobuf.Struct":
            for value in _values():
                struct = Struct()
                struct.fields["a"].CopyFrom(value)
                yield struct
            yield from (_keyed(text) for text in _texts(f"{path}.a"))
        case "google.protobuf.Value":
            yield from _values()
        case "google.protobuf.ListValue":
            yield from (ListValue(values=[value]) for value in _values())


def _values() -> Iterator[Value]:
    yield Value()
    yield from (Value(number_value=each) for each in (*_INFINITE, 1e308, 2.0**63, -0.0))
    yield from (Value(string_value=text) for text in ("a\x00b", _UNICODE))
    # A level of lists takes two messages and one of objects three; a parser stops at 100.
    for levels in (28, 30, 45):
        nested = Value(string_value="deep")
        for _ in range(levels):
            nested = Value(list_value=ListValue(values=[nested]))
        yield nested
    for levels in (28, 31):
        nested = Value(string_value="deep")
        for _ in range(levels):
            outer = Value()
            outer.struct_value.fields["a"].CopyFrom(nested)
            nested = outer
        yield nested


def _keyed(text: str) -> Struct:
    struct = Struct()
    struct.fields[text].string_value = "a"
    return struct


_FREE = frozenset(
    f"google.protobuf.{name}"
    for name in ("Timestamp", "Duration", "FieldMask", "Struct", "Value", "ListValue", "Any")
)


def _free(descriptor: Descriptor) -> Any:
    message = GetMessageClass(descriptor)()
    match descriptor.name:
        case "Timestamp":
            message.FromDatetime(datetime.now(UTC).replace(microsecond=0))
        case "Duration":
            message.seconds = 60
        case "Struct":
            message.fields["a"].number_value = 1
        case "Value":
            message.string_value = "a"
    return message
