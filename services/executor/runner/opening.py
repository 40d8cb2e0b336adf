"""Looks at an MCP server's tool before it is invoked: it must be the one that was granted."""

from dataclasses import dataclass, field

from langchain_core.tools import ToolException

from cogni.executor.v1.run_event_pb2 import ToolDenied as ToolDeniedEvent
from cogni.graph.guarding import ToolDenied
from cogni.graph.invocation import Credential
from cogni.graph.mcp import GrantedTool, OpenedTool, open_tool
from cogni.graph.policy import Effect
from cogni.type.v1.error_reason_pb2 import ErrorReason
from services.executor.audit import AuditKind, AuditRecord
from services.executor.events import Draft
from services.executor.grants import ToolPermission, decide_definition
from services.executor.graphs import ToolEffect
from services.executor.runner.journal import Holding, Journal
from services.executor.store import audit
from services.executor.store import invocations as store
from services.executor.store.invocations import Requested
from services.executor.store.journal import Write
from services.runtime.ids import new_id


class NotOpenedError(Exception):
    """Raised when the server could not be looked at: nothing was sent. The text says why."""


@dataclass(frozen=True)
class Opening:
    """An allowed invocation of a pinned tool, with the credential leased to it."""

    holding: Holding
    grant_id: str
    requested: Requested
    permission: ToolPermission
    #: The decision that allowed it.
    audit_record_id: str
    credential: Credential = field(repr=False)


async def opened(journal: Journal, opening: Opening) -> OpenedTool:
    """Open the tool, or write the second decision, which denies it, and raise ToolDenied.

    Each invocation looks anew, in the session in which it then calls: a server is believed about
    its tools for one invocation and no longer, so nothing has to hear of its changes.
    """
    pinned = opening.permission.mcp_tool
    assert pinned is not None, "only tools of MCP servers are opened"
    try:
        tool = await open_tool(pinned.name, opening.credential)
    except ToolException as failure:
        raise NotOpenedError(f"{opening.requested.tool} was not invoked: {failure}") from None
    decision = decide_definition(opening.permission, tool.digest)
    if decision.allowed:
        return tool
    requested = opening.requested
    assert decision.reason is not None
    record = AuditRecord(
        audit_record_id=new_id(),
        kind=AuditKind.DECISION,
        action="tool.invoke",
        actor=f"run:{requested.run_id}",
        run_id=requested.run_id,
        attempt=requested.attempt,
        grant_id=opening.grant_id,
        invocation_id=requested.invocation_id,
        cause_audit_record_id=opening.audit_record_id,
        allowed=False,
        reason=decision.reason,
        details={"tool": requested.tool, "node": requested.node, "message": decision.message},
    )
    event = ToolDeniedEvent(
        invocation_id=requested.invocation_id,
        tool=requested.tool,
        reason=ErrorReason.Value(f"ERROR_REASON_{decision.reason}"),
        message=decision.message,
        audit_record_id=record.audit_record_id,
    )
    await journal.write(
        opening.holding,
        drafts=[Draft(event)],
        acts=[
            store.deny(requested.invocation_id, requested.attempt, decision),
            Write(audit.INSERT, audit.values_of(requested.tenant_id, record)),
        ],
    )
    await tool.close()
    raise ToolDenied(f"Denied: {decision.message}")


def granted_tool(permission: ToolPermission) -> GrantedTool:
    """What a graph gets to see of a pinned permission."""
    pinned = permission.mcp_tool
    assert pinned is not None, "only tools of MCP servers are pinned"
    effect = effect_of_pinned(permission)
    return GrantedTool(
        tool=permission.tool,
        provider=pinned.provider,
        description=pinned.description,
        input_schema=pinned.input_schema,
        effects=Effect.NONE if effect is ToolEffect.NONE else Effect.OUTWARD,
        idempotent=effect is ToolEffect.IDEMPOTENT,
    )


def effect_of_pinned(permission: ToolPermission) -> ToolEffect:
    """What the grant says that an MCP tool does; the server's own hints count for nothing."""
    return permission.effect or ToolEffect.OUTWARD
