"""Converts between the contract's enums and the domain's, which have the same names."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from cogni.executor.v1 import audit_record_pb2, grant_pb2, graph_pb2, run_pb2
from cogni.type.v1.error_reason_pb2 import ErrorReason
from services.executor.audit import AuditKind, AuditOutcome
from services.executor.grants import GrantState
from services.executor.graphs import GraphState, ToolEffect
from services.executor.runs import CancelReason, Durability, RunState, WaitingReason

_Named = TypeVar("_Named", bound=StrEnum)


def run_state(state: RunState) -> run_pb2.RunState.ValueType:
    """Return the contract's value."""
    return run_pb2.RunState.Value(f"RUN_STATE_{state}")


def run_state_of(sent: run_pb2.RunState.ValueType) -> RunState:
    """Return the domain's value of a validated one."""
    return _of(RunState, run_pb2.RunState.Name(sent), "RUN_STATE_")


def waiting_reason(reason: WaitingReason | None) -> run_pb2.WaitingReason.ValueType:
    """Return the contract's value; None is UNSPECIFIED."""
    return run_pb2.WaitingReason.Value(f"WAITING_REASON_{reason or 'UNSPECIFIED'}")


def cancel_reason(reason: CancelReason) -> run_pb2.CancelReason.ValueType:
    """Return the contract's value."""
    return run_pb2.CancelReason.Value(f"CANCEL_REASON_{reason}")


def cancel_reason_of(sent: run_pb2.CancelReason.ValueType) -> CancelReason:
    """Return the domain's value of a validated one; UNSPECIFIED is USER_REQUEST."""
    if sent == run_pb2.CANCEL_REASON_UNSPECIFIED:
        return CancelReason.USER_REQUEST
    return _of(CancelReason, run_pb2.CancelReason.Name(sent), "CANCEL_REASON_")


def durability(value: Durability) -> run_pb2.Durability.ValueType:
    """Return the contract's value."""
    return run_pb2.Durability.Value(f"DURABILITY_{value}")


def durability_of(sent: run_pb2.Durability.ValueType) -> Durability:
    """Return the domain's value of a validated one; UNSPECIFIED is STEP."""
    if sent == run_pb2.DURABILITY_UNSPECIFIED:
        return Durability.STEP
    return _of(Durability, run_pb2.Durability.Name(sent), "DURABILITY_")


def grant_state(state: GrantState) -> grant_pb2.GrantState.ValueType:
    """Return the contract's value."""
    return grant_pb2.GrantState.Value(f"GRANT_STATE_{state}")


def grant_state_of(sent: grant_pb2.GrantState.ValueType) -> GrantState:
    """Return the domain's value of a validated one."""
    return _of(GrantState, grant_pb2.GrantState.Name(sent), "GRANT_STATE_")


def graph_state(state: GraphState) -> graph_pb2.GraphState.ValueType:
    """Return the contract's value."""
    return graph_pb2.GraphState.Value(f"GRAPH_STATE_{state}")


def tool_effect(effect: ToolEffect | None) -> graph_pb2.ToolEffect.ValueType:
    """Return the contract's value; None is UNSPECIFIED."""
    return graph_pb2.ToolEffect.Value(f"TOOL_EFFECT_{effect or 'UNSPECIFIED'}")


def tool_effect_of(sent: graph_pb2.ToolEffect.ValueType) -> ToolEffect | None:
    """Return the domain's value of a validated one; UNSPECIFIED is None."""
    if sent == graph_pb2.TOOL_EFFECT_UNSPECIFIED:
        return None
    return _of(ToolEffect, graph_pb2.ToolEffect.Name(sent), "TOOL_EFFECT_")


def audit_kind(kind: AuditKind) -> audit_record_pb2.AuditKind.ValueType:
    """Return the contract's value."""
    return audit_record_pb2.AuditKind.Value(f"AUDIT_KIND_{kind}")


def audit_kind_of(sent: audit_record_pb2.AuditKind.ValueType) -> AuditKind:
    """Return the domain's value of a validated one."""
    return _of(AuditKind, audit_record_pb2.AuditKind.Name(sent), "AUDIT_KIND_")


def audit_outcome(outcome: AuditOutcome | None) -> audit_record_pb2.AuditOutcome.ValueType:
    """Return the contract's value; None is UNSPECIFIED."""
    return audit_record_pb2.AuditOutcome.Value(f"AUDIT_OUTCOME_{outcome or 'UNSPECIFIED'}")


def error_reason(reason: str | None) -> ErrorReason.ValueType:
    """Return the contract's value of a reason; one that a newer release wrote is INTERNAL."""
    if not reason:
        return ErrorReason.ERROR_REASON_UNSPECIFIED
    name = f"ERROR_REASON_{reason}"
    if name not in ErrorReason.keys():  # noqa: SIM118 - an enum wrapper is no mapping
        return ErrorReason.ERROR_REASON_INTERNAL
    return ErrorReason.Value(name)


def _of(kind: type[_Named], name: str, prefix: str) -> _Named:
    return kind(name.removeprefix(prefix))
