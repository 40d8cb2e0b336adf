"""ListConnectionTools: who may look at an MCP server's tools, and what a look leaves behind."""

from __future__ import annotations

import pytest

from cogni.connections.v1 import access_record_pb2, credential_pb2
from cogni.connections.v1 import connections_service_pb2 as messages
from services.runtime.ids import new_id
from tests.connections.conftest import Service
from tests.plugins.calls import refused
from tests.plugins.mcp_server import KEY, McpServer


@pytest.fixture
def outside(mcp_server: McpServer) -> str:
    return mcp_server.address


async def connect(service: Service, server: McpServer, key: str = KEY) -> str:
    request = messages.CreateConnectionRequest(
        request_id=new_id(),
        provider="mcp:tickets",
        consent_subjects=["bea"],
        secret=credential_pb2.ConnectionSecret(api_key=credential_pb2.ApiKeySecret(key=key)),
    )
    request.settings["server_url"] = server.url
    made = await service.user().CreateConnection(request)
    connection_id: str = made.connection.connection_id
    return connection_id


def listing(connection_id: str) -> messages.ListConnectionToolsRequest:
    return messages.ListConnectionToolsRequest(connection_id=connection_id)


async def test_tools_are_listed_as_the_server_defines_them_and_the_look_is_on_record(
    service: Service, mcp_server: McpServer
) -> None:
    connection_id = await connect(service, mcp_server)

    tools = (await service.user().ListConnectionTools(listing(connection_id))).tools
    consented = service.user("bea", scopes=("connections:read",))
    again = (await consented.ListConnectionTools(listing(connection_id))).tools
    mcp_server.redefine("echo", "Say it back, louder.")
    changed = (await service.user().ListConnectionTools(listing(connection_id))).tools

    assert [(each.name, each.tool) for each in tools] == [
        ("create_ticket", "tickets__create_ticket"),
        ("echo", "tickets__echo"),
        ("fail", "tickets__fail"),
    ]
    assert tools[0].description == "Create a ticket."
    assert set(tools[0].input_schema["properties"]) == {"title", "body"}
    assert [each.digest for each in again] == [each.digest for each in tools]
    same = [old.digest == new.digest for old, new in zip(tools, changed, strict=True)]
    assert same == [True, False, True]
    asked = messages.ListAccessRecordsRequest(
        action=access_record_pb2.ACCESS_ACTION_LIST_TOOLS, oldest_first=True
    )
    records = (await service.user().ListAccessRecords(asked)).records
    assert [(r.actor, r.provider, r.decision) for r in records] == [
        ("user:ann", "mcp:tickets", access_record_pb2.ACCESS_DECISION_ALLOWED),
        ("user:bea", "mcp:tickets", access_record_pb2.ACCESS_DECISION_ALLOWED),
        ("user:ann", "mcp:tickets", access_record_pb2.ACCESS_DECISION_ALLOWED),
    ]


async def test_who_may_not_grant_a_connection_may_not_look_and_a_wrong_key_is_not_repeated(
    service: Service, mcp_server: McpServer
) -> None:
    mine = await connect(service, mcp_server)
    wrong = await connect(service, mcp_server, "CANARY-wrong-key")
    mcp_server.seen.clear()

    stranger = service.user("cleo", scopes=("connections:read",))
    foreign = await refused(stranger.ListConnectionTools(listing(mine)))
    other_tenant = await refused(service.user(tenant="t2").ListConnectionTools(listing(mine)))
    assert mcp_server.seen == [], "nobody's secret was used"
    rejected = await refused(service.user().ListConnectionTools(listing(wrong)))

    assert (foreign.reason, other_tenant.reason) == ("NOT_OWNER", "NOT_FOUND")
    assert rejected.reason == "CREDENTIAL_REJECTED"
    assert "CANARY" not in rejected.message + rejected.trailers
    records = (await service.user().ListAccessRecords(messages.ListAccessRecordsRequest())).records
    refusals = [(r.action, r.reason) for r in records if r.reason]
    action = access_record_pb2.ACCESS_ACTION_LIST_TOOLS
    assert refusals == [(action, "CREDENTIAL_REJECTED"), (action, "NOT_OWNER")]


async def test_other_connections_have_no_tools(service: Service) -> None:
    request = messages.CreateConnectionRequest(
        request_id=new_id(),
        provider="api_key",
        secret=credential_pb2.ConnectionSecret(api_key=credential_pb2.ApiKeySecret(key="k")),
    )
    request.settings["allowed_origins"] = ["https://api.example.com"]
    made = (await service.user().CreateConnection(request)).connection

    refusal = await refused(service.user().ListConnectionTools(listing(made.connection_id)))

    assert refusal.reason == "TOOLS_NOT_SUPPORTED"
