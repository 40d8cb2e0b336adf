"""Python values as the contract's free-form JSON, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, struct_pb2

# What a double holds exactly; the contract carries larger integers as decimal strings.
EXACT_INTEGER_MAX = 2**53


def to_struct(value: Mapping[str, Any]) -> struct_pb2.Struct:
    """A JSON object as a Struct. Integers beyond 2^53 become decimal strings.

    Raises ValueError for what is not JSON.
    """
    struct = struct_pb2.Struct()
    _parse(dict(value), struct)
    return struct


def to_value(value: Any) -> struct_pb2.Value:
    """Any JSON value as a Value. Raises ValueError for what is not JSON."""
    message = struct_pb2.Value()
    _parse(value, message)
    return message


def from_json_message(message: struct_pb2.Struct | struct_pb2.Value) -> Any:
    """The plain Python value; whole numbers come back as int."""
    return _whole_numbers(json_format.MessageToDict(message))


def _parse(value: Any, into: struct_pb2.Struct | struct_pb2.Value) -> None:
    try:
        json_format.ParseDict(_exact(value), into)
    except (json_format.ParseError, TypeError) as error:
        raise ValueError(f"not a JSON value: {error}") from None
    except RecursionError:
        raise ValueError("too deeply nested; nest it less") from None


def _exact(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{value} has no JSON form")
    if isinstance(value, int) and abs(value) > EXACT_INTEGER_MAX:
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(item) for item in value]
    return value


def _whole_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_INTEGER_MAX:
        return int(value)
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return value
