"""Spells whatever a graph's state holds as JSON that an event can carry. Pure."""

import base64
import dataclasses
import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from google.protobuf.struct_pb2 import Struct, Value
from pydantic import BaseModel

from services.runtime.jsonvalues import Json, from_value, to_struct, to_value

#: A value that is larger is told by its size; the state itself is in the checkpoint.
VALUE_BYTES_MAX = 1024 * 1024
_DEPTH_MAX = 25


def text_of(text: str) -> str:
    """Return the text as UTF-8 can say it.

    Models send halves of surrogate pairs, which neither an event nor the database can hold.
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def storable(text: str) -> str:
    """Return the text as a column of PostgreSQL can hold it, which no NUL can be in."""
    return text_of(text).replace("\0", "\N{REPLACEMENT CHARACTER}")


def json_of(value: Any, depth: int = 0) -> Json:
    """Return the value as JSON; messages and pydantic models in their own JSON form.

    What JSON cannot say is named by its type. Deeper nesting than clients can parse is cut.
    """
    if depth > _DEPTH_MAX:
        return f"<{type(value).__name__}>"
    if isinstance(value, str) and not isinstance(value, Enum):
        return text_of(value)
    if isinstance(value, float) and not math.isfinite(value):
        # As events spell them: JSON has no such numbers, and PostgreSQL refuses them.
        return json_of(from_value(to_value(float(value))))
    if value is None or (isinstance(value, bool | int | float) and not isinstance(value, Enum)):
        return value
    if isinstance(value, BaseModel):
        return json_of(value.model_dump(), depth)
    if isinstance(value, Mapping):
        return {text_of(str(name)): json_of(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_of(each, depth + 1) for each in value]
    if isinstance(value, set | frozenset):
        return sorted((json_of(each, depth + 1) for each in value), key=repr)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in dataclasses.fields(value)]
        return {name: json_of(getattr(value, name), depth + 1) for name in names}
    return _scalar(value)


def bounded(value: Json, bytes_max: int) -> Json:
    """Return the JSON, or in place of more than `bytes_max` a note of its size.

    What a run keeps of its graph goes into messages that have a largest size.
    """
    size = to_value(value).ByteSize()
    return value if size <= bytes_max else {"omitted_bytes": size}


def value_of(value: Json) -> Value:
    """Return the JSON as an event's value; a very large one as a note of its size."""
    spelt = to_value(value)
    if (size := spelt.ByteSize()) > VALUE_BYTES_MAX:
        return to_value({"omitted_bytes": size})
    return spelt


def struct_of(fields: Mapping[str, Json]) -> Struct:
    """As `value_of`, for an object."""
    spelt = to_struct(fields)
    if (size := spelt.ByteSize()) > VALUE_BYTES_MAX:
        return to_struct({"omitted_bytes": size})
    return spelt


def _scalar(value: Any) -> Json:
    match value:
        case Enum():
            return json_of(value.value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case UUID() | Decimal():
            return str(value)
        case bytes():
            return base64.b64encode(value).decode()
        case BaseException():
            return text_of(f"{type(value).__name__}: {value}")
        case _:
            return f"<{type(value).__name__}>"
