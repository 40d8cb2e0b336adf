"""Converts settled units into the Ledger's messages."""

from cogni.ledger.v1 import usage_pb2
from services.executor.convert.times import amount, timestamp
from services.executor.usage import SOURCE_SYSTEM, SettledUnit, UsageKind


def unit_to_proto(unit: SettledUnit) -> usage_pb2.UsageUnit:
    """Return the unit as RecordUsage takes it; the same unit gives the same message for ever."""
    message = usage_pb2.UsageUnit(
        source_system=SOURCE_SYSTEM,
        source_reference=unit.call_id,
        run_id=unit.run_id,
        attempt=unit.attempt,
        account_id=unit.account_id,
        occur_time=timestamp(unit.occur_time),
        rework=unit.rework,
        estimated=unit.estimated,
        corrects_source_reference=unit.corrects,
        cost=amount(unit.cost),
    )
    match unit.kind:
        case UsageKind.LLM_CALL:
            message.llm_call.CopyFrom(_llm_call(unit))
        case UsageKind.TOOL_CALL:
            message.tool_call.CopyFrom(
                usage_pb2.ToolCall(tool=unit.tool, invocation_id=unit.invocation_id)
            )
        case UsageKind.COMPUTE_TIME:
            message.compute_time.resource = unit.provider
            message.compute_time.duration.FromMilliseconds(unit.counts.get("milliseconds", 0))
        case UsageKind.CUSTOM:
            quantity = str(unit.counts.get("quantity", 0))
            message.custom_units.CopyFrom(
                usage_pb2.CustomUnits(unit=unit.provider, quantity=quantity)
            )
    return message


def _llm_call(unit: SettledUnit) -> usage_pb2.LlmCall:
    return usage_pb2.LlmCall(
        model=unit.model,
        provider=unit.provider,
        provider_response_id=unit.provider_response_id,
        token_counts=[
            usage_pb2.TokenCount(kind=usage_pb2.TokenKind.Value(f"TOKEN_KIND_{kind}"), count=count)
            for kind, count in unit.disjoint_counts().items()
        ],
    )
