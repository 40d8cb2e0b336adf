"""Asks Connections who may grant what, and tells it which grants have ended."""

import grpc.aio

from cogni.connections.v1 import connections_service_pb2, connections_service_pb2_grpc
from services.runtime.channels import acting_for
from services.runtime.outbox import Entry

SAFE_METHODS = (
    "/cogni.connections.v1.ConnectionsService/RevokeLeases",
    "/cogni.connections.v1.ConnectionsService/GetConnection",
)


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
