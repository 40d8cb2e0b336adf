"""Converts between google.protobuf.Struct and Python values, and to canonical JSON.

Struct's numbers are doubles. So integral doubles come in as int, and integers a double cannot
hold exactly go out as decimal strings rather than as nearby numbers.
"""

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import TypeAlias

from google.protobuf.struct_pb2 import ListValue, NullValue, Struct, Value

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

_EXACT_INTEGER_MAX = 2**53
#: Parsers of protobuf refuse messages nested deeper than 100; a JSON level costs three of them.
JSON_DEPTH_MAX = 30


def from_struct(struct: Struct) -> dict[str, Json]:
    """Return the object a client sent. Raises ValueError for NaN and infinities."""
    return {name: from_value(value) for name, value in struct.fields.items()}


def from_value(value: Value) -> Json:
    """Return the value a client sent; an unset Value is None.

    Raises ValueError for NaN and infinities, which JSON does not have.
    """
    match value.WhichOneof("kind"):
        case "number_value":
            return _number(value.number_value)
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [from_value(item) for item in value.list_value.values]
        case _:
            return None


def to_struct(fields: Mapping[str, object]) -> Struct:
    """Return an object for a client. Raises as `to_value` does."""
    return _to_struct(fields, 1)


def to_value(value: object) -> Value:
    """Return a value for a client.

    Decimals and integers beyond ±2^53 become decimal strings, NaN and infinities the strings
    "NaN", "Infinity" and "-Infinity". Raises TypeError for what JSON cannot say, ValueError for
    nesting no client could parse.
    """
    return _to_value(value, 1)


def canonical_json(value: object) -> bytes:
    """Return one spelling of `value` in UTF-8 for hashing: equal values, equal bytes.

    Keys are sorted by code point, integral doubles spelt as integers, Decimals as strings without
    exponent or trailing zeros. Raises ValueError for NaN and infinities, TypeError for what JSON
    cannot say.
    """
    return json.dumps(
        _canonical(value),
        ensure_ascii=False,
        allow_nan=False,
        sort_keys=True,
        separators=(",", ":"),
    ).encode()


def _number(number: float) -> int | float:
    if not math.isfinite(number):
        raise ValueError("JSON has no NaN and no infinities")
    if number.is_integer() and abs(number) <= _EXACT_INTEGER_MAX:
        return int(number)
    return number


def _to_struct(fields: Mapping[str, object], depth: int) -> Struct:
    struct = Struct()
    for name, value in fields.items():
        if not isinstance(name, str):
            raise TypeError(f"a JSON object has string keys, not {type(name).__name__}")
        struct.fields[name].CopyFrom(_to_value(value, depth + 1))
    return struct


def _to_value(value: object, depth: int) -> Value:
    if depth > JSON_DEPTH_MAX:
        raise ValueError(f"JSON nested deeper than {JSON_DEPTH_MAX} levels cannot be sent")
    match value:
        case None:
            return Value(null_value=NullValue.NULL_VALUE)
        case bool():
            return Value(bool_value=value)
        case int() if abs(value) <= _EXACT_INTEGER_MAX:
            return Value(number_value=value)
        case float() if math.isfinite(value):
            return Value(number_value=value)
        case float():
            return Value(string_value=_non_finite(value))
        case int() | Decimal():
            return Value(string_value=_plain(value))
        case str():
            return Value(string_value=value)
        case Mapping():
            return Value(struct_value=_to_struct(value, depth))
        case list() | tuple():
            items = [_to_value(item, depth + 1) for item in value]
            return Value(list_value=ListValue(values=items))
        case _:
            raise TypeError(f"JSON cannot say a {type(value).__name__}")


def _canonical(value: object) -> object:
    match value:
        case bool() | None | int() | str():
            return value
        case float():
            return _number(value)
        case Decimal():
            return _plain(value)
        case Mapping():
            return {_key(name): _canonical(item) for name, item in value.items()}
        case list() | tuple():
            return [_canonical(item) for item in value]
        case _:
            raise TypeError(f"JSON cannot say a {type(value).__name__}")


def _key(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a JSON object has string keys, not {type(name).__name__}")
    return name


def _plain(number: int | Decimal) -> str:
    if isinstance(number, int):
        return str(number)
    if not number.is_finite():
        raise ValueError("JSON has no NaN and no infinities")
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _non_finite(number: float) -> str:
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"
