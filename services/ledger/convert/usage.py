"""Translates usage units and their outcomes."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from cogni.ledger.v1 import usage_pb2
from cogni.type.v1.amount_pb2 import Amount
from services.ledger.convert.scalars import moment_of, timestamp
from services.ledger.entries import Entry
from services.ledger.units import (
    ComputeUsage,
    Cost,
    CustomUsage,
    Key,
    LlmUsage,
    ToolUsage,
    Usage,
    UsageUnit,
)
from services.runtime.errors import Violation

_KIND_PREFIX = "TOKEN_KIND_"
#: Names of the token kinds that may be counted, by number.
_KINDS = {
    number: name.removeprefix(_KIND_PREFIX)
    for name, number in usage_pb2.TokenKind.items()
    if number
}
_NANOS_PER_SECOND = 1_000_000_000
_SECONDS_MAX = 253_402_300_799


def unit(message: usage_pb2.UsageUnit, tenant_id: str) -> UsageUnit:
    """Return the unit a caller sent, however wrong: `UsageUnit.violations` judges it."""
    unreadable: list[Violation] = []
    occur_time = None
    if message.HasField("occur_time"):
        stamp = message.occur_time
        if _is_valid(stamp):
            occur_time = moment_of(stamp)
        else:
            unreadable.append(Violation("occur_time", "is not a valid timestamp"))
    return UsageUnit(
        key=Key(tenant_id, message.source_system, message.source_reference),
        account_id=message.account_id,
        usage=_usage(message, unreadable),
        occur_time=occur_time,
        run_id=message.run_id,
        attempt=message.attempt,
        rework=message.rework,
        estimated=message.estimated,
        corrects=message.corrects_source_reference,
        cost=_cost(message.cost) if message.HasField("cost") else None,
        unreadable=tuple(unreadable),
    )


def unit_message(entry: Entry, facts: dict[str, Any]) -> usage_pb2.UsageUnit:
    """Return the unit as its charge's leaf keeps it."""
    kept: dict[str, Any] = facts["unit"]
    message = usage_pb2.UsageUnit(
        source_system=entry.source_system,
        source_reference=entry.source_reference,
        run_id=entry.run_id,
        attempt=entry.attempt,
        # The overrun account never pays the charge itself, so this is the unit's own account.
        account_id=entry.debit_account_id,
        occur_time=timestamp(entry.occur_time),
        rework=kept.get("rework", False),
        estimated=kept.get("estimated", False),
        corrects_source_reference=kept.get("corrects_source_reference", ""),
    )
    if "cost" in kept:
        message.cost.CopyFrom(Amount(**kept["cost"]))
    _set_usage(message, kept)
    return message


def _is_valid(stamp: Timestamp) -> bool:
    return 0 <= stamp.seconds <= _SECONDS_MAX and 0 <= stamp.nanos < _NANOS_PER_SECOND


def _cost(message: Amount) -> Cost:
    return Cost(message.asset, message.value)


def _usage(message: usage_pb2.UsageUnit, unreadable: list[Violation]) -> Usage | None:
    match message.WhichOneof("kind"):
        case "llm_call":
            return _llm(message.llm_call)
        case "tool_call":
            return ToolUsage(message.tool_call.tool, message.tool_call.invocation_id)
        case "compute_time":
            duration = message.compute_time.duration
            if abs(duration.nanos) >= _NANOS_PER_SECOND or duration.seconds * duration.nanos < 0:
                unreadable.append(Violation("compute_time.duration", "is not a valid duration"))
            nanoseconds = duration.seconds * _NANOS_PER_SECOND + duration.nanos
            return ComputeUsage(message.compute_time.resource, nanoseconds)
        case "custom_units":
            return CustomUsage(message.custom_units.unit, message.custom_units.quantity)
        case _:
            return None


def _llm(call: usage_pb2.LlmCall) -> LlmUsage:
    tokens: dict[str, int] = {}
    wrong: list[str] = []
    for each in call.token_counts:
        number = each.kind
        kind = _KINDS.get(number)
        if kind is None or kind in tokens:
            kind = kind or f"kind {number}"
            wrong.append(kind)
        tokens[kind] = each.count
    return LlmUsage(
        call.model,
        call.provider,
        tokens,
        _cost(call.provider_cost) if call.HasField("provider_cost") else None,
        call.provider_response_id,
        tuple(wrong),
    )


def _set_usage(message: usage_pb2.UsageUnit, kept: dict[str, Any]) -> None:
    if "llm_call" in kept:
        call = kept["llm_call"]
        message.llm_call.model = call["model"]
        message.llm_call.provider = call.get("provider", "")
        message.llm_call.provider_response_id = call.get("response_id", "")
        for kind, count in call["tokens"].items():
            value = usage_pb2.TokenKind.Value(f"{_KIND_PREFIX}{kind}")
            message.llm_call.token_counts.add(kind=value, count=count)
        if "provider_cost" in call:
            message.llm_call.provider_cost.CopyFrom(Amount(**call["provider_cost"]))
    elif "tool_call" in kept:
        message.tool_call.tool = kept["tool_call"]["tool"]
        message.tool_call.invocation_id = kept["tool_call"].get("invocation_id", "")
    elif "compute_time" in kept:
        message.compute_time.resource = kept["compute_time"]["resource"]
        message.compute_time.duration.CopyFrom(_duration(kept["compute_time"]["seconds"]))
    else:
        message.custom_units.unit = kept["custom_units"]["unit"]
        message.custom_units.quantity = kept["custom_units"]["quantity"]


def _duration(seconds: str) -> Duration:
    whole, nanoseconds = divmod(int(Decimal(seconds).scaleb(9)), _NANOS_PER_SECOND)
    return Duration(seconds=whole, nanos=nanoseconds)
