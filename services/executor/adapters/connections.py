"""Asks Connections who may grant what, and tells it which grants have ended."""

import grpc.aio

from cogni.connections.v1 import connections_service_pb2, connections_service_pb2_grpc
from cogni.mcp.definition import is_mcp
from services.executor.grants import McpServer, McpTool
from services.runtime.channels import acting_for
from services.runtime.jsonvalues import from_struct
from services.runtime.outbox import Entry

SAFE_METHODS = (
    "/cogni.connections.v1.ConnectionsService/RevokeLeases",
    "/cogni.connections.v1.ConnectionsService/GetConnection",
    "/cogni.connections.v1.ConnectionsService/ListConnectionTools",
)
#: Longer than Connections itself waits for an MCP server.
_LIST_SECONDS = 25.0


class ConnectionsClient:
    """The Executor's view of Connections. Raises PeerError when it does not answer."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._connections = connections_service_pb2_grpc.ConnectionsServiceStub(channel)

    async def revoke_leases(self, tenant_id: str, grant_id: str) -> None:
        """End every lease under the grant, for good; repeating it does no harm."""
        request = connections_service_pb2.RevokeLeasesRequest(
            grant_id=grant_id, comment="The grant was revoked."
        )
        with acting_for(tenant_id):
            await self._connections.RevokeLeases(request)

    async def revoke_owed(self, entries: list[Entry]) -> None:
        """Do so for the grants that the outbox names."""
        for entry in entries:
            await self.revoke_leases(entry.tenant_id, entry.payload["grant_id"])

    async def may_grant(self, tenant_id: str, subject: str, connection_id: str) -> bool:
        """Whether the subject owns the connection or has its owner's consent."""
        request = connections_service_pb2.GetConnectionRequest(connection_id=connection_id)
        with acting_for(tenant_id, subject):
            response = await self._connections.GetConnection(request)
        return response.connection.caller_may_grant

    async def mcp_tools(self, tenant_id: str, subject: str, connection_id: str) -> McpServer | None:
        """The tools of the connection's MCP server; None when it is to something else."""
        request = connections_service_pb2.GetConnectionRequest(connection_id=connection_id)
        with acting_for(tenant_id, subject):
            provider = (await self._connections.GetConnection(request)).connection.provider
            if not is_mcp(provider):
                return None
            listed = await self._connections.ListConnectionTools(
                connections_service_pb2.ListConnectionToolsRequest(connection_id=connection_id),
                timeout=_LIST_SECONDS,
            )
        tools = {
            each.tool: McpTool(
                connection_id=connection_id,
                provider=provider,
                name=each.name,
                digest=each.digest,
                description=each.description,
                input_schema=from_struct(each.input_schema),
            )
            for each in listed.tools
        }
        return McpServer(provider, tools)
