"""Tells Connections which grants have ended."""

import grpc.aio

from cogni.connections.v1 import connections_service_pb2, connections_service_pb2_grpc
from services.runtime.channels import acting_for
from services.runtime.outbox import Entry

SAFE_METHODS = ("/cogni.connections.v1.ConnectionsService/RevokeLeases",)


class ConnectionsClient:
    """The Executor's view of Connections. Raises PeerError when it does not answer."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._connections = connections_service_pb2_grpc.ConnectionsServiceStub(channel)

    async def revoke_leases(self, entries: list[Entry]) -> None:
        """End every lease under the grants that the outbox names; repeating it does no harm."""
        for entry in entries:
            request = connections_service_pb2.RevokeLeasesRequest(
                grant_id=entry.payload["grant_id"], comment="The grant was revoked."
            )
            with acting_for(entry.tenant_id):
                await self._connections.RevokeLeases(request)
