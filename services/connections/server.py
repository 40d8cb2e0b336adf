"""The gRPC servicer: translates and delegates, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from cogni.connections.v1 import connections_service_pb2 as messages
from cogni.connections.v1 import connections_service_pb2_grpc as stubs
from services.connections import convert
from services.connections.providers.catalogue import Catalogue
from services.connections.use_cases.access_records import list_records
from services.connections.use_cases.authorizations import Authorizations
from services.connections.use_cases.changes import Changes
from services.connections.use_cases.checkups import Checkups
from services.connections.use_cases.connections import Connections
from services.connections.use_cases.installations import Installations
from services.connections.use_cases.key_rotation import KeyRotations
from services.connections.use_cases.leases import Leases
from services.connections.use_cases.tools import Tools
from services.connections.use_cases.watching import Watched, Watching
from services.runtime.caller import current_caller
from services.runtime.database import Database
from services.runtime.drain import stream_drained
from services.runtime.jsonvalues import from_struct
from services.runtime.paging import decode_page_token, encode_page_token, page_limit


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the RPCs delegate to."""

    database: Database
    catalogue: Catalogue
    connections: Connections
    authorizations: Authorizations
    changes: Changes
    checkups: Checkups
    installations: Installations
    leases: Leases
    key_rotations: KeyRotations
    watching: Watching
    tools: Tools


class ConnectionsServicer(stubs.ConnectionsServiceServicer):
    """cogni.connections.v1.ConnectionsService."""

    def __init__(self, parts: UseCases) -> None:
        self._do = parts

    async def ListProviders(
        self, request: messages.ListProvidersRequest, context: Any
    ) -> messages.ListProvidersResponse:
        """Say what can be connected to."""
        bound_to = ["ListProviders"]
        key = decode_page_token(request.page_token, bound_to=bound_to)
        size = page_limit(request.page_size)
        rest = [each for each in self._do.catalogue.all() if not key or each.id > key[0]]
        more = len(rest) > size
        return messages.ListProvidersResponse(
            providers=[convert.provider_message(each) for each in rest[:size]],
            next_page_token=encode_page_token([rest[size - 1].id], bound_to=bound_to)
            if more
            else "",
        )

    async def CreateConnection(
        self, request: messages.CreateConnectionRequest, context: Any
    ) -> messages.CreateConnectionResponse:
        """Connect."""
        caller = current_caller()
        created = await self._do.connections.create(caller, convert.create_wanted(request))
        return messages.CreateConnectionResponse(
            connection=convert.connection_message(created, caller.owner)
        )

    async def GetConnection(
        self, request: messages.GetConnectionRequest, context: Any
    ) -> messages.GetConnectionResponse:
        """Read one connection."""
        caller = current_caller()
        found = await self._do.connections.get(caller, request.connection_id)
        return messages.GetConnectionResponse(
            connection=convert.connection_message(found, caller.owner)
        )

    async def ListConnections(
        self, request: messages.ListConnectionsRequest, context: Any
    ) -> messages.ListConnectionsResponse:
        """Read a page of connections."""
        caller = current_caller()
        page, next_page_token = await self._do.connections.list(
            caller,
            convert.connection_filter(request, caller.owner),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return messages.ListConnectionsResponse(
            connections=[convert.connection_message(each, caller.owner) for each in page],
            next_page_token=next_page_token,
        )

    async def UpdateConnection(
        self, request: messages.UpdateConnectionRequest, context: Any
    ) -> messages.UpdateConnectionResponse:
        """Change a connection."""
        caller = current_caller()
        changed = await self._do.changes.update(caller, convert.update_wanted(request))
        return messages.UpdateConnectionResponse(
            connection=convert.connection_message(changed, caller.owner)
        )

    async def TestConnection(
        self, request: messages.TestConnectionRequest, context: Any
    ) -> messages.TestConnectionResponse:
        """Try a connection out."""
        caller = current_caller()
        checkup = await self._do.checkups.test(
            caller, request.connection_id, tuple(request.required_scopes)
        )
        return messages.TestConnectionResponse(
            passed=checkup.passed,
            checks=[convert.check_message(check) for check in checkup.checks],
            missing_scopes=checkup.missing_scopes,
            unknown_scopes=checkup.unknown_scopes,
            connection=convert.connection_message(checkup.connection, caller.owner),
        )

    async def ListConnectionTools(
        self, request: messages.ListConnectionToolsRequest, context: Any
    ) -> messages.ListConnectionToolsResponse:
        """Say which tools an MCP server has."""
        provider, tools = await self._do.tools.of(current_caller(), request.connection_id)
        return messages.ListConnectionToolsResponse(
            tools=[convert.tool_message(provider, each) for each in tools]
        )

    async def ListInstallations(
        self, request: messages.ListInstallationsRequest, context: Any
    ) -> messages.ListInstallationsResponse:
        """Say where an app is installed."""
        page, next_page_token = await self._do.installations.list(
            current_caller(),
            request.provider or "github_app",
            from_struct(request.settings),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return messages.ListInstallationsResponse(
            installations=[convert.installation_message(each) for each in page],
            next_page_token=next_page_token,
        )

    async def RefreshConnection(
        self, request: messages.RefreshConnectionRequest, context: Any
    ) -> messages.RefreshConnectionResponse:
        """Renew the credential at the provider."""
        caller = current_caller()
        connection, refreshed = await self._do.checkups.refresh(
            caller, request.connection_id, force=request.force
        )
        return messages.RefreshConnectionResponse(
            connection=convert.connection_message(connection, caller.owner), refreshed=refreshed
        )

    async def BeginAuthorization(
        self, request: messages.BeginAuthorizationRequest, context: Any
    ) -> messages.BeginAuthorizationResponse:
        """Start connecting through a provider's page."""
        begun = await self._do.authorizations.begin(current_caller(), convert.begin_wanted(request))
        return messages.BeginAuthorizationResponse(
            authorization_id=begun.authorization_id,
            authorization_url=begun.url,
            expire_time=convert.to_time(begun.expire_time),
        )

    async def CompleteAuthorization(
        self, request: messages.CompleteAuthorizationRequest, context: Any
    ) -> messages.CompleteAuthorizationResponse:
        """Finish with what the provider sent back."""
        caller = current_caller()
        made = await self._do.authorizations.complete(
            caller, request.state, request.issuer, code=request.code, error=request.error
        )
        return messages.CompleteAuthorizationResponse(
            connection=convert.connection_message(made, caller.owner)
        )

    async def RotateKeys(
        self, request: messages.RotateKeysRequest, context: Any
    ) -> messages.RotateKeysResponse:
        """Begin a key rotation."""
        begun = await self._do.key_rotations.begin(
            current_caller(), request.request_id, request.key_id
        )
        return messages.RotateKeysResponse(rotation=convert.rotation_message(begun))

    async def GetKeyRotation(
        self, request: messages.GetKeyRotationRequest, context: Any
    ) -> messages.GetKeyRotationResponse:
        """Say how far a key rotation is."""
        found = await self._do.key_rotations.get(current_caller(), request.rotation_id)
        return messages.GetKeyRotationResponse(rotation=convert.rotation_message(found))

    async def WatchConnections(
        self, request: messages.WatchConnectionsRequest, context: Any
    ) -> AsyncIterator[messages.WatchConnectionsResponse]:
        """Stream connections as they change."""
        caller = current_caller()
        watched = Watched(request.provider, frozenset(request.connection_ids))
        async for batch in self._do.watching.watch(caller, watched, request.cursor):
            yield messages.WatchConnectionsResponse(
                changes=[convert.change_message(each, caller.owner) for each in batch.changes],
                cursor=batch.cursor,
                resume=batch.resume,
            )
        raise stream_drained()

    async def DeleteConnection(
        self, request: messages.DeleteConnectionRequest, context: Any
    ) -> messages.DeleteConnectionResponse:
        """Delete for good."""
        ended = await self._do.connections.delete(
            current_caller(),
            request.connection_id,
            etag=request.etag,
            allow_missing=request.allow_missing,
        )
        return messages.DeleteConnectionResponse(revoked_lease_count=ended)

    async def LeaseCredential(
        self, request: messages.LeaseCredentialRequest, context: Any
    ) -> messages.LeaseCredentialResponse:
        """Lease a credential to one invocation."""
        lease = await self._do.leases.lease(current_caller(), convert.lease_wanted(request))
        return convert.lease_message(lease)

    async def RevokeLeases(
        self, request: messages.RevokeLeasesRequest, context: Any
    ) -> messages.RevokeLeasesResponse:
        """End leases."""
        count = await self._do.leases.revoke(
            current_caller(), convert.revoke_target(request), request.comment
        )
        return messages.RevokeLeasesResponse(revoked_lease_count=count)

    async def ListAccessRecords(
        self, request: messages.ListAccessRecordsRequest, context: Any
    ) -> messages.ListAccessRecordsResponse:
        """Read a page of the access log."""
        page, next_page_token, head = await list_records(
            self._do.database,
            current_caller(),
            convert.record_filter(request),
            oldest_first=request.oldest_first,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return messages.ListAccessRecordsResponse(
            records=[convert.record_message(each) for each in page],
            next_page_token=next_page_token,
            head=convert.head_message(head),
        )
