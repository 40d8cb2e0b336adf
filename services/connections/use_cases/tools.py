"""Lists the tools of an MCP server, for those who may grant them; each look is recorded."""

from __future__ import annotations

from dataclasses import replace

from cogni.mcp.definition import ToolDefinition, is_mcp
from services.connections.access_log import Action, Decision
from services.connections.callers import entry_by
from services.connections.connection import Connection, check_may_grant, check_usable
from services.connections.providers.catalogue import Catalogue
from services.connections.providers.failures import ProviderError
from services.connections.providers.http import Http
from services.connections.providers.mcp import list_tools
from services.connections.store import access_log, connections, credentials
from services.connections.store.credentials import StoredCredentials
from services.connections.use_cases.sealed import Vault
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import ErrorKind, ServiceError, not_found


class Tools:
    """ListConnectionTools."""

    def __init__(self, database: Database, vault: Vault, catalogue: Catalogue, http: Http) -> None:
        self._database = database
        self._vault = vault
        self._catalogue = catalogue
        self._http = http

    async def of(self, caller: Caller, connection_id: str) -> tuple[str, list[ToolDefinition]]:
        """The connection's provider and its server's tools. Raises ServiceError."""
        async with self._database.tenant(caller.tenant_id) as tx:
            connection = await connections.get(tx, caller.tenant_id, connection_id)
            if connection is None:
                raise not_found("connection", connection_id)
            stored = await credentials.get(tx, caller.tenant_id, connection_id)
        try:
            tools = await self._ask(caller, connection, stored)
        except ServiceError as refusal:
            await self._record(caller, connection, refusal)
            raise
        await self._record(caller, connection, None)
        return connection.provider, tools

    async def _ask(
        self, caller: Caller, connection: Connection, stored: StoredCredentials
    ) -> list[ToolDefinition]:
        check_may_grant(connection, caller.owner, caller.scopes)
        check_usable(connection)
        if not is_mcp(connection.provider):
            raise ServiceError(
                ErrorKind.FAILED_PRECONDITION,
                "TOOLS_NOT_SUPPORTED",
                "Only connections to MCP servers have tools of their own.",
                metadata={"id": connection.connection_id},
            )
        provider = self._catalogue.get(connection.provider)
        settings = provider.settings.model_validate(connection.settings)
        # Outside any transaction: a server may take its time.
        material = await self._vault.material(settings, stored)
        try:
            return await list_tools(material, self._http, stored.now)
        except ProviderError as failure:
            raise failure.to_service_error() from failure

    async def _record(
        self, caller: Caller, connection: Connection, refusal: ServiceError | None
    ) -> None:
        decision = Decision.ALLOWED
        if refusal is not None:
            denied = refusal.kind is ErrorKind.PERMISSION_DENIED
            decision = Decision.DENIED if denied else Decision.FAILED
        entry = replace(
            entry_by(caller, Action.LIST_TOOLS, decision),
            connection_id=connection.connection_id,
            provider=connection.provider,
            reason=refusal.reason if refusal else "",
        )
        async with self._database.tenant(caller.tenant_id) as tx:
            await access_log.record(tx, caller.tenant_id, entry)
