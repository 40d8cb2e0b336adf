"""A grant: what a run may do, and how each start and each invocation is decided under it."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from services.executor.amounts import Amount
from services.executor.constraints import ArgumentConstraint, first_breach
from services.executor.graphs import ToolEffect
from services.runtime.errors import ServiceError, denied
from services.runtime.jsonvalues import Json, canonical_json

GRAPH_PREFIX = "graph:execute:"


class GrantState(StrEnum):
    """Whether a grant can be used; the last two are for good."""

    ACTIVE = "ACTIVE"
    REVOKED = "REVOKED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True)
class McpTool:
    """A tool of an MCP server as it was when it was granted; `digest` tells whether it changed."""

    connection_id: str
    provider: str
    name: str
    digest: str
    description: str
    input_schema: dict[str, Json]


@dataclass(frozen=True, slots=True)
class McpServer:
    """What the server of a provider "mcp:<server>" offers; tools by what grants call them."""

    provider: str
    tools: dict[str, McpTool]


@dataclass(frozen=True, slots=True)
class ToolPermission:
    """That a tool may be invoked, and with which arguments.

    The last three are for the tools of MCP servers: the effect that the grant's creator vouches
    for, the digest of the definition they have reviewed, and the definition it is pinned to.
    """

    tool: str
    arguments: tuple[ArgumentConstraint, ...] = ()
    only_named_arguments: bool = False
    max_invocations_per_run: int | None = None
    effect: ToolEffect | None = None
    reviewed_digest: str = ""
    mcp_tool: McpTool | None = None


@dataclass(frozen=True, slots=True)
class GrantRequest:
    """What somebody asks to be granted."""

    display_name: str
    graph_ids: tuple[str, ...]
    tools: tuple[ToolPermission, ...]
    connection_ids: tuple[str, ...]
    account_id: str | None
    budget: Amount | None
    expire_time: datetime | None
    labels: dict[str, str]

    def content_hash(self, owner: str, tools: Json) -> bytes:
        """Return what a repeat under the same request_id must equal; `tools` in JSON form."""
        content: list[Json] = [
            owner,
            self.display_name,
            list(self.graph_ids),
            tools,
            list(self.connection_ids),
            self.account_id,
            [self.budget.asset, self.budget.plain] if self.budget else None,
            self.expire_time.isoformat() if self.expire_time else None,
            dict(self.labels),
        ]
        return hashlib.sha256(canonical_json(content)).digest()


@dataclass(frozen=True, slots=True)
class Grant:
    """What runs under it may do. What it does not name is denied."""

    grant_id: str
    tenant_id: str
    owner: str
    state: GrantState
    display_name: str
    graph_ids: tuple[str, ...]
    tools: tuple[ToolPermission, ...]
    connection_ids: tuple[str, ...]
    account_id: str | None
    budget: Amount | None
    expire_time: datetime | None
    labels: dict[str, str]
    create_time: datetime
    revoke_time: datetime | None = None
    revoke_comment: str = ""
    revoker: str = ""

    def permission(self, tool: str) -> ToolPermission | None:
        """Return the permission to invoke `tool`, None when there is none."""
        return next((each for each in self.tools if each.tool == tool), None)


@dataclass(frozen=True, slots=True)
class GrantChange:
    """That a grant came into a state."""

    grant_id: str
    tenant_id: str
    owner: str
    state: GrantState
    expire_time: datetime | None
    change_time: datetime


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an act is allowed; a denied one has a reason (an ErrorReason) and a message."""

    allowed: bool
    reason: str | None = None
    message: str = ""


ALLOWED = Decision(True)


def refusal_to_act(grant: Grant, now: datetime) -> Decision:
    """Decide whether anything at all may happen under the grant at `now`."""
    if grant.state is GrantState.REVOKED:
        return Decision(False, "GRANT_REVOKED", "The grant was revoked.")
    expired = grant.expire_time is not None and grant.expire_time <= now
    if grant.state is GrantState.EXPIRED or expired:
        return Decision(False, "GRANT_EXPIRED", "The grant has expired.")
    return ALLOWED


def decide_start(grant: Grant, graph_id: str, owner: str, now: datetime) -> Decision:
    """Decide whether `owner` may start a run of the graph under the grant at `now`."""
    decision = refusal_to_act(grant, now)
    if not decision.allowed:
        return decision
    if grant.owner != owner:
        return Decision(False, "GRANT_NOT_OWNED", "The grant belongs to another subject.")
    if graph_id not in grant.graph_ids:
        return Decision(
            False, "GRAPH_NOT_GRANTED", f"The grant does not name the graph {graph_id!r}."
        )
    return ALLOWED


def decide_invocation(
    grant: Grant,
    tool: str,
    arguments: dict[str, Json],
    *,
    connection_id: str | None,
    mcp_provider: str | None = None,
    invocations_before: int,
    now: datetime,
) -> Decision:
    """Decide whether a tool may be invoked with these arguments at `now`.

    `mcp_provider` is the MCP server's that the tool belongs to, None for a tool of the graph's own.
    `invocations_before` counts those of the same tool that were allowed earlier in the run. The
    messages are shown to the model and name no value of the arguments.
    """
    decision = refusal_to_act(grant, now)
    if not decision.allowed:
        return decision
    permission = grant.permission(tool)
    if permission is None:
        return Decision(False, "TOOL_NOT_GRANTED", f"The grant does not name the tool {tool!r}.")
    pinned = permission.mcp_tool.provider if permission.mcp_tool is not None else None
    if pinned != mcp_provider:
        return Decision(
            False, "TOOL_CHANGED", f"The tool {tool!r} is not the one that the grant names."
        )
    if connection_id is not None and connection_id not in grant.connection_ids:
        return Decision(
            False, "CONNECTION_NOT_GRANTED", "The grant does not name the tool's connection."
        )
    breach = first_breach(permission.arguments, permission.only_named_arguments, arguments)
    if breach is not None:
        return Decision(False, "ARGUMENT_NOT_ALLOWED", breach)
    most = permission.max_invocations_per_run
    if most is not None and invocations_before >= most:
        return Decision(
            False, "INVOCATION_LIMIT", f"The grant allows {most} invocations of {tool!r} in a run."
        )
    return ALLOWED


def decide_definition(permission: ToolPermission, digest: str | None) -> Decision:
    """Decide whether an MCP tool, as its server defines it now, is the one that was granted.

    `digest` is None when the server has no tool of that name any more.
    """
    assert permission.mcp_tool is not None, "only tools of MCP servers are pinned"
    if digest == permission.mcp_tool.digest:
        return ALLOWED
    how = "does not have it any more" if digest is None else "defines it otherwise now"
    return Decision(
        False,
        "TOOL_CHANGED",
        f"The tool {permission.tool!r} is not the one that was granted: its server {how}. "
        "It has to be granted again.",
    )


def refusal(decision: Decision, grant_id: str, graph_id: str) -> ServiceError:
    """Return a denied start as the error its caller gets."""
    assert decision.reason is not None, "only denials become errors"
    metadata = {"grant_id": grant_id}
    if decision.reason == "GRAPH_NOT_GRANTED":
        metadata["graph_id"] = graph_id
    return denied(decision.reason, f"{decision.message} Ask for another grant.", metadata=metadata)
