"""How words of a command line become values of the contract; wrong ones exit with a sentence."""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from cogni.cli.output import EnumType
from cogni.client import to_struct, to_value
from cogni.type.v1.amount_pb2 import Amount

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
IdOption = Annotated[bool, typer.Option("--id", help="Print only the id, for scripts.")]
LimitOption = Annotated[
    int, typer.Option("--limit", min=1, max=100_000, help="Show at most this many.")
]
RequestIdOption = Annotated[
    str | None,
    typer.Option(
        "--request-id", help="A UUID that makes repeating the command harmless. Default: a new one."
    ),
]
LabelsOption = Annotated[
    list[str] | None, typer.Option("--label", help="key=value; may be given several times.")
]

_AMOUNT = re.compile(r"^\s*(-?[0-9]+(?:\.[0-9]+)?)\s*([A-Za-z][A-Za-z0-9]*)\s*$")
_DURATION = re.compile(r"^([0-9]+)([smhd])$")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def request_id(given: str | None) -> str:
    return given or str(uuid.uuid4())


def amount(text: str) -> Amount:
    """`5 USD` or `0.25USD`."""
    match = _AMOUNT.match(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not an amount; write it like '5 USD'")
    return Amount(value=match[1], asset=match[2].upper())


def duration(text: str) -> timedelta:
    """`30s`, `15m`, `12h` or `7d`."""
    match = _DURATION.match(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a duration; write it like 30s, 15m, 12h or 7d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def now() -> Timestamp:
    """This moment, by the clock of this machine."""
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC))
    return moment


def after(text: str) -> Timestamp:
    """The moment a duration from now."""
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC) + duration(text))
    return moment


def moment(text: str) -> Timestamp:
    """An ISO 8601 time with its offset, for example 2026-11-22T08:00:00Z."""
    try:
        parsed = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time; write it like 2026-11-22T08:00:00Z"
        ) from None
    if parsed.tzinfo is None:
        raise typer.BadParameter(f"{text!r} has no offset; end it with Z for UTC")
    stamp = Timestamp()
    stamp.FromDatetime(parsed.astimezone(UTC))
    return stamp


def json_object(text: str) -> Struct:
    """A JSON object, `@FILE` to read it from a file, or `-` to read it from standard input."""
    value = json_value(text)
    if not isinstance(value, dict):
        raise typer.BadParameter('expected a JSON object, for example \'{"name": "value"}\'')
    try:
        return to_struct(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def json_message(text: str) -> Value:
    """Any JSON value as the contract carries it; `@FILE` and `-` as with `json_object`."""
    try:
        return to_value(json_value(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def json_value(text: str) -> Any:
    """Any JSON value, `@FILE` to read it from a file, or `-` to read it from standard input."""
    try:
        return json.loads(_said(text), parse_constant=_refuse_constant)
    except RecursionError:
        raise typer.BadParameter("too deep to be read; nest it less") from None
    except ValueError as error:
        # Also for bytes that are no UTF-8, and for numbers of more digits than Python reads.
        raise typer.BadParameter(f"not JSON: {error}") from None


def _said(text: str) -> str:
    if text == "-":
        return sys.stdin.read()
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise typer.BadParameter(f"cannot read {text[1:]}: {error.strerror}") from None


def _refuse_constant(name: str) -> float:
    """Python's own reader takes NaN and Infinity, which are no JSON. Raises ValueError."""
    raise ValueError(f"{name} is no JSON number")


def labels(pairs: Sequence[str] | None) -> dict[str, str]:
    found = {}
    for pair in pairs or ():
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{pair!r} is not key=value")
        found[key] = value
    return found


def enum_value(kind: EnumType, prefix: str, word: str) -> Any:
    """`running` as RUN_STATE_RUNNING; an unknown word exits with the ones there are."""
    name = f"{prefix}_{word.upper().replace('-', '_')}"
    if name not in kind.keys() or name.endswith("_UNSPECIFIED"):  # noqa: SIM118
        known = ", ".join(
            key.removeprefix(f"{prefix}_").lower()
            for key in kind.keys()  # noqa: SIM118
            if not key.endswith("_UNSPECIFIED")
        )
        raise typer.BadParameter(f"{word!r} is not one of: {known}")
    return kind.Value(name)
