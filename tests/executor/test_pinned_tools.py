"""Grants for tools of MCP servers: pinned to what was reviewed, or not given."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from cogni.executor.v1 import grant_pb2, graph_pb2
from cogni.executor.v1 import grant_service_pb2 as grant_pb
from services.executor.grants import (
    Grant,
    GrantState,
    McpServer,
    McpTool,
    ToolPermission,
    decide_invocation,
)
from services.executor.graphs import ToolEffect
from services.executor.permissions import permissions_from_json, permissions_to_json
from services.executor.use_cases.pin_tools import PINNED_BYTES_MAX
from services.runtime.errors import ErrorKind, PeerError
from services.runtime.ids import new_id
from tests.executor.conftest import World, grant_request
from tests.plugins.calls import refused

TOOL = "tickets__create_ticket"
DIGEST = "a" * 64


def server(connection_id: str, digest: str = DIGEST, **schema: Any) -> McpServer:
    schema = schema or {"type": "object"}
    tool = McpTool(connection_id, "mcp:tickets", "create_ticket", digest, "Create.", schema)
    return McpServer("mcp:tickets", {TOOL: tool})


def asking(*connection_ids: str, **permission: Any) -> grant_pb.CreateGrantRequest:
    fields = {"tool": TOOL, **permission}
    return grant_request(
        connection_ids=connection_ids,
        tools=[grant_pb2.ToolPermission(tool="own"), grant_pb2.ToolPermission(**fields)],
    )


async def test_a_grant_keeps_the_definition_that_was_granted(quiet_world: World) -> None:
    world, mine = quiet_world, new_id()
    world.resources.servers[mine] = server(mine)
    request = asking(
        mine,
        effect=graph_pb2.TOOL_EFFECT_IDEMPOTENT,
        mcp_tool=grant_pb2.McpTool(digest=DIGEST),
    )

    made = (await world.grants().CreateGrant(request)).grant
    world.resources.servers[mine] = server(mine, "b" * 64)
    repeated = (await world.grants().CreateGrant(request)).grant
    listed = (await world.grants().ListGrants(grant_pb.ListGrantsRequest())).grants[0]

    own, pinned = made.tools
    assert not own.HasField("mcp_tool")
    assert (pinned.mcp_tool.connection_id, pinned.mcp_tool.digest) == (mine, DIGEST)
    assert pinned.mcp_tool.input_schema["type"] == "object"
    assert pinned.effect == graph_pb2.TOOL_EFFECT_IDEMPOTENT
    assert repeated == made, "a repeat is not pinned anew"
    assert listed.tools[1].mcp_tool.digest == DIGEST
    assert not listed.tools[1].mcp_tool.HasField("input_schema")


async def test_what_is_not_there_or_not_as_reviewed_is_not_granted(quiet_world: World) -> None:
    world, mine, other, empty = quiet_world, new_id(), new_id(), new_id()
    world.resources.servers[mine] = server(mine)
    world.resources.servers[other] = server(other)
    world.resources.servers[empty] = McpServer("mcp:tickets", {})
    reviewed = grant_pb2.McpTool(digest="c" * 64)

    changed = await refused(world.grants().CreateGrant(asking(mine, mcp_tool=reviewed)))
    missing = await refused(world.grants().CreateGrant(asking(empty)))
    ambiguous = await refused(world.grants().CreateGrant(asking(mine, other)))
    native = await refused(
        world.grants().CreateGrant(asking(effect=graph_pb2.TOOL_EFFECT_IDEMPOTENT))
    )
    world.resources.servers[mine] = server(mine, text="x" * PINNED_BYTES_MAX)
    large = await refused(world.grants().CreateGrant(asking(mine)))

    assert (changed.reason, missing.reason) == ("TOOL_CHANGED", "TOOL_CHANGED")
    assert changed.info.metadata["tool"] == TOOL
    assert ambiguous.reason == native.reason == "INVALID_REQUEST"
    assert large.reason == "LIMIT_EXCEEDED"
    assert not (await world.grants().ListGrants(grant_pb.ListGrantsRequest())).grants


@pytest.mark.parametrize(
    ("kind", "reason", "told"),
    [
        (ErrorKind.UNAVAILABLE, "PROVIDER_UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
        (ErrorKind.FAILED_PRECONDITION, "CREDENTIAL_REJECTED", "CREDENTIAL_REJECTED"),
        (ErrorKind.UNAVAILABLE, "UNAVAILABLE", "UNAVAILABLE"),
    ],
)
async def test_a_server_that_cannot_be_asked_is_named_as_the_reason(
    quiet_world: World, kind: ErrorKind, reason: str, told: str
) -> None:
    quiet_world.resources.server_failure = PeerError("connections", kind, reason, "no")

    refusal = await refused(quiet_world.grants().CreateGrant(asking(new_id())))

    assert refusal.reason == told


def test_the_stored_form_of_an_ordinary_permission_is_what_it_was() -> None:
    (spelt,) = permissions_to_json([ToolPermission("own")])
    pinned = ToolPermission(
        TOOL, effect=ToolEffect.NONE, reviewed_digest=DIGEST, mcp_tool=server("c").tools[TOOL]
    )

    # Part of request hashes that earlier releases have stored.
    assert sorted(spelt) == ["arguments", "max_invocations_per_run", "only_named_arguments", "tool"]
    assert permissions_from_json(permissions_to_json([pinned])) == (pinned,)  # type: ignore[arg-type]


@pytest.mark.parametrize("provider", [None, "mcp:other", "mcp:tickets"])
def test_a_pinned_permission_is_for_that_servers_tool_and_no_other(provider: str | None) -> None:
    now = datetime.now(UTC)
    pinned = ToolPermission(TOOL, mcp_tool=server("c").tools[TOOL])
    grant = Grant(
        grant_id=new_id(),
        tenant_id="acme",
        owner="alice",
        state=GrantState.ACTIVE,
        display_name="",
        graph_ids=(),
        tools=(pinned,),
        connection_ids=("c",),
        account_id=None,
        budget=None,
        expire_time=None,
        labels={},
        create_time=now,
    )

    decision = decide_invocation(
        grant, TOOL, {}, connection_id=None, mcp_provider=provider, invocations_before=0, now=now
    )

    allowed = provider == "mcp:tickets"
    assert (decision.allowed, decision.reason) == (allowed, None if allowed else "TOOL_CHANGED")
